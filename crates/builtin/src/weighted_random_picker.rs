//! `weighted-random-picker`.

use std::cmp::Ordering;
use std::sync::{Mutex, PoisonError};

use fastrand::Rng;
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Picker};

use crate::max_score_picker::Parameters;
use crate::seeds::Seeds;

/// Picks at random, each row with a chance in proportion to its total; fallbacks are drawn the same way
/// from the rest. Rows with a total of 0 or less come after all others, in random order; so if no row has
/// more, every row has the same chance.
///
/// Sampling is A-Res (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006): the
/// highest keys `U^(1/total)` win. Compared are their logarithms, `ln U / total`, which don't vanish when
/// totals are small.
#[derive(Debug)]
pub struct WeightedRandomPicker {
    max_endpoints: usize,
    seeds: Seeds,
    /// Kept between picks, so that one doesn't allocate.
    keys: Mutex<Vec<(Key, u32)>>,
}

/// The greatest wins.
#[derive(Clone, Copy, Debug)]
struct Key {
    has_weight: bool,
    log: f64,
}

impl Key {
    fn draw(total: f64, rng: &mut Rng) -> Self {
        // From 0 (excluded) to 1, so that the logarithm is finite.
        let log = (1.0 - rng.f64()).ln();
        let has_weight = total > 0.0;
        Self { has_weight, log: if has_weight { log / total } else { log } }
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.has_weight.cmp(&other.has_weight).then(self.log.total_cmp(&other.log))
    }
}

impl WeightedRandomPicker {
    /// A picker that names at most `max_endpoints` endpoints, at least 1.
    pub fn new(max_endpoints: usize) -> Self {
        Self { max_endpoints: max_endpoints.max(1), seeds: Seeds::random(), keys: Mutex::default() }
    }

    /// The same picker with chance that repeats itself, for tests and replays.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seeds = Seeds::new(seed);
        self
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self::new(parameters.max_endpoints()))
    }
}

impl Picker for WeightedRandomPicker {
    fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
        let mut rng = self.seeds.next();
        let drawn = totals.iter().map(|&total| Key::draw(total, &mut rng)).zip(0u32..);
        if self.max_endpoints == 1 {
            order.extend(drawn.max_by(|a, b| a.0.compare(&b.0)).map(|(_, row)| row));
            return;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.clear();
        keys.extend(drawn);
        keys.sort_unstable_by(|a, b| b.0.compare(&a.0));
        order.extend(keys.iter().take(self.max_endpoints).map(|(_, row)| *row));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, any, prop_oneof};
    use proptest::{collection, prop_assert, prop_assert_eq, proptest};
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, picked};

    use super::*;
    use crate::built;

    fn table(rows: usize) -> CandidatesFixture {
        CandidatesFixture::new((0..rows).map(|_| Row::never_scraped()))
    }

    /// How often each row came in `place` in 10,000 picks.
    fn counts(picker: &WeightedRandomPicker, totals: &[f64], place: usize) -> Vec<u32> {
        let table = table(totals.len());
        let mut counts = vec![0; totals.len()];
        for _ in 0..10_000 {
            counts[picked(picker, &table, totals)[place] as usize] += 1;
        }
        counts
    }

    fn assert_close(counts: &[u32], expected: &[u32]) {
        // The standard deviation is at most 50.
        let close = counts.iter().zip(expected).all(|(count, expected)| match expected {
            0 => *count == 0,
            _ => count.abs_diff(*expected) < 250,
        });
        assert!(close, "{counts:?} instead of {expected:?}");
    }

    #[test]
    fn the_chance_is_in_proportion_to_the_total() {
        for max_endpoints in [1, 2, 9] {
            let picker = WeightedRandomPicker::new(max_endpoints).with_seed(11);
            assert_close(&counts(&picker, &[1.0, 0.0, 3.0], 0), &[2500, 0, 7500]);
            assert_close(&counts(&picker, &[0.5, 1.0, 1.0], 0), &[2000, 4000, 4000]);
            assert_close(&counts(&picker, &[-1.0, 2.0, 2.0], 0), &[0, 5000, 5000]);
        }
    }

    #[test]
    fn totals_of_any_size_keep_their_proportions() {
        let picker = WeightedRandomPicker::new(1).with_seed(5);
        assert_close(&counts(&picker, &[1e-9, 3e-9], 0), &[2500, 7500]);
        assert_close(&counts(&picker, &[1e9, 3e9], 0), &[2500, 7500]);
    }

    #[test]
    fn without_weights_all_have_the_same_chance() {
        for totals in [[0.0; 4], [-1.0, 0.0, -5.0, -0.0]] {
            for max_endpoints in [1, 4] {
                let picker = WeightedRandomPicker::new(max_endpoints).with_seed(2);
                assert_close(&counts(&picker, &totals, 0), &[2500; 4]);
            }
        }
    }

    #[test]
    fn fallbacks_are_drawn_from_the_rest() {
        // Row 0 comes second after row 1 (2/4 · 1/2) and after row 2 (1/4 · 1/3): 1/4 + 1/12 = 1/3; row 1
        // after rows 0 and 2: 1/4 · 2/3 twice = 1/3; and row 2 is like row 0.
        let picker = WeightedRandomPicker::new(2).with_seed(23);
        assert_close(&counts(&picker, &[1.0, 2.0, 1.0], 1), &[3333, 3333, 3333]);
        // What has no weight comes last, in random order.
        let picker = WeightedRandomPicker::new(3).with_seed(4);
        assert_close(&counts(&picker, &[0.0, 1e-3, -1.0], 1), &[5000, 0, 5000]);
    }

    #[test]
    fn the_number_of_endpoints_is_at_least_one() {
        for (given, taken) in [(-4, 1), (0, 1), (1, 1), (3, 3), (9, 4)] {
            let picker = built::picker("weighted-random-picker", json!({"maxNumOfEndpoints": given}));
            assert_eq!(picked(&*picker, &table(4), &[0.5, 0.0, 1.0, 0.2]).len(), taken);
        }
        assert!(picked(&WeightedRandomPicker::new(2), &table(0), &[]).is_empty());
        assert!(picked(&WeightedRandomPicker::new(1), &table(0), &[]).is_empty());
    }

    proptest! {
        #[test]
        fn rows_with_weight_come_first_and_none_comes_twice(
            totals in collection::vec(prop_oneof![Just(0.0), -2.0..2.0f64, Just(f64::MIN_POSITIVE), Just(f64::INFINITY)], 1..20),
            max_endpoints in 1..25usize,
            seed in any::<u64>(),
        ) {
            let picker = WeightedRandomPicker::new(max_endpoints).with_seed(seed);
            let order = picked(&picker, &table(totals.len()), &totals);
            prop_assert_eq!(order.len(), max_endpoints.min(totals.len()));
            let mut seen = order.clone();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), order.len());
            let weights: Vec<bool> = order.iter().map(|&row| totals[row as usize] > 0.0).collect();
            prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{:?}", order);
        }
    }
}
