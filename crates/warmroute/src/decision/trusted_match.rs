//! How much a match counts, by where its blocks are and how far the view of the engine can be trusted.

use warmroute_config::TierWeights;
use warmroute_kv_events::{Trust, TrustReason, TrustState};
use warmroute_kv_index::{Match, OffloadedBlocks};

use crate::pool::EndpointState;

/// How far what an endpoint's engine is known to hold can be trusted for requests of a model.
pub(super) fn trust_in(state: &EndpointState, model: &str) -> Trust {
    let trust = state.engine.trust();
    let is_doubted = trust <= Trust::Partial && state.deliveries.breaks_promises_of(model);
    if is_doubted { Trust::Doubtful } else { trust }
}

/// The same with its reason. A model that is doubted alone has been for a time that isn't kept.
pub(super) fn trust_state_in(state: &EndpointState, model: &str) -> TrustState {
    let known = state.engine.trust_state();
    match known.trust == trust_in(state, model) {
        true => known,
        false => TrustState { trust: Trust::Doubtful, reason: TrustReason::DeliversLess, ..known },
    }
}

/// How much matches count.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatchWeights {
    /// By where a block is.
    pub(super) tiers: TierWeights,
    /// Of a doubtful view.
    pub(super) doubtful: f64,
}

impl Default for MatchWeights {
    /// All alike.
    fn default() -> Self {
        Self { tiers: TierWeights::EQUAL, doubtful: 1.0 }
    }
}

/// What a look-up found, as far as it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TrustedMatch {
    pub(super) found: Match,
    /// Known blocks that the engine has to load first.
    pub(super) offloaded: OffloadedBlocks,
    /// How many blocks count in scores.
    pub(super) counted_blocks: u32,
}

impl TrustedMatch {
    /// Known blocks count by the weight of the best tier that has them, those of a doubtful view by its weight too; of a
    /// blind one nothing is known. Blocks that are only expected, because they were picked here, count fully either
    /// way: they don't come from the engine's events.
    pub(super) fn new(
        found: Match,
        offloaded: OffloadedBlocks,
        trust: Trust,
        weights: &MatchWeights,
    ) -> Self {
        let expected_only = found.expected_blocks.saturating_sub(found.known_blocks);
        let factor = match trust {
            Trust::Exact | Trust::Partial => 1.0,
            Trust::Doubtful => weights.doubtful,
            Trust::Blind => {
                let found = Match { known_blocks: 0, expected_blocks: expected_only };
                let offloaded = OffloadedBlocks::default();
                return Self { found, offloaded, counted_blocks: expected_only };
            }
        };
        let counted = weighed_blocks(found.known_blocks, offloaded, &weights.tiers) * factor;
        // Rounded down as the peer does, but not because of how 0.8 is written.
        let counted_blocks = (counted + 1e-6) as u32 + expected_only;
        Self { found, offloaded, counted_blocks }
    }
}

fn weighed_blocks(known_blocks: u32, offloaded: OffloadedBlocks, weights: &TierWeights) -> f64 {
    let in_gpu = known_blocks.saturating_sub(offloaded.total());
    f64::from(in_gpu) * weights.gpu
        + f64::from(offloaded.cpu) * weights.cpu
        + f64::from(offloaded.storage) * weights.storage
        + f64::from(offloaded.other) * weights.other
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_GPU: OffloadedBlocks = OffloadedBlocks { cpu: 0, storage: 0, other: 0 };

    #[test]
    fn doubtful_matches_count_less_and_blind_ones_not_at_all() {
        let found = Match { known_blocks: 10, expected_blocks: 13 };
        let trusted = |trust, doubtful| {
            let weights = MatchWeights { tiers: TierWeights::default(), doubtful };
            let trusted = TrustedMatch::new(found, IN_GPU, trust, &weights);
            (trusted.found, trusted.counted_blocks)
        };
        assert_eq!(trusted(Trust::Exact, 0.5), (found, 13));
        assert_eq!(trusted(Trust::Partial, 0.5), (found, 13));
        assert_eq!(trusted(Trust::Doubtful, 0.5), (found, 8));
        assert_eq!(trusted(Trust::Doubtful, 0.0), (found, 3));
        assert_eq!(trusted(Trust::Doubtful, 1.0), (found, 13));
        assert_eq!(trusted(Trust::Blind, 0.5), (Match { known_blocks: 0, expected_blocks: 3 }, 3));
    }

    #[test]
    fn blocks_count_by_the_tier_that_they_are_in() {
        let found = Match { known_blocks: 12, expected_blocks: 13 };
        let offloaded = OffloadedBlocks { cpu: 5, storage: 3, other: 2 };
        let counted = |tiers, trust| {
            let weights = MatchWeights { tiers, doubtful: 0.5 };
            TrustedMatch::new(found, offloaded, trust, &weights).counted_blocks
        };
        // 2 + 5 × 0.8 + 3 + 2, and the expected one.
        assert_eq!(counted(TierWeights::default(), Trust::Exact), 12);
        assert_eq!(counted(TierWeights::default(), Trust::Doubtful), 6);
        assert_eq!(counted(TierWeights::default(), Trust::Blind), 1);
        let tiers = TierWeights { gpu: 1.0, cpu: 0.5, storage: 0.1, other: 0.0 };
        assert_eq!(counted(tiers, Trust::Exact), 5, "2 + 2.5 + 0.3, rounded down, and the expected one");
        assert_eq!(counted(TierWeights { cpu: 0.0, ..TierWeights::EQUAL }, Trust::Exact), 8);
    }
}
