//! `kv-cache-utilization-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::UnknownMetrics;

/// Prefers free KV cache: `1 − share in use`.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvCacheUtilizationScorer {
    unknown_metrics: UnknownMetrics,
}

/// The peer takes no parameters and ignores whatever is given; here an unknown one is a mistake.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    unknown_metrics: UnknownMetrics,
}

impl KvCacheUtilizationScorer {
    /// A scorer that does this with endpoints whose metrics aren't fresh.
    pub fn new(unknown_metrics: UnknownMetrics) -> Self {
        Self { unknown_metrics }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self::new(parameters.unknown_metrics))
    }
}

impl Scorer for KvCacheUtilizationScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let free = |metrics: &warmroute_plugin::EndpointMetrics| 1.0 - metrics.kv_cache_utilization;
        self.unknown_metrics.score(candidates.metrics(), scores, free);
    }
}

#[cfg(test)]
mod tests {
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use super::*;
    use crate::unknown_metrics::FLOOR;

    fn used(share: f64) -> Row {
        Row::fresh(0, 0, share)
    }

    fn of(rows: impl IntoIterator<Item = Row>) -> Vec<f64> {
        scores(&KvCacheUtilizationScorer::default(), &CandidatesFixture::new(rows))
    }

    #[test]
    fn fresh_rows_score_by_what_is_free() {
        assert_eq!(of([used(0.0), used(0.25), used(0.5), used(1.0)]), [1.0, 0.75, 0.5, 0.0]);
    }

    #[test]
    fn shares_outside_of_their_range_are_clamped() {
        assert_eq!(of([used(1.5), used(-0.5), used(f64::INFINITY)]), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn unknown_rows_score_below_a_full_cache() {
        assert_eq!(of([used(0.0), used(1.0), Row::never_scraped()]), [1.0, FLOOR, 0.0]);
        assert_eq!(of([used(1.0), Row::stale(0, 0, 0.0)]), [FLOOR, 0.0]);
    }

    #[test]
    fn a_share_that_is_no_number_is_unknown() {
        assert_eq!(of([used(1.0), used(f64::NAN)]), [FLOOR, 0.0]);
    }

    #[test]
    fn as_peer_takes_unknown_for_free() {
        let rows = [used(0.25), Row::never_scraped(), Row::stale(0, 0, 0.5)];
        let scorer = KvCacheUtilizationScorer::new(UnknownMetrics::AsPeer);
        assert_eq!(scores(&scorer, &CandidatesFixture::new(rows)), [0.75, 1.0, 0.5]);
    }
}
