//! `endpoint-attribute-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{AttributeColumn, BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::producers::attribute_column;

/// Scores endpoints by the place of an attribute between two values: fixed ones, or the smallest and the largest of the
/// candidates. An endpoint without the attribute gets 0.
#[derive(Clone, Debug)]
pub struct EndpointAttributeScorer {
    attribute: AttributeColumn,
    lower_is_better: bool,
    /// Smallest and largest; `None` takes those of the candidates.
    range: Option<(f64, f64)>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    attribute_key: String,
    algorithm: Algorithm,
    /// Who makes the attribute: nothing is `core-metrics-extractor`, an empty text whoever makes it.
    #[serde(default)]
    producer: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Algorithm {
    /// Must be given.
    #[serde(default, rename = "type")]
    algorithm_type: Option<AlgorithmType>,
    #[serde(default)]
    normalization: Option<Normalization>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum AlgorithmType {
    LinearLowerIsBetter,
    LinearHigherIsBetter,
}

/// One of the two; neither is the adaptive range.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Normalization {
    #[serde(default)]
    fixed_range: Option<FixedRange>,
    #[serde(default)]
    adaptive_range: Option<AdaptiveRange>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FixedRange {
    min: f64,
    max: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AdaptiveRange {}

impl EndpointAttributeScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { attribute_key, algorithm, producer } = parameters;
        let Some(algorithm_type) = algorithm.algorithm_type else {
            let reason = "must be linear_lower_is_better or linear_higher_is_better";
            return Err(BuildError::invalid("algorithm.type", reason));
        };
        let range = match algorithm.normalization {
            Some(Normalization { fixed_range: Some(_), adaptive_range: Some(_) }) => {
                let reason = "has fixedRange and adaptiveRange: give one of them";
                return Err(BuildError::invalid("algorithm.normalization", reason));
            }
            Some(Normalization { fixed_range: Some(FixedRange { min, max }), .. }) => {
                if min >= max {
                    let reason = "min must be below max";
                    return Err(BuildError::invalid("algorithm.normalization.fixedRange", reason));
                }
                Some((min, max))
            }
            _ => None,
        };
        Ok(Self {
            attribute: attribute_column("attributeKey", &attribute_key, producer.as_deref(), context)?,
            lower_is_better: matches!(algorithm_type, AlgorithmType::LinearLowerIsBetter),
            range,
        })
    }
}

impl Scorer for EndpointAttributeScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let column = candidates.attribute(self.attribute);
        let known = |value: &Option<f64>| value.filter(|value| value.is_finite());
        let (min, max) = self.range.unwrap_or_else(|| {
            let ends = (f64::INFINITY, f64::NEG_INFINITY);
            column.iter().filter_map(known).fold(ends, |(min, max), value| (min.min(value), max.max(value)))
        });
        for (score, value) in scores.iter_mut().zip(column) {
            let Some(value) = known(value) else { continue };
            // Equal values are all the best; a fixed range is never empty.
            *score = if min >= max {
                1.0
            } else {
                let share = ((value - min) / (max - min)).clamp(0.0, 1.0);
                if self.lower_is_better { 1.0 - share } else { share }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use crate::built;

    fn of(algorithm: Value, values: &[Option<f64>]) -> Vec<f64> {
        let rows = values.iter().map(|value| Row::fresh(0, 0, 0.0).attribute(*value));
        let parameters = json!({"attributeKey": "load", "algorithm": algorithm});
        let scorer = built::scorer("endpoint-attribute-scorer", parameters);
        scores(&*scorer, &CandidatesFixture::new(rows))
    }

    #[test]
    fn the_candidates_span_the_range_unless_it_is_fixed() {
        let values = [Some(10.0), Some(30.0), None, Some(20.0)];
        let higher = || json!({"type": "linear_higher_is_better"});
        assert_eq!(of(higher(), &values), [0.0, 1.0, 0.0, 0.5]);
        let lower = json!({"type": "linear_lower_is_better", "normalization": {"adaptiveRange": {}}});
        assert_eq!(of(lower, &values), [1.0, 0.0, 0.0, 0.5]);
        let fixed =
            |kind: &str| json!({"type": kind, "normalization": {"fixedRange": {"min": 15, "max": 25}}});
        assert_eq!(of(fixed("linear_higher_is_better"), &values), [0.0, 1.0, 0.0, 0.5]);
        assert_eq!(of(fixed("linear_lower_is_better"), &values), [1.0, 0.0, 0.0, 0.5]);
        assert_eq!(of(fixed("linear_lower_is_better"), &[Some(20.0), Some(22.5)]), [0.5, 0.25]);
    }

    #[test]
    fn equal_values_are_all_the_best_and_missing_ones_the_worst() {
        for kind in ["linear_higher_is_better", "linear_lower_is_better"] {
            assert_eq!(of(json!({"type": kind}), &[Some(3.0), None, Some(3.0)]), [1.0, 0.0, 1.0]);
            assert_eq!(of(json!({"type": kind}), &[None, Some(f64::NAN)]), [0.0, 0.0]);
            assert_eq!(of(json!({"type": kind}), &[Some(-7.0)]), [1.0]);
        }
    }

    #[test]
    fn parameters_are_checked() {
        let with = |algorithm: Value| json!({"attributeKey": "a", "algorithm": algorithm});
        let range = |range: Value| with(json!({"type": "linear_lower_is_better", "normalization": range}));
        let table = [
            (json!({"attributeKey": "a"}), "missing field `algorithm`"),
            (with(json!({})), "algorithm.type: must be linear_lower_is_better or"),
            (with(json!({"type": "linear"})), "algorithm.type: unknown variant `linear`"),
            (
                range(json!({"fixedRange": {"min": 1, "max": 1}})),
                "algorithm.normalization.fixedRange: min must be below max",
            ),
            (
                range(json!({"fixedRange": {"min": 0, "max": 1}, "adaptiveRange": {}})),
                "algorithm.normalization: has fixedRange and adaptiveRange",
            ),
            (
                json!({"attributeKey": "a/b", "algorithm": {"type": "linear_lower_is_better"}}),
                "attributeKey: has a /",
            ),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("endpoint-attribute-scorer", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
        let named =
            json!({"attributeKey": "a/b", "producer": "e", "algorithm": {"type": "linear_lower_is_better"}});
        assert_eq!(built::mistake("endpoint-attribute-scorer", named), "");
    }
}
