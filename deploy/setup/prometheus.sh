#!/bin/sh
# Puts Prometheus and promtool where `make test-observability` looks for them, and prints the folder.
#
#   deploy/setup/prometheus.sh            # into target/tools/prometheus
#   TOOLS_DIR=/tmp/tools deploy/setup/prometheus.sh
#
# Where both are on the PATH, those are linked. Else they come from Debian's (Ubuntu's) package `prometheus`, fetched by
# apt and unpacked without being installed, so that no root is needed. Running it again does nothing.
set -eu

root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}"
target="$tools/prometheus"

fail() {
    echo "prometheus.sh: $1" >&2
    exit 1
}

works() {
    "$target/prometheus" --version >/dev/null 2>&1 && "$target/promtool" --version >/dev/null 2>&1
}

if works; then
    echo "$target"
    exit 0
fi

rm -rf "$target"
mkdir -p "$target" || fail "can't create $target"
if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; then
    ln -s "$(command -v prometheus)" "$target/prometheus"
    ln -s "$(command -v promtool)" "$target/promtool"
else
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    echo "prometheus.sh: fetching Debian's package prometheus" >&2
    "$root/deploy/setup/debian-package.sh" prometheus "$work/unpacked" ||
        fail "without that package, have Prometheus 2.42 or newer with promtool on the PATH."
    mv "$work/unpacked/usr/bin/prometheus" "$work/unpacked/usr/bin/promtool" "$target/" ||
        fail "the package holds no usr/bin/prometheus and usr/bin/promtool"
fi
works || fail "what is in $target does not run on this machine: $("$target/prometheus" --version 2>&1 | head -n 2)"
echo "$target"
