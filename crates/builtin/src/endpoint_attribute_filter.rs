//! `endpoint-attribute-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{AttributeColumn, BuildContext, BuildError, Candidates, Filter, InferenceRequest};

use crate::producers::attribute_column;

/// Keeps the endpoints whose attribute compares with a fixed value as wanted.
///
/// What becomes of an endpoint without the attribute is a parameter. If none would stay all do, should the parameters
/// say so.
#[derive(Clone, Debug)]
pub struct EndpointAttributeFilter {
    attribute: AttributeColumn,
    on_missing: OnMissing,
    fallback_on_empty: bool,
    threshold: Threshold,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    attribute: String,
    algorithm: Algorithm,
    /// Who makes the attribute: nothing is `core-metrics-extractor`, an empty text whoever makes it.
    #[serde(default)]
    producer: Option<String>,
    #[serde(default)]
    on_missing: OnMissing,
    /// Whether every endpoint stays where none would.
    #[serde(default)]
    fallback_on_empty: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Algorithm {
    #[serde(default, rename = "type")]
    algorithm_type: AlgorithmType,
    /// Must be given.
    #[serde(default)]
    threshold: Option<Threshold>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum AlgorithmType {
    #[default]
    Threshold,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Threshold {
    operator: Operator,
    value: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Operator {
    LessThan,
    LessThanOrEqual,
    GreaterThan,
    GreaterThanOrEqual,
    Equal,
    NotEqual,
}

/// What becomes of an endpoint without the attribute.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
enum OnMissing {
    /// It stays.
    #[default]
    Pass,
    /// It goes.
    Fail,
}

impl Threshold {
    #[allow(clippy::float_cmp, reason = "the operator asks for equality")]
    fn holds_for(self, value: f64) -> bool {
        match self.operator {
            Operator::LessThan => value < self.value,
            Operator::LessThanOrEqual => value <= self.value,
            Operator::GreaterThan => value > self.value,
            Operator::GreaterThanOrEqual => value >= self.value,
            Operator::Equal => value == self.value,
            Operator::NotEqual => value != self.value,
        }
    }
}

impl EndpointAttributeFilter {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { attribute, algorithm, producer, on_missing, fallback_on_empty } = parameters;
        let Some(threshold) = algorithm.threshold else {
            let reason = "must be given, as {operator: LessThan, value: 1}";
            return Err(BuildError::invalid("algorithm.threshold", reason));
        };
        Ok(Self {
            attribute: attribute_column("attribute", &attribute, producer.as_deref(), context)?,
            on_missing,
            fallback_on_empty,
            threshold,
        })
    }
}

impl Filter for EndpointAttributeFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        let column = candidates.attribute(self.attribute);
        for (row, keep) in keep.iter_mut().enumerate() {
            let value = column.get(row).copied().flatten().filter(|value| value.is_finite());
            *keep = match value {
                Some(value) => self.threshold.holds_for(value),
                None => matches!(self.on_missing, OnMissing::Pass),
            };
        }
        if self.fallback_on_empty && !keep.contains(&true) {
            keep.fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use crate::built;

    fn below(value: f64) -> Value {
        json!({"attribute": "load", "algorithm": {"threshold": {"operator": "LessThan", "value": value}}})
    }

    fn of(parameters: Value, values: &[Option<f64>]) -> Vec<usize> {
        let rows = values.iter().map(|value| Row::fresh(0, 0, 0.0).attribute(*value));
        kept(&*built::filter("endpoint-attribute-filter", parameters), &CandidatesFixture::new(rows))
    }

    #[test]
    fn every_operator_compares_as_it_says() {
        let table: [(&str, &[usize]); 6] = [
            ("LessThan", &[0]),
            ("LessThanOrEqual", &[0, 1]),
            ("GreaterThan", &[2]),
            ("GreaterThanOrEqual", &[1, 2]),
            ("Equal", &[1]),
            ("NotEqual", &[0, 2]),
        ];
        for (operator, expected) in table {
            let mut parameters = below(2.0);
            parameters["algorithm"] =
                json!({"type": "threshold", "threshold": {"operator": operator, "value": 2}});
            assert_eq!(of(parameters, &[Some(1.0), Some(2.0), Some(3.0)]), expected, "{operator}");
        }
    }

    #[test]
    fn a_missing_value_passes_unless_it_fails() {
        let values = [None, Some(5.0), Some(1.0), Some(f64::NAN)];
        let mut parameters = below(2.0);
        assert_eq!(of(parameters.clone(), &values), [0, 2, 3]);
        parameters["onMissing"] = json!("Fail");
        assert_eq!(of(parameters.clone(), &values), [2]);
        assert_eq!(of(parameters.clone(), &[None, Some(2.0)]), [0; 0]);
        parameters["fallbackOnEmpty"] = json!(true);
        assert_eq!(of(parameters, &[None, Some(2.0)]), [0, 1]);
    }

    #[test]
    fn parameters_are_checked() {
        let with = |key: &str, value: Value| {
            let mut parameters = below(1.0);
            parameters[key] = value;
            parameters
        };
        let table = [
            (json!({}), "missing field"),
            (json!({"attribute": "a"}), "missing field `algorithm`"),
            (with("attribute", json!("")), "attribute: must not be empty"),
            (with("attribute", json!("a/b")), "attribute: has a / in it"),
            (with("onMissing", json!("fail")), "onMissing: unknown variant `fail`"),
            (with("algorithm", json!({"type": "other"})), "algorithm.type: unknown variant `other`"),
            (with("algorithm", json!({})), "algorithm.threshold: must be given"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("endpoint-attribute-filter", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
        assert_eq!(built::mistake("endpoint-attribute-filter", with("producer", json!(""))), "");
    }
}
