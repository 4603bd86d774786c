{{/* Names and labels. */}}

{{/* Name of the picker's objects: the release's name and -epp, as in the llm-d charts. */}}
{{- define "warmroute.name" -}}
{{- printf "%s-epp" (.Release.Name | trunc 49 | trimSuffix "-") -}}
{{- end -}}

{{- define "warmroute.proxyName" -}}
{{- printf "%s-proxy" (include "warmroute.name" .) -}}
{{- end -}}

{{/* Headless Service of the picker's ready replicas. */}}
{{- define "warmroute.replicasName" -}}
{{- printf "%s-replicas" (include "warmroute.name" .) -}}
{{- end -}}

{{- define "warmroute.poolName" -}}
{{- .Values.router.inferencePool.name | default .Release.Name -}}
{{- end -}}

{{- define "warmroute.serviceAccountName" -}}
{{- .Values.router.serviceAccount.name | default (include "warmroute.name" .) -}}
{{- end -}}

{{- define "warmroute.metricsReaderName" -}}
{{- printf "%s-metrics-reader" (include "warmroute.name" .) -}}
{{- end -}}

{{/* Secret with the token that Prometheus shows at the metrics port. */}}
{{- define "warmroute.metricsSecretName" -}}
{{- .Values.router.monitoring.prometheus.auth.secretName | default (include "warmroute.metricsReaderName" .) -}}
{{- end -}}

{{/* Name of an object that isn't in a namespace. */}}
{{- define "warmroute.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "warmroute.name" .) -}}
{{- end -}}

{{- define "warmroute.commonSelector" -}}
app.kubernetes.io/name: warmroute
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "warmroute.selector" -}}
{{ include "warmroute.commonSelector" . }}
app.kubernetes.io/component: epp
{{- end -}}

{{- define "warmroute.proxySelector" -}}
{{ include "warmroute.commonSelector" . }}
app.kubernetes.io/component: proxy
{{- end -}}

{{- define "warmroute.releaseLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "warmroute.labels" -}}
{{ include "warmroute.selector" . }}
{{ include "warmroute.releaseLabels" . }}
{{- end -}}

{{- define "warmroute.proxyLabels" -}}
{{ include "warmroute.proxySelector" . }}
{{ include "warmroute.releaseLabels" . }}
{{- end -}}

{{/* Reference of an image: registry, repository and digest or tag of a dict, with a default tag. */}}
{{- define "warmroute.imageReference" -}}
{{- $image := .image -}}
{{- $name := $image.repository -}}
{{- with $image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .defaultTag) -}}
{{- end -}}
{{- end -}}

{{/* Service of the engines, which only Istio's EnvoyFilter needs. */}}
{{- define "warmroute.enginesName" -}}
{{- printf "%s-engines" (include "warmroute.name" .) -}}
{{- end -}}
