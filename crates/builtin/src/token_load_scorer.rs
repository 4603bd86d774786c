//! `token-load-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, PrefixColumn, Scorer};

use crate::producers;

/// Prefers endpoints with few prompt tokens of ours in flight: `1 − min(tokens, threshold) / threshold`.
///
/// Tokens are those in flight and those that this request would add: its prompt, and if a producer of
/// prefix matches is named, without what the endpoint holds of it. A prompt of unknown length adds none.
///
/// The counts are our own and always known, so metrics don't matter here.
#[derive(Clone, Copy, Debug)]
pub struct TokenLoadScorer {
    queue_threshold_tokens: f64,
    column: Option<PrefixColumn>,
}

/// 128 prompts of 32,768 tokens.
const DEFAULT_THRESHOLD_TOKENS: i64 = 4_194_304;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Tokens that are as bad as any more; 0 and less count as the default, as at the peer.
    queue_threshold_tokens: i64,
    /// Only the default is possible.
    in_flight_load_producer_name: String,
    /// Which producer's matches to subtract; none by default. The peer has this at its producer of
    /// in-flight counts.
    prefix_match_info_producer_name: Option<String>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            queue_threshold_tokens: DEFAULT_THRESHOLD_TOKENS,
            in_flight_load_producer_name: producers::default_in_flight(),
            prefix_match_info_producer_name: None,
        }
    }
}

impl TokenLoadScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        producers::check_in_flight(&parameters.in_flight_load_producer_name)?;
        let producer = parameters.prefix_match_info_producer_name;
        let column = producer.map(|name| producers::prefix_column(&name, context)).transpose()?;
        let threshold = parameters.queue_threshold_tokens;
        let threshold = if threshold > 0 { threshold } else { DEFAULT_THRESHOLD_TOKENS };
        Ok(Self { queue_threshold_tokens: threshold as f64, column })
    }
}

impl Scorer for TokenLoadScorer {
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let prompt = request.prompt_tokens.map_or(0, u64::from);
        let matches = self.column.map_or(&[][..], |column| candidates.prefix_match(column));
        for (row, (score, in_flight)) in scores.iter_mut().zip(candidates.in_flight()).enumerate() {
            let cached = matches.get(row).map_or(0, |matched| matched.matched_tokens());
            let tokens = in_flight.prompt_tokens.saturating_add(prompt.saturating_sub(cached));
            *score = 1.0 - (tokens as f64).min(self.queue_threshold_tokens) / self.queue_threshold_tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, request};
    use warmroute_plugin::{BuildContext, InferenceRequest, Needs};

    use crate::built::{self, prompt_of, scores};

    fn of(parameters: Value, request: &InferenceRequest, rows: impl IntoIterator<Item = Row>) -> Vec<f64> {
        scores(&*built::scorer("token-load-scorer", parameters), request, &CandidatesFixture::new(rows))
    }

    fn busy(tokens: u64) -> Row {
        Row::never_scraped().prompt_tokens_in_flight(tokens)
    }

    #[test]
    fn tokens_in_flight_count_up_to_the_threshold() {
        let parameters = json!({"queueThresholdTokens": 1000});
        let rows = [busy(0), busy(250), busy(1000), busy(1001), busy(u64::MAX)];
        assert_eq!(of(parameters.clone(), &request(), rows.clone()), [1.0, 0.75, 0.0, 0.0, 0.0]);
        assert_eq!(of(parameters, &prompt_of(500), rows), [0.5, 0.25, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_threshold_is_4194304_tokens_by_default() {
        for parameters in [json!({}), json!({"queueThresholdTokens": 0}), json!({"queueThresholdTokens": -5})]
        {
            assert_eq!(of(parameters, &request(), [busy(0), busy(1 << 20), busy(1 << 22)]), [1.0, 0.75, 0.0]);
        }
    }

    #[test]
    fn what_an_endpoint_holds_is_subtracted_if_a_producer_is_named() {
        let rows = [
            busy(128).prefix_match(0, 64, 16),
            busy(128).prefix_match(32, 64, 16),
            busy(0).prefix_match(63, 64, 16),
            busy(0).prefix_match(100, 100, 16),
            busy(0).prefix_match(0, 0, 0),
        ];
        let named = json!({"queueThresholdTokens": 2048, "prefixMatchInfoProducerName": "exact"});
        // 128 + 1024, 128 + 512, 16, none rather than fewer than none, 1024.
        assert_eq!(of(named.clone(), &prompt_of(1024), rows.clone()), [0.4375, 0.6875, 0.9921875, 1.0, 0.5]);
        assert_eq!(of(named, &request(), rows.clone()), [0.9375, 0.9375, 1.0, 1.0, 1.0]);
        let unnamed = json!({"queueThresholdTokens": 2048});
        assert_eq!(of(unnamed, &prompt_of(1024), rows), [0.4375, 0.4375, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn a_column_is_asked_for_only_by_name() {
        let mut needs = Needs::default();
        for parameters in [json!({}), json!({"prefixMatchInfoProducerName": "exact"})] {
            let mut context = BuildContext::new("load", &mut needs);
            built::registry().build("token-load-scorer", parameters, &mut context).unwrap();
        }
        assert_eq!(needs.prefix_producers(), ["exact"]);
    }

    #[test]
    fn parameters_are_checked() {
        let other = built::mistake("token-load-scorer", json!({"inFlightLoadProducerName": "x"}));
        assert!(other.starts_with("inFlightLoadProducerName: there is one source"), "{other}");
        let empty = built::mistake("token-load-scorer", json!({"prefixMatchInfoProducerName": ""}));
        assert_eq!(empty, "prefixMatchInfoProducerName: must not be empty");
        assert_eq!(built::mistake("token-load-scorer", json!({"prefixMatchInfoProducerName": null})), "");
    }
}
