#!/bin/sh
# Fuzzes what reads an engine's bytes with libFuzzer, on stable Rust.
#
#   tests/fuzz/run.sh                        # every target, FUZZ_SECONDS (60) each
#   tests/fuzz/run.sh event_batch replay     # these
#   tests/fuzz/run.sh --keep                 # takes what was found and covers more into tests/fuzz/corpus
#
# What is found stays in target/fuzz/corpus, for the next run to go on from. An input that fails is left in
# target/fuzz/failures; once what it shows is repaired it belongs into tests/fuzz/corpus/<target>, which every test run
# replays. Needs a C++ compiler (CXX, c++), because libFuzzer is built from source.
set -eu

seconds="${FUZZ_SECONDS:-60}"
root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
work="${CARGO_TARGET_DIR:-$root/target}/fuzz"
host="$(rustc -vV | sed -n 's/^host: //p')"

keep=no
if [ "${1:-}" = --keep ]; then
    keep=yes
    shift
fi
[ $# -gt 0 ] || set -- zmtp_session event_batch feed_and_view replay

command -v "${CXX:-c++}" >/dev/null 2>&1 || {
    echo "run.sh: no C++ compiler, which libFuzzer is built with (Debian: apt-get install g++)" >&2
    exit 1
}

# LLVM's counters of covered code, which libFuzzer reads. `--target` keeps them out of build scripts and proc macros.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="$coverage --cfg fuzzing" "${CARGO:-cargo}" build --locked --release --target "$host" \
    --manifest-path "$root/tests/fuzz/libfuzzer/Cargo.toml" --target-dir "$work"

mkdir -p "$work/failures"
for target in "$@"; do
    export WARMROUTE_FUZZ_TARGET="$target"
    kept="$root/tests/fuzz/corpus/$target"
    found="$work/corpus/$target"
    mkdir -p "$found"
    if [ "$keep" = yes ]; then
        set -- -set_cover_merge=1 "$kept" "$found"
    else
        echo "run.sh: $target, $seconds s"
        set -- -max_total_time="$seconds" "$found" "$kept"
    fi
    "$work/$host/release/warmroute-libfuzzer" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -verbosity=1 \
        -artifact_prefix="$work/failures/$target-" "$@" 2>"$work/$target.log" || {
        cat "$work/$target.log" >&2
        echo "run.sh: $target failed; the input is in $work/failures" >&2
        exit 1
    }
    tail -n 3 "$work/$target.log"
done
