{{/* What follows from the values, worked out once: include "warmroute.settings" . | fromYaml.

  pool            whether the picker follows an InferencePool, rather than a selector of its own
  createPool      whether the chart makes that pool
  proxy           none, sidecar or service
  gatewayFilter   whether Istio is told of the picker by EnvoyFilters
  tls             whether ext-proc is served over TLS
  election        whether replicas elect a leader
  metricsAuth     whether the metrics port asks for a token
  metricsTls      whether it serves TLS
  centralised     whether engines connect to the picker with their KV events
  drainSeconds, graceSeconds, proxyDrainSeconds, proxySleep
  replicas        how many there are at most
*/}}
{{- define "warmroute.settings" -}}
{{- $router := .Values.router -}}
{{- $standalone := eq .Values.mode "standalone" -}}
{{- $filter := and (not $standalone) (eq .Values.provider.name "istio-envoyfilter") -}}
{{- $create := $router.inferencePool.create -}}
{{- if kindIs "invalid" $create }}{{ $create = not (or $standalone $filter) }}{{ end -}}
{{- $pool := or $create (ne $router.inferencePool.name "") (not (or $standalone $filter)) -}}
{{- $proxy := "none" -}}
{{- if and $standalone (not (and (kindIs "bool" $router.proxy.enabled) (not $router.proxy.enabled))) }}{{ $proxy = $router.proxy.mode }}{{ end -}}
{{- $flags := $router.epp.flags | default dict -}}
{{- $tls := ne (toString (get $flags "secure-serving" | default "true")) "false" -}}
{{- if hasKey $flags "secure-serving" }}{{ $tls = eq (toString (get $flags "secure-serving")) "true" }}{{ end -}}
{{- $drain := get $flags "drain-timeout" | default $router.epp.drainTimeout -}}
{{- $drainSeconds := include "warmroute.seconds" (dict "what" "router.epp.drainTimeout" "text" (toString $drain)) | int -}}
{{- $sleep := and (ne $proxy "none") (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}
{{- $proxyDrain := ternary (int $router.proxy.drainSeconds) 0 $sleep -}}
{{- /* An Envoy in the same pod ends first, so the picker need not wait for anybody afterwards. */ -}}
{{- if and (eq $proxy "sidecar") $sleep }}{{ $drainSeconds = 5 }}{{ end -}}
{{- $grace := add (mul 2 $drainSeconds) 10 -}}
{{- if eq $proxy "sidecar" }}{{ $grace = add $grace $proxyDrain }}{{ end -}}
{{- if not (kindIs "invalid" $router.epp.terminationGracePeriodSeconds) }}{{ $grace = int $router.epp.terminationGracePeriodSeconds }}{{ end -}}
pool: {{ $pool }}
createPool: {{ $create }}
proxy: {{ $proxy }}
gatewayFilter: {{ $filter }}
tls: {{ $tls }}
election: {{ or (eq (toString (get $flags "ha-enable-leader-election")) "true") (hasKey $flags "ha-enable-leader-election=true") }}
metricsAuth: {{ and $router.monitoring.prometheus.auth.enabled (ne (toString (get $flags "metrics-endpoint-auth" | default "true")) "false") (not (and (hasKey $flags "metrics-endpoint-auth") (eq (toString (get $flags "metrics-endpoint-auth")) "false"))) }}
metricsTls: {{ ne (toString (get $flags "metrics-cert-dir" | default "")) "" }}
centralised: {{ eq $router.modelServers.kvEvents.mode "centralised" }}
drainSeconds: {{ $drainSeconds }}
graceSeconds: {{ $grace }}
proxyDrainSeconds: {{ $proxyDrain }}
proxySleep: {{ $sleep }}
replicas: {{ ternary (int $router.epp.autoscaling.maxReplicas) (int $router.epp.replicas) $router.epp.autoscaling.enabled }}
{{- end -}}

{{/* Seconds of a duration such as 30s, 2m or 1h1m1s. */}}
{{- define "warmroute.seconds" -}}
{{- if not (regexMatch "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$" .text) -}}
{{- fail (printf "\n\n%s: %q isn't whole seconds, such as 30s or 2m\n" .what .text) -}}
{{- end -}}
{{- $hours := regexFind "[0-9]+h" .text | trimSuffix "h" | default "0" | int -}}
{{- $minutes := regexFind "[0-9]+m" .text | trimSuffix "m" | default "0" | int -}}
{{- $seconds := regexFind "[0-9]+s" .text | trimSuffix "s" | default "0" | int -}}
{{- add (mul 3600 $hours) (mul 60 $minutes) $seconds -}}
{{- end -}}

{{/* Port of KV events that engines connect to, in centralised mode. */}}
{{- define "warmroute.kvEventsPort" -}}
{{- .Values.router.modelServers.kvEvents.port | default 5557 | int -}}
{{- end -}}

{{/* Folder of the tokenizer in the picker's container, or nothing. */}}
{{- define "warmroute.tokenizerDir" -}}
{{- $tokenizer := .Values.router.tokenizer -}}
{{- $path := trimAll "/" ($tokenizer.path | default "") -}}
{{- if eq $tokenizer.source "huggingFaceCache" -}}
{{- $cache := $tokenizer.huggingFaceCache -}}
{{- $path = printf "models--%s/snapshots/%s" (replace "/" "--" $cache.model) $cache.revision -}}
{{- end -}}
{{- if ne $tokenizer.source "none" -}}
{{- printf "/tokenizer/%s" $path | trimSuffix "/" -}}
{{- end -}}
{{- end -}}

{{/* Defaults of a container of ours, under what the values say; null takes a default away. */}}
{{- define "warmroute.containerSecurity" -}}
{{- $defaults := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "runAsNonRoot" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- include "warmroute.laidOver" (dict "defaults" $defaults "given" .) -}}
{{- end -}}

{{- define "warmroute.podSecurity" -}}
{{- $defaults := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- include "warmroute.laidOver" (dict "defaults" $defaults "given" .) -}}
{{- end -}}

{{- define "warmroute.laidOver" -}}
{{- $all := .defaults -}}
{{- range $key, $value := .given -}}
{{- if kindIs "invalid" $value }}{{ $_ := unset $all $key }}{{ else }}{{ $_ := set $all $key $value }}{{ end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* Where pods may run: selector, tolerations, affinity, spread, priority. Takes {values, selector, antiAffinity}. */}}
{{- define "warmroute.placement" -}}
{{- $pod := .values -}}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $pod.affinity }}
affinity:
  {{- toYaml $pod.affinity | nindent 2 }}
{{- else if eq .antiAffinity "hard" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- .selector | nindent 10 }}
{{- else if eq .antiAffinity "soft" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- .selector | nindent 12 }}
{{- end }}
{{- if kindIs "invalid" $pod.topologySpreadConstraints }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- .selector | nindent 6 }}
{{- else if $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $pod.topologySpreadConstraints | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How pods are replaced. With an election all but the leader are unready on purpose, and a leader is available until
the last one: whoever waits for that waits forever. */}}
{{- define "warmroute.strategy" -}}
{{- $given := .Values.router.epp.deploymentStrategy -}}
{{- if $given }}
{{- toYaml $given }}
{{- else if (include "warmroute.settings" . | fromYaml).election -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 100%, maxSurge: 100%}
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
{{- end }}
{{- end -}}
