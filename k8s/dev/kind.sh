#!/bin/sh
# Souk in a cluster on this machine, from nothing to an order: k8s/dev/kind.sh [VALUES...]
#
# Wants docker, kind, kubectl and helm. No test ran this script: where Souk is built there is no cluster. Its manifests are validated, its
# values rendered.
set -eu
cd "$(dirname "$0")/../.."
image=${SOUK_IMAGE:-souk:dev}

kind get clusters | grep -qx souk || kind create cluster --config k8s/dev/kind.yaml
docker image inspect "$image" >/dev/null 2>&1 || just image release "$image"
kind load docker-image "$image" --name souk

kubectl apply -k k8s/dev
kubectl --namespace souk get secret souk-token-key >/dev/null 2>&1 ||
    kubectl --namespace souk create secret generic souk-token-key --from-literal=token-key="$(openssl rand -hex 32)"
kubectl --namespace souk rollout status statefulset/postgres statefulset/nats --timeout=3m

helm upgrade --install souk helm/souk --namespace souk --values helm/souk/values-100.yaml \
    --set image.repository="${image%:*}" --set-string image.tag="${image##*:}" "$@" --wait --timeout 5m
helm test souk --namespace souk --logs
