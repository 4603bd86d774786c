//! `context-length-aware` and `context-length-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Endpoint, Filter, InferenceRequest, Scorer};

/// Prefers endpoints that a label reserves for prompts of this length. The label is `min-max`, in tokens.
///
/// In range, with `width = max − min`: `0.3 + 0.7 × (0.7 / (1 + width / 10,000) + 0.3 × (max − length) / width)`,
/// and 1 if the width is 0, so that narrow ranges with room to spare win. Out of range:
/// `0.3 / (1 + distance / 1,000)` from the nearest bound, which is always less. Without the label 0.5, and 0
/// if it can't be read.
///
/// A prompt of unknown length says nothing about ranges: every readable one gets 0.5. (The peer guesses a
/// length from the characters.)
#[derive(Clone, Debug)]
pub struct ContextLengthAwareScorer {
    label: String,
}

/// Keeps the endpoints whose range contains the prompt's length, and those without the label; what
/// `context-length-aware` does at the peer with `enableFiltering`.
///
/// A label that can't be read takes the endpoint out. A prompt of unknown length takes no other out.
#[derive(Clone, Debug)]
pub struct ContextLengthFilter {
    label: String,
}

const DEFAULT_LABEL: &str = "llm-d.ai/context-length-range";

/// No score out of range reaches this, and every score in range is above.
const OUT_OF_RANGE: f64 = 0.3;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    label: String,
    /// Only false is possible: a plugin is a filter or a scorer, not both.
    enable_filtering: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { label: DEFAULT_LABEL.to_owned(), enable_filtering: false }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FilterParameters {
    label: String,
}

impl Default for FilterParameters {
    fn default() -> Self {
        Self { label: DEFAULT_LABEL.to_owned() }
    }
}

/// Lengths of prompts in tokens, both bounds included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    min: u64,
    max: u64,
}

impl Range {
    /// `min-max`; spaces around the numbers are fine.
    fn parse(text: &str) -> Option<Self> {
        let (min, max) = text.split_once('-')?;
        let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
        (min <= max).then_some(Self { min, max })
    }

    fn contains(self, tokens: u64) -> bool {
        (self.min..=self.max).contains(&tokens)
    }

    fn score(self, tokens: u64) -> f64 {
        if !self.contains(tokens) {
            let distance = if tokens > self.max { tokens - self.max } else { self.min - tokens };
            return OUT_OF_RANGE / (1.0 + distance as f64 / 1000.0);
        }
        let width = (self.max - self.min) as f64;
        if width == 0.0 {
            return 1.0;
        }
        let narrow = 1.0 / (1.0 + width / 10_000.0);
        let room = (self.max - tokens) as f64 / width;
        OUT_OF_RANGE + (0.7 * narrow + 0.3 * room) * (1.0 - OUT_OF_RANGE)
    }
}

/// The endpoint's range; `None` without the label, an inner `None` if it can't be read.
fn range_of(endpoint: &Endpoint, label: &str) -> Option<Option<Range>> {
    endpoint.labels.get(label).map(|text| Range::parse(text))
}

fn check_label(label: &str) -> Result<(), BuildError> {
    if label.is_empty() { Err(BuildError::invalid("label", "must not be empty")) } else { Ok(()) }
}

impl ContextLengthAwareScorer {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        check_label(&parameters.label)?;
        if parameters.enable_filtering {
            let reason = "a plugin is a filter or a scorer here: leave it out, and put a context-length-filter \
                          with the same label into the profile";
            return Err(BuildError::invalid("enableFiltering", reason));
        }
        Ok(Self { label: parameters.label })
    }
}

impl ContextLengthFilter {
    pub(crate) fn build(parameters: FilterParameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        check_label(&parameters.label)?;
        Ok(Self { label: parameters.label })
    }
}

impl Scorer for ContextLengthAwareScorer {
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let tokens = request.prompt_tokens.map(u64::from);
        for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
            *score = match (range_of(endpoint, &self.label), tokens) {
                (Some(None), _) => 0.0,
                (None, _) | (_, None) => 0.5,
                (Some(Some(range)), Some(tokens)) => range.score(tokens),
            };
        }
    }
}

impl Filter for ContextLengthFilter {
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        let tokens = request.prompt_tokens.map(u64::from);
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            let fits = |range: Range| tokens.is_none_or(|tokens| range.contains(tokens));
            *keep = range_of(endpoint, &self.label).is_none_or(|range| range.is_some_and(fits));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, request};

    use super::*;
    use crate::built::{self, kept, prompt_of, scores};

    fn table(labels: &[Option<&str>]) -> CandidatesFixture {
        let row = |label: &Option<&str>| match label {
            Some(label) => Row::never_scraped().label(DEFAULT_LABEL, *label),
            None => Row::never_scraped(),
        };
        CandidatesFixture::new(labels.iter().map(row))
    }

    #[test]
    fn labels_are_two_numbers_in_order() {
        let range = |min, max| Some(Range { min, max });
        let table = [
            ("0-2048", range(0, 2048)),
            ("7-7", range(7, 7)),
            (" 1 - 2 ", range(1, 2)),
            ("", None),
            ("-", None),
            ("5", None),
            ("5-", None),
            ("-5-10", None),
            ("1-2-3", None),
            ("9-8", None),
            ("a-b", None),
            ("1-99999999999999999999", None),
        ];
        for (text, expected) in table {
            assert_eq!(Range::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn rows_score_by_how_well_their_range_fits() {
        let labels =
            [Some("0-10000"), Some("0-2000"), Some("1000-1000"), Some("2000-9000"), None, Some("all")];
        let got =
            scores(&*built::scorer("context-length-aware", json!({})), &prompt_of(1000), &table(&labels));
        // 0.3 + 0.7 · (0.7 / 2 + 0.3 · 0.9), 0.3 + 0.7 · (0.7 / 1.2 + 0.3 · 0.5), 1, 0.3 / 2.
        let expected = [0.734, 0.813_333_333, 1.0, 0.15, 0.5, 0.0];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{got} instead of {expected}");
        }
        let got =
            scores(&*built::scorer("context-length-aware", json!({})), &prompt_of(5000), &table(&labels));
        assert_eq!(got[1..3], [0.3 / 4.0, 0.3 / 5.0]);
    }

    #[test]
    fn an_unknown_length_is_neutral() {
        let labels = [Some("0-10"), None, Some("all")];
        let got = scores(&*built::scorer("context-length-aware", json!({})), &request(), &table(&labels));
        assert_eq!(got, [0.5, 0.5, 0.0]);
        assert_eq!(
            kept(&*built::filter("context-length-filter", json!({})), &request(), &table(&labels)),
            [0, 1]
        );
    }

    #[test]
    fn the_filter_keeps_ranges_that_contain_the_length() {
        let table =
            table(&[Some("0-999"), Some("0-1000"), Some("1000-2000"), Some("1001-2000"), None, Some("x")]);
        let filter = built::filter("context-length-filter", json!({}));
        assert_eq!(kept(&*filter, &prompt_of(1000), &table), [1, 2, 4]);
        let other = built::filter("context-length-filter", json!({"label": "other"}));
        assert_eq!(kept(&*other, &prompt_of(1000), &table), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn parameters_are_checked() {
        for plugin_type in ["context-length-aware", "context-length-filter"] {
            assert_eq!(built::mistake(plugin_type, json!({"label": ""})), "label: must not be empty");
        }
        let both = built::mistake("context-length-aware", json!({"enableFiltering": true}));
        assert!(both.starts_with("enableFiltering: ") && both.contains("context-length-filter"), "{both}");
        assert_eq!(built::mistake("context-length-aware", json!({"enableFiltering": false})), "");
    }

    proptest! {
        #[test]
        fn in_range_is_always_above_out_of_range(
            a in 0..u64::from(u32::MAX), b in 0..u64::from(u32::MAX), tokens in 0..u32::MAX,
        ) {
            let range = Range { min: a.min(b), max: a.max(b) };
            let score = range.score(tokens.into());
            if range.contains(tokens.into()) {
                prop_assert!(score > 0.3 && score <= 1.0);
            } else {
                prop_assert!(score > 0.0 && score < 0.3);
            }
        }
    }
}
