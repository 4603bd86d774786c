//! `load-aware-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::UnknownMetrics;

/// Prefers short queues by a fixed measure: `0.5 × (1 − min(waiting, threshold) / threshold)`. So an empty
/// queue gets 0.5, which is the most, and one of the threshold or longer 0.
///
/// If some rows aren't fresh, the others get at least 1/32; see [`UnknownMetrics`].
#[derive(Clone, Copy, Debug)]
pub struct LoadAwareScorer {
    threshold: f64,
    unknown_metrics: UnknownMetrics,
}

const DEFAULT_THRESHOLD: i64 = 128;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Waiting requests that are as bad as any more; 0 and less count as the default, as at the peer.
    threshold: i64,
    unknown_metrics: UnknownMetrics,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { threshold: DEFAULT_THRESHOLD, unknown_metrics: UnknownMetrics::default() }
    }
}

impl LoadAwareScorer {
    /// A scorer for which `threshold` waiting requests, at least 1, are as bad as any more.
    pub fn new(threshold: u32, unknown_metrics: UnknownMetrics) -> Self {
        Self { threshold: f64::from(threshold.max(1)), unknown_metrics }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let threshold = if parameters.threshold > 0 { parameters.threshold } else { DEFAULT_THRESHOLD };
        Ok(Self { threshold: threshold as f64, unknown_metrics: parameters.unknown_metrics })
    }
}

impl Scorer for LoadAwareScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        self.unknown_metrics.score(candidates.metrics(), scores, |metrics| {
            1.0 - f64::from(metrics.waiting_requests).min(self.threshold) / self.threshold
        });
        for score in scores {
            *score *= 0.5;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use crate::built;
    use crate::unknown_metrics::FLOOR;

    fn of(parameters: Value, rows: impl IntoIterator<Item = Row>) -> Vec<f64> {
        scores(&*built::scorer("load-aware-scorer", parameters), &CandidatesFixture::new(rows))
    }

    #[test]
    fn fresh_rows_score_by_the_threshold() {
        let rows = |waiting: &[u32]| waiting.iter().map(|&w| Row::fresh(w, 9, 0.9)).collect::<Vec<_>>();
        let got = of(json!({}), rows(&[0, 32, 64, 128, 129, u32::MAX]));
        assert_eq!(got, [0.5, 0.375, 0.25, 0.0, 0.0, 0.0]);
        assert_eq!(of(json!({"threshold": 4}), rows(&[0, 1, 3, 4, 5])), [0.5, 0.375, 0.125, 0.0, 0.0]);
        assert_eq!(of(json!({"threshold": 4}), rows(&[])), [0.0; 0]);
    }

    #[test]
    fn a_threshold_of_0_or_less_is_the_default() {
        for threshold in [0, -1, i64::MIN] {
            assert_eq!(of(json!({"threshold": threshold}), [Row::fresh(64, 0, 0.0)]), [0.25]);
        }
    }

    #[test]
    fn unknown_rows_score_below_a_full_queue() {
        let got = of(json!({}), [Row::fresh(0, 0, 0.0), Row::never_scraped(), Row::fresh(500, 0, 0.0)]);
        assert_eq!(got, [0.5, 0.0, FLOOR / 2.0]);
        assert_eq!(of(json!({}), [Row::stale(0, 0, 0.0), Row::never_scraped()]), [0.0, 0.0]);
    }

    #[test]
    fn as_peer_takes_unknown_for_idle_and_old_for_fresh() {
        let rows = [Row::fresh(0, 0, 0.0), Row::never_scraped(), Row::stale(64, 0, 0.0)];
        assert_eq!(of(json!({"unknownMetrics": "as-peer"}), rows), [0.5, 0.5, 0.25]);
    }
}
