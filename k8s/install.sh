#!/bin/sh
# The commands of the pages about installing, upgrading and growing, to be taken one by one: k8s/install.sh STEP
#
# No test ran them against a cluster; those that Helm renders are rendered by `just chart-test`.
set -eu
cd "$(dirname "$0")/.."

case "${1:-}" in
    secrets)
        kubectl create namespace souk
        kubectl --namespace souk create secret generic souk-token-key --from-literal=token-key="$(openssl rand -hex 32)"
        kubectl --namespace souk create secret generic souk-databases --from-env-file=databases.env
        kubectl --namespace souk create secret generic souk-nats --from-literal=url="$NATS_URL"
        ;;
    nats)
        helm upgrade --install nats nats --repo https://nats-io.github.io/k8s/helm/charts --namespace souk --values k8s/nats/values.yaml
        ;;
    install)
        helm upgrade --install souk helm/souk --namespace souk --values helm/souk/values-10k.yaml --wait --timeout 10m
        helm test souk --namespace souk --logs
        ;;
    plan)
        just souk plan --users 300k --values > planned.yaml
        helm upgrade --install souk helm/souk --namespace souk --values planned.yaml --values connections.yaml --wait --timeout 10m
        ;;
    upgrade)
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-10k.yaml --values connections.yaml --wait --timeout 10m
        helm test souk --namespace souk --logs
        ;;
    rollback)
        helm rollback souk --namespace souk --wait --timeout 10m
        ;;
    diff)
        helm template souk helm/souk --namespace souk --is-upgrade --values helm/souk/values-10k.yaml --values connections.yaml > next.yaml
        kubectl --namespace souk diff --filename next.yaml
        ;;
    apply)
        kubectl apply -k k8s/rendered/10k
        kubectl --namespace souk get pods --watch
        ;;
    100-10k)
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-10k.yaml --values connections.yaml --set layout=both --wait --timeout 10m
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-10k.yaml --values connections.yaml --wait --timeout 10m
        ;;
    10k-1m)
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-1m.yaml --values connections.yaml --wait --timeout 15m
        ;;
    1m-100m)
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-100m.yaml --values connections.yaml --wait --timeout 30m
        ;;
    stop-writing)
        kubectl --namespace souk scale deployment/souk-command deployment/souk-saga --replicas=0
        kubectl --namespace souk annotate scaledobject/souk-command scaledobject/souk-saga autoscaling.keda.sh/paused-replicas=0
        ;;
    go-on)
        kubectl --namespace souk annotate scaledobject/souk-command scaledobject/souk-saga autoscaling.keda.sh/paused-replicas-
        kubectl --namespace souk scale deployment/souk-command deployment/souk-saga --replicas=3
        ;;
    autoscaler)
        helm upgrade souk helm/souk --namespace souk --values helm/souk/values-10k.yaml --values connections.yaml --set command.autoscaling.preserveReplicas=false --set command.replicas=4
        ;;
    *)
        sed -n 's/^    \([a-z0-9-]*\))$/\1/p' "$0"
        exit 2
        ;;
esac
