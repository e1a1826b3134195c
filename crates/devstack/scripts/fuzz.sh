#!/bin/sh
# Fuzzes every target of tests/fuzz for SECONDS each, from the committed corpus on. What is found on the way stays in target/fuzz/corpus;
# an input that breaks a check is named, and belongs into the committed corpus once it is mended.
set -eu

seconds=${1:-10}
fuzz_version=0.13.2
tools=.souk/tools

say() { echo "fuzz: $*"; }

PATH=$PWD/$tools/cargo-fuzz/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $fuzz_version" ]; then
    say "building cargo-fuzz $fuzz_version once, a minute"
    cargo install --quiet --locked --root "$tools/cargo-fuzz" cargo-fuzz@$fuzz_version
fi

# Coverage is a matter of unstable flags; a sanitizer would need nightly's standard library, and there is no unsafe code to watch.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list --fuzz-dir tests/fuzz); do
    say "$target for $seconds s"
    mkdir -p "target/fuzz/corpus/$target"
    cargo fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz/build --dev --sanitizer none "$target" \
        "target/fuzz/corpus/$target" "tests/fuzz/corpus/$target" -- -max_total_time="$seconds" -max_len=2048 -verbosity=0 -print_final_stats=1
done
