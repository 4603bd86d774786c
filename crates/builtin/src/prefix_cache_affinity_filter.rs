//! `prefix-cache-affinity-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest, PrefixColumn};

use crate::producers;
use crate::seeds::Seeds;

/// Keeps only the endpoints that hold most of the prompt, the sticky ones, unless waiting for them would
/// take too long.
///
/// An endpoint is sticky if the matched share of the prompt's full blocks is at least the threshold. If none
/// is, all stay. The time to an endpoint's first token is estimated as the prompt tokens in flight there by
/// the highest rate of prefill; if the best sticky endpoint is later than the best other one by more than
/// the allowed penalty, all stay. And with some probability all stay just to explore.
#[derive(Debug)]
pub struct PrefixCacheAffinityFilter {
    column: PrefixColumn,
    affinity_threshold: f64,
    exploration_probability: f64,
    max_ttft_penalty_ms: f64,
    peak_prefill_tokens_per_second: f64,
    seeds: Seeds,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// At most 1; 0 and less switch the filter off.
    affinity_threshold: f64,
    /// 0 to 1.
    exploration_probability: f64,
    /// 0 means that there is no limit.
    #[serde(rename = "maxTTFTPenaltyMs")]
    max_ttft_penalty_ms: f64,
    ttft_source: TtftSource,
    /// Tokens per second; must be positive unless there is no limit of the penalty.
    peak_prefill_throughput: f64,
    prefix_match_info_producer_name: String,
    /// Only the default is possible.
    in_flight_load_producer_name: String,
    /// Not read without a latency predictor, at the peer either.
    #[serde(skip_serializing)]
    latency_prediction_info_producer_name: serde::de::IgnoredAny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum TtftSource {
    PrefillThroughput,
    LatencyPredictor,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            affinity_threshold: 0.8,
            exploration_probability: 0.0,
            max_ttft_penalty_ms: 18_000.0,
            ttft_source: TtftSource::PrefillThroughput,
            peak_prefill_throughput: 15_928.0,
            prefix_match_info_producer_name: producers::default_prefix(),
            in_flight_load_producer_name: producers::default_in_flight(),
            latency_prediction_info_producer_name: serde::de::IgnoredAny,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), BuildError> {
        if self.ttft_source == TtftSource::LatencyPredictor {
            let reason = "there is no latency predictor: write prefillThroughput, and give the engines' \
                          peakPrefillThroughput in tokens per second";
            return Err(BuildError::invalid("ttftSource", reason));
        }
        if self.affinity_threshold.is_nan() || self.affinity_threshold > 1.0 {
            return Err(BuildError::invalid("affinityThreshold", "must be at most 1"));
        }
        if !(0.0..=1.0).contains(&self.exploration_probability) {
            return Err(BuildError::invalid("explorationProbability", "must be from 0 to 1"));
        }
        if self.max_ttft_penalty_ms.is_nan() || self.max_ttft_penalty_ms < 0.0 {
            return Err(BuildError::invalid("maxTTFTPenaltyMs", "must be 0 or more"));
        }
        let peak = self.peak_prefill_throughput;
        let is_read = self.max_ttft_penalty_ms > 0.0;
        if peak.is_nan() || peak < 0.0 || (is_read && peak == 0.0) {
            return Err(BuildError::invalid("peakPrefillThroughput", "must be positive"));
        }
        producers::check_in_flight(&self.in_flight_load_producer_name)
    }
}

impl PrefixCacheAffinityFilter {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        parameters.check()?;
        Ok(Self {
            column: producers::prefix_column(&parameters.prefix_match_info_producer_name, context)?,
            affinity_threshold: parameters.affinity_threshold,
            exploration_probability: parameters.exploration_probability,
            max_ttft_penalty_ms: parameters.max_ttft_penalty_ms,
            peak_prefill_tokens_per_second: parameters.peak_prefill_throughput,
            seeds: Seeds::random(),
        })
    }

    /// The same filter with chance that repeats itself, for tests and replays.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seeds = Seeds::new(seed);
        self
    }

    fn explores(&self) -> bool {
        self.exploration_probability > 0.0 && self.seeds.next().f64() < self.exploration_probability
    }

    /// Whether the sticky endpoints are that much busier than the others. Not if there are no others.
    fn is_too_late(&self, candidates: &Candidates<'_>, sticky: &[bool]) -> bool {
        if self.max_ttft_penalty_ms == 0.0 {
            return false;
        }
        let best_ttft_ms = |of_sticky: bool| {
            let rows = candidates.in_flight().iter().zip(sticky).filter(|(_, sticky)| **sticky == of_sticky);
            let tokens = rows.map(|(in_flight, _)| in_flight.prompt_tokens).min()?;
            Some(tokens as f64 / self.peak_prefill_tokens_per_second * 1000.0)
        };
        match (best_ttft_ms(true), best_ttft_ms(false)) {
            (Some(sticky), Some(other)) => sticky - other > self.max_ttft_penalty_ms,
            _ => false,
        }
    }
}

impl Filter for PrefixCacheAffinityFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        if candidates.len() <= 1 || self.affinity_threshold <= 0.0 || self.explores() {
            return;
        }
        let matches = candidates.prefix_match(self.column);
        for (row, keep) in keep.iter_mut().enumerate() {
            *keep = matches.get(row).is_some_and(|matched| matched.ratio() >= self.affinity_threshold);
        }
        if !keep.contains(&true) || self.is_too_late(candidates, keep) {
            keep.fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};
    use warmroute_plugin::{BuildContext, Needs};

    use super::*;
    use crate::built;

    /// Rows of (matched blocks of 10, prompt tokens in flight).
    fn table(rows: &[(u32, u64)]) -> CandidatesFixture {
        CandidatesFixture::new(rows.iter().map(|&(matched, tokens)| {
            Row::never_scraped().prefix_match(matched, 10, 16).prompt_tokens_in_flight(tokens)
        }))
    }

    fn of(parameters: Value, rows: &[(u32, u64)]) -> Vec<usize> {
        kept(&*built::filter("prefix-cache-affinity-filter", parameters), &table(rows))
    }

    #[test]
    fn only_endpoints_that_hold_most_of_the_prompt_stay() {
        assert_eq!(of(json!({}), &[(8, 0), (7, 0), (10, 0), (0, 0)]), [0, 2]);
        assert_eq!(of(json!({"affinityThreshold": 1}), &[(8, 0), (7, 0), (10, 0), (0, 0)]), [2]);
        assert_eq!(of(json!({"affinityThreshold": 0.7}), &[(8, 0), (7, 0), (6, 0)]), [0, 1]);
        assert_eq!(of(json!({}), &[(8, 0), (9, 0)]), [0, 1]);
    }

    #[test]
    fn all_stay_if_none_is_sticky_or_the_filter_is_off() {
        assert_eq!(of(json!({}), &[(7, 0), (0, 0)]), [0, 1]);
        assert_eq!(of(json!({}), &[(0, 0)]), [0]);
        assert_eq!(of(json!({}), &[]), [0; 0]);
        for threshold in [0.0, -1.0] {
            assert_eq!(of(json!({"affinityThreshold": threshold}), &[(10, 0), (0, 0)]), [0, 1]);
        }
        let without_column = CandidatesFixture::new([Row::never_scraped(), Row::never_scraped()]);
        let filter = built::filter("prefix-cache-affinity-filter", json!({}));
        assert_eq!(kept(&*filter, &without_column), [0, 1]);
        let unknown_prompt = CandidatesFixture::new([Row::default().prefix_match(0, 0, 16), Row::default()]);
        assert_eq!(kept(&*filter, &unknown_prompt), [0, 1]);
    }

    #[test]
    fn stickiness_ends_where_the_wait_is_too_long() {
        // 1,000 tokens a second, so a token is a millisecond; the best of each group counts.
        let parameters = json!({"maxTTFTPenaltyMs": 500, "peakPrefillThroughput": 1000});
        let gate = |rows: &[(u32, u64)]| of(parameters.clone(), rows);
        assert_eq!(gate(&[(9, 500), (0, 0)]), [0]);
        assert_eq!(gate(&[(9, 501), (0, 0)]), [0, 1]);
        assert_eq!(gate(&[(9, 900), (0, 300), (9, 800), (0, 900)]), [0, 2]);
        assert_eq!(gate(&[(9, 900), (0, 299), (9, 800), (0, 900)]), [0, 1, 2, 3]);
        assert_eq!(gate(&[(9, 0), (0, 9000)]), [0]);
        assert_eq!(gate(&[(9, 9000), (9, 9000)]), [0, 1]);
        let always = json!({"maxTTFTPenaltyMs": 0, "peakPrefillThroughput": 0});
        assert_eq!(of(always, &[(9, u64::MAX), (0, 0)]), [0]);
    }

    #[test]
    fn by_default_the_penalty_is_18_s_at_15928_tokens_a_second() {
        let limit = 18 * 15_928;
        assert_eq!(of(json!({}), &[(9, limit), (0, 0)]), [0]);
        assert_eq!(of(json!({}), &[(9, limit + 1), (0, 0)]), [0, 1]);
    }

    #[test]
    fn all_stay_as_often_as_exploration_is_wanted() {
        let build = |probability: f64| {
            let parameters = Parameters { exploration_probability: probability, ..Parameters::default() };
            let mut needs = Needs::default();
            let mut context = BuildContext::new("affinity", &mut needs);
            PrefixCacheAffinityFilter::build(parameters, &mut context).unwrap().with_seed(3)
        };
        let table = table(&[(10, 0), (0, 0)]);
        let explored = |probability| {
            let filter = build(probability);
            (0..4000).filter(|_| kept(&filter, &table).len() == 2).count()
        };
        assert_eq!([explored(0.0), explored(1.0)], [0, 4000]);
        // 1,000, with a standard deviation of 27.
        assert!(explored(0.25).abs_diff(1000) < 140, "{}", explored(0.25));
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({"affinityThreshold": 1.01}), "affinityThreshold: must be at most 1"),
            (json!({"explorationProbability": -0.1}), "explorationProbability: must be from 0 to 1"),
            (json!({"explorationProbability": 1.1}), "explorationProbability: must be from 0 to 1"),
            (json!({"maxTTFTPenaltyMs": -1}), "maxTTFTPenaltyMs: must be 0 or more"),
            (json!({"peakPrefillThroughput": 0}), "peakPrefillThroughput: must be positive"),
            (
                json!({"ttftSource": "latencyPredictor"}),
                "ttftSource: there is no latency predictor: write prefill",
            ),
            (json!({"ttftSource": "x"}), "ttftSource: unknown variant `x`"),
            (json!({"inFlightLoadProducerName": "x"}), "inFlightLoadProducerName: there is one source"),
            (json!({"prefixMatchInfoProducerName": ""}), "prefixMatchInfoProducerName: must not be empty"),
            (json!({"maxTtftPenaltyMs": 1}), "maxTtftPenaltyMs: unknown field"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("prefix-cache-affinity-filter", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
        let unread = json!({"latencyPredictionInfoProducerName": "p", "ttftSource": "prefillThroughput"});
        assert_eq!(built::mistake("prefix-cache-affinity-filter", unread), "");
    }
}
