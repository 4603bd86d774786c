#!/bin/sh
# The steps by which the image's programs are built: the Dockerfile runs them, and CI runs them outside of any container.
#
#   deploy/image/build.sh tools                   # the cross linker, into target/tools/zig; prints its folder
#   deploy/image/build.sh skeleton DIRECTORY      # manifests and empty sources: what dependencies are built from
#   deploy/image/build.sh build amd64 [arm64 …]   # target/image/linux-<arch>/warmroute
#
# Rust's own cross compilation needs a linker and a C compiler for the other architecture; Zig's is both, for every
# architecture and with any version of glibc. So nothing is emulated, the programs run on the glibc that is named below
# whatever the machine has that builds them, and amd64 is built on arm64 as well as the other way round.
#
# Environment: PROFILE (release), PROGRAM (warmroute: a package and its binary), MANIFEST (Cargo.toml), OUT (target/image),
# CARGO_TARGET_DIR, TOOLS_DIR (target/tools).
set -eu

# Debian 12's, which distroless' *-debian12 images have.
glibc=2.36
zigbuild_version=0.24.0
zig_version=0.17.0

root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
tools="${TOOLS_DIR:-$root/target/tools}/zig"
profile="${PROFILE:-release}"
program="${PROGRAM:-warmroute}"
manifest="${MANIFEST:-Cargo.toml}"
out="${OUT:-$root/target/image}"
target_dir="${CARGO_TARGET_DIR:-$root/target}"
python="${PYTHON:-python3}"

fail() {
    echo "build.sh: $1" >&2
    exit 1
}

triple_of() {
    case "$1" in
    amd64) echo x86_64-unknown-linux-gnu ;;
    arm64) echo aarch64-unknown-linux-gnu ;;
    *) fail "there is no image for the architecture \"$1\"; there are amd64 and arm64" ;;
    esac
}

# Both come as wheels from PyPI for Linux on amd64 and arm64.
fetch_tools() {
    wanted="cargo-zigbuild $zigbuild_version, ziglang $zig_version"
    if [ -f "$tools/.version" ] && [ "$(cat "$tools/.version")" = "$wanted" ]; then
        return
    fi
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "$python has no pip (Debian: apt-get install python3-pip; others: $python -m ensurepip)"
    echo "build.sh: installing $wanted from PyPI into $tools" >&2
    rm -rf "$tools"
    mkdir -p "$tools" || fail "can't create $tools"
    # --target keeps them out of the system's and the user's Python packages.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$tools" \
        "cargo-zigbuild==$zigbuild_version" "ziglang==$zig_version" >&2 ||
        fail "pip could not install $wanted; behind a proxy or a mirror set PIP_INDEX_URL"
    "$tools/ziglang/zig" version >/dev/null || fail "Zig does not run on this machine"
    echo "$wanted" >"$tools/.version"
}

# What decides which dependencies are built and how, and nothing that changes more often. Files that are there already
# keep their times, so that nothing is built again for it.
skeleton() {
    cd "$root"
    find . \( -name target -o -name .git \) -prune -o \( -name Cargo.toml -o -name lib.rs -o -name main.rs \) -print |
        while read -r file; do
            mkdir -p "$1/$(dirname "$file")"
            case "$file" in
            *.toml) cp -p "$file" "$1/$file" ;;
            # Cargo wants each package to have a source; what it holds doesn't matter to dependencies.
            */main.rs) [ -f "$1/$file" ] || echo 'fn main() {}' >"$1/$file" ;;
            *) [ -f "$1/$file" ] || : >"$1/$file" ;;
            esac
        done
    cp -p Cargo.lock "$1/"
    if [ -f rust-toolchain.toml ]; then cp -p rust-toolchain.toml "$1/"; fi
}

# strip FROM TO: without symbols, whose names would be a fifth of the program; a panic tells its file and line without them.
# rustc brings the tool, which takes files of every architecture.
strip() {
    sysroot="$(rustc --print sysroot)"
    host="$(rustc -vV | sed -n 's/^host: //p')"
    LD_LIBRARY_PATH="$sysroot/lib" "$sysroot/lib/rustlib/$host/bin/rust-objcopy" --strip-all "$1" "$2" ||
        fail "rust-objcopy, which is a part of rustc, can't strip $1"
}

build() {
    triple="$(triple_of "$1")" || exit 1
    if command -v rustup >/dev/null 2>&1; then
        rustup target add "$triple" >/dev/null 2>&1 || fail "rustup can't add the target $triple"
    fi
    # As little debugging information as the profile would be stripped of anyway.
    upper="$(echo "$profile" | tr 'a-z-' 'A-Z_')"
    export "CARGO_PROFILE_${upper}_DEBUG=0" "CARGO_PROFILE_${upper}_SPLIT_DEBUGINFO=off"
    set -- "$1" --profile "$profile" --target "$triple.$glibc" -p "$program" --bin "$program"
    if [ "$manifest" = Cargo.toml ]; then
        set -- "$@" --locked
    else
        # Another workspace has its own lock file, made of ours, and our profiles.
        set -- "$@" --manifest-path "$manifest" --config "$root/Cargo.toml"
    fi
    architecture="$1"
    shift
    # Not by the linker: what is left in the target folder keeps its names, for a debugger.
    CARGO_ZIGBUILD_ZIG_PATH="$tools/ziglang/zig" CARGO_TARGET_DIR="$target_dir" \
        "$tools/bin/cargo-zigbuild" rustc "$@" -- -C strip=none
    folder="$out/linux-$architecture"
    mkdir -p "$folder"
    strip "$target_dir/$triple/$profile/$program" "$folder/$program"
    echo "$folder/$program"
}

case "${1:-}" in
tools)
    fetch_tools
    echo "$tools"
    ;;
skeleton)
    [ -n "${2:-}" ] || fail "skeleton needs a directory"
    mkdir -p "$2"
    skeleton "$(CDPATH='' cd -- "$2" && pwd)"
    ;;
build)
    shift
    [ $# -gt 0 ] || fail "build needs an architecture: amd64, arm64"
    fetch_tools
    for architecture in "$@"; do build "$architecture"; done
    ;;
*) fail "the first argument is tools, skeleton or build" ;;
esac
