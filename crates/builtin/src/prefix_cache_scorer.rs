//! `prefix-cache-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, InferenceRequest, PrefixColumn, PrefixMatch, Scorer,
};

use crate::producers;

/// Prefers endpoints that hold much of the prompt: the matched share of its full blocks, and with a
/// length weight `w` partly by how long the match is:
/// `w × min(1, matched tokens / scale)² + (1 − w) × share`.
///
/// 0 if the prompt's tokens aren't known or make no full block.
#[derive(Clone, Copy, Debug)]
pub struct PrefixCacheScorer {
    column: PrefixColumn,
    match_length_weight: f64,
    match_length_scale_tokens: f64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Which producer's matches to read. The default is the peer's; the host puts the name of the
    /// configured producer where a file gives none.
    prefix_match_info_producer_name: String,
    /// 0 to 1.
    match_length_weight: f64,
    /// Tokens of a match that is long enough; must be positive if the weight is.
    match_length_scale_tokens: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            prefix_match_info_producer_name: producers::default_prefix(),
            match_length_weight: 0.0,
            match_length_scale_tokens: 8192.0,
        }
    }
}

impl PrefixCacheScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { prefix_match_info_producer_name, match_length_weight, match_length_scale_tokens } =
            parameters;
        if !(0.0..=1.0).contains(&match_length_weight) {
            return Err(BuildError::invalid("matchLengthWeight", "must be from 0 to 1"));
        }
        let positive = match_length_scale_tokens > 0.0 && match_length_scale_tokens.is_finite();
        if match_length_weight > 0.0 && !positive {
            return Err(BuildError::invalid("matchLengthScaleTokens", "must be positive"));
        }
        let column = producers::prefix_column(&prefix_match_info_producer_name, context)?;
        Ok(Self { column, match_length_weight, match_length_scale_tokens })
    }

    fn of(&self, matched: &PrefixMatch) -> f64 {
        let ratio = matched.ratio();
        if self.match_length_weight == 0.0 || matched.total_blocks == 0 {
            return ratio;
        }
        let length = (matched.matched_tokens() as f64 / self.match_length_scale_tokens).min(1.0);
        self.match_length_weight * length * length + (1.0 - self.match_length_weight) * ratio
    }
}

impl Scorer for PrefixCacheScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        for (score, matched) in scores.iter_mut().zip(candidates.prefix_match(self.column)) {
            *score = self.of(matched);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, build_scorer, scores};
    use warmroute_plugin::{Needs, Registry};

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        crate::register(&mut registry).unwrap();
        registry
    }

    fn of(parameters: Value, matches: &[(u32, u32, u32)]) -> Vec<f64> {
        let scorer = build_scorer(&registry(), "prefix-cache-scorer", parameters).unwrap();
        let rows = matches
            .iter()
            .map(|&(matched, total, block)| Row::never_scraped().prefix_match(matched, total, block));
        scores(&*scorer, &CandidatesFixture::new(rows))
    }

    #[test]
    fn the_share_of_the_blocks_counts() {
        let matches = [(0, 8, 16), (2, 8, 16), (8, 8, 16), (0, 0, 16), (0, 0, 0)];
        assert_eq!(of(json!({}), &matches), [0.0, 0.25, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_length_of_the_match_counts_by_its_weight() {
        let parameters = json!({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 128});
        // Tokens 64, 128 and 256 of scale 128: 0.5² = 0.25, 1 and (cut off) 1.
        let matches = [(4, 8, 16), (8, 16, 16), (16, 16, 16), (0, 0, 16)];
        assert_eq!(of(parameters, &matches), [0.375, 0.75, 1.0, 0.0]);
        let only_length = json!({"matchLengthWeight": 1, "matchLengthScaleTokens": 128});
        assert_eq!(of(only_length, &[(4, 4, 16)]), [0.25]);
    }

    #[test]
    fn the_scale_is_8192_tokens_by_default() {
        assert_eq!(of(json!({"matchLengthWeight": 1.0}), &[(256, 512, 16)]), [0.25]);
    }

    #[test]
    fn parameters_are_checked() {
        let build = |parameters| {
            build_scorer(&registry(), "prefix-cache-scorer", parameters)
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        let weight = build(json!({"matchLengthWeight": 1.5}));
        assert_eq!(weight, Err("matchLengthWeight: must be from 0 to 1".into()));
        let scale = build(json!({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 0}));
        assert_eq!(scale, Err("matchLengthScaleTokens: must be positive".into()));
        assert_eq!(build(json!({"matchLengthScaleTokens": 0})), Ok(()));
        let unknown = build(json!({"matchLengthWieght": 0.5})).unwrap_err();
        assert!(unknown.starts_with("matchLengthWieght: unknown field"), "{unknown}");
    }

    #[test]
    fn the_producer_is_asked_for_by_name() {
        let mut needs = Needs::default();
        for parameters in [json!({}), json!({"prefixMatchInfoProducerName": "exact"})] {
            let mut context = BuildContext::new("prefix", &mut needs);
            registry().build("prefix-cache-scorer", parameters, &mut context).unwrap();
        }
        assert_eq!(needs.prefix_producers(), ["approx-prefix-cache-producer", "exact"]);
    }
}
