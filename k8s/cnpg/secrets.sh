#!/bin/sh
# Makes the secret souk-databases from the secrets of the operator: the same users and passwords, at the poolers. No test ran this script.
set -eu
uri() { kubectl --namespace souk get secret "$1-app" --output jsonpath='{.data.uri}' | base64 --decode; }
# at URI HOST: the DSN with another host.
at() { echo "$1" | sed "s#@[^:/]*#@$2#"; }

write=$(uri souk-write-1)
read=$(uri souk-read-1)
kubectl --namespace souk create secret generic souk-databases --dry-run=client --output yaml \
    --from-literal=write-1-pooled="$(at "$write" souk-write-1-pooler)" \
    --from-literal=read-1="$(at "$read" souk-read-1-pooler)" \
    --from-literal=read-1-replica-1="$(at "$read" souk-read-1-replicas)" |
    kubectl apply --filename -
