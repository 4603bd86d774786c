//! `queue-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::UnknownMetrics;

/// Prefers the shortest queue: `(max − waiting) / (max − min)` over the candidates, 1 if all are equal.
///
/// Minimum and maximum are taken over the rows whose metrics are known; see [`UnknownMetrics`].
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueScorer {
    unknown_metrics: UnknownMetrics,
}

/// The peer takes no parameters and ignores whatever is given; here an unknown one is a mistake.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    unknown_metrics: UnknownMetrics,
}

impl QueueScorer {
    /// A scorer that does this with endpoints whose metrics aren't fresh.
    pub fn new(unknown_metrics: UnknownMetrics) -> Self {
        Self { unknown_metrics }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self::new(parameters.unknown_metrics))
    }
}

impl Scorer for QueueScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        self.unknown_metrics.score_lowest(candidates.metrics(), scores, |metrics| metrics.waiting_requests);
    }
}

#[cfg(test)]
mod tests {
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use super::*;
    use crate::unknown_metrics::FLOOR;

    fn queue(waiting: u32) -> Row {
        Row::fresh(waiting, 0, 0.0)
    }

    fn of(rows: impl IntoIterator<Item = Row>) -> Vec<f64> {
        scores(&QueueScorer::default(), &CandidatesFixture::new(rows))
    }

    #[test]
    fn fresh_rows_score_by_min_and_max() {
        let table: [(&[u32], &[f64]); 6] = [
            (&[0, 5, 10], &[1.0, 0.5, 0.0]),
            (&[2, 6, 4, 10], &[1.0, 0.5, 0.75, 0.0]),
            (&[7, 7, 7], &[1.0, 1.0, 1.0]),
            (&[42], &[1.0]),
            (&[0, u32::MAX], &[1.0, 0.0]),
            (&[], &[]),
        ];
        for (waiting, expected) in table {
            assert_eq!(of(waiting.iter().map(|&waiting| queue(waiting))), expected, "{waiting:?}");
        }
    }

    #[test]
    fn unknown_rows_score_below_the_longest_queue() {
        let got = of([queue(0), Row::never_scraped(), queue(10), Row::stale(0, 0, 0.0)]);
        assert_eq!(got, [1.0, 0.0, FLOOR, 0.0]);
    }

    #[test]
    fn old_metrics_count_for_neither_minimum_nor_maximum() {
        let half = FLOOR + (1.0 - FLOOR) * 0.5;
        let got = of([queue(4), queue(6), queue(8), Row::stale(1000, 0, 0.0), Row::stale(0, 0, 0.0)]);
        assert_eq!(got, [1.0, half, FLOOR, 0.0, 0.0]);
    }

    #[test]
    fn without_fresh_rows_all_are_equal() {
        assert_eq!(of([Row::stale(3, 0, 0.0), Row::never_scraped(), Row::stale(0, 0, 0.0)]), [0.0; 3]);
    }

    #[test]
    fn as_peer_takes_unknown_for_idle_and_old_for_fresh() {
        let rows = [queue(10), Row::never_scraped(), Row::stale(5, 0, 0.0)];
        let scorer = QueueScorer::new(UnknownMetrics::AsPeer);
        assert_eq!(scores(&scorer, &CandidatesFixture::new(rows)), [0.0, 1.0, 0.5]);
    }
}
