//! `label-selector-filter`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};

/// Keeps the endpoints whose labels match a Kubernetes LabelSelector (`meta/v1` in
/// kubernetes.io/docs/reference): all of `matchLabels` and all of `matchExpressions` must hold. An empty
/// selector keeps everything.
///
/// As there, `NotIn` holds for an endpoint without the label.
#[derive(Clone, Debug)]
pub struct LabelSelectorFilter {
    requirements: Vec<Requirement>,
}

/// The parameters are the selector.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    /// What the API server checks too: a label that no object can have is a mistake.
    fn check(&self, path: &str) -> Result<(), BuildError> {
        if let Err(reason) = check_key(&self.key) {
            return Err(BuildError::invalid(format!("{path}.key"), reason));
        }
        let takes_values = matches!(self.operator, Operator::In | Operator::NotIn);
        if takes_values == self.values.is_empty() {
            let reason = if takes_values {
                "In and NotIn need at least one value"
            } else {
                "Exists and DoesNotExist take no values"
            };
            return Err(BuildError::invalid(format!("{path}.values"), reason));
        }
        match self.values.iter().position(|value| !is_label_value(value)) {
            Some(index) => Err(BuildError::invalid(format!("{path}.values[{index}]"), NOT_A_VALUE)),
            None => Ok(()),
        }
    }
}

const NOT_A_VALUE: &str = "a label's value has at most 63 letters, digits, '-', '_' and '.', \
                           and begins and ends with a letter or digit";

/// `name` or `prefix/name`, by kubernetes.io/docs/concepts/overview/working-with-objects/labels.
fn check_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if name.is_empty() || !is_label_value(name) {
        return Err("a label's name has 1 to 63 letters, digits, '-', '_' and '.', \
                    and begins and ends with a letter or digit");
    }
    if prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        return Err("what comes before the '/' of a label must be a DNS name in lower case");
    }
    Ok(())
}

fn is_label_value(value: &str) -> bool {
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    value.len() <= 63 && ends(value.chars().next()) && ends(value.chars().last()) && value.chars().all(inner)
}

fn is_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

impl LabelSelectorFilter {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { match_labels, match_expressions } = parameters;
        for (key, value) in &match_labels {
            check_key(key).map_err(|reason| BuildError::invalid(format!("matchLabels.{key}"), reason))?;
            if !is_label_value(value) {
                return Err(BuildError::invalid(format!("matchLabels.{key}"), NOT_A_VALUE));
            }
        }
        for (index, requirement) in match_expressions.iter().enumerate() {
            requirement.check(&format!("matchExpressions[{index}]"))?;
        }
        let equal = |(key, value)| Requirement { key, operator: Operator::In, values: vec![value] };
        let requirements = match_labels.into_iter().map(equal).chain(match_expressions).collect();
        Ok(Self { requirements })
    }
}

impl Filter for LabelSelectorFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            *keep = self.requirements.iter().all(|requirement| requirement.holds(&endpoint.labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use crate::built;

    /// Rows: tier a, tier b on gpu h100, no label at all, tier empty.
    fn of(parameters: Value) -> Vec<usize> {
        let row = Row::never_scraped;
        let rows = [
            row().label("tier", "a"),
            row().label("tier", "b").label("example.com/gpu", "h100"),
            row(),
            row().label("tier", ""),
        ];
        let table = CandidatesFixture::new(rows);
        let rows = kept(&*built::filter("label-selector-filter", parameters.clone()), &table);
        assert_eq!(kept(&*built::filter("by-label-selector", parameters), &table), rows);
        rows
    }

    #[test]
    fn selectors_match_as_in_kubernetes() {
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
        let table: [(Value, &[usize]); 10] = [
            (json!({}), &[0, 1, 2, 3]),
            (json!({"matchLabels": {}, "matchExpressions": []}), &[0, 1, 2, 3]),
            (json!({"matchLabels": {"tier": "a"}}), &[0]),
            (json!({"matchLabels": {"tier": "b", "example.com/gpu": "h100"}}), &[1]),
            (json!({"matchLabels": {"tier": ""}}), &[3]),
            (expression("In", &["a", "b"]), &[0, 1]),
            (expression("NotIn", &["a"]), &[1, 2, 3]),
            (expression("Exists", &[]), &[0, 1, 3]),
            (expression("DoesNotExist", &[]), &[2]),
            (
                json!({
                    "matchLabels": {"tier": "b"},
                    "matchExpressions": [{"key": "example.com/gpu", "operator": "DoesNotExist"}],
                }),
                &[],
            ),
        ];
        for (parameters, expected) in table {
            assert_eq!(of(parameters.clone()), expected, "{parameters}");
        }
    }

    #[test]
    fn what_no_label_can_be_is_refused() {
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": key, "operator": operator, "values": values}]});
        let long = "x".repeat(64);
        let table = [
            (expression("t", "In", &[]), "matchExpressions[1].values: In and NotIn need"),
            (
                expression("t", "Exists", &["a"]),
                "matchExpressions[1].values: Exists and DoesNotExist take no",
            ),
            (expression("", "Exists", &[]), "matchExpressions[1].key: a label's name has 1 to 63"),
            (expression("a/b/c", "Exists", &[]), "matchExpressions[1].key: a label's name has 1 to 63"),
            (expression("A.com/b", "Exists", &[]), "matchExpressions[1].key: what comes before the '/'"),
            (expression("/b", "Exists", &[]), "matchExpressions[1].key: what comes before the '/'"),
            (expression("t", "In", &["a", "-b"]), "matchExpressions[1].values[1]: a label's value has"),
            (expression("t", "in", &["a"]), "matchExpressions[1].operator: unknown variant `in`"),
            (json!({"matchLabels": {"t": long}}), "matchLabels.t: a label's value has at most 63"),
            (json!({"matchLabels": {"t t": "a"}}), "matchLabels.t t: a label's name has"),
            (json!({"matchLabels": {"t": 1}}), "matchLabels.t: invalid type: integer"),
            (json!({"tier": "a"}), "tier: unknown field"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("label-selector-filter", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }
}
