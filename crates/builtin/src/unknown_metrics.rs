//! What a plugin makes of an endpoint whose metrics aren't fresh.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{EndpointMetrics, MetricsState};

/// What a scorer that reads metrics makes of an endpoint whose metrics aren't fresh: never scraped, or
/// last scraped too long ago. The parameter is called `unknownMetrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownMetrics {
    /// It scores below every endpoint with fresh metrics, however busy that one is: an endpoint of which
    /// we know nothing may be idle, full or gone.
    ///
    /// As long as all rows are fresh, the scores are exactly the peers'. If some aren't, those get 0, and
    /// the others' scores are squeezed from 0..=1 into 1/16..=1, which keeps their order. If none
    /// is fresh, all get 0. (`load-aware-scorer`, whose best score is 0.5, squeezes into 1/32..=0.5.) The
    /// filter that reads metrics keeps such an endpoint only if it keeps no fresh one.
    #[default]
    BelowFresh,
    /// The peers' way: an endpoint never scraped counts as idle (all zeros), and old metrics count as if
    /// they were fresh.
    AsPeer,
}

/// The lowest score of a fresh row while another row isn't fresh. A power of two, so that a score of 1
/// stays exactly 1.
pub(crate) const FLOOR: f64 = 1.0 / 16.0;

impl UnknownMetrics {
    /// The metrics to score a row by; `None` if it gets the score of an unknown one.
    pub(crate) fn metrics(self, state: &MetricsState) -> Option<EndpointMetrics> {
        match self {
            // A share that isn't a number is a page that we can't act on.
            Self::BelowFresh => state.fresh().copied().filter(|m| !m.kv_cache_utilization.is_nan()),
            Self::AsPeer => Some(state.last().copied().unwrap_or_default()),
        }
    }

    /// Scores every row by `formula`, which gets the row's metrics and gives the peers' score.
    pub(crate) fn score(
        self,
        states: &[MetricsState],
        scores: &mut [f64],
        formula: impl Fn(&EndpointMetrics) -> f64,
    ) {
        let mut all_known = true;
        for (score, state) in scores.iter_mut().zip(states) {
            match self.metrics(state) {
                Some(metrics) => *score = formula(&metrics).clamp(0.0, 1.0),
                None => all_known = false,
            }
        }
        if all_known {
            return;
        }
        for (score, state) in scores.iter_mut().zip(states) {
            *score = if self.metrics(state).is_some() { FLOOR + (1.0 - FLOOR) * *score } else { 0.0 };
        }
    }

    /// Scores every row by the peers' min–max: `(max − count) / (max − min)`, 1 if all counts are equal.
    ///
    /// Minimum and maximum are taken over the rows whose metrics are known.
    pub(crate) fn score_lowest(
        self,
        states: &[MetricsState],
        scores: &mut [f64],
        count: impl Fn(&EndpointMetrics) -> u32,
    ) {
        let counts = states.iter().filter_map(|state| self.metrics(state)).map(|metrics| count(&metrics));
        let (min, max) = counts.fold((u32::MAX, 0), |(min, max), count| (min.min(count), max.max(count)));
        self.score(states, scores, |metrics| {
            if min >= max { 1.0 } else { f64::from(max - count(metrics)) / f64::from(max - min) }
        });
    }
}
