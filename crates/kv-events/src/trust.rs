use serde::{Deserialize, Serialize};

/// How far the view of an engine's cache can be trusted, as of the last batch applied.
///
/// A view is *sound* if every block that it claims was announced and not withdrawn, and nothing is known to be missing.
/// It is *complete* if the engine holds nothing that it doesn't know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Sound and complete.
    Exact,
    /// Sound: what it claims is there, but the engine holds more.
    Partial,
    /// Events are missing: it may claim what is gone.
    Doubtful,
    /// No events arrive.
    #[default]
    Blind,
}

impl Trust {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Partial, Self::Doubtful, Self::Blind];

    /// The word used in metrics, receipts and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Partial => "partial",
            Self::Doubtful => "doubtful",
            Self::Blind => "blind",
        }
    }
}

/// Why a view is trusted as far as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TrustReason {
    /// Exact: every batch since the engine's start was applied, live or by replay.
    FollowedFromStart,
    /// Exact: the engine reset its cache, and everything since was applied.
    Cleared,
    /// Partial: it had published before it was followed.
    JoinedLate,
    /// Partial: it restarted and had published before that was seen.
    RestartSeenLate,
    /// Partial: the batches asked for had left the engine's buffer.
    BufferOverflowed,
    /// Partial: a replay was needed and failed, so everything from before was forgotten.
    ReplayFailed,
    /// Partial: blocks were stored after a block that isn't known.
    UnknownParents,
    /// Partial: a block was removed whose store was never seen.
    UnknownRemovals,
    /// Partial: stores came without tokens, or with tokens that don't fit their blocks.
    UnreadableStores,
    /// Partial: it stores in other tiers than GPU memory, which isn't followed.
    OtherTiers,
    /// Partial: it has kinds of attention, or several cache groups, for which nothing is claimed.
    UnsupportedGroups,
    /// Partial: it names a block by the tokens of the block alone (SGLang before 0.5.6), so nothing is claimed.
    UnchainedHashes,
    /// Partial: the index was full.
    IndexFull,
    /// Doubtful: batches are missing.
    Gap,
    /// Doubtful: several connections publish as this engine.
    Contested,
    /// Doubtful: batches came faster than they could be applied, and the newest were dropped.
    QueueOverflow,
    /// Doubtful: a batch could not be decoded.
    UndecodableBatch,
    /// Doubtful: an event could not be understood.
    UndecodableEvent,
    /// Doubtful: the connection was lost and made again, and nothing proves yet that nothing was missed.
    Reconnected,
    /// Doubtful: what it published before is being replayed.
    CatchingUp,
    /// Doubtful: it lastingly delivers less from its cache than its events promise. No feed says this: who compares
    /// predictions with deliveries does.
    DeliversLess,
    /// Blind: it isn't subscribed to.
    #[default]
    NotFollowed,
    /// Blind: no connection has been made yet.
    NeverConnected,
    /// Blind: the connection was lost.
    ConnectionLost,
    /// Blind: connected, and nothing has been heard yet.
    NothingHeard,
}

impl TrustReason {
    /// The word used in the status, receipts and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FollowedFromStart => "followed-from-start",
            Self::Cleared => "cleared",
            Self::JoinedLate => "joined-late",
            Self::RestartSeenLate => "restart-seen-late",
            Self::BufferOverflowed => "buffer-overflowed",
            Self::ReplayFailed => "replay-failed",
            Self::UnknownParents => "unknown-parents",
            Self::UnknownRemovals => "unknown-removals",
            Self::UnreadableStores => "unreadable-stores",
            Self::OtherTiers => "other-tiers",
            Self::UnsupportedGroups => "unsupported-groups",
            Self::UnchainedHashes => "unchained-hashes",
            Self::IndexFull => "index-full",
            Self::Gap => "gap",
            Self::Contested => "contested",
            Self::QueueOverflow => "queue-overflow",
            Self::UndecodableBatch => "undecodable-batch",
            Self::UndecodableEvent => "undecodable-event",
            Self::Reconnected => "reconnected",
            Self::CatchingUp => "catching-up",
            Self::DeliversLess => "delivers-less",
            Self::NotFollowed => "not-followed",
            Self::NeverConnected => "never-connected",
            Self::ConnectionLost => "connection-lost",
            Self::NothingHeard => "nothing-heard",
        }
    }

    /// The reason that is spelt so; `None` for words of other versions.
    pub fn from_name(name: &str) -> Option<Self> {
        let word = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name);
        Self::deserialize(word).ok()
    }
}

/// Trust with its reason and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustState {
    /// How far.
    pub trust: Trust,
    /// Why.
    pub reason: TrustReason,
    /// Since when it is so for that reason, in milliseconds of the caller's clock.
    pub since_ms: u64,
}

/// What applying one batch showed about the view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyFacts {
    /// The engine reset its cache in this batch.
    pub cleared: bool,
    /// The batch could not be decoded; nothing of it was applied.
    pub undecodable: bool,
    /// Some of its events could not be understood.
    pub undecodable_events: bool,
    /// Blocks were stored after a block that isn't known.
    pub unknown_parents: bool,
    /// Blocks were removed that weren't known.
    pub unknown_removals: bool,
    /// Stores had no tokens, or tokens that don't fit.
    pub unreadable_stores: bool,
    /// Events were of other tiers than GPU memory.
    pub other_tiers: bool,
    /// Events were of groups for which nothing is claimed.
    pub unsupported_groups: bool,
    /// The engine's names of blocks don't say what comes before them.
    pub unchained_hashes: bool,
    /// Blocks were left out because the index is full.
    pub refused_blocks: bool,
}

#[cfg(test)]
mod tests {
    use super::{Trust, TrustReason};

    #[test]
    fn words_are_spelt_the_same_everywhere() {
        for trust in Trust::ALL {
            assert_eq!(serde_json::to_string(&trust).unwrap(), format!("{:?}", trust.as_str()));
        }
        for reason in
            [TrustReason::FollowedFromStart, TrustReason::DeliversLess, TrustReason::UndecodableEvent]
        {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{:?}", reason.as_str()));
            assert_eq!(TrustReason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(TrustReason::from_name("whatever"), None);
        assert!(Trust::Exact < Trust::Blind);
    }
}
