#!/bin/sh
# Gets PgBouncer 1.21 or later, for the tests that pass through it, unless the machine has one.
#
# Debian 12 carries an older one, which knows no prepared statements in transaction mode. So the package of the next release is taken
# with the libraries it wants, signed by Debian's archive as any other, and put into .souk/tools without installing anything.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
tools=$root/.souk/tools
suite=trixie
packages="pgbouncer libc6 libevent-2.1-7t64 libcares2 libssl3t64 libpam0g libsystemd0 libaudit1 libcap-ng0 libcap2 libzstd1 zlib1g"

# recent PROGRAM: whether it is 1.21 or later.
recent() {
    "$1" --version 2>/dev/null | sed -n 's/^PgBouncer \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | {
        read -r major minor && { [ "$major" -gt 1 ] || [ "$minor" -ge 21 ]; }
    }
}

if recent "$tools/pgbouncer/bin/pgbouncer" || recent pgbouncer; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "setup: PgBouncer 1.21 or later is missing, which the tests pass through; install it (brew install pgbouncer)" >&2
    exit 1
fi
echo "setup: downloading PgBouncer of Debian $suite …"
mkdir -p "$tools"
work=$(mktemp -d "$tools/pgbouncer.XXXXXX")
trap 'rm -rf "$work"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$' || echo http://deb.debian.org/debian/)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/tool/bin"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get -q -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update
# shellcheck disable=SC2046
(cd "$work/debs" && apt download $(printf "%s/$suite " $packages))
for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/tool/root"; done
# With its own loader: the machine's C library is older than it wants.
cat >"$work/tool/bin/pgbouncer" <<'PROGRAM'
#!/bin/sh
root=$(cd "$(dirname "$(readlink -f "$0")")/../root" && pwd)
libraries=$(cd "$root"/usr/lib/*-linux-gnu && pwd)
loader=$(ls "$libraries"/ld-linux-*.so.* | head -n 1)
exec "$loader" --library-path "$libraries" "$root/usr/sbin/pgbouncer" "$@"
PROGRAM
chmod -R go+rX "$work/tool"
chmod 755 "$work/tool/bin/pgbouncer"
recent "$work/tool/bin/pgbouncer" || { echo "setup: the downloaded PgBouncer does not run here" >&2; exit 1; }
rm -rf "$tools/pgbouncer"
mv "$work/tool" "$tools/pgbouncer"
