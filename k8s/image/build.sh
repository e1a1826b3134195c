#!/bin/sh
# The image from binaries of this machine: build.sh PROFILE [TAG]. The last stage is the Dockerfile's own, so that both make the same.
set -eu

profile=$1
tag=${2:-souk:$profile}
case $profile in
    release) flag=--release folder=release ;;
    debug) flag= folder=debug ;;
    *) echo "image: want release or debug, not $profile" >&2; exit 1 ;;
esac
docker version >/dev/null 2>&1 || { echo 'image: no Docker engine answers; start one, or set DOCKER_HOST' >&2; exit 1; }

# shellcheck disable=SC2086
"${CARGO:-cargo}" build --locked $flag --workspace --bins
sh k8s/image/rootfs.sh "target/$folder" target/image/rootfs
sed -n '/^FROM scratch/,$p' k8s/image/Dockerfile | sed 's|^COPY --from=build /rootfs|COPY rootfs|' >target/image/Dockerfile
# Old engines have no other builder; newer ones fall back to it by themselves.
docker build --quiet --tag "$tag" target/image
docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' "$tag"
