{{/* The picker's command line, one argument per line of a YAML list. */}}
{{- define "warmroute.args" -}}
{{- $router := .Values.router -}}
{{- $epp := $router.epp -}}
{{- $events := $router.modelServers.kvEvents -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
{{- if $settings.pool }}
- --pool-name={{ include "warmroute.poolName" . }}
- --pool-namespace={{ .Release.Namespace }}
- --pool-group=inference.networking.k8s.io
{{- else }}
- --endpoint-selector={{ include "warmroute.selectorText" $router.modelServers.matchLabels }}
- --endpoint-target-ports={{ include "warmroute.targetPorts" . }}
{{- range $router.inferenceObjectives }}
- --inference-objective={{ .name }}={{ int .priority }}
{{- end }}
{{- end }}
- --config-file=/config/{{ $epp.pluginsConfigFile }}
- --grpc-port={{ $epp.extProcPort }}
- --grpc-health-port={{ $epp.grpcHealthPort }}
- --metrics-port={{ $router.metricsPort }}
- --metrics-endpoint-auth={{ $settings.metricsAuth }}
- --secure-serving={{ $settings.tls }}
{{- if $epp.tls.secretName }}
- --cert-path=/tls/server
- --enable-cert-reload=true
{{- end }}
{{- if $epp.tls.clientCASecretName }}
- --client-ca-file=/tls/client-ca/ca.crt
{{- end }}
- --replica-port={{ $epp.replicaPort }}
- --replica-peers={{ include "warmroute.replicasName" . }}.{{ .Release.Namespace }}.svc.{{ $router.clusterDomain }}:{{ $epp.replicaPort }}
{{- with include "warmroute.tokenizerDir" . }}
- --tokenizer={{ . }}
{{- end }}
{{- if eq $events.mode "off" }}
- --kv-events-port=0
{{- else if eq $events.mode "subscribe" }}
{{- with $events.port }}
- --kv-events-port={{ int . }}
{{- end }}
{{- with $events.replayPort }}
- --kv-replay-port={{ int . }}
{{- end }}
{{- end }}
- --tracing={{ $router.tracing.enabled }}
- --drain-timeout={{ $settings.drainSeconds }}s
- --log-json
{{- range $flag, $value := omit $epp.flags "secure-serving" "metrics-endpoint-auth" "drain-timeout" }}
{{- /* A value may be part of the name, as some values files of llm-d have it. */}}
- {{ ternary (printf "--%s" $flag) (printf "--%s=%s" $flag (include "warmroute.flagValue" $value)) (and (contains "=" $flag) (eq (toString $value) "")) | quote }}
{{- end }}
{{- range $epp.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Numbers from values files are floats to Helm. */}}
{{- define "warmroute.flagValue" -}}
{{- if kindIs "float64" . }}{{ if eq (float64 (int64 .)) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "warmroute.selectorText" -}}
{{- $parts := list -}}
{{- range $key, $value := . }}{{ $parts = append $parts (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $parts -}}
{{- end -}}

{{- define "warmroute.targetPorts" -}}
{{- $ports := list -}}
{{- range .Values.router.modelServers.targetPorts }}{{ $ports = append $ports (int .number) }}{{ end -}}
{{- join "," $ports -}}
{{- end -}}

{{/* The picker's container. */}}
{{- define "warmroute.container" -}}
{{- $router := .Values.router -}}
{{- $epp := $router.epp -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
name: epp
image: {{ include "warmroute.imageReference" (dict "image" $epp.image "defaultTag" .Chart.AppVersion) }}
imagePullPolicy: {{ $epp.image.pullPolicy }}
args:
{{- include "warmroute.args" . }}
env:
- name: NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if $router.tracing.enabled }}
- name: OTEL_SERVICE_NAME
  value: {{ include "warmroute.name" . }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $router.tracing.otelExporterEndpoint | quote }}
- name: OTEL_TRACES_EXPORTER
  value: otlp
- name: OTEL_TRACES_SAMPLER
  value: {{ $router.tracing.sampling.sampler | quote }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $router.tracing.sampling.samplerArg | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name=$(NAMESPACE),k8s.pod.name=$(POD_NAME)
{{- end }}
{{- if kindIs "map" $epp.env }}
{{- range $name, $value := $epp.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- else if $epp.env }}
{{ toYaml $epp.env }}
{{- end }}
ports:
- {name: grpc, containerPort: {{ $epp.extProcPort }}}
- {name: grpc-health, containerPort: {{ $epp.grpcHealthPort }}}
- {name: metrics, containerPort: {{ $router.metricsPort }}}
- {name: replica, containerPort: {{ $epp.replicaPort }}}
{{- if $settings.centralised }}
- {name: kv-events, containerPort: {{ include "warmroute.kvEventsPort" . }}}
{{- end }}
{{- with $epp.extraContainerPorts }}
{{ toYaml . }}
{{- end }}
{{- include "warmroute.probes" . }}
{{- if and (eq $settings.proxy "sidecar") $settings.proxySleep }}
# As long as the Envoy beside it serves on.
lifecycle:
  preStop:
    sleep: {seconds: {{ $settings.proxyDrainSeconds }}}
{{- end }}
securityContext:
  {{- include "warmroute.containerSecurity" $epp.securityContext | nindent 2 }}
{{- with $epp.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
- {name: plugins, mountPath: /config, readOnly: true}
- {name: api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- if $epp.tls.secretName }}
- {name: server-certificate, mountPath: /tls/server, readOnly: true}
{{- end }}
{{- if $epp.tls.clientCASecretName }}
- {name: client-ca, mountPath: /tls/client-ca, readOnly: true}
{{- end }}
{{- if ne $router.tokenizer.source "none" }}
- {name: tokenizer, mountPath: /tokenizer, readOnly: true}
{{- end }}
{{- with $epp.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether the process runs is asked apart from whether it can serve: a pool that isn't there yet, or an API server
that doesn't answer, is no reason to start it again. Without an election every health service says whether it can
serve, so the port itself is asked. */}}
{{- define "warmroute.probes" }}
{{- $epp := .Values.router.epp }}
{{- $settings := include "warmroute.settings" . | fromYaml }}
readinessProbe:
  grpc: {port: {{ $epp.grpcHealthPort }}, service: {{ ternary "readiness" "inference-extension" $settings.election }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  {{- if $settings.election }}
  grpc: {port: {{ $epp.grpcHealthPort }}, service: liveness}
  {{- else }}
  tcpSocket: {port: grpc-health}
  {{- end }}
  initialDelaySeconds: 5
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{/* Volumes of the picker's pod. Mode 288 is octal 0440. */}}
{{- define "warmroute.volumes" -}}
{{- $router := .Values.router -}}
{{- $epp := $router.epp -}}
{{- $tokenizer := $router.tokenizer -}}
- name: plugins
  configMap: {name: {{ include "warmroute.name" . }}}
# The service account's token, for this container alone: an Envoy in the same pod doesn't get it.
- name: api-access
  projected:
    defaultMode: 288
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap:
        name: kube-root-ca.crt
        items: [{key: ca.crt, path: ca.crt}]
    - downwardAPI:
        items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- with $epp.tls.secretName }}
- name: server-certificate
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- with $epp.tls.clientCASecretName }}
- name: client-ca
  secret:
    secretName: {{ . }}
    defaultMode: 288
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- if eq $tokenizer.source "volume" }}
- name: tokenizer
  {{- toYaml $tokenizer.volume | nindent 2 }}
{{- else if eq $tokenizer.source "huggingFaceCache" }}
- name: tokenizer
  {{- toYaml $tokenizer.huggingFaceCache.volume | nindent 2 }}
{{- else if eq $tokenizer.source "image" }}
- name: tokenizer
  image:
    reference: {{ include "warmroute.imageReference" (dict "image" $tokenizer.image "defaultTag" "latest") }}
    pullPolicy: {{ $tokenizer.image.pullPolicy }}
{{- else if eq $tokenizer.source "initContainer" }}
- name: tokenizer
  emptyDir: {sizeLimit: {{ $tokenizer.initContainer.sizeLimit }}}
{{- end }}
{{- if eq (include "warmroute.settings" . | fromYaml).proxy "sidecar" }}
{{ include "warmroute.envoy.volumes" . }}
{{- end }}
{{- with $epp.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What puts the tokenizer's files into the pod before the picker starts. */}}
{{- define "warmroute.tokenizerContainer" -}}
{{- $tokenizer := .Values.router.tokenizer -}}
name: tokenizer
image: {{ include "warmroute.imageReference" (dict "image" $tokenizer.image "defaultTag" "latest") }}
imagePullPolicy: {{ $tokenizer.image.pullPolicy }}
{{- with $tokenizer.initContainer.command }}
command:
{{ toYaml . }}
{{- end }}
{{- with $tokenizer.initContainer.args }}
args:
{{ toYaml . }}
{{- end }}
{{- with $tokenizer.initContainer.env }}
env:
{{ toYaml . }}
{{- end }}
securityContext:
  {{- include "warmroute.containerSecurity" .Values.router.epp.securityContext | nindent 2 }}
resources:
  requests: {cpu: 50m, memory: 64Mi}
  limits: {memory: 512Mi}
volumeMounts:
- {name: tokenizer, mountPath: /tokenizer}
{{- end -}}
