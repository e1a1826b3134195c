{{- define "souk.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What all names begin with; the longest ending is "-projector-headless", and 63 letters are the bound. */}}
{{- define "souk.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "souk.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "souk.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "souk.selector" -}}
app.kubernetes.io/name: {{ include "souk.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of an object. Of: root, component (may be empty). */}}
{{- define "souk.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include "souk.selector" .root }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: souk
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: not the chart's version, or all of them would start anew whenever it is raised. Of: root, component. */}}
{{- define "souk.podLabels" -}}
{{ include "souk.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object. Of: root, name, component, labels, annotations (the last three may be missing). */}}
{{- define "souk.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "souk.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mustMerge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "souk.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What is fixed for each component: its doors, its side, whom it calls. One place says it. */}}
{{- define "souk.components" -}}
command: {public: 50051, internal: 50061, ops: 50071, sides: [write], peers: []}
query: {public: 50052, internal: 50062, ops: 50072, sides: [read], peers: []}
projector: {internal: 50063, ops: 50073, sides: [read], peers: [command_internal]}
saga: {internal: 50064, ops: 50074, sides: [write], peers: [command, command_internal]}
replicator: {internal: 50065, ops: 50075, sides: [write], peers: [command_internal]}
audit: {ops: 50075, sides: [write, read], peers: []}
migrate: {sides: [write, read], peers: []}
{{- end -}}

{{- define "souk.services" -}}
[command, query, projector, saga]
{{- end -}}

{{/*
What runs all the time and has settings of its own: the services, the replicator where there are other regions, and the auditor that looks at what
they leave behind.
*/}}
{{- define "souk.residents" -}}
{{- $services := include "souk.services" . | fromYamlArray -}}
{{- if .Values.regions.others }}{{ $services = append $services "replicator" }}{{ end -}}
{{- if .Values.audit.enabled }}{{ $services = append $services "audit" }}{{ end -}}
{{- $services | toJson -}}
{{- end -}}

{{/* The services that a pod of a component runs: itself, or all of them. */}}
{{- define "souk.servicesOf" -}}
{{- if eq . "combined" -}}{{ include "souk.services" . }}{{- else -}}[{{ . }}]{{- end -}}
{{- end -}}

{{/* The Deployments of this layout. */}}
{{- define "souk.workloads" -}}
{{- $workloads := include "souk.residents" . | fromJsonArray -}}
{{- if ne .Values.layout "apart" }}{{ $workloads = append $workloads "combined" }}{{ end -}}
{{- if eq .Values.layout "combined" }}{{ $workloads = without $workloads "command" "query" "projector" "saga" }}{{ end -}}
{{- $workloads | toJson -}}
{{- end -}}

{{/* The values of a component over those of all. Of: root, component. */}}
{{- define "souk.valuesOf" -}}
{{- /*
What scales all services by default is not meant for the pod that holds them together, nor for the replicator, which waits for distance, nor for the
auditor, of which one is enough.
*/ -}}
{{- $common := dict -}}
{{- if has .component (list "combined" "replicator" "audit") }}{{ $_ := set $common "autoscaling" (dict "kind" "") }}{{ end -}}
{{- if eq .component "audit" }}{{ $_ := set $common "replicas" 1 }}{{ end -}}
{{- mustMergeOverwrite (deepCopy .root.Values.defaults) $common (deepCopy (index .root.Values .component | default dict)) | toJson -}}
{{- end -}}

{{- define "souk.serviceAccountName" -}}
{{- $values := include "souk.valuesOf" . | fromJson -}}
{{- default (printf "%s-%s" (include "souk.fullname" .root) .component) $values.serviceAccount.name -}}
{{- end -}}

{{/* Replicas at least, whoever counts them. Of the values of a component. */}}
{{- define "souk.least" -}}
{{- if .autoscaling.kind -}}{{ int .autoscaling.min }}{{- else -}}{{ int .replicas }}{{- end -}}
{{- end -}}

{{/*
Worker threads of a container (README, Threads). Left to itself a process takes one for each core that it sees. A limit of CPU hides cores from it (1500m leaves one),
but what it asks for is a weight among neighbours and hides none: on a large node a small pod would have dozens. Of: values, component.
*/}}
{{- define "souk.threads" -}}
{{- if not (kindIs "invalid" .values.threads) -}}
{{- int .values.threads -}}
{{- else -}}
{{- $resources := .values.resources | default dict -}}
{{- $cpu := coalesce ($resources.limits | default dict).cpu ($resources.requests | default dict).cpu 1 | toString -}}
{{- if not (regexMatch `^([0-9]+\.?[0-9]*|\.[0-9]+)m?$` $cpu) -}}
{{- fail (printf "%s.resources: cpu %s is neither cores nor thousandths of one (500m), so that threads cannot follow it; write it so, or set %s.threads" .component $cpu .component) -}}
{{- end -}}
{{- $cores := hasSuffix "m" $cpu | ternary (divf (trimSuffix "m" $cpu) 1000) (float64 $cpu) -}}
{{- max 1 (ceil $cores) -}}
{{- end -}}
{{- end -}}

{{/* Whether preStop may sleep: without a shell in the image only Kubernetes itself can. */}}
{{- define "souk.canSleep" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}yes{{- end -}}
{{- end -}}

{{- define "souk.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "souk.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The other regions as peers of network policies. */}}
{{- define "souk.regionPeers" -}}
{{- $peers := list -}}
{{- range .Values.regions.others -}}
{{- range .cidrs }}{{ $peers = append $peers (dict "ipBlock" (dict "cidr" .)) }}{{ end -}}
{{- $peers = concat $peers (.peers | default list) -}}
{{- end -}}
{{- uniq $peers | toJson -}}
{{- end -}}
