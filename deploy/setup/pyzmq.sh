#!/bin/sh
# Puts libzmq's Python binding and msgspec where the fault tests look for them, and prints the folder.
#
#   deploy/setup/pyzmq.sh            # the versions below, into target/tools/pyzmq
#   PYZMQ_VERSION=26.4.0 TOOLS_DIR=/tmp/tools deploy/setup/pyzmq.sh
#
# vLLM and SGLang publish their KV events with these two, so the tests' publisher does too. Both come as wheels from
# PyPI (pyzmq's holds libzmq itself, nothing is built). Running it again when the versions are there does nothing.
set -eu

pyzmq_version="${PYZMQ_VERSION:-27.1.0}"
msgspec_version="${MSGSPEC_VERSION:-0.21.1}"
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}"
python="${PYTHON:-python3}"
target="$tools/pyzmq"

fail() {
    echo "pyzmq.sh: $1" >&2
    exit 1
}

# Wheels are of one Python version, so another interpreter needs others.
command -v "$python" >/dev/null 2>&1 ||
    fail "$python is not installed. The tests of lost and broken KV events run a publisher in Python: install python3 and its pip (Debian: apt-get install python3-pip)."
wanted="pyzmq $pyzmq_version, msgspec $msgspec_version, $("$python" --version 2>&1)"

if [ -f "$target/.version" ] && [ "$(cat "$target/.version")" = "$wanted" ]; then
    echo "$target"
    exit 0
fi

"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip (Debian: apt-get install python3-pip; others: $python -m ensurepip)."

echo "pyzmq.sh: installing pyzmq==$pyzmq_version and msgspec==$msgspec_version from PyPI into $target" >&2
rm -rf "$target"
mkdir -p "$target"
# --target keeps them out of the system's and the user's Python packages.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --target "$target" "pyzmq==$pyzmq_version" "msgspec==$msgspec_version" >&2 ||
    fail "pip could not install pyzmq==$pyzmq_version and msgspec==$msgspec_version. There are wheels for Python 3.10 and later on Linux and macOS; behind a proxy or a mirror set PIP_INDEX_URL."
PYTHONPATH="$target" "$python" -c 'import msgspec, zmq; zmq.Context().socket(zmq.PUB).close()' >&2 ||
    fail "what pip installed into $target does not run with $("$python" --version 2>&1); its own words stand above."
echo "$wanted" >"$target/.version"
echo "$target"
