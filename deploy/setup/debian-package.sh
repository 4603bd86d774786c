#!/bin/sh
# Fetches a Debian (Ubuntu) package and unpacks it without installing it, so that no root is needed.
#
#   deploy/setup/debian-package.sh NAME DIRECTORY    # DIRECTORY then holds usr/…
#
# Where the machine has no lists of packages, or old ones that name files which are gone, it takes lists of its own.
set -eu

name="$1"
directory="$2"

fail() {
    echo "debian-package.sh: $1" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 || fail "there is no apt and dpkg to fetch $name with"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# apt reads packages as the user _apt where it runs as root.
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial"
own="-o Dir::State::lists=$work/lists -o Dir::Cache=$work"
cd "$work"
# The options are several words.
# shellcheck disable=SC2086
apt-get download -q "$name" >fetch.log 2>&1 ||
    { apt-get $own update -q >fetch.log 2>&1 && apt-get $own download -q "$name" >fetch.log 2>&1; } ||
    fail "apt could not fetch the package $name: $(tail -n 2 fetch.log)"
cd - >/dev/null
rm -rf "$directory"
mkdir -p "$directory"
dpkg -x "$work/${name}"_*.deb "$directory" || fail "the package $name can't be unpacked"
