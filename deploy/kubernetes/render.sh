#!/bin/sh
# Renders the manifests beside it from the chart, for those who don't use helm.
#
#   deploy/kubernetes/render.sh            # writes them
#   deploy/kubernetes/render.sh --check    # says which of them aren't what the chart renders
#
# Each is a file of charts/warmroute/ci under the same name. HELM names the helm to use; without it target/tools/helm
# is looked for (deploy/setup/kube.sh puts it there), then the PATH.
set -eu

kube_version=1.34.0
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
folder="$root/deploy/kubernetes"
manifests="istio istio-envoyfilter agentgateway kgateway-2.1 gke standalone-sidecar standalone-service"

helm="${HELM:-}"
if [ -z "$helm" ]; then
    helm="$root/target/tools/helm/helm"
    [ -x "$helm" ] || helm=helm
fi
"$helm" version >/dev/null 2>&1 || {
    echo "render.sh: no helm: run deploy/setup/kube.sh, or name one by HELM=/path/to/helm" >&2
    exit 1
}

# rendered NAME: the manifest, without what only helm makes use of
rendered() {
    values="$root/charts/warmroute/ci/$1.yaml"
    sed -n '/^#/!q; p' "$values"
    echo "#"
    echo "# Rendered from charts/warmroute/ci/$1.yaml by \`make manifests\`. Before you apply it: namespace (inference),"
    echo "# image (warmroute:…), and the labels of your engines (app: vllm)."
    "$helm" template warmroute "$root/charts/warmroute" --namespace inference --kube-version "$kube_version" --values "$values" |
        sed -e '/^# Source:/d' -e '/helm\.sh\/chart:/d' -e '/managed-by: Helm$/d'
}

fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
stale=
for name in $manifests; do
    rendered "$name" >"$fresh/$name.yaml"
    if [ "${1:-}" != --check ]; then
        cp "$fresh/$name.yaml" "$folder/$name.yaml"
    elif ! cmp -s "$fresh/$name.yaml" "$folder/$name.yaml"; then
        stale="$stale deploy/kubernetes/$name.yaml"
    fi
done
[ -z "$stale" ] || {
    echo "render.sh: not what the chart renders:$stale. Run make manifests." >&2
    exit 1
}
