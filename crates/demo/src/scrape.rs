//! What the engines and the picker counted while a load ran: readings of their metrics pages and what lies between two
//! of them.

mod histogram;
mod metrics_text;

use std::net::SocketAddr;

pub use histogram::Histogram;
pub use metrics_text::{MetricsText, Sample};

use crate::DemoError;
use crate::harness::{HttpClient, Stack};

/// Prompt tokens that an engine looked up in its prefix cache (vLLM's name; the unit is tokens, not requests).
pub const QUERIES: &str = "vllm:prefix_cache_queries_total";
/// Prompt tokens that it found there.
pub const HITS: &str = "vllm:prefix_cache_hits_total";
/// How long the picker took for its decisions.
pub const DECISION: &str = "warmroute_decision_duration_seconds";

/// The prefix-cache counters of one engine, in tokens since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Prompt tokens looked up.
    pub queried_tokens: u64,
    /// Prompt tokens found.
    pub hit_tokens: u64,
}

impl CacheCounters {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            queried_tokens: self.queried_tokens.saturating_sub(earlier.queried_tokens),
            hit_tokens: self.hit_tokens.saturating_sub(earlier.hit_tokens),
        }
    }
}

/// One reading of all metrics pages of a stack.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The engines' own counters, in the order of their addresses.
    pub engines: Vec<CacheCounters>,
    /// The time that decisions took, over all replicas of the picker; `None` where it has no such metric.
    pub decisions: Option<Histogram>,
}

impl Reading {
    /// Reads the pages of every engine and picker of `stack`.
    ///
    /// # Errors
    /// A page that does not answer, is no metrics page, or lacks the prefix-cache counters.
    pub async fn take(client: &HttpClient, stack: &Stack) -> Result<Self, DemoError> {
        let mut engines = Vec::new();
        for address in stack.fleet.addresses() {
            let page = metrics_page(client, address).await?;
            let counter = |metric: &'static str| {
                let missing = || DemoError::MetricMissing { source_name: address.to_string(), metric };
                // A count of tokens: whole and far below 2^53.
                page.sum(metric, &[]).map(|value| value as u64).ok_or_else(missing)
            };
            engines.push(CacheCounters { queried_tokens: counter(QUERIES)?, hit_tokens: counter(HITS)? });
        }
        let mut decisions: Option<Histogram> = None;
        for picker in &stack.pickers {
            let found = metrics_page(client, picker.metrics).await?.histogram(DECISION);
            decisions = match (decisions, found) {
                (Some(sum), Some(more)) => Some(sum.plus(&more)),
                (sum, more) => sum.or(more),
            };
        }
        Ok(Self { engines, decisions })
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let engines = self.engines.iter().zip(&earlier.engines);
        let decisions = match (&self.decisions, &earlier.decisions) {
            (Some(now), Some(before)) => Some(now.minus(before)),
            (now, _) => now.clone(),
        };
        Self { engines: engines.map(|(now, before)| now.since(*before)).collect(), decisions }
    }
}

async fn metrics_page(client: &HttpClient, address: SocketAddr) -> Result<MetricsText, DemoError> {
    MetricsText::parse(&client.get_ok(address, "/metrics").await?.text())
}
