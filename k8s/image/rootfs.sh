#!/bin/sh
# The files of the image: rootfs.sh BINARIES FOLDER puts into FOLDER the programs that lie in BINARIES, stripped, with the shared libraries
# they name, what resolves host names (glibc's own files and dns; nothing is loaded beside), the authorities of TLS, and one user.
set -eu

binaries=$1
root=$2
authorities=/etc/ssl/certs/ca-certificates.crt
programs='souk souk-command souk-query souk-projector souk-saga souk-replicator'

[ -s "$authorities" ] || { echo "image: $authorities is missing; install ca-certificates" >&2; exit 1; }
rm -rf "$root"
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/etc/souk" "$root/run/souk"
for program in $programs; do
    strip -o "$root/usr/local/bin/$program" "$binaries/$program"
    # Lines with a path, whether found (`=> /lib/…`) or named (`/lib64/ld-linux…`); a static program has none.
    libraries=$(ldd "$binaries/$program" 2>/dev/null | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p')
    for library in $libraries; do
        mkdir -p "$root$(dirname "$library")"
        cp --dereference "$library" "$root$library"
    done
done
cp --dereference "$authorities" "$root$authorities"
echo 'souk:x:65532:65532:souk:/:/sbin/nologin' >"$root/etc/passwd"
echo 'souk:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
# Whoever made it, the image's user reads all and writes nothing.
chmod -R u=rwX,go=rX "$root"
