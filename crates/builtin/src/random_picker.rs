//! `random-picker`.

use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Picker};

use crate::max_score_picker::Parameters;
use crate::seeds::Seeds;

/// Picks at random, whatever the totals: every row with the same chance.
#[derive(Debug)]
pub struct RandomPicker {
    max_endpoints: usize,
    seeds: Seeds,
}

impl RandomPicker {
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

impl Picker for RandomPicker {
    fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
        let mut rng = self.seeds.next();
        order.extend((0u32..).take(totals.len()));
        // The first steps of a Fisher–Yates shuffle: only as many as are wanted.
        for place in 0..self.max_endpoints.min(order.len()) {
            let other = rng.usize(place..order.len());
            order.swap(place, other);
        }
        order.truncate(self.max_endpoints);
    }
}

#[cfg(test)]
mod tests {
    use warmroute_plugin::testing::{CandidatesFixture, Row, picked};

    use super::*;

    #[test]
    fn every_row_comes_equally_often_in_every_place() {
        let table = CandidatesFixture::new((0..4).map(|_| Row::never_scraped()));
        let picker = RandomPicker::new(2).with_seed(3);
        let mut counts = [[0u32; 4]; 2];
        for _ in 0..8000 {
            let order = picked(&picker, &table, &[9.0, 0.0, 0.0, 0.0]);
            assert_eq!(order.len(), 2);
            assert_ne!(order[0], order[1]);
            counts[0][order[0] as usize] += 1;
            counts[1][order[1] as usize] += 1;
        }
        // 2,000 each, with a standard deviation of 39.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(2000) < 195), "{counts:?}");
    }

    #[test]
    fn no_rows_no_pick() {
        assert!(picked(&RandomPicker::new(3), &CandidatesFixture::new([]), &[]).is_empty());
    }
}
