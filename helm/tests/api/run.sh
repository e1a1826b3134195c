#!/bin/sh
# Builds the API server, unless it is built, and runs the tests against it. The first build takes two cores a quarter of an hour.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)

if ! command -v go >/dev/null; then
    echo "chart-test-api: builds the API server of Kubernetes and wants Go 1.26 or later" >&2
    exit 1
fi
# What the server says it is: published modules do not know.
version=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v*.}
flags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
flags="$flags -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
(cd "$here" && CGO_ENABLED=0 go build -ldflags "$flags" -o "$root/.souk/tools/apiserver/bin/apiserver" .)
exec "$root/helm/tests/run.sh" -m pytest -c "$root/helm/tests/pytest.ini" -s "$here" "$@"
