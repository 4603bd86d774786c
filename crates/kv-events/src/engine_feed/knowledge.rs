use crate::trust::{ApplyFacts, Trust, TrustReason};

/// What is known of one generation of an engine: whether the view of it is sound and complete, and if not, why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Knowledge {
    /// Set: not sound, until the engine clears its cache or a new generation begins.
    pub(super) doubt: Option<TrustReason>,
    /// Set: not complete, until the same.
    pub(super) lack: Option<TrustReason>,
    /// Set: not complete, whatever the engine clears.
    pub(super) lasting_lack: Option<TrustReason>,
    pub(super) is_cleared: bool,
}

impl Knowledge {
    /// A generation of which the beginning isn't known, for this reason.
    pub(super) fn lacking(reason: TrustReason) -> Self {
        Self { lack: Some(reason), ..Self::default() }
    }

    /// Events are missing. The first reason stays.
    pub(super) fn doubt(&mut self, reason: TrustReason) {
        self.doubt.get_or_insert(reason);
    }

    /// Takes what applying a batch showed. A reset in the batch counts as its first event, which can only
    /// understate what is known.
    pub(super) fn applied(&mut self, facts: &ApplyFacts) {
        if facts.cleared {
            *self = Self { lasting_lack: self.lasting_lack, is_cleared: true, ..Self::default() };
        }
        if facts.undecodable {
            self.doubt(TrustReason::UndecodableBatch);
        } else if facts.undecodable_events {
            self.doubt(TrustReason::UndecodableEvent);
        }
        let lacks = [
            (facts.unreadable_stores, TrustReason::UnreadableStores),
            (facts.refused_blocks, TrustReason::IndexFull),
            (facts.unknown_parents, TrustReason::UnknownParents),
            (facts.unknown_removals, TrustReason::UnknownRemovals),
        ];
        if let Some((_, reason)) = lacks.iter().find(|(is_so, _)| *is_so) {
            self.lack.get_or_insert(*reason);
        }
        if facts.unchained_hashes {
            self.lasting_lack = Some(TrustReason::UnchainedHashes);
        } else if facts.unsupported_groups {
            self.lasting_lack = Some(TrustReason::UnsupportedGroups);
        } else if facts.other_tiers {
            self.lasting_lack.get_or_insert(TrustReason::OtherTiers);
        }
    }

    pub(super) fn trust(&self) -> (Trust, TrustReason) {
        match (self.doubt, self.lasting_lack.or(self.lack)) {
            (Some(doubt), _) => (Trust::Doubtful, doubt),
            (None, Some(lack)) => (Trust::Partial, lack),
            (None, None) if self.is_cleared => (Trust::Exact, TrustReason::Cleared),
            (None, None) => (Trust::Exact, TrustReason::FollowedFromStart),
        }
    }
}
