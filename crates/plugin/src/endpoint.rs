//! Endpoints and the signals about them, one value per row.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A small number for one incarnation of an endpoint.
///
/// Dense within the process and never given to another endpoint, nor to the same address after it was
/// removed and added again. So state that a plugin keeps by `EndpointId` can't leak from one engine to
/// the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One address that the proxy can send a request to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The incarnation; see [`EndpointId`].
    pub id: EndpointId,
    /// How people call it: `namespace/name-rank-N` for a pod, `host:port` otherwise.
    pub name: Arc<str>,
    /// `host:port` exactly as the proxy gets it; an IPv6 host is in brackets.
    pub address: Arc<str>,
    /// Labels of the pod or of the endpoints file; empty where there are none.
    pub labels: BTreeMap<String, String>,
}

impl Endpoint {
    /// An endpoint without labels.
    pub fn new(id: EndpointId, name: impl Into<Arc<str>>, address: impl Into<Arc<str>>) -> Self {
        Self { id, name: name.into(), address: address.into(), labels: BTreeMap::new() }
    }

    /// The same endpoint with one more label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// What the last scrape of an endpoint's metrics page said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EndpointMetrics {
    /// Requests that wait in the engine's queue.
    pub waiting_requests: u32,
    /// Requests in the engine's running batch.
    pub running_requests: u32,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_cache_utilization: f64,
    /// Tokens per KV block; 0 if the engine doesn't say.
    pub block_size_tokens: u32,
    /// KV blocks in GPU memory; 0 if the engine doesn't say.
    pub num_gpu_blocks: u32,
    /// For how long newer metrics have been due: the age of these, less the interval at which the host fetches them.
    /// 0 if they are as new as they can be, or if the host doesn't say.
    pub overdue: Duration,
}

impl EndpointMetrics {
    /// The three numbers that every engine has; the rest is 0, which means unknown.
    pub fn new(waiting_requests: u32, running_requests: u32, kv_cache_utilization: f64) -> Self {
        Self { waiting_requests, running_requests, kv_cache_utilization, ..Self::default() }
    }

    /// The same metrics with what the engine tells of its KV cache: tokens per block, number of blocks.
    #[must_use]
    pub fn with_cache(mut self, block_size_tokens: u32, num_gpu_blocks: u32) -> Self {
        self.block_size_tokens = block_size_tokens;
        self.num_gpu_blocks = num_gpu_blocks;
        self
    }

    /// The same metrics, for which newer ones have been due for this long.
    #[must_use]
    pub fn overdue_by(mut self, overdue: Duration) -> Self {
        self.overdue = overdue;
        self
    }
}

/// What is known of an endpoint's metrics. The three states are different things: "no data" is neither
/// "idle" nor "full", and each scorer says what it makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MetricsState {
    /// No scrape has succeeded yet.
    #[default]
    NeverScraped,
    /// The last scrape is recent enough to act on.
    Fresh(EndpointMetrics),
    /// The last good scrape is too old; what it said.
    Stale(EndpointMetrics),
}

impl MetricsState {
    /// The metrics, if they are recent enough to act on.
    pub fn fresh(&self) -> Option<&EndpointMetrics> {
        match self {
            Self::Fresh(metrics) => Some(metrics),
            Self::NeverScraped | Self::Stale(_) => None,
        }
    }

    /// The metrics of the last good scrape, however old.
    pub fn last(&self) -> Option<&EndpointMetrics> {
        match self {
            Self::Fresh(metrics) | Self::Stale(metrics) => Some(metrics),
            Self::NeverScraped => None,
        }
    }
}

/// What this picker has sent to an endpoint and not seen the end of. Exact, since it is our own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Requests sent and not yet finished.
    pub requests: u32,
    /// Prompt tokens that the endpoint has to compute for those whose prefill isn't known to be over; what it
    /// already holds in its KV cache isn't counted.
    pub prompt_tokens: u64,
}

/// Where an endpoint stands with the LoRA adapter that a request asks for, by the engine's last metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterState {
    /// The engine tells nothing of adapters, or its metrics are not known or too old to act on.
    #[default]
    Unknown,
    /// Requests for the adapter are running: it is loaded.
    Active,
    /// Not loaded, and fewer adapters are running or waited for than the engine can hold.
    Room,
    /// No room, but requests for it already wait.
    Waiting,
    /// No room, and nobody waits for it.
    Full,
}

/// How much of the request's prompt an endpoint already holds in its KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Leading blocks of the prompt that the endpoint holds.
    pub matched_blocks: u32,
    /// Full blocks of the prompt; 0 if the prompt's tokens aren't known.
    pub total_blocks: u32,
    /// Tokens per block on this endpoint; 0 if not known.
    pub block_size_tokens: u32,
}

impl PrefixMatch {
    /// `matched_blocks` of `total_blocks`, each of `block_size_tokens` tokens.
    pub fn new(matched_blocks: u32, total_blocks: u32, block_size_tokens: u32) -> Self {
        Self { matched_blocks, total_blocks, block_size_tokens }
    }

    /// Tokens of the matched blocks.
    pub fn matched_tokens(&self) -> u64 {
        u64::from(self.matched_blocks) * u64::from(self.block_size_tokens)
    }

    /// Matched share of the full blocks, 0 to 1; 0 if the prompt has no full block.
    pub fn ratio(&self) -> f64 {
        if self.total_blocks == 0 {
            return 0.0;
        }
        f64::from(self.matched_blocks) / f64::from(self.total_blocks)
    }
}
