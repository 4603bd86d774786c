{{/* Envoy's configuration, in the parts that standalone mode and Istio's EnvoyFilter share. What each setting is for
stands in deploy/envoy/buffered.yaml and full-duplex.yaml, which these follow. */}}

{{/* Routing headers are the picker's to set: removed before any filter or route sees the request. */}}
{{- define "warmroute.envoy.earlyMutation" -}}
name: envoy.http.early_header_mutation.header_mutation
typed_config:
  "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
  mutations:
  - remove: x-gateway-destination-endpoint
  - remove: x-prefiller-host-port
  - remove: x-encoder-hosts-ports
  - remove: x-data-parallel-host-port
  - remove: x-data-parallel-rank
  - remove: x-kv-cache-source-host-port
  - remove: x-prefiller-url
  - remove: x-gateway-destination-endpoint-served
  - remove: x-gateway-destination-endpoint-fallback
  - remove: x-gateway-destination-endpoint-scores
{{- end -}}

{{/* The ext_proc filter. Takes {proxy, cluster}. */}}
{{- define "warmroute.envoy.extProc" -}}
name: envoy.filters.http.ext_proc
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
  grpc_service:
    envoy_grpc:
      cluster_name: {{ .cluster }}
      authority: localhost
    timeout: 10s
  failure_mode_allow: {{ .proxy.failOpen }}
  message_timeout: {{ .proxy.messageTimeout }}
  {{- if eq .proxy.bodyMode "full-duplex" }}
  processing_mode:
    request_header_mode: SEND
    request_body_mode: FULL_DUPLEX_STREAMED
    request_trailer_mode: SEND
    response_header_mode: SEND
    response_body_mode: FULL_DUPLEX_STREAMED
    response_trailer_mode: SEND
  {{- else }}
  processing_mode:
    request_header_mode: SEND
    request_body_mode: BUFFERED
    request_trailer_mode: SEND
    response_header_mode: SKIP
    response_body_mode: NONE
    response_trailer_mode: SEND
  allow_mode_override: true
  {{- end }}
  metadata_options:
    forwarding_namespaces:
      untyped: [envoy.lb.subset_hint, envoy.lb]
    receiving_namespaces:
      untyped: [envoy.lb]
{{- end -}}

{{/* What Envoy may hold of one request: all of it where it is buffered. */}}
{{- define "warmroute.envoy.bufferLimit" -}}
{{- ternary 1048576 (int64 .maxRequestBytes) (eq .bodyMode "full-duplex") -}}
{{- end -}}

{{/* The cluster of pickers. Takes {root, name, local}: local is a picker in the same pod. */}}
{{- define "warmroute.envoy.pickerCluster" -}}
{{- $router := .root.Values.router -}}
{{- $settings := include "warmroute.settings" .root | fromYaml -}}
name: {{ .name }}
{{- if .local }}
type: STATIC
{{- else }}
type: STRICT_DNS
dns_refresh_rate: 2s
{{- end }}
lb_policy: LEAST_REQUEST
connect_timeout: 1s
circuit_breakers:
  thresholds:
  - max_connections: 40000
    max_pending_requests: 40000
    max_requests: 40000
    max_retries: 1024
{{- if $settings.tls }}
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    {{- with $router.proxy.tls.serverName }}
    sni: {{ . }}
    {{- end }}
    common_tls_context:
      alpn_protocols: [h2]
      {{- if $router.proxy.tls.caSecretName }}
      validation_context:
        trusted_ca: {filename: /etc/envoy-ca/ca.crt}
        {{- with $router.proxy.tls.serverName }}
        match_typed_subject_alt_names:
        - san_type: DNS
          matcher: {exact: {{ . }}}
        {{- end }}
      {{- end }}
      {{- if $router.proxy.tls.clientSecretName }}
      tls_certificates:
      - certificate_chain: {filename: /etc/envoy-client/tls.crt}
        private_key: {filename: /etc/envoy-client/tls.key}
      {{- end }}
{{- end }}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config:
      http2_protocol_options:
        initial_stream_window_size: 65536
        initial_connection_window_size: 1048576
load_assignment:
  cluster_name: {{ .name }}
  endpoints:
  - lb_endpoints:
    - endpoint:
        address:
          socket_address:
            {{- if .local }}
            address: 127.0.0.1
            {{- else }}
            address: {{ include "warmroute.replicasName" .root }}.{{ .root.Release.Namespace }}.svc.{{ $router.clusterDomain }}
            {{- end }}
            port_value: {{ $router.epp.extProcPort }}
# Takes a picker that drains out of the rotation well within its drain timeout.
health_checks:
- timeout: 2s
  interval: 2s
  no_traffic_interval: 2s
  unhealthy_threshold: 2
  healthy_threshold: 1
  reuse_connection: true
  grpc_health_check:
    service_name: envoy.service.ext_proc.v3.ExternalProcessor
{{- end -}}

{{/* Where a listener binds: IPv6 and IPv4, unless one address is given. Takes {proxy, port}. */}}
{{- define "warmroute.envoy.listen" -}}
socket_address: {address: {{ .proxy.listenAddress | quote }}, port_value: {{ .port }}{{ if eq .proxy.listenAddress "::" }}, ipv4_compat: true{{ end }}}
{{- end -}}

{{/* The whole bootstrap of standalone mode's Envoy. */}}
{{- define "warmroute.envoy.bootstrap" -}}
{{- $proxy := .Values.router.proxy -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 19000}
static_resources:
  listeners:
  # Readiness and metrics, and nothing else of the admin page.
  - name: ready
    address:
      {{- include "warmroute.envoy.listen" (dict "proxy" $proxy "port" 19001) | nindent 6 }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ready
          route_config:
            name: ready
            virtual_hosts:
            - name: metrics
              domains: ["*"]
              routes:
              - match: {path: /stats/prometheus}
                route: {cluster: admin}
          http_filters:
          - name: envoy.filters.http.health_check
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
              pass_through_mode: false
              headers:
              - name: ":path"
                string_match: {exact: /ready}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  - name: gateway
    address:
      {{- include "warmroute.envoy.listen" (dict "proxy" $proxy "port" $proxy.port) | nindent 6 }}
    per_connection_buffer_limit_bytes: {{ include "warmroute.envoy.bufferLimit" $proxy }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: gateway
          codec_type: AUTO
          {{- if $settings.proxyDrainSeconds }}
          # A pod that stops serves on for {{ $settings.proxyDrainSeconds }} s. Clients change their connection in half of that, after an
          # answer, so that none is left on one that ends.
          common_http_protocol_options:
            max_connection_duration: {{ max 1 (div $settings.proxyDrainSeconds 2) }}s
          http1_safe_max_connection_duration: true
          {{- end }}
          early_header_mutation_extensions:
          -
            {{- include "warmroute.envoy.earlyMutation" . | nindent 12 }}
          http_protocol_options: {enable_trailers: true}
          route_config:
            name: pool
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: "/"}
                route: {cluster: pool, timeout: 86400s, idle_timeout: 86400s}
          http_filters:
          -
            {{- include "warmroute.envoy.extProc" (dict "proxy" $proxy "cluster" "picker") | nindent 12 }}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: admin
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: admin
      endpoints:
      - lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: 127.0.0.1, port_value: 19000}
  # The engines: each request goes to the address in the header that the picker set.
  - name: pool
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: {{ $proxy.connectTimeout }}
    circuit_breakers:
      thresholds:
      - max_connections: 40000
        max_pending_requests: 40000
        max_requests: 40000
    original_dst_lb_config:
      use_http_header: true
      http_header_name: x-gateway-destination-endpoint
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http_protocol_options: {enable_trailers: true}
  -
    {{- include "warmroute.envoy.pickerCluster" (dict "root" . "name" "picker" "local" (eq $settings.proxy "sidecar")) | nindent 4 }}
{{- end -}}

{{/* Ports of the Service in front of Envoy: those of extraServicePorts that lead to it, else its own. */}}
{{- define "warmroute.envoy.servicePorts" -}}
{{- $given := list -}}
{{- $proxy := .Values.router.proxy -}}
{{- range .Values.router.extraServicePorts -}}
{{- if eq (include "warmroute.leadsToEnvoy" (dict "port" . "proxy" $proxy)) "true" }}{{ $given = append $given . }}{{ end -}}
{{- end -}}
{{- toYaml ($given | default (list (dict "name" "http" "port" (int $proxy.port) "targetPort" "http"))) -}}
{{- end -}}

{{/* The others of extraServicePorts, if there are any. */}}
{{- define "warmroute.otherServicePorts" -}}
{{- $others := list -}}
{{- $values := .Values -}}
{{- $proxy := ne (include "warmroute.settings" . | fromYaml).proxy "none" -}}
{{- range $values.router.extraServicePorts -}}
{{- if not (and $proxy (eq (include "warmroute.leadsToEnvoy" (dict "port" . "proxy" $values.router.proxy)) "true")) }}{{ $others = append $others . }}{{ end -}}
{{- end -}}
{{- with $others }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "warmroute.leadsToEnvoy" -}}
{{- $target := toString (.port.targetPort | default .port.port) -}}
{{- or (eq $target "http") (eq $target (toString .proxy.port)) -}}
{{- end -}}

{{/* Envoy's container. */}}
{{- define "warmroute.envoy.container" -}}
{{- $proxy := .Values.router.proxy -}}
{{- $settings := include "warmroute.settings" . | fromYaml -}}
name: envoy
image: {{ $proxy.image }}
imagePullPolicy: {{ $proxy.imagePullPolicy }}
command: [envoy]
args:
{{- if $proxy.args }}
{{- range $proxy.args }}
- {{ . | quote }}
{{- end }}
{{- else }}
- --config-path
- /etc/envoy/envoy.yaml
- --log-level
- {{ $proxy.logLevel }}
{{- if $proxy.concurrency }}
- --concurrency
- {{ $proxy.concurrency | quote }}
{{- else }}
- --cpuset-threads
{{- end }}
{{- end }}
- --disable-hot-restart
{{- range $proxy.extraArgs }}
- {{ . | quote }}
{{- end }}
ports:
- {name: http, containerPort: {{ $proxy.port }}}
- {name: envoy-ready, containerPort: 19001}
readinessProbe:
  httpGet: {path: /ready, port: envoy-ready}
  periodSeconds: 5
  failureThreshold: 1
livenessProbe:
  httpGet: {path: /ready, port: envoy-ready}
  initialDelaySeconds: 5
  periodSeconds: 10
  failureThreshold: 6
{{- if $settings.proxySleep }}
# The pod leaves its Service meanwhile, and what is running ends.
lifecycle:
  preStop:
    sleep: {seconds: {{ $settings.proxyDrainSeconds }}}
{{- end }}
securityContext:
  {{- include "warmroute.containerSecurity" $proxy.securityContext | nindent 2 }}
resources:
  {{- toYaml $proxy.resources | nindent 2 }}
volumeMounts:
- {name: envoy-config, mountPath: /etc/envoy, readOnly: true}
{{- if $proxy.tls.caSecretName }}
- {name: envoy-ca, mountPath: /etc/envoy-ca, readOnly: true}
{{- end }}
{{- if $proxy.tls.clientSecretName }}
- {name: envoy-client, mountPath: /etc/envoy-client, readOnly: true}
{{- end }}
{{- end -}}

{{/* Volumes of Envoy's container. */}}
{{- define "warmroute.envoy.volumes" -}}
- name: envoy-config
  configMap: {name: {{ include "warmroute.proxyName" . }}}
{{- with .Values.router.proxy.tls.caSecretName }}
- name: envoy-ca
  secret:
    secretName: {{ . }}
    defaultMode: 288
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- with .Values.router.proxy.tls.clientSecretName }}
- name: envoy-client
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- end -}}
