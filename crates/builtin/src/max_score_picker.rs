//! `max-score-picker`.

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Picker};

use crate::seeds::Seeds;

/// Picks the rows with the highest totals; equal ones in an order that is uniformly random, so that
/// nothing is learnt from the order of the pool.
#[derive(Debug)]
pub struct MaxScorePicker {
    max_endpoints: usize,
    seeds: Seeds,
}

/// Parameters of both pickers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How many endpoints to name: the one to use, then fallbacks. Below 1 counts as 1, as at the peer.
    max_num_of_endpoints: i64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { max_num_of_endpoints: 1 }
    }
}

impl Parameters {
    pub(crate) fn max_endpoints(&self) -> usize {
        usize::try_from(self.max_num_of_endpoints).unwrap_or(1).max(1)
    }
}

impl MaxScorePicker {
    /// A picker that names at most `max_endpoints` endpoints, at least 1.
    pub fn new(max_endpoints: usize) -> Self {
        Self { max_endpoints: max_endpoints.max(1), seeds: Seeds::random() }
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

impl Picker for MaxScorePicker {
    fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
        let mut rng = self.seeds.next();
        if self.max_endpoints == 1 {
            order.extend(best(totals, &mut rng));
            return;
        }
        order.extend((0u32..).take(totals.len()));
        // Equal rows are interchangeable for the sort, so their order stays as random as it was.
        rng.shuffle(order);
        order.sort_unstable_by(|&a, &b| totals[b as usize].total_cmp(&totals[a as usize]));
        order.truncate(self.max_endpoints);
    }
}

/// The row with the highest total; each of several with the same chance.
fn best(totals: &[f64], rng: &mut Rng) -> Option<u32> {
    let mut best = None;
    let mut equals = 0u32;
    for (row, &total) in (0u32..).zip(totals) {
        match best {
            Some((_, highest)) if total < highest => {}
            Some((_, highest)) if total == highest => {
                equals += 1;
                if rng.u32(..equals) == 0 {
                    best = Some((row, total));
                }
            }
            _ => {
                equals = 1;
                best = Some((row, total));
            }
        }
    }
    best.map(|(row, _)| row)
}

#[cfg(test)]
mod tests {
    use warmroute_plugin::testing::{CandidatesFixture, Row, picked};

    use super::*;

    fn table(rows: usize) -> CandidatesFixture {
        CandidatesFixture::new((0..rows).map(|_| Row::never_scraped()))
    }

    /// How often each row came first in 6,000 picks.
    fn firsts(picker: &MaxScorePicker, totals: &[f64]) -> Vec<u32> {
        let table = table(totals.len());
        let mut counts = vec![0; totals.len()];
        for _ in 0..6000 {
            counts[picked(picker, &table, totals)[0] as usize] += 1;
        }
        counts
    }

    #[test]
    fn the_highest_total_wins() {
        assert_eq!(picked(&MaxScorePicker::new(1), &table(3), &[0.5, 2.0, 1.0]), [1]);
        assert_eq!(picked(&MaxScorePicker::new(1), &table(2), &[-2.0, -1.0]), [1]);
        assert_eq!(picked(&MaxScorePicker::new(2), &table(3), &[0.5, 2.0, 1.0]), [1, 2]);
        assert_eq!(picked(&MaxScorePicker::new(9), &table(3), &[0.5, 2.0, 1.0]), [1, 2, 0]);
        assert_eq!(picked(&MaxScorePicker::new(1), &table(0), &[]), [0u32; 0]);
    }

    #[test]
    fn equal_totals_win_equally_often() {
        for max_endpoints in [1, 2, 5] {
            let picker = MaxScorePicker::new(max_endpoints).with_seed(7);
            let counts = firsts(&picker, &[3.0, 1.0, 3.0, 3.0, 0.0]);
            assert_eq!([counts[1], counts[4]], [0, 0]);
            // 2,000 each, with a standard deviation of 37.
            for row in [0, 2, 3] {
                assert!(counts[row].abs_diff(2000) < 185, "row {row} of {counts:?}");
            }
        }
    }

    #[test]
    fn fallbacks_with_equal_totals_are_in_random_order() {
        let picker = MaxScorePicker::new(3).with_seed(1);
        let table = table(3);
        let mut seconds = [0u32; 3];
        for _ in 0..6000 {
            seconds[picked(&picker, &table, &[1.0, 1.0, 2.0])[1] as usize] += 1;
        }
        assert!(seconds[0].abs_diff(3000) < 200 && seconds[2] == 0, "{seconds:?}");
    }

    #[test]
    fn a_seed_repeats_its_picks() {
        let picks = |seed| {
            let picker = MaxScorePicker::new(1).with_seed(seed);
            (0..50).map(|_| picked(&picker, &table(10), &[0.0; 10])[0]).collect::<Vec<_>>()
        };
        assert_eq!(picks(5), picks(5));
        assert_ne!(picks(5), picks(6));
    }

    #[test]
    fn the_number_of_endpoints_is_at_least_one() {
        for (given, taken) in [(-4, 1), (0, 1), (1, 1), (3, 3)] {
            assert_eq!(Parameters { max_num_of_endpoints: given }.max_endpoints(), taken);
        }
    }
}
