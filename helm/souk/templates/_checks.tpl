{{/* Combinations that cannot work, each refused with what to do. What types and names can say is in values.schema.json. */}}
{{- define "souk.checks" -}}
{{- range $old, $new := .Files.Get "renamed.yaml" | fromYaml -}}
{{- if hasKey $.Values $old -}}{{- fail (printf "%s: is called %s here" $old $new) -}}{{- end -}}
{{- end -}}
{{- include "souk.checkSecrets" . -}}
{{- include "souk.checkPartitions" . -}}
{{- include "souk.checkRegions" . -}}
{{- range $component := include "souk.workloads" . | fromJsonArray -}}
{{- include "souk.checkWorkload" (dict "root" $ "component" $component "values" (include "souk.valuesOf" (dict "root" $ "component" $component) | fromJson)) -}}
{{- end -}}
{{- $accounts := dict -}}
{{- range $component := include "souk.workloads" . | fromJsonArray -}}
{{- $facts := dict "root" $ "component" $component -}}
{{- $name := include "souk.serviceAccountName" $facts -}}
{{- if (include "souk.valuesOf" $facts | fromJson).serviceAccount.create -}}
{{- if hasKey $accounts $name -}}{{- fail (printf "%s.serviceAccount: %s is made by %s already; give each a name, or set create: false" $component $name (index $accounts $name)) -}}{{- end -}}
{{- $_ := set $accounts $name $component -}}
{{- end -}}
{{- end -}}
{{- range $key := list "replicas" "autoscaling" "disruptionBudget" -}}
{{- if hasKey $.Values.audit $key -}}{{- fail (printf "audit.%s: one auditor is enough, and nobody waits for it; leave it out" $key) -}}{{- end -}}
{{- end -}}
{{- if eq .Values.layout "combined" -}}
{{- range $service := include "souk.services" . | fromYamlArray -}}
{{- $own := index $.Values $service | default dict -}}
{{- range $key := list "replicas" "autoscaling" -}}
{{- if hasKey $own $key -}}{{- fail (printf "%s.%s: layout is combined, so all services share the pod of `combined`; set combined.%s, or layout: apart" $service $key $key) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Other regions are other ones, and are let through. */}}
{{- define "souk.checkRegions" -}}
{{- $values := .Values -}}
{{- $names := list -}}
{{- range $index, $region := $values.regions.others -}}
{{- $at := printf "regions.others[%d]" $index -}}
{{- if eq .name $values.installation.region -}}{{- fail (printf "%s.name: %s is this region (installation.region); name the others alone" $at .name) -}}{{- end -}}
{{- if has .name $names -}}{{- fail (printf "%s.name: %s is there twice" $at .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- if and $values.networkPolicy.enabled (not .cidrs) (not .peers) -}}
{{- fail (printf "%s: networkPolicy is enabled and would keep %s out; give it cidrs or peers" $at .name) -}}
{{- end -}}
{{- end -}}
{{- if and $values.regions.service.type (not $names) -}}{{- fail "regions.service.type: there is nobody to reach it; name regions.others" -}}{{- end -}}
{{- end -}}

{{/* Every secret comes from one place. */}}
{{- define "souk.checkSecrets" -}}
{{- $values := .Values -}}
{{- include "souk.checkSecret" (list "installation.tokenKey" "installation.tokenKeySecret" $values.installation.tokenKey $values.installation.tokenKeySecret) -}}
{{- include "souk.checkSecret" (list "nats.url" "nats.urlSecret" $values.nats.url $values.nats.urlSecret) -}}
{{- range $side := list "write" "read" -}}
{{- $databases := (index $values $side).databases -}}
{{- if not $databases -}}{{- fail (printf "%s.databases: there is none; name at least one, with url or urlSecret" $side) -}}{{- end -}}
{{- $names := list -}}
{{- range $index, $database := $databases -}}
{{- $at := printf "%s.databases[%d]" $side $index -}}
{{- if has .name $names -}}{{- fail (printf "%s.name: %s is there twice" $at .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- include "souk.checkSecret" (list (printf "%s.url" $at) (printf "%s.urlSecret" $at) .url .urlSecret) -}}
{{- if and .pooledUrl .pooledUrlSecret -}}{{- fail (printf "%s: has both pooledUrl and pooledUrlSecret; keep one" $at) -}}{{- end -}}
{{- range $number, $replica := .replicas -}}
{{- include "souk.checkSecret" (list (printf "%s.replicas[%d].url" $at $number) (printf "%s.replicas[%d].urlSecret" $at $number) .url .urlSecret) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $values.write.databases -}}
{{- $name := .name -}}
{{- range $values.read.databases -}}
{{- if eq .name $name -}}{{- fail (printf "read.databases: %s is the name of a write database, too; secrets are filed by these names" .name) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of a list: key of the text, key of the secret, text, secret. */}}
{{- define "souk.checkSecret" -}}
{{- $secret := (index . 3) | default dict -}}
{{- if and (index . 2) $secret.name -}}
{{- fail (printf "%s and %s: both are set; keep one" (index . 0) (index . 1)) -}}
{{- else if not (or (index . 2) $secret.name) -}}
{{- fail (printf "%s: is missing; give %s the name of a secret, or this the text" (index . 0) (index . 1)) -}}
{{- end -}}
{{- end -}}

{{/* The count never changes: refused before services refuse to start. Only a running release can be asked. */}}
{{- define "souk.checkPartitions" -}}
{{- $running := lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-settings" (include "souk.fullname" .)) -}}
{{- with $running -}}
{{- $stored := index (.metadata.annotations | default dict) "souk/partitions" -}}
{{- if and $stored (ne $stored ($.Values.installation.partitions | int | toString)) -}}
{{- fail (printf "installation.partitions: this installation has %s for ever" $stored) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "souk.checkWorkload" -}}
{{- $scaling := .values.autoscaling -}}
{{- $at := .component -}}
{{- if $scaling.kind -}}
{{- if gt (int $scaling.min) (int $scaling.max) -}}{{- fail (printf "%s.autoscaling: min %d is above max %d" $at (int $scaling.min) (int $scaling.max)) -}}{{- end -}}
{{- if eq $at "combined" -}}{{- fail "combined.autoscaling: the pod holds all services, which grow apart; use layout: apart" -}}{{- end -}}
{{- $own := and (eq $scaling.kind "keda") (not (has $at (list "saga" "replicator"))) -}}
{{- if not (or $own $scaling.cpu $scaling.memory $scaling.extra) -}}{{- fail (printf "%s.autoscaling: nothing to scale by; set cpu, memory or extra" $at) -}}{{- end -}}
{{- if and $own (not .root.Values.keda.prometheus) -}}{{- fail (printf "%s.autoscaling.kind is keda: keda.prometheus must say where the metrics are" $at) -}}{{- end -}}
{{- if and (has $at (list "projector" "saga")) (gt (int $scaling.max) (int .root.Values.installation.partitions)) -}}
{{- fail (printf "%s.autoscaling.max: %d replicas would share %d partitions; those beyond hold none" $at (int $scaling.max) (int .root.Values.installation.partitions)) -}}
{{- end -}}
{{- else if and (has $at (list "command" "projector" "saga" "combined")) (gt (int .values.replicas) (int .root.Values.installation.partitions)) -}}
{{- fail (printf "%s.replicas: %d replicas would share %d partitions; those beyond hold none" $at (int .values.replicas) (int .root.Values.installation.partitions)) -}}
{{- end -}}
{{- $shutdown := .values.shutdown -}}
{{- $least := add (int $shutdown.sleepSeconds) (int $shutdown.drainSeconds) 10 -}}
{{- if lt (int (include "souk.grace" .values)) (int $least) -}}
{{- fail (printf "%s.shutdown.graceSeconds: %s s is less than sleep + drain + 10 = %d s; a pod would be killed while it hands over" $at (include "souk.grace" .values) $least) -}}
{{- end -}}
{{- end -}}
