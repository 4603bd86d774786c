//! What one engine counts, shared between its loop and its API.

use std::sync::atomic::{AtomicU32, AtomicU64};

use parking_lot::Mutex;

use crate::histogram::Histogram;
use crate::scheduler::SchedulerStats;

/// Counters of one engine since its start.
#[derive(Debug)]
pub(crate) struct EngineCounters {
    /// As of the last step, or the last request that arrived.
    pub(crate) scheduler: Mutex<SchedulerStats>,
    /// Requests that decoded all their tokens.
    pub(crate) finished_requests: AtomicU64,
    /// Requests whose client went away.
    pub(crate) aborted_requests: AtomicU64,
    /// Event batches still to be lost on purpose.
    pub(crate) batches_to_lose: AtomicU32,
    /// From arrival to the first token.
    pub(crate) time_to_first_token: Histogram,
    /// From arrival to the last token.
    pub(crate) request_latency: Histogram,
}

impl EngineCounters {
    /// All zero, with these histogram bounds in seconds.
    pub(crate) fn new(ttft_bounds: Vec<f64>, latency_bounds: Vec<f64>) -> Self {
        Self {
            scheduler: Mutex::new(SchedulerStats::default()),
            finished_requests: AtomicU64::new(0),
            aborted_requests: AtomicU64::new(0),
            batches_to_lose: AtomicU32::new(0),
            time_to_first_token: Histogram::new(ttft_bounds),
            request_latency: Histogram::new(latency_bounds),
        }
    }
}
