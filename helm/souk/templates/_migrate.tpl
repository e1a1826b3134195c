{{/*
The migration and all it needs: account, settings, secrets. Nothing of it is shared with the services, because a hook runs before they are there,
or while those of the release before are.

At the first install it is an ordinary Job in every mode: a hook would wait for databases that the same release may bring, and `--wait` would wait
for services that wait for the hook. Services that find too old a schema wait for it and say so.
*/}}
{{- define "souk.migrateIsHook" -}}
{{- if and (eq .Values.migrations.mode "hook") .Release.IsUpgrade -}}yes{{- end -}}
{{- end -}}

{{/* Annotations that make an object part of the hook. Of: root, weight. */}}
{{- define "souk.hook" -}}
{{- if include "souk.migrateIsHook" .root -}}
helm.sh/hook: pre-upgrade
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
{{- end -}}

{{/* The Job's spec. Its hash is in the Job's name, since the template of a Job never changes. */}}
{{- define "souk.migrateJobSpec" -}}
{{- $name := printf "%s-migrate" (include "souk.fullname" .) -}}
{{- $facts := dict "root" . "component" "migrate" -}}
{{- $values := mustMergeOverwrite (deepCopy .Values.defaults) (dict "topologySpread" (dict "zone" "" "host" "")) -}}
backoffLimit: {{ int .Values.migrations.backoffLimit }}
{{- if not (kindIs "invalid" .Values.migrations.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ int .Values.migrations.ttlSecondsAfterFinished }}
{{- end }}
template:
  metadata:
    labels:
      {{- include "souk.podLabels" $facts | nindent 6 }}
    annotations:
      {{- include "souk.checksums" $facts | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ $name }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    securityContext:
      {{- include "souk.podSecurityContext" . | nindent 6 }}
    {{- with include "souk.scheduling" (mustMerge (dict "values" $values) $facts) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: migrate
        image: {{ include "souk.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [/usr/local/bin/souk]
        args: [migrate, --config, /etc/souk/migrate.toml, --patience, {{ .Values.migrations.patience }}]
        {{- with .Values.defaults.extraEnv }}
        env:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.defaults.extraEnvFrom }}
        envFrom:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        resources:
          {{- toYaml .Values.migrations.resources | nindent 10 }}
        securityContext:
          {{- include "souk.securityContext" . | nindent 10 }}
        volumeMounts:
          - name: settings
            mountPath: /etc/souk
            readOnly: true
          - name: secrets
            mountPath: /run/souk
            readOnly: true
          {{- with .Values.defaults.extraVolumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: settings
        configMap:
          name: {{ $name }}
      {{- include "souk.secretVolume" (mustMerge (dict "volume" "secrets" "own" $name) $facts) | nindent 6 }}
      {{- with .Values.defaults.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}
