#!/bin/sh
# Gets Prometheus and promtool, for the tests of alerts and dashboards, unless the machine has them.
#
# The package of Debian 12, signed by Debian's archive as any other, is put into .souk/tools without installing anything. Its programs
# want nothing but a C library of 2022 or later.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
tools=$root/.souk/tools
suite=bookworm

# works FOLDER: whether both programs are there and run; the folder is empty for those on the PATH.
works() { "${1}prometheus" --version >/dev/null 2>&1 && "${1}promtool" --version >/dev/null 2>&1; }

if works "$tools/prometheus/bin/" || works ''; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "setup: prometheus and promtool are missing, which the tests of alerts want; install them (brew install prometheus)" >&2
    exit 1
fi
echo "setup: downloading Prometheus of Debian $suite …"
mkdir -p "$tools"
work=$(mktemp -d "$tools/prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$' || echo http://deb.debian.org/debian/)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/tool/bin"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get -q -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$work/debs" && apt download "prometheus/$suite")
for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/package"; done
mv "$work/package/usr/bin/prometheus" "$work/package/usr/bin/promtool" "$work/tool/bin"
chmod -R go+rX "$work/tool"
works "$work/tool/bin/" || { echo "setup: the downloaded Prometheus does not run here" >&2; exit 1; }
rm -rf "$tools/prometheus"
mv "$work/tool" "$tools/prometheus"
