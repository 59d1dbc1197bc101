{{- define "toxicity.pod" -}}
serviceAccountName: {{ .Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
# After the pod is out of the service: what is in flight is finished (--stop-timeout-s).
terminationGracePeriodSeconds: 60
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "toxicity.selector" $ | nindent 8 }}
  {{- end }}
initContainers:
  # Verified here, byte by byte; what does not verify is one line in this container's log.
  - name: fetch
    image: {{ include "toxicity.image" . }}
    imagePullPolicy: IfNotPresent
    args:
      - fetch
      - {{ .Values.source | quote }}
      - --repository=/models
      {{- with .Values.version }}
      - --version={{ . }}
      {{- end }}
      {{- if .Values.signatureConfigMap }}
      - --require-signature=/signature/release.pub
      {{- end }}
    env:
      - {name: AWS_REGION, value: {{ .Values.region | quote }}}
      {{- with .Values.endpoint }}
      - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
      {{- end }}
    {{- with .Values.credentialsSecret }}
    envFrom:
      - secretRef: {name: {{ . }}}
    {{- end }}
    resources: {{- toYaml .Values.fetchResources | nindent 6 }}
    securityContext: {{- include "toxicity.confined" . | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: /models}
      {{- if .Values.signatureConfigMap }}
      - {name: signature, mountPath: /signature, readOnly: true}
      {{- end }}
containers:
  - name: {{ if .Values.kserve }}kserve-container{{ else }}server{{ end }}
    image: {{ include "toxicity.image" . }}
    imagePullPolicy: IfNotPresent
    args:
      - serve
      - --foreground
      - --address=0.0.0.0
      - --metrics-address=0.0.0.0
      - --replicas={{ .Values.serversAPod }}
      {{- if .Values.grpc }}
      - --grpc
      {{- end }}
      {{- if .Values.keysSecret }}
      - --keys=/keys/keys.json
      {{- end }}
      {{- range .Values.allowOrigins }}
      - --allow-origin={{ . }}
      {{- end }}
      {{- if .Values.signatureConfigMap }}
      - --require-signature=/signature/release.pub
      {{- end }}
    ports:
      - {name: http, containerPort: 8000}
      {{- if .Values.grpc }}
      - {name: grpc, containerPort: 8001}
      {{- end }}
      - {name: metrics, containerPort: 8002}
    # haproxy has every server score a new comment twice a second; /ready is what it found.
    startupProbe:
      httpGet: {path: /ready, port: metrics}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 90
    readinessProbe:
      httpGet: {path: /ready, port: metrics}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 2
    # A server that ended is started anew inside; this is for a pod that cannot help itself.
    livenessProbe:
      exec: {command: [python, -m, serve.check, --run-dir, /run/toxicity/serve]}
      periodSeconds: 30
      timeoutSeconds: 20
      failureThreshold: 4
    lifecycle:
      # The service forgets the pod before it takes no more requests.
      preStop: {sleep: {seconds: 5}}
    resources:
      {{- $limits := .Values.resources.limits }}
      {{- if .Values.gpu }}
      {{- $limits = merge (dict "nvidia.com/gpu" (.Values.gpu | toString)) $limits }}
      {{- end }}
      requests: {{- toYaml .Values.resources.requests | nindent 8 }}
      limits: {{- toYaml $limits | nindent 8 }}
    securityContext: {{- include "toxicity.confined" . | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: /models, readOnly: true}
      - {name: run, mountPath: /run/toxicity}
      - {name: tmp, mountPath: /tmp}
      {{- if .Values.keysSecret }}
      - {name: keys, mountPath: /keys, readOnly: true}
      {{- end }}
      {{- if .Values.signatureConfigMap }}
      - {name: signature, mountPath: /signature, readOnly: true}
      {{- end }}
volumes:
  - name: models
    emptyDir: {sizeLimit: {{ .Values.modelsSize }}}
  - name: run
    emptyDir: {medium: Memory, sizeLimit: {{ .Values.runFolderSize }}}
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- with .Values.keysSecret }}
  - name: keys
    secret: {secretName: {{ . }}}
  {{- end }}
  {{- with .Values.signatureConfigMap }}
  - name: signature
    configMap: {name: {{ . }}}
  {{- end }}
{{- end }}
