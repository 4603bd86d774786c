use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Violation;
use crate::stream::Tally;

/// What the streams of one service counted since it was made. Cheap to write from many streams:
/// each writes once, at its end.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) streams: AtomicU64,
    pub(crate) picks: AtomicU64,
    pub(crate) picks_by_load: AtomicU64,
    pub(crate) inner_failures: AtomicU64,
    pub(crate) lease_only_ends: AtomicU64,
    pub(crate) lease_blind_ends: AtomicU64,
    request_body_bytes: AtomicU64,
    response_body_bytes: AtomicU64,
    violations: [AtomicU64; Violation::ALL.len()],
    // Status and reason are constants of the host's code, so there are few.
    refusals: Mutex<Vec<RefusalCount>>,
}

/// How many requests were refused with one status and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalCount {
    /// HTTP status of the refusal.
    pub status: u16,
    /// Value of the reason header, if there was one.
    pub reason: Option<&'static str>,
    /// How often.
    pub count: u64,
}

/// The counters at one moment. All but `open_streams` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CountersSnapshot {
    /// Streams opened.
    pub streams: u64,
    /// Streams open now.
    pub open_streams: usize,
    /// Picks started.
    pub picks: u64,
    /// Picks by load started after the pick itself had failed.
    pub picks_by_load: u64,
    /// Panics caught: in a pick, in a lease or in a stream.
    pub inner_failures: u64,
    /// Request body bytes received.
    pub request_body_bytes: u64,
    /// Response body bytes received.
    pub response_body_bytes: u64,
    /// Answered streams with response body mode NONE that the gateway ended.
    pub lease_only_ends: u64,
    /// Those of them that ended too soon for the response to be over: within
    /// [`crate::ServiceConfig::lease_blind_within`] of the answer with nothing of the response
    /// seen, or within it of response headers that announce server-sent events. A few are normal
    /// (engines that refuse, clients that cancel); if most are, the gateway's response trailer mode
    /// isn't SEND and leases end long before the requests do.
    pub lease_blind_ends: u64,
    /// How often the gateway broke the protocol, by kind.
    pub violations: Vec<(Violation, u64)>,
    /// Refusals sent, by status and reason.
    pub refusals: Vec<RefusalCount>,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        if amount > 0 {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(crate) fn take_in(&self, tally: &Tally, lease_panics: u32) {
        Self::add(&self.request_body_bytes, tally.request_body_bytes);
        Self::add(&self.response_body_bytes, tally.response_body_bytes);
        Self::add(&self.inner_failures, u64::from(lease_panics));
        for (total, count) in self.violations.iter().zip(tally.violations) {
            Self::add(total, u64::from(count));
        }
        if let Some((status, reason)) = tally.refusal {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            match refusals.iter_mut().find(|known| known.status == status && known.reason == reason) {
                Some(known) => known.count += 1,
                None => refusals.push(RefusalCount { status, reason, count: 1 }),
            }
        }
    }

    pub(crate) fn snapshot(&self, open_streams: usize) -> CountersSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            streams: read(&self.streams),
            open_streams,
            picks: read(&self.picks),
            picks_by_load: read(&self.picks_by_load),
            inner_failures: read(&self.inner_failures),
            request_body_bytes: read(&self.request_body_bytes),
            response_body_bytes: read(&self.response_body_bytes),
            lease_only_ends: read(&self.lease_only_ends),
            lease_blind_ends: read(&self.lease_blind_ends),
            violations: Violation::ALL.into_iter().zip(self.violations.iter().map(read)).collect(),
            refusals: self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
