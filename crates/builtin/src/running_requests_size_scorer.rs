//! `running-requests-size-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::UnknownMetrics;

/// Prefers the smallest running batch: `(max − running) / (max − min)` over the candidates, 1 if all are
/// equal.
///
/// Minimum and maximum are taken over the rows whose metrics are known; see [`UnknownMetrics`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningRequestsSizeScorer {
    unknown_metrics: UnknownMetrics,
}

/// The peer takes no parameters and ignores whatever is given; here an unknown one is a mistake.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    unknown_metrics: UnknownMetrics,
}

impl RunningRequestsSizeScorer {
    /// A scorer that does this with endpoints whose metrics aren't fresh.
    pub fn new(unknown_metrics: UnknownMetrics) -> Self {
        Self { unknown_metrics }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self::new(parameters.unknown_metrics))
    }
}

impl Scorer for RunningRequestsSizeScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        self.unknown_metrics.score_lowest(candidates.metrics(), scores, |metrics| metrics.running_requests);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use crate::built;
    use crate::unknown_metrics::FLOOR;

    /// A row whose queue is the opposite of its batch, to see which of them counts.
    fn batch(running: u32) -> Row {
        Row::fresh(u32::MAX - running, running, 0.0)
    }

    fn of(rows: impl IntoIterator<Item = Row>) -> Vec<f64> {
        let scorer = built::scorer("running-requests-size-scorer", json!({}));
        scores(&*scorer, &CandidatesFixture::new(rows))
    }

    #[test]
    fn fresh_rows_score_by_min_and_max() {
        let table: [(&[u32], &[f64]); 5] = [
            (&[0, 5, 10], &[1.0, 0.5, 0.0]),
            (&[2, 6, 4, 10], &[1.0, 0.5, 0.75, 0.0]),
            (&[7, 7], &[1.0, 1.0]),
            (&[42], &[1.0]),
            (&[], &[]),
        ];
        for (running, expected) in table {
            assert_eq!(of(running.iter().map(|&running| batch(running))), expected, "{running:?}");
        }
    }

    #[test]
    fn unknown_rows_score_below_the_largest_batch() {
        assert_eq!(
            of([batch(4), Row::never_scraped(), batch(8), Row::stale(0, 0, 0.0)]),
            [1.0, 0.0, FLOOR, 0.0]
        );
    }

    #[test]
    fn as_peer_takes_unknown_for_idle_and_old_for_fresh() {
        let scorer = built::scorer("running-requests-size-scorer", json!({"unknownMetrics": "as-peer"}));
        let table = CandidatesFixture::new([batch(10), Row::never_scraped(), Row::stale(0, 5, 0.0)]);
        assert_eq!(scores(&*scorer, &table), [0.0, 1.0, 0.5]);
    }
}
