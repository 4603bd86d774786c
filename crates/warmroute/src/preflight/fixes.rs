//! What each symptom means, and the settings that help.
//!
//! Envoy's names are those of its v3 API; Istio's of its own and the inference extension's resources; kgateway's and
//! agentgateway's of their policies (github.com/kgateway-dev/kgateway.dev, "buffering"; github.com/agentgateway/agentgateway,
//! `AgentgatewayPolicy`).

use super::finding::{Fix, Symptom};

const fn fix(at: &'static str, setting: &'static str) -> Fix {
    Fix { at, setting }
}

const ENVOY: &str = "Envoy";
const ISTIO: &str = "Istio";
const KGATEWAY: &str = "kgateway";
const AGENTGATEWAY: &str = "agentgateway";
const ENVOY_GATEWAY: &str = "Envoy Gateway";
const WARMROUTE: &str = "Warmroute";
const POOL: &str = "InferencePool";

const TO_POOL: Fix = fix(
    ISTIO,
    "the HTTPRoute's backendRef is the InferencePool (kind: InferencePool), not the engines' Service; istiod runs with \
     ENABLE_GATEWAY_API_INFERENCE_EXTENSION=true; a DestinationRule for the picker's Service has tls.mode: SIMPLE",
);
const OWN_FILTER: &str = "as for Envoy, in the EnvoyFilter that adds ext_proc; a route to the InferencePool needs no such EnvoyFilter";

/// What follows from each symptom.
const MEANINGS: &[(Symptom, &str)] = &[
    (
        Symptom::PickerNotAsked,
        "the gateway chooses engines by itself, or fails: no request goes where its prompt is cached",
    ),
    (
        Symptom::PickerSometimesAsked,
        "some requests went past this picker: to another replica that wasn't asked (name them all with --address, \
                 or the headless Service), or to no picker at all",
    ),
    (
        Symptom::RequestBodyHidden,
        "requests are picked by load alone: nothing of their prompts can be matched",
    ),
    (
        Symptom::RequestBodyPartial,
        "prompts longer than the gateway's buffer are picked by load alone, because their end isn't known",
    ),
    (Symptom::ResponseBuffered, "clients get a streamed answer in one piece when it is over"),
    (
        Symptom::ResponseBodiesPass,
        "every token goes to the picker and back: about three times the gateway's cost per token, and a picker that \
                 goes away cuts running responses; in exchange what engines deliver is known from their answers",
    ),
    (
        Symptom::LeaseBlind,
        "the picker takes every request for finished as soon as it is picked: in-flight counts are near zero, and \
                 load is known from the engines' metrics alone",
    ),
    (
        Symptom::BodyLimit,
        "clients get an error for long prompts and images, and the picker never hears of them",
    ),
    (
        Symptom::MessageTimeout,
        "a pick that has to wait, for a long prompt's tokens or in a queue, becomes an error for the client",
    ),
    (
        Symptom::StallUnbounded,
        "in full duplex no message_timeout applies: a picker that hangs hangs its requests until clients give up. \
                 Warmroute bounds its own steps (--tokenize-deadline)",
    ),
    (Symptom::TrailersFail, "clients that send trailers (gRPC among them) get errors"),
    (Symptom::DestinationIgnored, "picks have no effect: the gateway balances by itself"),
    (
        Symptom::DestinationUnclear,
        "the gateway has a choice of its own and doesn't tell which endpoint served, so it isn't known whether it \
                 follows the picks",
    ),
    (
        Symptom::RoutingHeadersPass,
        "the picker replaces them, but without a picker (fail-open) such a header may decide where a request goes: \
                 a client could reach any address that the gateway reaches",
    ),
    (Symptom::RoutingHeadersWin, "a client can choose the address that its request goes to (SSRF)"),
    (
        Symptom::RefusalsLost,
        "clients can't tell a full pool from a broken one: status or reason of a refusal is lost on the way",
    ),
    (Symptom::FailClosed, "while no picker answers, every request fails"),
    (
        Symptom::FailOpenNotForBodies,
        "while a picker breaks off, requests with bodies fail although the gateway is set to fail open; only those \
                 without a body go on",
    ),
    (
        Symptom::FailOpenNowhere,
        "the gateway opens, but its cluster has no destination beside the picker's: new requests get 503 while no \
                 picker answers; what fail-open protects are running responses",
    ),
    (Symptom::ExtProcPlaintext, "prompts travel between gateway and picker in the clear"),
    (
        Symptom::ExtProcUnverified,
        "the picker made its certificate itself, so the gateway can't verify it: traffic is encrypted, but who \
                 answers in the picker's place isn't found out",
    ),
    (Symptom::RequestIdMissing, "the picker makes ids of its own; logs of the gateway don't have them"),
    (
        Symptom::RequestIdReplaced,
        "`warmroute explain ID` knows requests by the gateway's id, not by the one that the client sent",
    ),
    (Symptom::ResponseCut, "long answers are cut, which clients see as a broken connection"),
    (Symptom::AddressFails, "clients that choose this address of the name get no answer"),
    (Symptom::Retried, "a refused or failed request comes again, which makes a full pool fuller"),
];

/// Settings that help against symptoms, by gateway.
const SETTINGS: &[(&[Symptom], &[Fix])] = &[
    (
        &[Symptom::PickerNotAsked, Symptom::PickerSometimesAsked],
        &[
            fix(
                ENVOY,
                "http_filters of this route's listener: envoy.filters.http.ext_proc before the router, with \
                         processing_mode.request_header_mode: SEND, and a grpc_service whose cluster speaks HTTP/2 to the \
                         picker's port 9002, over TLS unless the picker runs with --secure-serving=false",
            ),
            TO_POOL,
            fix(KGATEWAY, "installed with inferenceExtension.enabled=true; backendRef of kind InferencePool"),
            fix(
                AGENTGATEWAY,
                "backendRef of kind InferencePool; its endpointPickerRef is the picker's Service",
            ),
        ],
    ),
    (
        &[Symptom::RequestBodyHidden, Symptom::RequestBodyPartial],
        &[
            fix(
                ENVOY,
                "processing_mode.request_body_mode: BUFFERED with a listener's per_connection_buffer_limit_bytes: \
                         67108864 (or FULL_DUPLEX_STREAMED with both trailer modes SEND)",
            ),
            fix(ISTIO, OWN_FILTER),
        ],
    ),
    (
        &[Symptom::ResponseBuffered, Symptom::ResponseBodiesPass],
        &[
            fix(ENVOY, "processing_mode: response_body_mode: NONE, response_trailer_mode: SEND"),
            fix(ISTIO, "fixed for InferencePools (full duplex); in an EnvoyFilter of your own as for Envoy"),
        ],
    ),
    (
        &[Symptom::LeaseBlind],
        &[
            fix(ENVOY, "processing_mode.response_trailer_mode: SEND (the default is SKIP)"),
            fix(ISTIO, OWN_FILTER),
        ],
    ),
    (
        &[Symptom::BodyLimit],
        &[
            fix(ENVOY, "per_connection_buffer_limit_bytes: 67108864 at the listener (the default is 1 MiB)"),
            fix(
                ISTIO,
                "EnvoyFilter, applyTo: LISTENER, patch MERGE per_connection_buffer_limit_bytes: 67108864",
            ),
            fix(KGATEWAY, "annotation kgateway.dev/per-connection-buffer-limit: 64Mi at the Gateway"),
            fix(AGENTGATEWAY, "AgentgatewayPolicy spec.frontend.http.maxBufferSize: 67108864"),
            fix(ENVOY_GATEWAY, "ClientTrafficPolicy spec.connection.bufferLimit: 64Mi"),
        ],
    ),
    (
        &[Symptom::MessageTimeout],
        &[
            fix(ENVOY, "message_timeout: 10s at the ext_proc filter (the default is 200ms)"),
            fix(ISTIO, OWN_FILTER),
        ],
    ),
    (&[Symptom::TrailersFail], &[fix(ENVOY, "processing_mode.request_trailer_mode: SEND")]),
    (
        &[Symptom::DestinationIgnored, Symptom::DestinationUnclear],
        &[
            fix(
                ENVOY,
                "a cluster of type ORIGINAL_DST with original_dst_lb_config.use_http_header: true and http_header_name: \
                         x-gateway-destination-endpoint; or load_balancing_policies.override_host that reads the metadata key \
                         envoy.lb, with metadata_options.receiving_namespaces.untyped: [envoy.lb] at the ext_proc filter, and \
                         selected_host_key to tell which endpoint served",
            ),
            TO_POOL,
            fix(AGENTGATEWAY, "backendRef of kind InferencePool"),
        ],
    ),
    (
        &[Symptom::RoutingHeadersPass, Symptom::RoutingHeadersWin],
        &[
            fix(
                ENVOY,
                "early_header_mutation_extensions at the http_connection_manager that remove \
                 x-gateway-destination-endpoint, x-data-parallel-rank, x-prefiller-host-port, x-encoder-hosts-ports, \
                 x-data-parallel-host-port, x-kv-cache-source-host-port, x-prefiller-url, \
                 x-gateway-destination-endpoint-served, x-gateway-destination-endpoint-fallback and \
                 x-gateway-destination-endpoint-scores; deploy/envoy has it",
            ),
            fix(
                ISTIO,
                "the same by an EnvoyFilter, applyTo: NETWORK_FILTER, at the gateway's http_connection_manager",
            ),
        ],
    ),
    (
        &[Symptom::RefusalsLost],
        &[fix(ENVOY, "no local_reply_config mapper and no retry_on for 429 and 503 on this route")],
    ),
    (
        &[Symptom::FailClosed],
        &[
            fix(ENVOY, "failure_mode_allow: true at the ext_proc filter"),
            fix(POOL, "spec.endpointPickerRef.failureMode: FailOpen (Istio, agentgateway)"),
        ],
    ),
    (
        &[Symptom::FailOpenNotForBodies],
        &[
            fix(
                ENVOY,
                "processing_mode.request_body_mode: BUFFERED; in full duplex a body that has begun can't go on",
            ),
            fix(
                WARMROUTE,
                "two replicas or more and a PodDisruptionBudget: the gateway goes to the other one",
            ),
        ],
    ),
    (
        &[Symptom::FailOpenNowhere],
        &[
            fix(ENVOY, "an override_host cluster with the engines as endpoints and a fallback_policy"),
            fix(WARMROUTE, "two replicas or more and a PodDisruptionBudget"),
        ],
    ),
    (
        &[Symptom::ExtProcPlaintext],
        &[
            fix(
                WARMROUTE,
                "--secure-serving=true (the default), with --cert-path for a certificate of your own",
            ),
            fix(ENVOY, "transport_socket: envoy.transport_sockets.tls at the picker's cluster"),
            fix(ISTIO, "DestinationRule for the picker's Service: trafficPolicy.tls.mode: SIMPLE"),
        ],
    ),
    (
        &[Symptom::ExtProcUnverified],
        &[
            fix(WARMROUTE, "--cert-path with a certificate of a CA that the gateway knows"),
            fix(
                ENVOY,
                "validation_context.trusted_ca and match_typed_subject_alt_names at the picker's cluster",
            ),
            fix(ISTIO, "DestinationRule: tls.caCertificates (or credentialName), insecureSkipVerify: false"),
        ],
    ),
    (
        &[Symptom::RequestIdMissing],
        &[fix(ENVOY, "generate_request_id: true at the http_connection_manager (the default)")],
    ),
    (
        &[Symptom::RequestIdReplaced],
        &[fix(ENVOY, "preserve_external_request_id: true at the http_connection_manager")],
    ),
    (
        &[Symptom::ResponseCut],
        &[
            fix(ENVOY, "route.timeout: 0s (the default is 15 s) with an idle_timeout of minutes"),
            fix("HTTPRoute", "spec.rules[].timeouts.request and backendRequest above the longest generation"),
        ],
    ),
    (
        &[Symptom::AddressFails],
        &[fix(ENVOY, "a listener for this address; \"::\" with ipv4_compat: true takes both families")],
    ),
    (&[Symptom::Retried], &[fix(ENVOY, "no retry_on for 429 and 5xx on this route")]),
    (&[Symptom::StallUnbounded], &[]),
];

impl Symptom {
    /// What follows from it.
    pub fn means(self) -> &'static str {
        MEANINGS.iter().find(|(symptom, _)| *symptom == self).map_or("", |(_, means)| means)
    }

    /// Settings that help, by gateway.
    pub fn fixes(self) -> &'static [Fix] {
        SETTINGS.iter().find(|(symptoms, _)| symptoms.contains(&self)).map_or(&[], |(_, fixes)| fixes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_routing_header_is_told_to_be_removed() {
        let fix = Symptom::RoutingHeadersPass.fixes()[0].setting;
        for name in warmroute_ext_proc::ROUTING_HEADERS {
            assert!(fix.split([' ', ',', ';']).any(|word| word == name), "{name}");
        }
    }

    #[test]
    fn every_symptom_means_something_and_is_listed_once() {
        for symptom in Symptom::ALL {
            assert_eq!(MEANINGS.iter().filter(|(listed, _)| listed == symptom).count(), 1, "{symptom:?}");
            assert_eq!(
                SETTINGS.iter().filter(|(listed, _)| listed.contains(symptom)).count(),
                1,
                "{symptom:?}"
            );
        }
    }
}
