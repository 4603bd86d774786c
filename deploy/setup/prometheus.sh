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
    command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 ||
        fail "there is no prometheus and promtool on the PATH and no apt to fetch them; install Prometheus 2.42 or newer."
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    # apt reads packages as the user _apt where it runs as root.
    chmod 755 "$work"
    echo "prometheus.sh: fetching Debian's package prometheus" >&2
    (cd "$work" && apt-get download -q prometheus >fetch.log 2>&1) ||
        fail "apt could not fetch the package prometheus: $(tail -n 2 "$work/fetch.log"). Its lists may be missing or old (apt-get update)."
    dpkg -x "$work"/prometheus_*.deb "$work/unpacked" || fail "the package can't be unpacked"
    mv "$work/unpacked/usr/bin/prometheus" "$work/unpacked/usr/bin/promtool" "$target/" ||
        fail "the package holds no usr/bin/prometheus and usr/bin/promtool"
fi
works || fail "what is in $target does not run on this machine: $("$target/prometheus" --version 2>&1 | head -n 2)"
echo "$target"
