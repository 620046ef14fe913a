#!/usr/bin/env bash
# The images' build steps in a clean Debian, and what comes of them started as a container would start it, where there
# is no Docker: debootstrap makes the root, docker/build.sh builds in it, and the result runs read-only, as a user who
# is not root, without capabilities. Then it is asked after its health and for an image, and told to leave.
#
#   docker/clean-root.sh [--target server|server-cuda|trainer] [--toolchain DIR] [--ca FILE] [--port N] WORK
#
#   WORK             a folder with some 5 GB of room (15 for the trainer); it stays, and is yours to remove
#   --toolchain DIR  the Rust toolchain, bound into the root (default: what rustc is on PATH); images have the one of
#                    the Rust image
#   --ca FILE        certificates to believe, where a proxy stands between here and the world
#   --port N         where the server listens meanwhile (default 18080)
#
# Needs root, debootstrap, util-linux and the network. Not part of `cargo xtask ci`: it takes a quarter of an hour.
set -euo pipefail

die() { echo "docker/clean-root.sh: $*" >&2; exit 1; }
say() { echo "--- $*"; }

# The release that the Rust image of the Dockerfile stands on.
suite=bookworm
target=server toolchain='' ca='' port=18080 work='' inside=''
while [ $# -gt 0 ]; do
    case $1 in
        --target) target=$2; shift 2 ;;
        --toolchain) toolchain=$2; shift 2 ;;
        --ca) ca=$2; shift 2 ;;
        --port) port=$2; shift 2 ;;
        --inside) inside=yes; shift ;;
        -*) die "\`$1\` is no option; the head of this file lists them" ;;
        *) [ -z "$work" ] || die "one folder, please: $work or $1"; work=$1; shift ;;
    esac
done
[ -n "$work" ] || die "expected a folder to work in"
[ "$(id -u)" = 0 ] || die "needs root, to make a root"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$work"
work=$(cd "$work" && pwd)
root=$work/root

# --- outside: make the root ------------------------------------------------------------------------------------------

if [ -z "$inside" ]; then
    [ -n "$toolchain" ] || toolchain=$(rustc --print sysroot) || die "no rustc on PATH; name a toolchain by --toolchain"
    [ -x "$toolchain/bin/cargo" ] || die "no bin/cargo in the toolchain $toolchain"
    command -v debootstrap > /dev/null || die "no debootstrap here: apt-get install debootstrap"
    if [ ! -e "$work/.debootstrapped" ]; then
        rm -rf "$root"
        say "a clean Debian ($suite) in $root"
        # The tools that the Rust image has, and the two that the Dockerfile adds.
        debootstrap --variant=minbase --include=ca-certificates,gcc,g++,libc6-dev,python3,python3-pip "$suite" "$root" > "$work/debootstrap.log" \
            || { tail -5 "$work/debootstrap.log" >&2; die "debootstrap failed; see $work/debootstrap.log"; }
        touch "$work/.debootstrapped"
    fi
    say "the tracked files of $here into it"
    rm -rf "$root/src" "$root/out"
    mkdir -p "$root/src" "$root/opt/rust"
    git -C "$here" ls-files -z | tar -C "$here" --null --files-from=- --create --file=- | tar -C "$root/src" --extract --file=-
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    [ -z "$ca" ] || cp -L "$ca" "$root/etc/ssl/certs/ca-certificates.crt"
    # What is mounted and started from here on is gone when this ends.
    exec unshare --mount --pid --fork --kill-child --mount-proc \
        "${BASH_SOURCE[0]}" --inside --target "$target" --toolchain "$toolchain" --port "$port" "$work"
fi

# --- inside: build ---------------------------------------------------------------------------------------------------

mount --bind "$toolchain" "$root/opt/rust"
mount -o remount,bind,ro "$root/opt/rust"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
say "docker/build.sh $target"
chroot "$root" /usr/bin/env -i HOME=/root PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /src/docker/build.sh "$target" /out

# --- and start what was built ----------------------------------------------------------------------------------------

image=$work/image
mkdir -p "$image"
mount --bind "$root/out" "$image"
mount -t proc proc "$image/proc"
mount -o remount,bind,ro "$image"
findmnt --noheadings --output OPTIONS --mountpoint "$image" | grep -qE '(^|,)ro(,|$)' || die "$image is not read-only"
# A program in the image, as the Dockerfile starts it.
in_image=(env -i WINDOWPANE_HOST=127.0.0.1 WINDOWPANE_PORT="$port" WINDOWPANE_MODELS=/models WINDOWPANE_LOG_FORMAT=json
    ORT_DYLIB_PATH=/usr/local/lib/windowpane/libonnxruntime.so
    setpriv --no-new-privs --clear-groups unshare --root="$image" --wd=/ --setgid=65532 --setuid=65532)

if [ "$target" = trainer ]; then
    "${in_image[@]}" /usr/local/bin/windowpane-trainer --help
    say "the trainer runs in its image"
    exit 0
fi
[ "$target" != server ] || grep -q 'BEGIN CERTIFICATE' "$image/etc/ssl/certs/ca-certificates.crt" || die "the image trusts nobody"
[ "$target" = server ] || { say "$target is built; it starts on NVIDIA's image only"; exit 0; }

say "the server, read-only, as 65532, in $image"
"${in_image[@]}" /usr/local/bin/windowpane 2> "$work/server.log" &
server=$!
for ((i = 0; ; i++)); do
    ! "${in_image[@]}" /usr/local/bin/windowpane health --ready 2> "$work/health.log" || break
    kill -0 "$server" 2> /dev/null || { tail -5 "$work/server.log" >&2; die "the server has ended"; }
    [ "$i" -lt 240 ] || { cat "$work/health.log" >&2; die "the server is not ready after two minutes"; }
    sleep 0.5
done
"${in_image[@]}" /usr/local/bin/windowpane health || die "it is ready, and not alive"
for fact in 'Uid:\s65532\s65532\s65532\s65532' 'Gid:\s65532\s65532\s65532\s65532' 'CapEff:\s0000000000000000' 'NoNewPrivs:\s1'; do
    grep -qP "^$fact" "/proc/$server/status" || die "the process is not what it should be: $(grep -P "^${fact%%:*}" "/proc/$server/status")"
done
chroot "$root" python3 - "$port" << 'PYTHON'
import json, struct, sys, urllib.request, zlib

url = f"http://127.0.0.1:{sys.argv[1]}"
body = json.dumps({"model": "fashion-dit", "prompt": "sneaker", "seed": 7}).encode()
headers = {"accept": "image/png", "content-type": "application/json"}
png = urllib.request.urlopen(urllib.request.Request(url + "/v1/images/generations", body, headers), timeout=120).read()
assert png[:8] == b"\x89PNG\r\n\x1a\n", png[:64]
width, height = struct.unpack(">II", png[16:24])
data, at = b"", 8
while at < len(png):
    (length,) = struct.unpack(">I", png[at : at + 4])
    if png[at + 4 : at + 8] == b"IDAT":
        data += png[at + 8 : at + 8 + length]
    at += 12 + length
pixels = zlib.decompress(data)
assert len(set(pixels)) > 16, "the picture is empty"
print(f"an image of {width}x{height} pixels, {len(png)} bytes, {len(set(pixels))} different values")
metrics = urllib.request.urlopen(url + "/metrics").read().decode()
(memory,) = (line for line in metrics.splitlines() if line.startswith("process_resident_memory_bytes "))
print(memory)
PYTHON
kill -TERM "$server"
code=0
wait "$server" || code=$?
[ "$code" = 0 ] || die "told to leave, the server ended with $code"
say "asked after its health, drew an image, left when told: $(du -sh "$root/out" | cut -f1) of image"
