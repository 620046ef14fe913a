#!/usr/bin/env bash
# The build steps of every image, and the only ones: from a source tree to the root file system of the image.
#
#   docker/build.sh server|server-cuda|trainer OUT
#
# Runs in the source tree, on Debian. Needs cargo, Python 3 with pip, a C compiler (for the trainer C++ too) and room
# in the user's cache folder, where `cargo xtask setup` puts ONNX Runtime and libtorch after it has compared their
# digests. What comes out in OUT is all that an image has: the program, its libraries, licences, a user who is not
# root. No shell, no package manager (what the image for CUDA stands on has both).
set -euo pipefail

die() { echo "docker/build.sh: $*" >&2; exit 1; }

[ $# -eq 2 ] || die "expected: server|server-cuda|trainer OUT"
target=$1
case $target in
    server) setup=(--no-libtorch); variable=ORT_DYLIB_PATH ;;
    server-cuda) setup=(--no-libtorch --cuda); variable=ORT_DYLIB_PATH ;;
    trainer) setup=(); variable=LIBTORCH ;;
    *) die "\`$target\` is no target; expected server, server-cuda or trainer" ;;
esac
mkdir -p "$2"
out=$(cd "$2" && pwd)
[ -z "$(ls -A "$out")" ] || die "$out is not empty"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for need in cargo python3 cc dpkg ldd; do
    command -v "$need" > /dev/null || die "no $need here"
done
binaries=${CARGO_TARGET_DIR:-target}/release

# --- libraries, pinned by digest -------------------------------------------------------------------------------------

said=$(cargo xtask setup "${setup[@]}" 2>&1 | tee /dev/stderr)
library=$(sed -n "s/^  $variable=//p" <<< "$said")
[ -e "$library" ] || die "\`cargo xtask setup\` did not say where $variable is"

# --- the program -----------------------------------------------------------------------------------------------------

lib=$out/usr/local/lib/windowpane
doc=$out/usr/local/share/doc/windowpane
install -d "$out/usr/local/bin" "$lib" "$doc"
install -m 644 LICENSE-APACHE LICENSE-MIT "$doc"
if [ "$target" = trainer ]; then
    # The linker writes the folder of libtorch into the program: it has to be the one of the image.
    export LIBTORCH=/usr/local/lib/libtorch
    [ -e "$LIBTORCH" ] || cp -r "$library" "$LIBTORCH"
    cargo build --release --locked --package windowpane-trainer --bin windowpane-trainer
    program=windowpane-trainer
    install -d "$out$LIBTORCH/lib" "$out/usr/local/share/windowpane"
    cp "$LIBTORCH"/lib/*.so* "$out$LIBTORCH/lib"
    install -m 644 "$LIBTORCH/LICENSE" "$doc/LICENSE-libtorch"
    cp -r trainer/recipes "$out/usr/local/share/windowpane/recipes"
else
    cargo build --release --locked --package windowpane-server --bin windowpane
    program=windowpane
    install -m 644 "$(dirname "$library")"/*.so* "$lib"
    ln -s "$(basename "$library")" "$lib/libonnxruntime.so"
    install -m 644 "$(dirname "$library")/LICENSE" "$doc/LICENSE-onnxruntime"
    install -d "$out/models"
    cp -r models/fashion-dit "$out/models"
fi
install -s -m 755 "$binaries/$program" "$out/usr/local/bin"
# What is in it, for whoever looks for known holes.
cargo xtask sbom "$target" > "$doc/sbom.cdx.json"

# --- what a system has beside the program ----------------------------------------------------------------------------

# The image for CUDA stands on NVIDIA's, which has a system of its own.
if [ "$target" != server-cuda ]; then
    install -d "$out/etc" "$out/usr/lib/x86_64-linux-gnu" "$out/usr/lib64" "$out/var/lib/dpkg/status.d" "$out/proc" "$out/sys" "$out/dev"
    install -d -m 1777 "$out/tmp"
    ln -s usr/lib "$out/lib"
    ln -s usr/lib64 "$out/lib64"
    echo 'hosts: files dns' > "$out/etc/nsswitch.conf"
    echo 'root:x:0:0::/:/nologin
windowpane:x:65532:65532::/nonexistent:/nologin' > "$out/etc/passwd"
    echo 'root:x:0:
windowpane:x:65532:' > "$out/etc/group"

    # Whom to trust: webhooks over https and databases over TLS ask.
    if [ "$target" = server ]; then
        install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/ca-certificates.crt"
        install -D -m 644 /usr/share/doc/ca-certificates/copyright "$out/usr/share/doc/ca-certificates/copyright"
        dpkg -s ca-certificates > "$out/var/lib/dpkg/status.d/ca-certificates"
    fi

    # The system's libraries that ours are linked against, with the licence and the record of each one's package, by
    # which scanners know what to look for.
    # A linker script is named like a library: ldd refuses it, and there is nothing to find.
    linked=$(find "$out/usr/local" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec ldd {} \; 2> /dev/null | grep -oE '/[^ ]+' | sort -u)
    for file in $linked; do
        [[ $file != "$out"* && $file != /usr/local/* ]] || continue
        folder=$out/usr/lib/x86_64-linux-gnu
        [[ $file != /lib64/* ]] || folder=$out/usr/lib64
        install -m 755 "$(readlink -f "$file")" "$folder/$(basename "$file")"
        package=$(dpkg -S "$file" 2> /dev/null || dpkg -S "$(readlink -f "$file")" 2> /dev/null || dpkg -S "/usr$file")
        package=${package%%: /*}
        name=${package%%:*}
        dpkg -s "$package" > "$out/var/lib/dpkg/status.d/$name"
        install -D -m 644 "/usr/share/doc/$name/copyright" "$out/usr/share/doc/$name/copyright"
    done
fi
chmod -R a+rX,go-w "$out"
chmod 1777 "$out/tmp" 2> /dev/null || true
echo "docker/build.sh: $target is in $out: $(du -sh "$out" | cut -f1)"
