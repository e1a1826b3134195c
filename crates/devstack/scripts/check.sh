#!/bin/sh
# What must hold before a commit: format, lints, contracts that break nobody, and the fences between crates.
set -eu

buf_version=1.75.0
deny_version=0.20.2
tools=.souk/tools

say() { echo "check: $*"; }

say 'format'
cargo fmt --all --check

say 'lints'
cargo clippy --workspace --all-targets -- --deny warnings

# buf comes as an npm package, pinned; npm keeps it in its cache.
if command -v npm >/dev/null; then
    buf() { npm exec --yes --loglevel=error --package="@bufbuild/buf@$buf_version" -- buf "$@"; }
    say 'contracts: lint'
    buf lint proto
    say 'contracts: nothing that was committed breaks'
    buf breaking proto --against '.git#ref=HEAD,subdir=proto'
else
    say 'contracts are NOT checked: there is no npm'
fi

if ! cargo deny --version >/dev/null 2>&1; then
    PATH=$PWD/$tools/cargo-deny/bin:$PATH
    if ! cargo deny --version >/dev/null 2>&1; then
        say "building cargo-deny $deny_version once, a few minutes"
        cargo install --quiet --locked --no-default-features --root "$tools/cargo-deny" cargo-deny@$deny_version
    fi
fi
say 'fences, licenses, sources'
cargo deny --log-level error check bans licenses sources
