use prometheus::{Error, IntCounter, IntCounterVec, IntGauge};

use super::maker::Maker;

/// Metrics of KV events, per endpoint where that says something.
#[derive(Debug)]
pub struct EventMetrics {
    /// Subscriptions connected.
    pub subscribers: IntGauge,
    /// Batches received.
    pub batches: IntCounterVec,
    /// Connections after the first.
    pub reconnects: IntCounterVec,
    /// Failures of the subscription, per operation.
    pub errors: IntCounterVec,
    /// Batches known to be missing, per cause.
    pub gaps: IntCounterVec,
    /// Events that were not applied, per reason.
    pub skipped: IntCounterVec,
    /// Removed blocks of which the engine has another copy, so that they stay.
    pub removals_suppressed: IntCounter,
    /// Removed blocks that are gone.
    pub removals_forwarded: IntCounter,
    /// Batches waiting for their shard.
    pub queue_depth: IntGauge,
    /// Shards.
    pub shards: IntGauge,
}

impl EventMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            subscribers: make
                .gauge("llm_d_epp_kv_cache_events_active_subscribers", "Connected subscriptions.")?,
            batches: make.counters(
                "llm_d_epp_kv_cache_events_messages_received_total",
                "Batches of KV events received.",
                &["pod_identifier"],
            )?,
            reconnects: make.counters(
                "llm_d_epp_kv_cache_events_subscriber_reconnections_total",
                "Connections to an engine's KV events after the first.",
                &["pod_identifier"],
            )?,
            errors: make.counters(
                "llm_d_epp_kv_cache_events_zmq_errors_total",
                "Failures of a subscription.",
                &["pod_identifier", "operation"],
            )?,
            gaps: make.counters(
                "warmroute_kv_event_batches_missed_total",
                "Batches known to be missing: sequence gaps, and batches dropped here under load.",
                &["pod_identifier", "cause"],
            )?,
            skipped: make.counters(
                "warmroute_kv_events_skipped_total",
                "KV events that were not applied.",
                &["reason"],
            )?,
            removals_suppressed: make.counter(
                "llm_d_epp_kv_cache_events_dedup_removed_hashes_suppressed_total",
                "Removed blocks that stay, since the engine holds another copy.",
            )?,
            removals_forwarded: make.counter(
                "llm_d_epp_kv_cache_events_dedup_removed_hashes_forwarded_total",
                "Removed blocks that are gone.",
            )?,
            queue_depth: make.gauge("llm_d_epp_kv_cache_events_pool_queue_depth", "Batches waiting.")?,
            shards: make.gauge("llm_d_epp_kv_cache_events_pool_capacity", "Threads that apply events.")?,
        })
    }
}
