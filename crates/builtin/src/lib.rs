//! The filters, scorers and pickers that ship with Warmroute, written against `warmroute-plugin` alone.
//!
//! Formulas, names and parameters are those of the llm-d Router EPP (`pkg/epp/framework/plugins/scheduling/`
//! in github.com/llm-d/llm-d-router), so that a configuration written for it scores the same here. What
//! differs:
//!
//! - an endpoint whose metrics aren't fresh counts for less than one whose metrics are; see [`UnknownMetrics`];
//! - a plugin is a filter or a scorer, so what `context-length-aware` filters is `context-length-filter`;
//! - a prompt of unknown length counts neither as empty nor by its characters; see
//!   [`ContextLengthAwareScorer`];
//! - a session stays with an incarnation of an endpoint, not with its name; see [`SessionAffinityScorer`];
//! - [`NoHitLruScorer`] remembers incarnations of endpoints, and ranks candidates only;
//! - [`WeightedRandomPicker`] keeps the proportions of totals however small they are;
//! - by default endpoints without recent metrics say nothing about saturation; see [`StalenessPolicy`];
//! - there is no latency predictor, and one source of in-flight counts.
//!
//! Scorers that prefer idle endpoints by what the engines say read metrics: `queue-scorer`,
//! `running-requests-size-scorer`, `load-aware-scorer`, `kv-cache-utilization-scorer`, and the filter
//! `utilization-filter`. `active-request-scorer`, `token-load-scorer` and `prefix-cache-affinity-filter` read
//! our own counts, which are always known.

mod active_request_scorer;
#[cfg(test)]
mod built;
mod by_label_filter;
mod concurrency_detector;
mod context_length_aware_scorer;
mod endpoint_attribute_filter;
mod endpoint_attribute_scorer;
mod go_duration;
mod header_based_testing_filter;
mod header_label_affinity_scorer;
mod kv_cache_utilization_scorer;
mod label_selector_filter;
mod load_aware_scorer;
mod lora_affinity_scorer;
mod max_score_picker;
mod no_hit_lru_scorer;
mod prefix_cache_affinity_filter;
mod prefix_cache_scorer;
mod producers;
mod queue_scorer;
mod random_picker;
mod running_requests_size_scorer;
mod saturation_detector;
mod seeds;
mod session_affinity;
mod session_affinity_filter;
mod session_affinity_scorer;
mod session_bindings;
mod token_load_scorer;
mod topology;
mod topology_affinity_filter;
mod topology_affinity_scorer;
mod unknown_metrics;
mod utilization_detector;
mod utilization_filter;
mod weighted_random_picker;

pub use active_request_scorer::ActiveRequestScorer;
pub use by_label_filter::ByLabelFilter;
pub use concurrency_detector::ConcurrencyDetector;
pub use context_length_aware_scorer::{ContextLengthAwareScorer, ContextLengthFilter};
pub use endpoint_attribute_filter::EndpointAttributeFilter;
pub use endpoint_attribute_scorer::EndpointAttributeScorer;
pub use header_based_testing_filter::HeaderBasedTestingFilter;
pub use header_label_affinity_scorer::HeaderLabelAffinityScorer;
pub use kv_cache_utilization_scorer::KvCacheUtilizationScorer;
pub use label_selector_filter::LabelSelectorFilter;
pub use load_aware_scorer::LoadAwareScorer;
pub use lora_affinity_scorer::LoraAffinityScorer;
pub use max_score_picker::MaxScorePicker;
pub use no_hit_lru_scorer::NoHitLruScorer;
pub use prefix_cache_affinity_filter::PrefixCacheAffinityFilter;
pub use prefix_cache_scorer::PrefixCacheScorer;
pub use queue_scorer::QueueScorer;
pub use random_picker::RandomPicker;
pub use running_requests_size_scorer::RunningRequestsSizeScorer;
pub use saturation_detector::{Saturation, SaturationDetector};
pub use session_affinity_filter::SessionAffinityFilter;
pub use session_affinity_scorer::SessionAffinityScorer;
pub use token_load_scorer::TokenLoadScorer;
pub use topology::TopologyLevel;
pub use topology_affinity_filter::TopologyAffinityFilter;
pub use topology_affinity_scorer::TopologyAffinityScorer;
pub use unknown_metrics::UnknownMetrics;
pub use utilization_detector::{StalenessPolicy, UtilizationDetector};
pub use utilization_filter::UtilizationFilter;
pub use weighted_random_picker::WeightedRandomPicker;

use warmroute_plugin::{BuildContext, DuplicateType, NoParameters, Registry};

/// Registers everything in this crate.
///
/// # Errors
///
/// If one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
    register_label_filters(registry)?;
    register_request_filters(registry)?;
    register_detectors(registry)?;
    register_load_scorers(registry)?;
    register_affinity_scorers(registry)?;
    register_pickers(registry)
}

/// Filters that read labels.
fn register_label_filters(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.filter(
        "decode-filter",
        "keeps endpoints whose llm-d.ai/role says that they decode, and those without a role",
        |_: NoParameters, _: &mut BuildContext<'_>| Ok(ByLabelFilter::decode()),
    )?;
    registry.filter(
        "prefill-filter",
        "keeps endpoints whose llm-d.ai/role says that they prefill",
        |_: NoParameters, _: &mut BuildContext<'_>| Ok(ByLabelFilter::prefill()),
    )?;
    registry.filter(
        "encode-filter",
        "keeps endpoints whose llm-d.ai/role says that they encode",
        |_: NoParameters, _: &mut BuildContext<'_>| Ok(ByLabelFilter::encode()),
    )?;
    registry.filter(
        "label-selector-filter",
        "keeps endpoints whose labels match a Kubernetes label selector",
        LabelSelectorFilter::build,
    )?;
    registry.filter(
        "by-label-selector",
        "deprecated name of label-selector-filter",
        LabelSelectorFilter::build,
    )?;
    registry.filter(
        "by-label",
        "deprecated, use label-selector-filter: keeps endpoints whose label has one of some values",
        ByLabelFilter::build,
    )
}

/// Filters that read signals or the request.
fn register_request_filters(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.filter(
        "utilization-filter",
        "takes out endpoints that are above a limit of requests, queue or KV cache",
        UtilizationFilter::build,
    )?;
    registry.filter(
        "endpoint-attribute-filter",
        "keeps endpoints whose attribute, such as a custom metric, is on one side of a value",
        EndpointAttributeFilter::build,
    )?;
    registry.filter(
        "prefix-cache-affinity-filter",
        "keeps only endpoints that hold most of the prompt, unless they are too busy",
        PrefixCacheAffinityFilter::build,
    )?;
    registry.filter(
        "context-length-filter",
        "keeps endpoints whose label allows prompts of this length, and those without the label",
        ContextLengthFilter::build,
    )?;
    registry.filter(
        "topology-affinity-filter",
        "keeps the endpoints nearest to the one that an earlier profile picked",
        TopologyAffinityFilter::build,
    )?;
    registry.filter(
        "header-based-testing-filter",
        "keeps the endpoints that the header test-epp-endpoint-selection lists, for tests of gateways",
        |_: NoParameters, _: &mut BuildContext<'_>| Ok(HeaderBasedTestingFilter),
    )?;
    registry.filter(
        "session-affinity-filter",
        "keeps only the endpoint where the request's session is, if it has one",
        SessionAffinityFilter::build,
    )
}

/// Detectors of saturation: in a profile they are filters; for the pool the host builds one as a
/// [`SaturationDetector`].
fn register_detectors(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.filter(
        SaturationDetector::UTILIZATION,
        "tells by queues and KV cache how full the pool is; in a profile it takes out full endpoints, unless all are",
        UtilizationDetector::build,
    )?;
    registry.filter(
        SaturationDetector::CONCURRENCY,
        "tells by what we have in flight how full the pool is; in a profile it takes out full endpoints, even all",
        ConcurrencyDetector::build,
    )
}

/// Scorers that look at how busy an endpoint is.
fn register_load_scorers(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.scorer(
        "queue-scorer",
        "prefers the shortest queue: the longest gets 0, the shortest 1",
        QueueScorer::build,
    )?;
    registry.scorer(
        "running-requests-size-scorer",
        "prefers the smallest running batch: the largest gets 0, the smallest 1",
        RunningRequestsSizeScorer::build,
    )?;
    registry.scorer(
        "load-aware-scorer",
        "prefers short queues by a fixed measure: an empty one gets 0.5, one of the threshold 0",
        LoadAwareScorer::build,
    )?;
    registry.scorer(
        "kv-cache-utilization-scorer",
        "prefers free KV cache: 1 minus the share in use",
        KvCacheUtilizationScorer::build,
    )?;
    registry.scorer(
        "active-request-scorer",
        "prefers endpoints with few requests of ours in flight",
        ActiveRequestScorer::build,
    )?;
    registry.scorer(
        "token-load-scorer",
        "prefers endpoints with few prompt tokens of ours in flight",
        TokenLoadScorer::build,
    )?;
    registry.scorer(
        "endpoint-attribute-scorer",
        "prefers endpoints by an attribute, such as a custom metric, in a range",
        EndpointAttributeScorer::build,
    )
}

/// Scorers that look at how an endpoint fits the request.
fn register_affinity_scorers(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.scorer(
        "prefix-cache-scorer",
        "prefers endpoints that hold most of the prompt in their KV cache",
        PrefixCacheScorer::build,
    )?;
    registry.scorer(
        "no-hit-lru-scorer",
        "spreads requests whose prompt no endpoint holds: the longest without one gets 1, the last 0",
        NoHitLruScorer::build,
    )?;
    registry.scorer(
        "lora-affinity-scorer",
        "prefers endpoints that have the request's LoRA adapter loaded, or room for it",
        LoraAffinityScorer::build,
    )?;
    registry.scorer(
        "context-length-aware",
        "prefers endpoints that a label reserves for prompts of this length",
        ContextLengthAwareScorer::build,
    )?;
    registry.scorer(
        "header-label-affinity-scorer",
        "prefers endpoints whose label equals a header of the request",
        HeaderLabelAffinityScorer::build,
    )?;
    registry.scorer(
        "topology-affinity-scorer",
        "prefers endpoints near the one that an earlier profile picked",
        TopologyAffinityScorer::build,
    )?;
    registry.scorer(
        "session-affinity-scorer",
        "prefers the endpoint where the request's session is",
        SessionAffinityScorer::build,
    )
}

fn register_pickers(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.picker(
        "max-score-picker",
        "picks the highest total, at random among equal ones",
        MaxScorePicker::build,
    )?;
    registry.picker("random-picker", "picks at random, whatever the scores", RandomPicker::build)?;
    registry.picker(
        "weighted-random-picker",
        "picks at random, each endpoint with a chance in proportion to its total",
        WeightedRandomPicker::build,
    )
}
