//! How much a match counts, by how far the view of the engine can be trusted.

use warmroute_kv_events::Trust;
use warmroute_kv_index::Match;

/// What a look-up found, as far as it can be trusted, and how many blocks of it count in scores.
///
/// Of a doubtful view, known blocks count by `doubtful_weight`; of a blind one nothing is known. Blocks that are only
/// expected, because they were picked here, count fully either way: they don't come from the engine's events.
pub(super) fn trusted(found: Match, trust: Trust, doubtful_weight: f64) -> (Match, u32) {
    let expected_only = found.expected_blocks.saturating_sub(found.known_blocks);
    match trust {
        Trust::Exact | Trust::Partial => (found, found.expected_blocks),
        Trust::Doubtful => {
            let counted = (f64::from(found.known_blocks) * doubtful_weight) as u32;
            (found, counted + expected_only)
        }
        Trust::Blind => (Match { known_blocks: 0, expected_blocks: expected_only }, expected_only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_matches_count_less_and_blind_ones_not_at_all() {
        let found = Match { known_blocks: 10, expected_blocks: 13 };
        assert_eq!(trusted(found, Trust::Exact, 0.5), (found, 13));
        assert_eq!(trusted(found, Trust::Partial, 0.5), (found, 13));
        assert_eq!(trusted(found, Trust::Doubtful, 0.5), (found, 8));
        assert_eq!(trusted(found, Trust::Doubtful, 0.0), (found, 3));
        assert_eq!(trusted(found, Trust::Doubtful, 1.0), (found, 13));
        assert_eq!(trusted(found, Trust::Blind, 0.5), (Match { known_blocks: 0, expected_blocks: 3 }, 3));
    }
}
