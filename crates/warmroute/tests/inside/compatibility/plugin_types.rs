//! The plugin types of the peer, and what the code says of each.

use std::fmt::Write as _;
use std::sync::Arc;

use warmroute::profile::known_types;
use warmroute_config::{PeerType, check, peer_types};
use warmroute_plugin::Registry;

use super::page::{cell, told};

/// The types by what they are at the peer, in the order of its packages. Source: `cmd/epp/runner/runner.go`.
const TYPES: &[(&str, &[&str])] = &[
    (
        "filter",
        &[
            "decode-filter",
            "prefill-filter",
            "encode-filter",
            "label-selector-filter",
            "by-label-selector",
            "by-label",
            "prefix-cache-affinity-filter",
            "slo-headroom-tier-filter",
            "endpoint-attribute-filter",
            "utilization-filter",
            "session-affinity-filter",
            "multicluster-session-affinity-filter",
            "topology-affinity-filter",
            "header-based-testing-filter",
        ],
    ),
    (
        "scorer",
        &[
            "queue-scorer",
            "running-requests-size-scorer",
            "kv-cache-utilization-scorer",
            "prefix-cache-scorer",
            "load-aware-scorer",
            "active-request-scorer",
            "token-load-scorer",
            "lora-affinity-scorer",
            "no-hit-lru-scorer",
            "latency-scorer",
            "context-length-aware",
            "mm-embeddings-cache-scorer",
            "precise-prefix-cache-scorer",
            "session-affinity-scorer",
            "header-label-affinity-scorer",
            "endpoint-attribute-scorer",
            "topology-affinity-scorer",
            "multicluster-queue-scorer",
            "multicluster-kv-cache-utilization-scorer",
            "multicluster-prefix-cache-scorer",
        ],
    ),
    ("picker", &["max-score-picker", "random-picker", "weighted-random-picker"]),
    (
        "profile handler",
        &[
            "single-profile-handler",
            "disagg-profile-handler",
            "pd-profile-handler",
            "data-parallel-profile-handler",
            "header-profile-handler",
            "disagg-headers-handler",
            "prefill-header-handler",
        ],
    ),
    ("decider", &["prefix-based-pd-decider", "always-disagg-pd-decider", "always-disagg-multimodal-decider"]),
    (
        "data producer",
        &[
            "token-producer",
            "tokenizer",
            "approx-prefix-cache-producer",
            "multicluster-approx-prefix-cache-producer",
            "precise-prefix-cache-producer",
            "inflight-load-producer",
            "predicted-latency-producer",
            "mm-embeddings-cache-producer",
            "session-id-producer",
            "burst-prefix-cache-producer",
            "p2p-source-producer",
        ],
    ),
    (
        "request control",
        &[
            "disaggregatedset-rollout-screener",
            "latency-slo-admitter",
            "probabilistic-admitter",
            "agent-identity",
            "request-attribute-reporter",
            "destination-endpoint-served-verifier",
        ],
    ),
    (
        "parser",
        &[
            "openai-parser",
            "anthropic-parser",
            "vllmhttp-parser",
            "sglanghttp-parser",
            "vllmgrpc-parser",
            "vertexai-parser",
            "passthrough-parser",
        ],
    ),
    (
        "flow control",
        &[
            "global-strict-fairness-policy",
            "round-robin-fairness-policy",
            "program-aware-fairness",
            "fcfs-ordering-policy",
            "edf-ordering-policy",
            "slo-deadline-ordering-policy",
            "static-usage-limit-policy",
            "priority-holdback-policy",
            "soft-reflective-ceiling-policy",
            "utilization-detector",
            "concurrency-detector",
            "sheddable-eviction-filter",
            "priority-then-time-eviction-order-policy",
        ],
    ),
    (
        "data layer",
        &[
            "metrics-data-source",
            "core-metrics-extractor",
            "multicluster-metrics-data-source",
            "multicluster-metrics-extractor",
            "models-data-source",
            "models-data-extractor",
            "dcgm-data-source",
            "dcgm-extractor",
            "k8s-notification-source",
            "endpoint-notification-source",
            "topology-extractor",
            "file-discovery",
            "multicluster-file-discovery",
        ],
    ),
];

/// Where a type that is there does something else than the peer's.
const DIFFERS: &[(&str, &str)] = &[
    ("queue-scorer", "An endpoint without fresh metrics counts less; `unknownMetrics: as-peer` as there."),
    ("running-requests-size-scorer", "As `queue-scorer`."),
    ("kv-cache-utilization-scorer", "As `queue-scorer`."),
    ("load-aware-scorer", "As `queue-scorer`."),
    ("utilization-filter", "As `queue-scorer`."),
    ("context-length-aware", "A prompt of unknown length counts neither as empty nor by its characters."),
    (
        "no-hit-lru-scorer",
        "Only candidates have a place in the order; a restarted endpoint counts as never used.",
    ),
    ("weighted-random-picker", "Proportions hold however small the totals are."),
    (
        "precise-prefix-cache-producer",
        "Blocks are keyed by tokens in each engine's own size; what was just picked is expected \
         (`speculativeIndexing: false` as there); every topic is taken (`topicFilter: kv@` as there).",
    ),
    (
        "precise-prefix-cache-scorer",
        "A `precise-prefix-cache-producer` and a `prefix-cache-scorer` that reads it; `tokenizersPoolConfig` isn't used.",
    ),
    (
        "approx-prefix-cache-producer",
        "Blocks are as small as the engine's (`minBlockSizeTokens: 64` as there); an engine has room for as many tokens \
         as its KV cache; the beginning of a prompt is forgotten last, so a match has no holes; what was just picked \
         counts at once.",
    ),
    (
        "burst-prefix-cache-producer",
        "No request is delayed: every pick sees the one before it, so a burst stays together without a window.",
    ),
    ("inflight-load-producer", "Requests in flight are always counted, with or without it."),
    (
        "token-producer",
        "Tokens can be made in process too, from the model's files: `local: {path: …}` or `--tokenizer`.",
    ),
    ("sglanghttp-parser", "A `text` is taken too, and estimated."),
    (
        "disagg-profile-handler",
        "What happens if a stage finds no endpoint is a parameter: `onPrefillFailure`, `onEncodeFailure`: `aggregate` as \
         there, or `refuse`. Headers that a client sends in the handler's names are removed.",
    ),
    ("pd-profile-handler", "As `disagg-profile-handler`."),
    ("header-profile-handler", "A refusal lists the profiles; `defaultProfile` must be there."),
    (
        "prefix-based-pd-decider",
        "Reads what the decode profile reads, or the producer that `prefixMatchInfoProducerName` names.",
    ),
    (
        "core-metrics-extractor",
        "Series of data-parallel ranks are combined (`rankSeries: first` as there); a page without any load metric of \
         its engine is a failed scrape.",
    ),
    (
        "models-data-source",
        "Asks every 5 s unless `interval` says otherwise; what it lists counts for LoRA affinity.",
    ),
    ("endpoint-attribute-filter", "An attribute that nothing makes is refused; stale metrics give none."),
    ("endpoint-attribute-scorer", "An attribute that nothing makes is refused; stale metrics give none."),
    (
        "context-length-aware",
        "With `enableFiltering` a `context-length-filter` is added, which can also be used alone.",
    ),
    ("lora-affinity-scorer", "An endpoint whose metrics aren't fresh scores 0."),
    ("file-discovery", "Strict; IPv6 and DNS names are taken too."),
];

/// Parameters that the peer takes and that may be refused here. What isn't refused isn't told.
const PARAMETERS: &[(&str, &str)] = &[
    ("prefix-cache-affinity-filter", "ttftSource: latencyPredictor"),
    ("precise-prefix-cache-producer", "indexerConfig: {kvCacheBackendConfigs: [{name: cpu, weight: 0.8}]}"),
    (
        "precise-prefix-cache-producer",
        "indexerConfig: {kvBlockIndexConfig: {redisConfig: {address: \"redis:6379\"}}}",
    ),
    (
        "precise-prefix-cache-producer",
        "indexerConfig: {kvBlockIndexConfig: {costAwareMemoryConfig: {size: 2GiB}}}",
    ),
    ("token-producer", "modelName: m, vllm: {url: \"https://localhost:8000\"}"),
    ("token-producer", "estimate: {image: {mode: static, static: {staticToken: 256}}}"),
    ("token-producer", "udsTokenizerConfig: {}"),
    ("inflight-load-producer", "addEstimatedOutputTokens: true"),
    ("static-usage-limit-policy", "threshold: 0.9"),
    ("active-request-scorer", "inFlightLoadProducerName: another"),
];

/// What is said of each parameter that is refused.
fn refused_parameters(plugin_type: &str, registry: &Arc<Registry>) -> Vec<String> {
    let mut refused = Vec::new();
    for (_, parameters) in PARAMETERS.iter().filter(|(name, _)| *name == plugin_type) {
        let text = format!(
            "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: {plugin_type}\n  \
             parameters: {{{parameters}}}\n"
        );
        if let Err(error) = check(parameters, text.as_bytes(), &known_types(registry)) {
            let why = told(&error.mistakes).join("; ");
            refused.push(format!("`{}` is refused: {why}", cell(parameters)));
        }
    }
    refused
}

enum Here {
    Works,
    Always(&'static str),
    Refused(&'static str),
    Unknown,
}

fn here(plugin_type: &str, registry: &Registry) -> Here {
    if registry.types().any(|linked| linked.name() == plugin_type) {
        return Here::Works;
    }
    match peer_types().find(|(name, _)| *name == plugin_type) {
        Some((_, PeerType::Host { always: Some(why) })) => Here::Always(why),
        Some((_, PeerType::Host { always: None })) => Here::Works,
        Some((_, PeerType::Unavailable { hint })) => Here::Refused(hint),
        _ => Here::Unknown,
    }
}

/// All types of the peer.
pub(super) fn table(registry: &Arc<Registry>) -> String {
    let mut table = "| Type | What it is there | Here | |\n| --- | --- | --- | --- |\n".to_owned();
    for (what, types) in TYPES {
        for plugin_type in *types {
            let mut how: Vec<String> = Vec::new();
            let here = match here(plugin_type, registry) {
                Here::Works => {
                    let differs = DIFFERS.iter().filter(|(name, _)| name == plugin_type);
                    how.extend(differs.map(|(_, how)| cell(how)));
                    how.extend(refused_parameters(plugin_type, registry));
                    if how.is_empty() { "works" } else { "differs" }
                }
                Here::Always(why) => {
                    how.push(format!("needs no plugin: {}", cell(why)));
                    how.extend(refused_parameters(plugin_type, registry));
                    "taken"
                }
                Here::Refused(hint) => {
                    how.push(cell(hint));
                    "refused"
                }
                Here::Unknown => "unknown",
            };
            // Writing to a String can't fail.
            let _ = writeln!(table, "| `{plugin_type}` | {what} | {here} | {} |", how.join("<br>"));
        }
    }
    table
}

fn is_the_peers(plugin_type: &str) -> bool {
    TYPES.iter().any(|(_, types)| types.contains(&plugin_type))
}

/// Parts of the host that the peer doesn't have.
const OWN_PARTS: [(&str, &str, &str); 1] = [(
    "prefix-cache-producer",
    "data producer",
    "prefix matches by KV events where they are seen, elsewhere by what was sent; parameters of approx-prefix-cache-producer",
)];

/// Types that the peer doesn't have.
pub(super) fn own_table(registry: &Registry) -> String {
    let mut table = "| Type | What it is | What it does |\n| --- | --- | --- |\n".to_owned();
    for linked in registry.types().filter(|linked| !is_the_peers(linked.name())) {
        let _ =
            writeln!(table, "| `{}` | {} | {} |", linked.name(), linked.kind(), cell(linked.description()));
    }
    for (name, what, does) in OWN_PARTS {
        let _ = writeln!(table, "| `{name}` | {what} | {does} |");
    }
    table
}

/// Types of its guides that the peer at the commit that is compared doesn't have.
const NEWER: [&str; 1] = ["lmetric-scorer"];

#[test]
fn every_type_of_the_peer_is_known_and_the_host_knows_no_other() {
    let registry = crate::fixture::registry();
    for plugin_type in TYPES.iter().flat_map(|(_, types)| *types) {
        assert!(!matches!(here(plugin_type, &registry), Here::Unknown), "{plugin_type}");
    }
    for (name, known) in peer_types() {
        let linked = registry.types().any(|linked| linked.name() == name);
        assert!(!(linked && matches!(known, PeerType::Unavailable { .. })), "{name} is linked and refused");
        assert!(is_the_peers(name) || NEWER.contains(&name), "{name} isn't in the table of types");
    }
    for (name, _) in DIFFERS {
        assert!(matches!(here(name, &registry), Here::Works), "{name} is refused or happens anyway");
    }
}
