//! How a plugin says that it couldn't do what it is configured for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts how often a plugin had to do with less than it is configured for: a value that it reads isn't there, a
/// file that it keeps fresh is too old. Got from
/// [`BuildContext::fallback_counter`](crate::BuildContext::fallback_counter); the host puts what is counted during a
/// decision into that decision's receipt and into a metric, so that nothing degrades quietly.
#[derive(Clone, Debug, Default)]
pub struct FallbackCounter(Arc<AtomicU64>);

impl FallbackCounter {
    /// Counts `times` more, usually the number of rows that it happened to.
    pub fn add(&self, times: u64) {
        self.0.fetch_add(times, Ordering::Relaxed);
    }

    /// What was counted since the last call. For the host, and for tests.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// A counter with what it counts, for the host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PluginFallback {
    /// Name of the plugin.
    pub plugin: Arc<str>,
    /// What it does without, in a word or two.
    pub reason: &'static str,
    /// The counter.
    pub counter: FallbackCounter,
}

impl PluginFallback {
    pub(crate) fn new(plugin: &str, reason: &'static str) -> Self {
        Self { plugin: plugin.into(), reason, counter: FallbackCounter::default() }
    }
}
