#!/bin/sh
# What the chart's tests need, then COMMAND with its Python: run.sh COMMAND... Fetches Helm 3, Helm 4 and kubectl (elsewhere than on Linux x86_64
# those of the machine are taken) and the packages of requirements.txt, once, into .souk/tools.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=$root/.souk/tools
wanted=$root/helm/tests/requirements.txt
python=$tools/chart-python

if [ "$(uname -sm)" = 'Linux x86_64' ]; then
    python3 "$root/crates/devstack/scripts/fetch_helm.py" "$tools"
fi
if ! cmp -s "$wanted" "$python/installed.txt"; then
    rm -rf "$python"
    python3 -m venv "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes -r "$wanted"
    cp "$wanted" "$python/installed.txt"
fi
cd "$root"
exec "$python/bin/python" "$@"
