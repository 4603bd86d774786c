//! The filters, scorers and pickers that ship with Warmroute, written against `warmroute-plugin` alone.
//!
//! Formulas, names and parameters are those of the llm-d Router EPP (`pkg/epp/framework/plugins/scheduling/`
//! in github.com/llm-d/llm-d-router), so that a configuration written for it scores the same here. What
//! differs is what happens to an endpoint whose metrics aren't fresh; see [`UnknownMetrics`].

mod active_request_scorer;
mod kv_cache_utilization_scorer;
mod max_score_picker;
mod prefix_cache_scorer;
mod queue_scorer;
mod random_picker;
mod seeds;
mod unknown_metrics;

pub use active_request_scorer::ActiveRequestScorer;
pub use kv_cache_utilization_scorer::KvCacheUtilizationScorer;
pub use max_score_picker::MaxScorePicker;
pub use prefix_cache_scorer::PrefixCacheScorer;
pub use queue_scorer::QueueScorer;
pub use random_picker::RandomPicker;
pub use unknown_metrics::UnknownMetrics;

use warmroute_plugin::{DuplicateType, Registry};

/// Registers everything in this crate.
///
/// # Errors
///
/// If one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.scorer(
        "queue-scorer",
        "prefers the shortest queue: the longest gets 0, the shortest 1",
        QueueScorer::build,
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
        "prefix-cache-scorer",
        "prefers endpoints that hold most of the prompt in their KV cache",
        PrefixCacheScorer::build,
    )?;
    registry.picker(
        "max-score-picker",
        "picks the highest total, at random among equal ones",
        MaxScorePicker::build,
    )?;
    registry.picker("random-picker", "picks at random, whatever the scores", RandomPicker::build)
}
