use warmroute_kv_events::FeedHistory;
use warmroute_kv_index::{ImportError, ViewSnapshot};

/// All that is known of an engine from its events, for another picker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineSnapshot {
    /// The batches behind it.
    pub history: FeedHistory,
    /// What it holds.
    pub view: ViewSnapshot,
}

/// Why an engine's snapshot wasn't taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRefused {
    /// The engine has left, publishes elsewhere, or something of it is known already.
    #[error("nobody waits for this engine's snapshot")]
    NotAwaited,
    /// A replay is likely to give a better view.
    #[error("the sibling's view isn't exact, and the engine answers replays")]
    Worse,
    /// It doesn't fit, or makes no sense.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// There are not as many names as there should be.
    #[error("{found} names came, {announced} were announced")]
    Incomplete {
        /// Taken in.
        found: u64,
        /// Announced at the end.
        announced: u64,
    },
}

impl SnapshotRefused {
    /// The `outcome` label of the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotAwaited => "not-awaited",
            Self::Worse => "worse-than-replay",
            Self::Import(ImportError::IndexFull) => "index-full",
            Self::Import(_) | Self::Incomplete { .. } => "malformed",
        }
    }
}
