{{/*
The settings of a service as TOML. Each service gets its own: what it does not need, passwords of the other side above all, it never sees. Secrets
stand in files; the text names them.
*/}}

{{/* A value in one line. toToml would write 64 as 64.0: numbers in values are floats. */}}
{{- define "souk.toml" -}}
{{- if kindIs "map" . -}}
{ {{ range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ $key }} = {{ include "souk.toml" (index $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "souk.toml" $item }}{{ end }}]
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* Of: root, component. */}}
{{- define "souk.settings" -}}
{{- $root := .root -}}
{{- $facts := index (include "souk.components" $root | fromYaml) .component -}}
{{- $values := $root.Values -}}
{{- /* Its own section and those of all: another service's is nothing to start anew for. */ -}}
{{- $sections := pick (deepCopy $values.settings) .component "grpc" "telemetry" -}}
{{- /* It relays copies as owners relay their logs, and keeps the ledger as long; the audit looks for what the ledger has to remember. */ -}}
{{- $relaying := list "ledger_retention" "ring_capacity" "relay_window" "relay_check_interval" "head_interval" -}}
{{- with index (dict "replicator" $relaying "audit" (list "ledger_retention")) .component -}}
{{- $shared := dict -}}
{{- range . }}{{ if hasKey ($values.settings.command | default dict) . }}{{ $_ := set $shared . (index $values.settings.command .) }}{{ end }}{{ end -}}
{{- if $shared }}{{ $_ := set $sections "command" $shared }}{{ end -}}
{{- end -}}
{{- $installation := dict "region" $values.installation.region "region_number" $values.installation.regionNumber "partitions" $values.installation.partitions "token_key" (dict "file" "/run/souk/token-key") -}}
{{- $_ := set $sections "installation" $installation -}}
{{- $process := dict "migrate" false -}}
{{- if $facts.internal -}}
{{- $listen := dict -}}
{{- range $door := list "public" "internal" "ops" -}}
{{- with index $facts $door -}}
{{- $_ := set $listen (ternary $.component (printf "%s_%s" $.component $door) (eq $door "public")) (printf "0.0.0.0:%d" (int .)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $sections "listen" $listen -}}
{{- end -}}
{{- if $facts.ops -}}
{{- $nats := dict "url" (dict "file" "/run/souk/nats") "prefix" $values.nats.prefix "stream_replicas" $values.nats.streamReplicas "stream_max_age" $values.nats.streamMaxAge "stream_max_bytes" $values.nats.streamMaxBytes -}}
{{- $_ := set $sections "nats" $nats -}}
{{- end -}}
{{- $_ := set $sections "process" $process -}}
{{- $peers := dict -}}
{{- range $facts.peers -}}
{{- $port := ternary 50061 50051 (hasSuffix "_internal" .) -}}
{{- $_ := set $peers . (printf "http://%s-command:%d" (include "souk.fullname" $root) $port) -}}
{{- end -}}
{{- if has .component (list "command" "replicator") -}}
{{- $ways := dict -}}
{{- range $values.regions.others }}{{ if .endpoints }}{{ $_ := set $ways .name (join "," .endpoints) }}{{ end }}{{ end -}}
{{- with $ways }}{{ $_ := set $peers "regions" . }}{{ end -}}
{{- end -}}
{{- with $peers }}{{ $_ := set $sections "peers" . }}{{ end -}}
{{- range $side := $facts.sides -}}
{{- $databases := list -}}
{{- range (index $values $side).databases -}}
{{- $place := printf "/run/souk/%s" .name -}}
{{- $database := dict "name" .name "url" (dict "file" (printf "%s/url" $place)) -}}
{{- with .maxConnections -}}{{- $_ := set $database "max_connections" . -}}{{- end -}}
{{- if or .pooledUrl .pooledUrlSecret -}}{{- $_ := set $database "pooled_url" (dict "file" (printf "%s/pooled-url" $place)) -}}{{- end -}}
{{- if .replicas -}}
{{- $replicas := list -}}
{{- range $index, $_ := .replicas -}}{{- $replicas = append $replicas (dict "file" (printf "%s/replica-%d" $place (add1 $index))) -}}{{- end -}}
{{- $_ := set $database "replicas" $replicas -}}
{{- end -}}
{{- $databases = append $databases $database -}}
{{- end -}}
{{- $_ := set $sections $side (dict "databases" $databases) -}}
{{- end -}}
{{- range $name := keys $sections | sortAlpha -}}
{{- $section := index $sections $name }}
[{{ $name }}]
{{- range $key := keys $section | sortAlpha }}
{{ $key }} = {{ if and (eq $key "databases") (kindIs "slice" (index $section $key)) -}}
[
{{- range index $section $key }}
  {{ include "souk.toml" . }},
{{- end }}
]
{{- else -}}
{{ include "souk.toml" (index $section $key) }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/*
The secret files of a component, as {path: {secret, key}} or {path: {text}} for what is written into the values. Of: root, component.
*/}}
{{- define "souk.secretFiles" -}}
{{- $values := .root.Values -}}
{{- $facts := index (include "souk.components" .root | fromYaml) .component -}}
{{- $files := dict "token-key" (dict "text" $values.installation.tokenKey "from" $values.installation.tokenKeySecret) -}}
{{- if $facts.ops -}}
{{- $_ := set $files "nats" (dict "text" $values.nats.url "from" $values.nats.urlSecret) -}}
{{- end -}}
{{- range $side := $facts.sides -}}
{{- range $database := (index $values $side).databases -}}
{{- $_ := set $files (printf "%s/url" .name) (dict "text" .url "from" .urlSecret) -}}
{{- if or .pooledUrl .pooledUrlSecret -}}
{{- $_ := set $files (printf "%s/pooled-url" .name) (dict "text" .pooledUrl "from" .pooledUrlSecret) -}}
{{- end -}}
{{- range $index, $replica := .replicas -}}
{{- $_ := set $files (printf "%s/replica-%d" $database.name (add1 $index)) (dict "text" $replica.url "from" $replica.urlSecret) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/* The name under which a secret written into the values stands in the chart's own Secret. */}}
{{- define "souk.secretKey" -}}
{{- . | replace "/" "." -}}
{{- end -}}

{{/* The texts of a component's secrets, by key. Of: root, component. */}}
{{- define "souk.secretTexts" -}}
{{- $texts := dict -}}
{{- range $path, $file := include "souk.secretFiles" . | fromJson -}}
{{- if $file.text -}}{{- $_ := set $texts (include "souk.secretKey" $path) $file.text -}}{{- end -}}
{{- end -}}
{{- toJson $texts -}}
{{- end -}}

{{/* A projected volume with a component's secrets. Of: root, component, volume, own (the chart's own Secret). */}}
{{- define "souk.secretVolume" -}}
- name: {{ .volume }}
  projected:
    defaultMode: 0440
    sources:
      {{- $own := .own }}
      {{- range $path, $file := include "souk.secretFiles" . | fromJson }}
      - secret:
          {{- if $file.text }}
          name: {{ $own }}
          {{- else }}
          name: {{ ($file.from | default dict).name }}
          {{- end }}
          items:
            - key: {{ if $file.text }}{{ include "souk.secretKey" $path }}{{ else }}{{ ($file.from | default dict).key }}{{ end }}
              path: {{ $path }}
      {{- end }}
{{- end -}}

{{/* What a pod is started anew for, though its own template stays the same. Of: root, component. */}}
{{- define "souk.checksums" -}}
checksum/settings: {{ include "souk.settings" . | sha256sum }}
checksum/secrets: {{ printf "%s%s" (include "souk.secretFiles" .) .root.Values.secretsVersion | sha256sum }}
{{- end -}}
