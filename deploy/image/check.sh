#!/bin/sh
# Checks the programs that build.sh made, as the image will have them, without any container engine.
#
#   deploy/image/check.sh amd64 [arm64 …]
#
# Architecture, libraries and symbols are held against the base image (libc6 of Debian 12 and nothing else), the size
# against what the image may have. On amd64 the program runs as user 65532 in a root that holds what the base image holds
# (unpacked Debian packages), mounted read-only: version, a server that gets healthy, an orderly end. An arm64 program is
# run under qemu if Debian has it; nothing else is.
#
# Environment: PROGRAM (warmroute), OUT (target/image), TOOLS_DIR (target/tools).
set -eu

glibc=2.36
# 50 MB for the whole image; the packages of the base image take 15.
base_bytes=15000000
image_bytes=50000000

root="$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)"
out="${OUT:-$root/target/image}"
program="${PROGRAM:-warmroute}"
packages="${TOOLS_DIR:-$root/target/tools}/image-packages"

say() {
    echo "check.sh: $1"
}

fail() {
    echo "check.sh: $1" >&2
    exit 1
}

# package NAME: where it is unpacked; its files come from Debian, and need not be installed
package() {
    if [ ! -d "$packages/$1" ]; then
        mkdir -p "$packages"
        "$root/deploy/setup/debian-package.sh" "$1" "$packages/$1.new" || return 1
        mv "$packages/$1.new" "$packages/$1"
    fi
    echo "$packages/$1"
}

check_file() {
    file="$out/linux-$1/$program"
    [ -x "$file" ] || fail "there is no $file: run deploy/image/build.sh build $1"
    case "$1" in
    amd64) machine='X86-64' ;;
    arm64) machine='AArch64' ;;
    *) fail "unknown architecture $1" ;;
    esac
    readelf -h "$file" | grep -q "Machine:.*$machine" || fail "$file isn't built for $1"
    for library in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        case "$library" in
        libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | ld-linux-x86-64.so.2 | ld-linux-aarch64.so.1) ;;
        *) fail "$file needs $library, which the base image doesn't have" ;;
        esac
    done
    newest="$(readelf -W --dyn-syms "$file" | sed -n 's/.*@GLIBC_\([0-9.]*\).*/\1/p' | sort -uV | tail -n 1)"
    [ "$(printf '%s\n%s\n' "$newest" "$glibc" | sort -V | tail -n 1)" = "$glibc" ] ||
        fail "$file needs glibc $newest, and the base image has $glibc"
    size="$(wc -c <"$file")"
    [ $((size + base_bytes)) -lt "$image_bytes" ] ||
        fail "$file has $size bytes; with the base image's $base_bytes that is more than $image_bytes"
    say "$1: $((size / 1000)) kB, glibc $newest, needs $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')"
}

# What distroless/base-nossl has: the C library, certificates, time zones, users.
base_root() {
    base="$out/root"
    rm -rf "$base"
    mkdir -p "$base/tmp" "$base/proc" "$base/etc/ssl/certs" "$base/home/nonroot" "$base/usr/local/bin"
    for name in libc6 tzdata netbase ca-certificates; do
        folder="$(package "$name")" || fail "$name can't be had"
        cp -a "$folder/." "$base/"
    done
    rm -rf "$base/usr/share/doc" "$base/usr/share/lintian"
    cat "$base"/usr/share/ca-certificates/mozilla/*.crt >"$base/etc/ssl/certs/ca-certificates.crt"
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >"$base/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$base/etc/group"
    chmod 1777 "$base/tmp"
    # Packages' folders may be closed to others.
    chmod -R a+rX "$base"
}

# run_in_base ARGUMENTS: the program in that root, read-only, as 65532 where we may become that.
run_in_base() {
    if [ "$(id -u)" -eq 0 ]; then
        set -- "--userspec=65532:65532" "$base" "/usr/local/bin/$program" "$@"
        flags=
    else
        set -- "$base" "/usr/local/bin/$program" "$@"
        flags=--map-root-user
    fi
    # Its own mounts, which end with it.
    # shellcheck disable=SC2086,SC2016
    exec unshare --mount $flags sh -c '
        base="$1"; shift
        mount --bind "$base" "$base" && mount --rbind /proc "$base/proc" && mount -o remount,bind,ro "$base" || exit 125
        ! touch "$base/tmp/written" 2>/dev/null || exit 125
        exec chroot "$@"' sh "$base" "$@"
}

check_running() {
    base_root
    cp "$out/linux-amd64/$program" "$base/usr/local/bin/$program"
    chmod 755 "$base/usr/local/bin/$program"
    bytes="$(du -s --apparent-size -B1 "$base" | cut -f 1)"
    [ "$bytes" -lt "$image_bytes" ] || fail "program and base take $bytes bytes, more than $image_bytes"
    say "amd64: program and base take $((bytes / 1000)) kB"
    say "amd64: $(run_in_base --version) runs in a read-only root"
    # Free ports would be better known to the kernel; these are rarely taken.
    port=$((20000 + $$ % 10000))
    log="$out/run.log"
    (run_in_base --bind-address=127.0.0.1 --grpc-port="$port" --grpc-health-port=$((port + 1)) \
        --metrics-port=$((port + 2)) --endpoints=127.0.0.1:$((port + 3)) --drain-timeout=0s) >"$log" 2>&1 &
    running=$!
    trap 'kill "$running" 2>/dev/null || true' EXIT
    tries=0
    until curl --silent --fail "http://127.0.0.1:$((port + 2))/healthz" >/dev/null; do
        kill -0 "$running" 2>/dev/null || fail "the server ended: $(tail -n 5 "$log")"
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "the server isn't healthy after 30 s: $(tail -n 5 "$log")"
        sleep 0.1
    done
    if [ "$(id -u)" -eq 0 ]; then
        users="$(awk '/^Uid:/ { print $2, $3, $4, $5 }' "/proc/$running/status")"
        [ "$users" = "65532 65532 65532 65532" ] || fail "the server runs as $users instead of 65532"
    fi
    resident="$(curl --silent "http://127.0.0.1:$((port + 2))/metrics" | awk '$1 == "process_resident_memory_bytes" { print $2 }')"
    kill "$running"
    status=0
    wait "$running" || status=$?
    trap - EXIT
    [ "$status" -eq 0 ] || fail "the server ended with $status on SIGTERM: $(tail -n 5 "$log")"
    say "amd64: serves as a user of its own, $((resident / 1000000)) MB resident, ends with 0 on SIGTERM"
}

check_emulated() {
    if ! emulator="$(package qemu-user-static)" || ! library="$(package libc6-arm64-cross)"; then
        say "arm64: not run, since Debian's qemu-user-static and libc6-arm64-cross can't be had"
        return
    fi
    said="$("$emulator/usr/bin/qemu-aarch64-static" -L "$library/usr/aarch64-linux-gnu" "$out/linux-arm64/$program" --version)" ||
        fail "the arm64 program doesn't run under qemu"
    say "arm64: $said runs under qemu"
}

[ $# -gt 0 ] || fail "name the architectures: amd64, arm64"
for architecture in "$@"; do
    check_file "$architecture"
    case "$architecture" in
    amd64) [ "$(uname -m)" = x86_64 ] && check_running ;;
    arm64) check_emulated ;;
    esac
done
