{{- define "souk.hpa" -}}
{{- $scaling := .values.autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "souk.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name }}
  minReplicas: {{ int $scaling.min }}
  maxReplicas: {{ int $scaling.max }}
  metrics:
    {{- range $resource := list "cpu" "memory" }}
    {{- with index $scaling $resource }}
    - type: Resource
      resource:
        name: {{ $resource }}
        target:
          type: Utilization
          averageUtilization: {{ int . }}
    {{- end }}
    {{- end }}
    {{- with $scaling.extra }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  behavior:
    {{- toYaml $scaling.behavior | nindent 4 }}
{{- end -}}

{{/*
What a service is scaled on, beside CPU: an amount per replica, so that replicas are amount / threshold. The queue's wait is added up over the
replicas for that reason.
*/}}
{{- define "souk.trigger" -}}
{{- $of := printf "namespace=%q,service=%q" .root.Release.Namespace (printf "%s-%s-headless" (include "souk.fullname" .root) .component) -}}
{{- $scaling := .values.autoscaling -}}
{{- if eq .component "projector" -}}
query: sum(max by (region, partition) (souk_projection_lag_events{ {{- $of -}} }))
threshold: {{ $scaling.lagEvents | int | quote }}
{{- else if eq .component "command" -}}
query: sum(histogram_quantile(0.95, sum by (pod, le) (rate(souk_queue_wait_seconds_bucket{ {{- $of -}} }[1m]))) > 0) or vector(0)
threshold: {{ $scaling.queueWaitSeconds | quote }}
{{- else if eq .component "query" -}}
query: sum(souk_rpc_in_flight{ {{- $of -}} })
threshold: {{ $scaling.callsInFlight | int | quote }}
{{- end -}}
{{- end -}}

{{- define "souk.scaledObject" -}}
{{- $scaling := .values.autoscaling -}}
{{- $keda := .root.Values.keda -}}
{{- $trigger := include "souk.trigger" . | fromYaml -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "souk.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    name: {{ .name }}
  minReplicaCount: {{ int $scaling.min }}
  maxReplicaCount: {{ int $scaling.max }}
  pollingInterval: {{ int $keda.pollingInterval }}
  {{- if $trigger }}
  fallback:
    failureThreshold: {{ int $keda.failureThreshold }}
    replicas: {{ if kindIs "invalid" $keda.fallbackReplicas }}{{ max (int $scaling.min) (div (add1 (int $scaling.max)) 2) }}{{ else }}{{ int $keda.fallbackReplicas }}{{ end }}
    # Blind, it may add pods but take none away.
    behavior: currentReplicasIfHigher
  {{- end }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml $scaling.behavior | nindent 8 }}
  triggers:
    {{- with $trigger }}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ $keda.prometheus }}
        query: {{ .query | quote }}
        threshold: {{ .threshold | quote }}
        # No figure is not zero load: it counts as a failed look.
        ignoreNullValues: "false"
    {{- end }}
    {{- range $resource := list "cpu" "memory" }}
    {{- with index $scaling $resource }}
    - type: {{ $resource }}
      metricType: Utilization
      metadata:
        value: {{ . | int | quote }}
    {{- end }}
    {{- end }}
    {{- with $scaling.extra }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
