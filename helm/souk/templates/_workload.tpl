{{/* All objects of one Deployment. Of: root, component. */}}
{{- define "souk.workload" -}}
{{- if has .component (include "souk.workloads" .root | fromJsonArray) -}}
{{- $values := include "souk.valuesOf" . | fromJson -}}
{{- $workload := mustMerge (dict "values" $values "name" (printf "%s-%s" (include "souk.fullname" .root) .component)) . -}}
{{ include "souk.deployment" $workload }}
{{- if $values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "souk.metadata" (dict "root" .root "component" .component "name" (include "souk.serviceAccountName" .) "annotations" $values.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- if gt (int (include "souk.least" $values)) 1 }}
---
{{ include "souk.disruptionBudget" $workload }}
{{- end }}
{{- if eq $values.autoscaling.kind "hpa" }}
---
{{ include "souk.hpa" $workload }}
{{- else if eq $values.autoscaling.kind "keda" }}
---
{{ include "souk.scaledObject" $workload }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "souk.deployment" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $services := include "souk.servicesOf" .component | fromYamlArray -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "souk.metadata" . | nindent 2 }}
spec:
  {{- if not (and $values.autoscaling.kind $values.autoscaling.preserveReplicas) }}
  replicas: {{ int $values.replicas }}
  {{- end }}
  revisionHistoryLimit: {{ int $values.revisionHistoryLimit }}
  minReadySeconds: {{ int $values.minReadySeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $values.maxSurge }}
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "souk.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      labels:
        {{- include "souk.podLabels" . | nindent 8 }}
        {{- range $services }}
        souk/serves-{{ . }}: "true"
        {{- end }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        {{- range $services }}
        {{- $sums := include "souk.checksums" (dict "root" $root "component" .) }}
        {{- if eq $.component "combined" }}{{ $sums = $sums | replace "checksum/" (printf "checksum-%s/" .) }}{{ end }}
        {{- $sums | nindent 8 }}
        {{- end }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "souk.serviceAccountName" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "souk.grace" $values }}
      securityContext:
        {{- include "souk.podSecurityContext" . | nindent 8 }}
      {{- with include "souk.scheduling" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        {{- range $services }}
        {{- include "souk.container" (dict "root" $root "values" $values "component" $.component "service" .) | nindent 8 }}
        {{- end }}
      volumes:
        - name: settings
          configMap:
            name: {{ include "souk.fullname" $root }}-settings
        {{- range $services }}
        {{- include "souk.secretVolume" (dict "root" $root "component" . "volume" (printf "secrets-%s" .) "own" (printf "%s-secrets" (include "souk.fullname" $root))) | nindent 8 }}
        {{- end }}
        {{- with $values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end -}}

{{- define "souk.grace" -}}
{{- $shutdown := .shutdown -}}
{{- if kindIs "invalid" $shutdown.graceSeconds -}}
{{- add (int $shutdown.sleepSeconds) (int $shutdown.drainSeconds) 15 -}}
{{- else -}}
{{- int $shutdown.graceSeconds -}}
{{- end -}}
{{- end -}}

{{/* Where pods go. Of: root, component, values. */}}
{{- define "souk.scheduling" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.topologySpread }}
{{- if or .zone .host }}
topologySpreadConstraints:
  {{- range $key, $when := dict "topology.kubernetes.io/zone" .zone "kubernetes.io/hostname" .host }}
  {{- if $when }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: {{ $when }}
    labelSelector:
      matchLabels:
        {{- include "souk.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* One service in a pod. Of: root, values, component, service. */}}
{{- define "souk.container" -}}
{{- $facts := index (include "souk.components" .root | fromYaml) .service -}}
- name: {{ .service }}
  image: {{ include "souk.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- if eq .service "audit" }}
  {{- $audit := .root.Values.audit }}
  command: [/usr/local/bin/souk]
  args:
    - audit
    - --json
    - --config=/etc/souk/audit.toml
    - --every={{ $audit.every }}
    - --last={{ int $audit.lastEvents }}
    - --parallel={{ int $audit.parallel }}
    - --settle={{ $audit.settle }}
    - --ops=0.0.0.0:{{ $facts.ops }}
  {{- else }}
  command: [/usr/local/bin/souk-{{ .service }}]
  args: [--config, /etc/souk/{{ .service }}.toml]
  {{- end }}
  env:
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    # In quotes, so that neither is ever read as a number.
    - name: SOUK_process__replica
      value: '"$(POD_NAME)"'
    - name: SOUK_process__advertise_host
      value: '"$(POD_IP)"'
    - name: SOUK_process__shutdown_grace
      value: {{ int .values.shutdown.drainSeconds }}s
    {{- with include "souk.threads" . | int }}
    {{- /* The auditor is a command, whose runtime is there before its settings are read. */}}
    - name: {{ ternary "TOKIO_WORKER_THREADS" "SOUK_process__threads" (eq $.service "audit") }}
      value: {{ . | quote }}
    {{- end }}
    {{- if not (include "souk.canSleep" .root) }}
    - name: SOUK_process__shutdown_pause
      value: {{ int .values.shutdown.sleepSeconds }}s
    {{- end }}
    {{- if eq .component "combined" }}
    {{- /* Its own pod is ready only when all four are, and so are the services that lead to it. */}}
    {{- range $facts.peers }}
    - name: SOUK_peers__{{ . }}
      value: http://127.0.0.1:{{ ternary 50061 50051 (hasSuffix "_internal" .) }}
    {{- end }}
    {{- end }}
    {{- with .values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    {{- range $door := list "public" "internal" "ops" }}
    {{- with index $facts $door }}
    - name: {{ include "souk.portName" (list $door $.service) }}
      containerPort: {{ . }}
    {{- end }}
    {{- end }}
  {{- range $probe, $path := dict "startup" "livez" "readiness" "readyz" "liveness" "livez" }}
  {{ $probe }}Probe:
    httpGet:
      path: /{{ $path }}
      port: {{ include "souk.portName" (list "ops" $.service) }}
    {{- toYaml (index $.values.probes $probe) | nindent 4 }}
  {{- end }}
  {{- if and (include "souk.canSleep" .root) (gt (int .values.shutdown.sleepSeconds) 0) }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ int .values.shutdown.sleepSeconds }}
  {{- end }}
  resources:
    {{- toYaml .values.resources | nindent 4 }}
  securityContext:
    {{- include "souk.securityContext" . | nindent 4 }}
  volumeMounts:
    - name: settings
      mountPath: /etc/souk/{{ .service }}.toml
      subPath: {{ .service }}.toml
      readOnly: true
    - name: secrets-{{ .service }}
      mountPath: /run/souk
      readOnly: true
    {{- with .values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The name of a door's port in a pod, at most 15 letters. Of a list: door, service. */}}
{{- define "souk.portName" -}}
{{- printf "%s-%s" (get (dict "public" "grpc" "internal" "int" "ops" "ops") (index . 0)) (index . 1) -}}
{{- end -}}

{{/* The service that leads to all pods of one, if it takes calls, and the headless one that names each. Of: root, service. */}}
{{- define "souk.service" -}}
{{- $facts := index (include "souk.components" .root | fromYaml) .service -}}
{{- $values := (include "souk.valuesOf" (dict "root" .root "component" .service) | fromJson).service -}}
{{- $name := printf "%s-%s" (include "souk.fullname" .root) .service -}}
{{- $ports := list -}}
{{- range $door := list "public" "internal" "ops" -}}
{{- with index $facts $door -}}
{{- $port := dict "name" (get (dict "public" "grpc" "internal" "grpc-internal" "ops" "ops") $door) "port" . "targetPort" (include "souk.portName" (list $door $.service)) "appProtocol" (ternary "http" "kubernetes.io/h2c" (eq $door "ops")) -}}
{{- $ports = append $ports $port -}}
{{- end -}}
{{- end -}}
{{- if $facts.internal -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "souk.metadata" (dict "root" .root "component" .service "name" $name "annotations" $values.annotations) | nindent 2 }}
spec:
  type: {{ $values.type }}
  {{- with $values.trafficDistribution }}
  trafficDistribution: {{ . }}
  {{- end }}
  selector:
    {{- include "souk.selector" .root | nindent 4 }}
    souk/serves-{{ .service }}: "true"
  ports:
    {{- /* What listens for operators is asked pod by pod. */}}
    {{- range $ports }}
    {{- if ne .name "ops" }}
    - {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- end }}
---
{{ end -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "souk.metadata" (dict "root" .root "component" .service "name" (printf "%s-headless" $name) "labels" (dict "souk/headless" .service)) | nindent 2 }}
spec:
  type: ClusterIP
  clusterIP: None
  selector:
    {{- include "souk.selector" .root | nindent 4 }}
    souk/serves-{{ .service }}: "true"
  ports:
    {{- range $ports }}
    - {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}

{{- define "souk.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "souk.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.disruptionBudget.maxUnavailable }}
  # A pod that is not ready serves nobody: it may go.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "souk.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end -}}
