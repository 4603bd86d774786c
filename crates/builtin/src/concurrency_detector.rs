//! `concurrency-detector`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InFlight, InferenceRequest};

use crate::utilization_detector::check_headroom;
use crate::{Saturation, producers};

/// Tells by what this picker has in flight how full the endpoints are; our own count, so always known.
///
/// By requests or by prompt tokens the pool's share is all that is in flight / all that may be. In the mode `hybrid`
/// an endpoint's share is the larger one of both, and the pool's is the mean of the endpoints'.
///
/// In a profile it is a filter that keeps the endpoints with less in flight than the limit × (1 + `headroom`),
/// rounded down. It may take out all, and then the request is refused.
///
/// Formula: `concurrency-detector` in `pkg/epp/framework/plugins/flowcontrol/saturationdetector/` of
/// github.com/llm-d/llm-d-router.
#[derive(Clone, Debug)]
pub struct ConcurrencyDetector {
    mode: Mode,
    max_requests: f64,
    max_tokens: f64,
    headroom: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Requests,
    Tokens,
    /// Whichever of both is scarcer.
    Hybrid,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    #[serde(default)]
    concurrency_mode: Mode,
    /// Requests per endpoint.
    #[serde(default = "default_requests")]
    max_concurrency: i64,
    /// Prompt tokens per endpoint.
    #[serde(default = "default_tokens")]
    max_token_concurrency: i64,
    #[serde(default)]
    headroom: f64,
    /// Only the default is possible.
    #[serde(default = "producers::default_in_flight")]
    in_flight_load_producer_name: String,
}

fn default_requests() -> i64 {
    100
}

fn default_tokens() -> i64 {
    1_000_000
}

impl ConcurrencyDetector {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters {
            concurrency_mode: mode,
            max_concurrency,
            max_token_concurrency,
            headroom,
            in_flight_load_producer_name,
        } = parameters;
        producers::check_in_flight(&in_flight_load_producer_name)?;
        for (name, limit) in
            [("maxConcurrency", max_concurrency), ("maxTokenConcurrency", max_token_concurrency)]
        {
            if limit <= 0 {
                return Err(BuildError::invalid(name, "must be 1 or more"));
            }
        }
        check_headroom(headroom)?;
        let (max_requests, max_tokens) = (max_concurrency as f64, max_token_concurrency as f64);
        Ok(Self { mode, max_requests, max_tokens, headroom })
    }

    /// How full these endpoints are together.
    pub fn saturation(&self, endpoints: impl IntoIterator<Item = InFlight>) -> Saturation {
        // With one limit for all endpoints, the share of the sums is the mean of the shares.
        let (mut sum, mut count) = (0.0, 0u32);
        for in_flight in endpoints {
            let (requests, tokens) = (f64::from(in_flight.requests), in_flight.prompt_tokens as f64);
            sum += match self.mode {
                Mode::Requests => requests,
                Mode::Tokens => tokens,
                Mode::Hybrid => (requests / self.max_requests).max(tokens / self.max_tokens),
            };
            count += 1;
        }
        if count == 0 {
            return Saturation::NO_ENDPOINT;
        }
        let limit = match self.mode {
            Mode::Requests => self.max_requests,
            Mode::Tokens => self.max_tokens,
            Mode::Hybrid => 1.0,
        };
        Saturation { value: Some(sum / (limit * f64::from(count))), unknown_endpoints: 0 }
    }

    fn has_room(&self, in_flight: InFlight) -> bool {
        let limit = |max: f64| (max * (1.0 + self.headroom)).floor();
        let requests = f64::from(in_flight.requests) < limit(self.max_requests);
        let tokens = (in_flight.prompt_tokens as f64) < limit(self.max_tokens);
        match self.mode {
            Mode::Requests => requests,
            Mode::Tokens => tokens,
            Mode::Hybrid => requests && tokens,
        }
    }
}

impl Filter for ConcurrencyDetector {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for (keep, in_flight) in keep.iter_mut().zip(candidates.in_flight()) {
            *keep = self.has_room(*in_flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use crate::{SaturationDetector, built};

    const TYPE: &str = "concurrency-detector";

    fn row(requests: u32, tokens: u64) -> Row {
        Row::never_scraped().requests_in_flight(requests).prompt_tokens_in_flight(tokens)
    }

    fn of(parameters: Value, rows: &[Row]) -> f64 {
        let table = CandidatesFixture::new(rows.iter().cloned());
        let candidates = table.candidates();
        let rows = candidates.metrics().iter().copied().zip(candidates.in_flight().iter().copied());
        let saturation = SaturationDetector::try_new(TYPE, parameters).unwrap().saturation(rows);
        assert_eq!(saturation.unknown_endpoints, 0);
        saturation.value.unwrap()
    }

    fn filtered(parameters: Value, rows: &[Row]) -> Vec<usize> {
        kept(&*built::filter(TYPE, parameters), &CandidatesFixture::new(rows.iter().cloned()))
    }

    fn limits(mode: &str) -> Value {
        json!({"concurrencyMode": mode, "maxConcurrency": 10, "maxTokenConcurrency": 1000})
    }

    #[test]
    fn what_is_in_flight_is_compared_with_what_may_be() {
        let rows = [row(10, 250), row(0, 1250)];
        assert_eq!(of(limits("requests"), &rows), 0.5);
        assert_eq!(of(limits("tokens"), &rows), 0.75);
        // (max(1, 0.25) + max(0, 1.25)) / 2
        assert_eq!(of(limits("hybrid"), &rows), 1.125);
        assert_eq!(of(json!({}), &[row(100, 0)]), 1.0);
        assert_eq!(of(json!({"concurrencyMode": "tokens"}), &[row(0, 500_000)]), 0.5);
        for mode in ["requests", "tokens", "hybrid"] {
            assert_eq!(of(limits(mode), &[]), 1.0, "no endpoint is full");
        }
        // A row of the pool may be over its own limit while the pool isn't full.
        assert_eq!(of(limits("requests"), &[row(15, 0), row(1, 0)]), 0.8);
    }

    #[test]
    fn as_a_filter_it_may_take_all() {
        let rows = [row(9, 999), row(10, 0), row(0, 1000), row(11, 1100)];
        assert_eq!(filtered(limits("requests"), &rows), [0, 2]);
        assert_eq!(filtered(limits("tokens"), &rows), [0, 1]);
        assert_eq!(filtered(limits("hybrid"), &rows), [0]);
        assert_eq!(filtered(limits("requests"), &rows[3..]), [0; 0]);
        let mut with_room = limits("hybrid");
        with_room["headroom"] = json!(0.15);
        // 10 × 1.15 is rounded down to 11.
        assert_eq!(filtered(with_room, &rows), [0, 1, 2]);
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({"concurrencyMode": "both"}), "concurrencyMode: unknown variant"),
            (json!({"maxConcurrency": 0}), "maxConcurrency: must be 1"),
            (json!({"maxTokenConcurrency": -1}), "maxTokenConcurrency: must be 1"),
            (json!({"headroom": -1}), "headroom: must be 0"),
            (json!({"inFlightLoadProducerName": "other"}), "inFlightLoadProducerName: there is one"),
            (json!({"maxRequests": 1}), "maxRequests: unknown field"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake(TYPE, parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }
}
