use std::time::Duration;

use prometheus::{DEFAULT_BUCKETS, Error, Histogram, IntCounter, IntGauge};

use super::buckets::STEP_SECONDS;
use super::maker::Maker;

/// Metrics of the KV index.
#[derive(Debug)]
pub struct IndexMetrics {
    /// (Block, engine) pairs.
    pub entries: IntGauge,
    /// Stores refused because it was full.
    pub refused: IntCounter,
    /// Blocks that engines stored.
    pub admissions: IntCounter,
    /// Blocks that engines removed.
    pub evictions: IntCounter,
    /// Look-ups.
    pub lookups: IntCounter,
    /// Blocks matched, at the best candidate of each look-up.
    hits: IntCounter,
    /// The same: the peer has it under two names.
    best_hits: IntCounter,
    lookup_seconds: Histogram,
    fine_lookup_seconds: Histogram,
}

impl IndexMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            entries: make.gauge("warmroute_kv_index_entries", "Pairs of block and engine in the index.")?,
            refused: make
                .counter("warmroute_kv_index_refused_stores_total", "Stores refused: index full.")?,
            admissions: make
                .counter("llm_d_epp_kv_cache_index_admissions_total", "Blocks that engines stored.")?,
            evictions: make
                .counter("llm_d_epp_kv_cache_index_evictions_total", "Blocks that engines removed.")?,
            lookups: make.counter("llm_d_epp_kv_cache_index_lookup_requests_total", "Look-ups.")?,
            hits: make.counter(
                "llm_d_epp_kv_cache_index_lookup_hits_total",
                "Blocks matched at the best candidate of each look-up.",
            )?,
            best_hits: make.counter(
                "llm_d_epp_kv_cache_index_max_pod_hit_count_total",
                "Blocks matched at the best candidate of each look-up.",
            )?,
            lookup_seconds: make.histogram(
                "llm_d_epp_kv_cache_index_lookup_latency_seconds",
                "One look-up over all candidates.",
                DEFAULT_BUCKETS,
            )?,
            fine_lookup_seconds: make.histogram(
                "warmroute_kv_lookup_duration_seconds",
                "One look-up over all candidates, in finer buckets.",
                &STEP_SECONDS,
            )?,
        })
    }

    /// Counts a look-up over all candidates.
    pub fn looked_up(&self, took: Duration) {
        self.lookups.inc();
        self.lookup_seconds.observe(took.as_secs_f64());
        self.fine_lookup_seconds.observe(took.as_secs_f64());
    }

    /// Adds the blocks that the best candidate of a look-up is known to hold.
    pub fn matched(&self, best_blocks: u32) {
        self.hits.inc_by(u64::from(best_blocks));
        self.best_hits.inc_by(u64::from(best_blocks));
    }
}
