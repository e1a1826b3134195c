#!/bin/sh
# Checks everything Souk needs to be built and run, names all that is missing at once with the command that installs it, and downloads
# Postgres and nats-server into .souk/tools where the machine has nothing recent enough. Under a second when all is there.
#
# SOUK_TOOLS_ONLY=1 passes over the machine's own Postgres and nats-server.
set -u

scripts=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$scripts/../../.." && pwd)
tools=$root/.souk/tools
missing=

# need WHAT WHY COMMAND
need() {
    missing="$missing
  $1: $2
      $3"
}

# What installs PACKAGE here; the names are those of Debian, Red Hat, Alpine, Arch and Homebrew, in this order.
install() {
    sudo=; [ "$(id -u)" = 0 ] || sudo='sudo '
    if command -v apt-get >/dev/null; then echo "${sudo}apt-get install -y $1"
    elif command -v dnf >/dev/null; then echo "${sudo}dnf install -y $2"
    elif command -v apk >/dev/null; then echo "${sudo}apk add $3"
    elif command -v pacman >/dev/null; then echo "${sudo}pacman -S --needed $4"
    else echo "brew install $5"
    fi
}

# at_least FOUND WANTED: both as "major minor", with blanks or points between.
at_least() {
    # shellcheck disable=SC2046
    set -- $(echo "$1 $2" | tr . ' ')
    [ "$#" -eq 4 ] || return 1
    [ "$1" -gt "$3" ] || { [ "$1" -eq "$3" ] && [ "$2" -ge "$4" ]; }
} 2>/dev/null

# version PROGRAM: the first "major.minor" it prints.
version() { "$1" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1; }

check_rust() {
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)"/\1/p' "$root/Cargo.toml")
    found=$(version rustc)
    if ! command -v cargo >/dev/null || [ -z "$found" ]; then
        need 'Rust' "version $wanted or later, cargo and rustc" "curl --proto '=https' -sSf https://sh.rustup.rs | sh"
    elif ! at_least "$found" "$wanted"; then
        need 'Rust' "found $found, want $wanted or later" 'rustup update stable && rustup default stable'
    fi
}

check_compiler() {
    command -v cc >/dev/null || need 'C compiler' 'cc, which links programs and builds the TLS library' \
        "$(install build-essential gcc build-base base-devel gcc)"
}

check_python() {
    found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    if ! at_least "${found:-0.0}" 3.9; then
        need 'Python' "python3 3.9 or later${found:+, found $found}" "$(install python3 python3 python3 python python)"
    fi
    [ -n "$downloads" ] || return 0
    python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)' 2>/dev/null ||
        need 'pip' "which downloads$downloads" "$(install python3-pip python3-pip py3-pip python-pip python)"
}

# Folders with programs, in the order in which the devstack crate looks.
machine_folders() {
    [ "${SOUK_TOOLS_ONLY:-}" != 1 ] || return 0
    echo "$PATH" | tr : '\n'
    for folder in /usr/lib/postgresql/*/bin /usr/local/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
        echo "$folder"
    done
}

# have PROGRAM WANTED DOWNLOADED_FOLDER COMPANION: says yes if one of the folders holds both, recent enough.
have() {
    { echo "$3"; machine_folders; } | while read -r folder; do
        if [ -x "$folder/$1" ] && [ -x "$folder/$4" ] && at_least "$(version "$folder/$1")" "$2"; then echo yes; break; fi
    done
}

downloads=
[ -n "$(have postgres 15.0 "$tools/postgres/bin" initdb)" ] || downloads="$downloads postgres"
[ -n "$(have nats-server 2.12 "$tools/nats/bin" nats-server)" ] || downloads="$downloads nats"
check_rust
check_compiler
check_python

if [ -n "$missing" ]; then
    echo "setup: this is missing:$missing" >&2
    exit 1
fi
if [ -n "$downloads" ]; then
    # shellcheck disable=SC2086
    python3 "$scripts/fetch.py" "$tools" $downloads
fi
