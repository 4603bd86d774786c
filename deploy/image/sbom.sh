#!/bin/sh
# Writes what is linked into the picker, as CycloneDX: target/image/warmroute.cdx.json.
#
# The list is made from the manifests and Cargo.lock by cargo-cyclonedx, OWASP's own tool, which is built once into
# target/tools.
set -eu

version=0.5.9
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}/cyclonedx"
out="${OUT:-$root/target/image}"
work="$out/sbom"

if [ ! -x "$tools/bin/cargo-cyclonedx" ] || [ "$(cat "$tools/.version" 2>/dev/null)" != "$version" ]; then
    echo "sbom.sh: building cargo-cyclonedx $version into $tools" >&2
    cargo install --locked --quiet --debug --root "$tools" --version "$version" cargo-cyclonedx
    echo "$version" >"$tools/.version"
fi
# It writes beside every manifest of a workspace, so it gets a copy of ours.
rm -rf "$work"
"$root/deploy/image/build.sh" skeleton "$work"
(cd "$work" && "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 \
    --describe binaries --target x86_64-unknown-linux-gnu --no-build-deps)
cp "$work/crates/warmroute/warmroute_bin.cdx.json" "$out/warmroute.cdx.json"
echo "$out/warmroute.cdx.json"
