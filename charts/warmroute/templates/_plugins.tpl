{{/* The picker's configuration files by name, as a YAML map: two of the chart's, and those of the values. */}}
{{- define "warmroute.plugins" -}}
{{- $epp := .Values.router.epp -}}
{{- $files := dict "default-plugins.yaml" (include "warmroute.defaultPlugins" .) "payload-agnostic.yaml" (include "warmroute.payloadAgnostic" .) -}}
{{- range $name, $text := $epp.pluginsCustomConfig }}{{ $_ := set $files $name $text }}{{ end -}}
{{- with $epp.pluginsConfig }}{{ $_ := set $files $epp.pluginsConfigFile (toYaml .) }}{{ end -}}
{{- $runs := $epp.pluginsConfigFile -}}
{{- if and (hasKey $files $runs) (not (has $runs (list "default-plugins.yaml" "payload-agnostic.yaml"))) -}}
{{- $_ := set $files $runs (include "warmroute.withMetricsOf" (dict "root" . "text" (get $files $runs))) -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{/* A configuration that says nothing of the engines' metrics pages gets what router.modelServers.type and
router.epp.metricsDataSource say, where that isn't what the picker does anyway. Takes {root, text}. */}}
{{- define "warmroute.withMetricsOf" -}}
{{- $values := .root.Values.router -}}
{{- $source := $values.epp.metricsDataSource -}}
{{- $config := fromYaml .text -}}
{{- $types := list -}}
{{- range $config.plugins }}{{ $types = append $types .type }}{{ end -}}
{{- $added := list -}}
{{- $plain := and (eq $source.scheme "http") (eq $source.path "/metrics") -}}
{{- if not (or $plain (has "metrics-data-source" $types)) -}}
{{- $parameters := dict "scheme" $source.scheme "path" $source.path -}}
{{- if eq $source.scheme "https" }}{{ $_ := set $parameters "insecureSkipVerify" $source.insecureSkipVerify }}{{ end -}}
{{- $added = append $added (dict "type" "metrics-data-source" "parameters" $parameters) -}}
{{- end -}}
{{- if not (or (eq $values.modelServers.type "vllm") (has "core-metrics-extractor" $types)) -}}
{{- $added = append $added (dict "type" "core-metrics-extractor" "parameters" (dict "defaultEngine" $values.modelServers.type)) -}}
{{- end -}}
{{- if and $added (not (hasKey $config "Error")) -}}
{{- $_ := set $config "plugins" (concat (list) ($config.plugins | default list) $added) -}}
{{- toYaml $config -}}
{{- else -}}
{{- .text -}}
{{- end -}}
{{- end -}}

{{/* Prefix matches by the engines' KV events where they are seen, else by what was sent; with load beside them. */}}
{{- define "warmroute.defaultPlugins" -}}
{{- $source := .Values.router.epp.metricsDataSource -}}
{{- $producer := ternary "precise-prefix-cache-producer" "prefix-cache-producer" (eq .Values.router.modelServers.kvEvents.mode "centralised") -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
{{- if eq $producer "precise-prefix-cache-producer" }}
- type: precise-prefix-cache-producer
  parameters:
    kvEventsConfig:
      zmqEndpoint: tcp://*:{{ include "warmroute.kvEventsPort" . }}
      discoverPods: false
{{- else }}
- type: prefix-cache-producer
{{- end }}
- type: prefix-cache-scorer
  parameters:
    prefixMatchInfoProducerName: {{ $producer }}
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: max-score-picker
- type: metrics-data-source
  parameters:
    scheme: {{ $source.scheme }}
    path: {{ $source.path }}
    {{- if eq $source.scheme "https" }}
    insecureSkipVerify: {{ $source.insecureSkipVerify }}
    {{- end }}
- type: core-metrics-extractor
  parameters:
    defaultEngine: {{ .Values.router.modelServers.type }}
{{- include "warmroute.parserPlugins" . }}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
  - pluginRef: max-score-picker
{{- include "warmroute.requestHandler" . }}
{{- end -}}

{{/* For traffic whose bodies mean nothing to the picker: load and sessions alone. */}}
{{- define "warmroute.payloadAgnostic" -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: passthrough-parser
- type: active-request-scorer
- type: session-affinity-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: active-request-scorer
    weight: 1
  - pluginRef: session-affinity-scorer
    weight: 1
requestHandler:
  parsers:
  - pluginRef: passthrough-parser
{{- end -}}

{{- define "warmroute.parserPlugins" -}}
{{- range .Values.router.epp.parsers }}
- type: {{ . }}
{{- end }}
{{- end -}}

{{- define "warmroute.requestHandler" -}}
{{- with .Values.router.epp.parsers }}
requestHandler:
  parsers:
  {{- range . }}
  - pluginRef: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}
