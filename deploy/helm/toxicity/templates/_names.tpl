{{- define "toxicity.selector" -}}
app.kubernetes.io/name: toxicity
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "toxicity.labels" -}}
{{ include "toxicity.selector" . }}
app.kubernetes.io/part-of: toxicity-serving
{{- end }}

{{- define "toxicity.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "toxicity.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
