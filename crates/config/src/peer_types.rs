//! The plugin types of the llm-d Router EPP that aren't filters, scorers or pickers linked here.
//!
//! Source: `cmd/epp/runner/runner.go` and `pkg/epp/framework/plugins/` in github.com/llm-d/llm-d-router.

use crate::Parser;

/// A part of the host that a configuration may name as a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostType {
    Handler(HandlerType),
    Decider(DeciderType),
    /// Writes the headers of a disaggregated request, which the handler does anyway.
    HeaderWriter,
    PrefixProducer,
    ApproximateProducer,
    BurstProducer,
    ExactFirstProducer,
    InFlightProducer,
    TokenProducer,
    MetricsSource,
    MetricsExtractor,
    ModelsSource,
    ModelsExtractor,
    FileDiscovery,
    SessionIdProducer,
    /// Tells the client which endpoint served, by the gateway's word.
    ServedVerifier,
    Parser(Parser),
    /// Something that the host does anyway and that can't be set; why it needs no plugin.
    Always(&'static str),
}

/// What a profile handler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandlerType {
    Single,
    Disagg,
    Pd,
    DataParallel,
    Header,
}

/// What a decider of a profile handler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeciderType {
    Always,
    Prefix,
    Multimodal,
}
/// An older type that is both an exact producer of prefix matches and a `prefix-cache-scorer`.
pub(crate) const PRECISE_SCORER: &str = "precise-prefix-cache-scorer";

/// What the host has, by type.
pub(crate) const HOST_TYPES: &[(&str, HostType)] = &[
    ("single-profile-handler", HostType::Handler(HandlerType::Single)),
    ("disagg-profile-handler", HostType::Handler(HandlerType::Disagg)),
    ("pd-profile-handler", HostType::Handler(HandlerType::Pd)),
    ("data-parallel-profile-handler", HostType::Handler(HandlerType::DataParallel)),
    ("header-profile-handler", HostType::Handler(HandlerType::Header)),
    ("always-disagg-pd-decider", HostType::Decider(DeciderType::Always)),
    ("prefix-based-pd-decider", HostType::Decider(DeciderType::Prefix)),
    ("always-disagg-multimodal-decider", HostType::Decider(DeciderType::Multimodal)),
    ("disagg-headers-handler", HostType::HeaderWriter),
    ("prefill-header-handler", HostType::HeaderWriter),
    ("precise-prefix-cache-producer", HostType::PrefixProducer),
    ("approx-prefix-cache-producer", HostType::ApproximateProducer),
    ("burst-prefix-cache-producer", HostType::BurstProducer),
    ("prefix-cache-producer", HostType::ExactFirstProducer),
    ("inflight-load-producer", HostType::InFlightProducer),
    ("token-producer", HostType::TokenProducer),
    ("tokenizer", HostType::TokenProducer),
    ("metrics-data-source", HostType::MetricsSource),
    ("core-metrics-extractor", HostType::MetricsExtractor),
    ("models-data-source", HostType::ModelsSource),
    ("models-data-extractor", HostType::ModelsExtractor),
    ("file-discovery", HostType::FileDiscovery),
    ("session-id-producer", HostType::SessionIdProducer),
    ("destination-endpoint-served-verifier", HostType::ServedVerifier),
    ("openai-parser", HostType::Parser(Parser::OpenAi)),
    ("anthropic-parser", HostType::Parser(Parser::Anthropic)),
    ("vllmhttp-parser", HostType::Parser(Parser::VllmHttp)),
    ("sglanghttp-parser", HostType::Parser(Parser::SglangHttp)),
    ("passthrough-parser", HostType::Parser(Parser::Passthrough)),
    (
        "endpoint-notification-source",
        HostType::Always("every endpoint's events are subscribed to as soon as it is known"),
    ),
    ("topology-extractor", HostType::Always("topology plugins read the labels of endpoints as they are")),
    ("fcfs-ordering-policy", HostType::Always("requests aren't queued")),
    ("global-strict-fairness-policy", HostType::Always("requests aren't queued")),
    ("static-usage-limit-policy", HostType::Always("requests aren't queued")),
];

/// Filters that can also tell how full the pool is; the first one does unless another is named.
pub(crate) const DETECTORS: [&str; 2] = ["utilization-detector", "concurrency-detector"];

/// What the host has by this name.
pub(crate) fn host_type(plugin_type: &str) -> Option<HostType> {
    HOST_TYPES.iter().find(|(name, _)| *name == plugin_type).map(|(_, host)| *host)
}

/// What to do instead of a type that the peer has and this version hasn't.
pub(crate) fn unavailable(plugin_type: &str) -> Option<&'static str> {
    let (_, hint) = UNAVAILABLE.iter().find(|(names, _)| names.contains(&plugin_type))?;
    Some(hint)
}

/// Types that the peer has and this version hasn't, with what to do.
const UNAVAILABLE: &[(&[&str], &str)] = &[
    (&["multicluster-approx-prefix-cache-producer"], "use approx-prefix-cache-producer"),
    (&["multicluster-prefix-cache-scorer"], "use prefix-cache-scorer"),
    (&["p2p-source-producer"], "remove it"),
    (
        &["lmetric-scorer"],
        "it is in an experimental image of the EPP only; use prefix-cache-scorer with queue-scorer",
    ),
    (&["multicluster-queue-scorer"], "remove it or use queue-scorer"),
    (&["multicluster-kv-cache-utilization-scorer"], "remove it or use kv-cache-utilization-scorer"),
    (
        &["slo-headroom-tier-filter", "multicluster-session-affinity-filter"],
        "remove it and its place in the profile",
    ),
    (&["latency-scorer", "mm-embeddings-cache-scorer"], "remove it and its place in the profile"),
    (
        &[
            "predicted-latency-producer",
            "mm-embeddings-cache-producer",
            "disaggregatedset-rollout-screener",
            "latency-slo-admitter",
            "probabilistic-admitter",
            "agent-identity",
            "request-attribute-reporter",
        ],
        "remove it",
    ),
    (
        &["vllmgrpc-parser", "vertexai-parser"],
        "gRPC bodies aren't read; remove it, and such requests go through passthrough-parser, unread",
    ),
    (
        &[
            "round-robin-fairness-policy",
            "program-aware-fairness",
            "edf-ordering-policy",
            "slo-deadline-ordering-policy",
            "priority-holdback-policy",
            "soft-reflective-ceiling-policy",
            "sheddable-eviction-filter",
            "priority-then-time-eviction-order-policy",
        ],
        "requests aren't queued or held back yet; remove it",
    ),
    (
        &[
            "multicluster-metrics-data-source",
            "multicluster-metrics-extractor",
            "dcgm-data-source",
            "dcgm-extractor",
            "k8s-notification-source",
        ],
        "remove it; there are metrics-data-source and models-data-source",
    ),
    (&["multicluster-file-discovery"], "use file-discovery; it takes DNS names too"),
];

/// The types that the peer has and this version hasn't.
pub(crate) fn unavailable_names<'a>() -> impl Iterator<Item = &'a str> {
    UNAVAILABLE.iter().flat_map(|(names, _)| names.iter().copied())
}
