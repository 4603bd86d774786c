//! `active-request-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::producers;

/// Prefers endpoints with few requests of ours in flight: 1 up to `idleThreshold` requests, above it
/// `(max − requests) / max × maxBusyScore`, where `max` is the highest count among the candidates.
///
/// The counts are our own and always known, so metrics don't matter here.
#[derive(Clone, Copy, Debug)]
pub struct ActiveRequestScorer {
    idle_threshold: i64,
    max_busy_score: f64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Up to here an endpoint counts as idle; negative counts as 0.
    idle_threshold: i64,
    /// The best score of an endpoint that isn't idle; outside of 0 to 1 it counts as 1, as at the peer.
    max_busy_score: f64,
    /// Only the default is possible.
    in_flight_load_producer_name: String,
    /// Deprecated at the peer and ignored there.
    #[serde(skip_serializing)]
    request_timeout: serde::de::IgnoredAny,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            idle_threshold: 0,
            max_busy_score: 1.0,
            in_flight_load_producer_name: producers::default_in_flight(),
            request_timeout: serde::de::IgnoredAny,
        }
    }
}

impl ActiveRequestScorer {
    /// A scorer for which up to `idle_threshold` requests are as good as none, and other endpoints get
    /// at most `max_busy_score`, 0 to 1.
    pub fn new(idle_threshold: u32, max_busy_score: f64) -> Self {
        Self { idle_threshold: idle_threshold.into(), max_busy_score: max_busy_score.clamp(0.0, 1.0) }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        producers::check_in_flight(&parameters.in_flight_load_producer_name)?;
        let in_range = (0.0..=1.0).contains(&parameters.max_busy_score);
        Ok(Self {
            idle_threshold: parameters.idle_threshold.max(0),
            max_busy_score: if in_range { parameters.max_busy_score } else { 1.0 },
        })
    }
}

impl Scorer for ActiveRequestScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let in_flight = candidates.in_flight();
        let max = in_flight.iter().map(|in_flight| in_flight.requests).max().unwrap_or(0);
        for (score, in_flight) in scores.iter_mut().zip(in_flight) {
            let requests = in_flight.requests;
            *score = if i64::from(requests) <= self.idle_threshold {
                1.0
            } else {
                f64::from(max - requests) / f64::from(max) * self.max_busy_score
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::Registry;
    use warmroute_plugin::testing::{CandidatesFixture, Row, build_scorer, scores};

    fn of(parameters: serde_json::Value, counts: &[u32]) -> Vec<f64> {
        let mut registry = Registry::default();
        crate::register(&mut registry).unwrap();
        let scorer = build_scorer(&registry, "active-request-scorer", parameters).unwrap();
        let rows = counts.iter().map(|&count| Row::never_scraped().requests_in_flight(count));
        scores(&*scorer, &CandidatesFixture::new(rows))
    }

    #[test]
    fn busy_rows_score_by_their_distance_from_the_busiest() {
        assert_eq!(of(json!({}), &[0, 1, 4]), [1.0, 0.75, 0.0]);
        assert_eq!(of(json!({"maxBusyScore": 0.5}), &[0, 1, 4]), [1.0, 0.375, 0.0]);
        assert_eq!(of(json!({"idleThreshold": 2}), &[2, 3, 4]), [1.0, 0.25, 0.0]);
    }

    #[test]
    fn equal_rows_are_all_best_when_idle_and_all_worst_when_busy() {
        assert_eq!(of(json!({}), &[0, 0]), [1.0, 1.0]);
        assert_eq!(of(json!({}), &[3, 3]), [0.0, 0.0]);
        assert_eq!(of(json!({}), &[3]), [0.0]);
    }

    #[test]
    fn parameters_out_of_range_count_as_at_the_peer() {
        assert_eq!(of(json!({"idleThreshold": -3}), &[0, 1, 2]), [1.0, 0.5, 0.0]);
        assert_eq!(of(json!({"maxBusyScore": 7, "requestTimeout": "10m"}), &[0, 1, 2]), [1.0, 0.5, 0.0]);
    }
}
