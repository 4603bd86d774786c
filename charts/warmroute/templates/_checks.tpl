{{/* Values that can't be right, each with what to do. Included by every install through checks.yaml. */}}
{{- define "warmroute.checks" -}}
{{- include "warmroute.checks.moved" . -}}
{{- include "warmroute.checks.peers" . -}}
{{- include "warmroute.checks.picker" . -}}
{{- include "warmroute.checks.tokenizer" . -}}
{{- include "warmroute.checks.gateway" . -}}
{{- end -}}

{{/* Top-level keys of older charts. */}}
{{- define "warmroute.checks.moved" -}}
{{- $moved := dict
  "inferenceExtension" "its parts are router.epp, router.monitoring, router.tracing and router.proxy (replicas: router.epp.replicas, flags: router.epp.flags, pluginsCustomConfig: router.epp.pluginsCustomConfig)"
  "inferencePool" "use router.modelServers (matchLabels, targetPorts, type) and router.inferencePool"
  "experimentalHttpRoute" "use httpRoute, with create instead of enabled"
  "inferenceObjectives" "use router.inferenceObjectives"
  "latencyPredictor" "there is no latency predictor here: remove it, and latency scorers from the plugins" -}}
{{- range $key, $hint := $moved -}}
{{- if hasKey $.Values $key }}{{ fail (printf "\n\n%s is a value of an older chart: %s\n" $key $hint) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Values of the llm-d charts that ask for what isn't here. */}}
{{- define "warmroute.checks.peers" -}}
{{- $router := .Values.router -}}
{{- if ($router.tokenizer | default dict).enabled -}}
{{- fail "\n\nrouter.tokenizer.enabled: there is no tokenizer sidecar here, the picker makes tokens itself. Set it to false and say by router.tokenizer.source where the model's tokenizer.json is: volume, image, initContainer or huggingFaceCache; see the chart's README, \"Tokenizers\". Plugins of type token-producer with a vllm url on localhost must go from the plugins' configuration too\n" -}}
{{- end -}}
{{- if ($router.latencyPredictor | default dict).enabled -}}
{{- fail "\n\nrouter.latencyPredictor.enabled: there is no latency predictor here; set it to false, and take latency scorers out of the plugins\n" -}}
{{- end -}}
{{- if .Values.provider.gke.preferredBackends.enabled -}}
{{- fail "\n\nprovider.gke.preferredBackends.enabled: every replica serves here, so there is no preferred one; set it to false\n" -}}
{{- end -}}
{{- if ne $router.proxy.proxyType "envoy" -}}
{{- fail (printf "\n\nrouter.proxy.proxyType: standalone mode runs Envoy, not %s; for agentgateway use mode=gateway with provider.name=agentgateway\n" $router.proxy.proxyType) -}}
{{- end -}}
{{- if hasKey $router.proxy "presets" -}}
{{- fail "\n\nrouter.proxy.presets: this chart writes Envoy's configuration itself; remove it. What may differ are values of router.proxy: image, port, bodyMode, messageTimeout, maxRequestBytes, failOpen, resources\n" -}}
{{- end -}}
{{- range $key := list "configMap" "command" "ports" "readinessProbe" "volumes" "volumeMounts" "env" -}}
{{- if hasKey $router.proxy $key -}}
{{- fail (printf "\n\nrouter.proxy.%s: this chart writes Envoy's configuration and pod itself; remove it, and see router.proxy in the chart's README for what may differ (router.proxy.extraArgs adds arguments)\n" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $router.proxy.args (not (has "/etc/envoy/envoy.yaml" $router.proxy.args)) -}}
{{- fail "\n\nrouter.proxy.args: Envoy's configuration is /etc/envoy/envoy.yaml; name it after -c, or leave args out and use logLevel, concurrency and extraArgs\n" -}}
{{- end -}}
{{- if eq $router.modelServers.protocol "grpc" -}}
{{- fail "\n\nrouter.modelServers.protocol: gRPC bodies aren't read here; use http\n" -}}
{{- end -}}
{{- end -}}

{{- define "warmroute.checks.picker" -}}
{{- $router := .Values.router -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
{{- if and (not $router.modelServers.matchLabels) (or $settings.createPool (not $settings.pool)) -}}
{{- fail "\n\nrouter.modelServers.matchLabels: the labels of the pods that serve the model must be given, for example --set router.modelServers.matchLabels.app=vllm\n" -}}
{{- end -}}
{{- $ours := dict
  "pool-name" "router.inferencePool.name" "pool-namespace" "the release's namespace" "pool-group" "nothing: it is that of InferencePool v1"
  "endpoint-selector" "router.modelServers.matchLabels" "endpoint-target-ports" "router.modelServers.targetPorts"
  "grpc-port" "router.epp.extProcPort" "grpc-health-port" "router.epp.grpcHealthPort" "metrics-port" "router.metricsPort"
  "replica-port" "router.epp.replicaPort" "replica-peers" "nothing: the chart makes a Service for it"
  "config-file" "router.epp.pluginsConfigFile" "config-text" "router.epp.pluginsConfig" "tokenizer" "router.tokenizer"
  "cert-path" "router.epp.tls.secretName" "client-ca-file" "router.epp.tls.clientCASecretName" "enable-cert-reload" "nothing: a certificate of router.epp.tls.secretName is always reloaded"
  "tracing" "router.tracing.enabled" "kv-events-port" "router.modelServers.kvEvents.port" "kv-replay-port" "router.modelServers.kvEvents.replayPort" -}}
{{- range $flag, $value := $router.epp.flags -}}
{{- if hasKey $ours $flag }}{{ fail (printf "\n\nrouter.epp.flags.%s: the chart sets this flag; use %s\n" $flag (get $ours $flag)) }}{{ end -}}
{{- end -}}
{{- if and $settings.centralised (gt (int $settings.replicas) 1) -}}
{{- fail "\n\nrouter.modelServers.kvEvents.mode: centralised works with one replica only, since an engine's connection reaches one of them and the others would see nothing. Set router.epp.replicas=1, or let the picker subscribe: mode=subscribe, and in the engines' --kv-events-config an endpoint such as tcp://*:5557\n" -}}
{{- end -}}
{{- if and $settings.centralised (or (ne $router.epp.pluginsConfigFile "default-plugins.yaml") $router.epp.pluginsConfig) -}}
{{- $text := index (include "warmroute.plugins" . | fromYaml) $router.epp.pluginsConfigFile -}}
{{- if not (contains "zmqEndpoint" (toString $text)) -}}
{{- fail (printf "\n\nrouter.modelServers.kvEvents.mode: centralised needs kvEventsConfig.zmqEndpoint: tcp://*:%s in the precise-prefix-cache-producer of %s\n" (include "warmroute.kvEventsPort" .) $router.epp.pluginsConfigFile) -}}
{{- end -}}
{{- end -}}
{{- if not (hasKey (include "warmroute.plugins" . | fromYaml) $router.epp.pluginsConfigFile) -}}
{{- fail (printf "\n\nrouter.epp.pluginsConfigFile: there is no %s; give its text in router.epp.pluginsCustomConfig, or its fields in router.epp.pluginsConfig\n" $router.epp.pluginsConfigFile) -}}
{{- end -}}
{{- if and $settings.election $router.epp.autoscaling.enabled -}}
{{- fail "\n\nrouter.epp.autoscaling: with ha-enable-leader-election one picker serves, however many there are; remove one of them. Without the election every picker serves\n" -}}
{{- end -}}
{{- if and $router.epp.tls.secretName (not $settings.tls) -}}
{{- fail "\n\nrouter.epp.tls.secretName: with router.epp.flags.secure-serving=false no certificate is used; remove one of them\n" -}}
{{- end -}}
{{- if and $router.epp.tls.clientCASecretName (not $settings.tls) -}}
{{- fail "\n\nrouter.epp.tls.clientCASecretName: client certificates need TLS; remove router.epp.flags.secure-serving=false\n" -}}
{{- end -}}
{{- end -}}

{{- define "warmroute.checks.tokenizer" -}}
{{- $tokenizer := .Values.router.tokenizer -}}
{{- if and (eq $tokenizer.source "volume") (not $tokenizer.volume) -}}
{{- fail "\n\nrouter.tokenizer.volume: source=volume needs one, for example {persistentVolumeClaim: {claimName: models, readOnly: true}}\n" -}}
{{- end -}}
{{- if and (has $tokenizer.source (list "image" "initContainer")) (not $tokenizer.image.repository) -}}
{{- fail (printf "\n\nrouter.tokenizer.image.repository: source=%s needs an image\n" $tokenizer.source) -}}
{{- end -}}
{{- if and (eq $tokenizer.source "initContainer") (not $tokenizer.initContainer.command) (not $tokenizer.initContainer.args) -}}
{{- fail "\n\nrouter.tokenizer.initContainer: give command or args; it must put the files into /tokenizer\n" -}}
{{- end -}}
{{- if eq $tokenizer.source "huggingFaceCache" -}}
{{- $cache := $tokenizer.huggingFaceCache -}}
{{- if not (and $cache.volume $cache.model $cache.revision) -}}
{{- fail "\n\nrouter.tokenizer.huggingFaceCache: volume, model and revision must be given. The revision is the name of a folder in models--ORG--NAME/snapshots, a commit; models--ORG--NAME/refs/main says which one was fetched last\n" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "warmroute.checks.gateway" -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
{{- $provider := .Values.provider.name -}}
{{- if and (eq .Values.mode "gateway") (kindIs "bool" .Values.router.proxy.enabled) .Values.router.proxy.enabled -}}
{{- fail "\n\nrouter.proxy.enabled: an Envoy of the chart's own belongs to mode=standalone\n" -}}
{{- end -}}
{{- if eq .Values.mode "standalone" -}}
{{- if ne $provider "none" }}{{ fail "\n\nprovider.name: standalone mode has no gateway; set it to none, or mode=gateway\n" }}{{ end -}}
{{- if .Values.httpRoute.create }}{{ fail "\n\nhttpRoute.create: standalone mode has no gateway; set it to false, or mode=gateway\n" }}{{ end -}}
{{- end -}}
{{- if and (has $provider (list "agentgateway" "kgateway")) (not $settings.tls) -}}
{{- fail (printf "\n\nrouter.epp.flags.secure-serving: %s always speaks TLS to the picker of an InferencePool (it takes any certificate); remove secure-serving=false\n" $provider) -}}
{{- end -}}
{{- if and (has $provider (list "agentgateway" "kgateway" "gke")) .Values.router.epp.tls.clientCASecretName -}}
{{- fail (printf "\n\nrouter.epp.tls.clientCASecretName: %s shows the picker no client certificate; remove it, and let router.networkPolicy.gateways say who may connect\n" $provider) -}}
{{- end -}}
{{- $clientCa := .Values.router.epp.tls.clientCASecretName -}}
{{- if and $clientCa (ne $settings.proxy "none") (not .Values.router.proxy.tls.clientSecretName) -}}
{{- fail "\n\nrouter.epp.tls.clientCASecretName: Envoy needs a certificate that this CA has signed; give router.proxy.tls.clientSecretName too\n" -}}
{{- end -}}
{{- if and $settings.gatewayFilter .Values.router.proxy.tls.caSecretName -}}
{{- fail "\n\nrouter.proxy.tls.caSecretName: the gateway's pods don't have this Secret, so the EnvoyFilter takes any certificate of the picker; remove it\n" -}}
{{- end -}}
{{- if and $clientCa $settings.gatewayFilter -}}
{{- fail "\n\nrouter.epp.tls.clientCASecretName: the EnvoyFilter shows the picker no client certificate; remove it, and let router.networkPolicy.gateways say who may connect\n" -}}
{{- end -}}
{{- if and $clientCa (eq $provider "istio") (not (hasKey .Values.provider.istio.destinationRule.trafficPolicy "tls")) -}}
{{- fail "\n\nrouter.epp.tls.clientCASecretName: Istio's gateway needs a certificate to show; give provider.istio.destinationRule.trafficPolicy.tls with mode MUTUAL\n" -}}
{{- end -}}
{{- if and $settings.gatewayFilter (gt (len .Values.router.modelServers.targetPorts) 1) -}}
{{- fail "\n\nrouter.modelServers.targetPorts: istio-envoyfilter reaches one port per pod; use an InferencePool, or standalone mode\n" -}}
{{- end -}}
{{- if and $settings.gatewayFilter (not .Values.provider.istio.envoyFilter.workloadLabels) (not .Values.httpRoute.inferenceGatewayName) -}}
{{- fail "\n\nprovider.istio.envoyFilter.workloadLabels: name the gateway's pods, or the Gateway in httpRoute.inferenceGatewayName\n" -}}
{{- end -}}
{{- if and $settings.gatewayFilter $settings.createPool -}}
{{- fail "\n\nrouter.inferencePool.create: with provider.name=istio-envoyfilter requests reach the engines' Service, not a pool; set it to false or remove it\n" -}}
{{- end -}}
{{- end -}}
