use parking_lot::Mutex;
use prometheus::{Error, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use warmroute_kv_events::Trust;

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
    /// 1 for how far the view of an engine can be trusted, 0 for the other words, per engine.
    pub trust: IntGaugeVec,
    /// Held while it changes: an engine may leave while its successor under the same address comes.
    trust_changes: Mutex<()>,
    /// Restarts of engines' publishers.
    pub restarts: IntCounterVec,
    /// Batches that came by replay.
    pub recovered: IntCounterVec,
    /// Replays, per outcome.
    pub replays: IntCounterVec,
    /// Removed blocks of which the engine has another copy, so that they stay.
    pub removals_suppressed: IntCounter,
    /// Removed blocks that are gone.
    pub removals_forwarded: IntCounter,
    /// Blocks known to be held beside GPU memory over all engines, per tier.
    pub offloaded: IntGaugeVec,
    /// Questions where engines publish, per outcome.
    pub source_questions: IntCounterVec,
    /// Batches waiting for their shard.
    pub queue_depth: IntGauge,
    /// Shards.
    pub shards: IntGauge,
}

impl EventMetrics {
    /// Shows a change of trust; None before an engine is followed and after.
    pub fn show_trust(&self, endpoint: &str, before: Option<Trust>, now: Option<Trust>) {
        if before == now {
            return;
        }
        let _changing = self.trust_changes.lock();
        let gauge = |trust: Trust| self.trust.with_label_values(&[endpoint, trust.as_str()]);
        if let Some(before) = before {
            gauge(before).dec();
        }
        if let Some(now) = now {
            gauge(now).inc();
        }
        let is_followed = Trust::ALL.into_iter().map(|trust| gauge(trust).get()).sum::<i64>() > 0;
        if !is_followed {
            for trust in Trust::ALL {
                // The others of the set were made just now.
                let _ = self.trust.remove_label_values(&[endpoint, trust.as_str()]);
            }
        }
    }

    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            subscribers: subscribers(make)?,
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
            trust: make.gauges(
                "warmroute_engine_trust",
                "1 for how far the view of the engine's KV cache can be trusted, 0 for the other words.",
                &["pod_identifier", "trust"],
            )?,
            trust_changes: Mutex::default(),
            restarts: make.counters(
                "warmroute_engine_restarts_total",
                "Restarts of an engine's KV event publisher that were seen.",
                &["pod_identifier"],
            )?,
            recovered: make.counters(
                "warmroute_kv_event_batches_recovered_total",
                "Batches of KV events that came by replay.",
                &["pod_identifier"],
            )?,
            replays: replays(make)?,
            removals_suppressed: make.counter(
                "llm_d_epp_kv_cache_events_dedup_removed_hashes_suppressed_total",
                "Removed blocks that stay, since the engine holds another copy.",
            )?,
            removals_forwarded: make.counter(
                "llm_d_epp_kv_cache_events_dedup_removed_hashes_forwarded_total",
                "Removed blocks that are gone.",
            )?,
            offloaded: offloaded(make)?,
            source_questions: source_questions(make)?,
            queue_depth: make.gauge("llm_d_epp_kv_cache_events_pool_queue_depth", "Batches waiting.")?,
            shards: make.gauge("llm_d_epp_kv_cache_events_pool_capacity", "Threads that apply events.")?,
        })
    }
}

fn offloaded(make: &Maker) -> Result<IntGaugeVec, Error> {
    let help = "KV blocks that engines are known to hold beside GPU memory.";
    make.gauges("warmroute_offloaded_blocks", help, &["tier"])
}

fn replays(make: &Maker) -> Result<IntCounterVec, Error> {
    let help = "Replays of KV events, by how they ended.";
    make.counters("warmroute_kv_event_replays_total", help, &["outcome"])
}

fn subscribers(make: &Maker) -> Result<IntGauge, Error> {
    make.gauge("llm_d_epp_kv_cache_events_active_subscribers", "Connected subscriptions.")
}

fn source_questions(make: &Maker) -> Result<IntCounterVec, Error> {
    make.counters(
        "warmroute_kv_event_source_questions_total",
        "Times that an engine was asked where it publishes KV events (GET /kv_event_sources).",
        &["outcome"],
    )
}
