//! `by-label`, `decode-filter`, `prefill-filter` and `encode-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};

/// Keeps the endpoints whose label has one of some values, and if wanted also those without the label.
///
/// The role filters are this on the label `llm-d.ai/role`, which says what an endpoint of a disaggregated
/// deployment does.
#[derive(Clone, Debug)]
pub struct ByLabelFilter {
    label: String,
    valid_values: Vec<String>,
    allows_no_label: bool,
}

/// The label with an endpoint's role, and its values: what an endpoint does of decode, prefill and encode.
/// `both` is the old name of `prefill-decode`.
const ROLE_LABEL: &str = "llm-d.ai/role";

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    label: String,
    #[serde(default)]
    valid_values: Vec<String>,
    #[serde(default)]
    allows_no_label: bool,
}

impl ByLabelFilter {
    /// A filter that keeps endpoints whose `label` is one of `valid_values`.
    pub fn new<V: Into<String>>(
        label: impl Into<String>,
        valid_values: impl IntoIterator<Item = V>,
        allows_no_label: bool,
    ) -> Self {
        let valid_values = valid_values.into_iter().map(Into::into).collect();
        Self { label: label.into(), valid_values, allows_no_label }
    }

    /// What `decode-filter` is. An endpoint without a role decodes too.
    pub fn decode() -> Self {
        Self::new(ROLE_LABEL, ["decode", "prefill-decode", "both", "encode-prefill-decode"], true)
    }

    /// What `prefill-filter` is. An endpoint must have such a role.
    pub fn prefill() -> Self {
        let roles = ["prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"];
        Self::new(ROLE_LABEL, roles, false)
    }

    /// What `encode-filter` is. An endpoint must have such a role.
    pub fn encode() -> Self {
        Self::new(ROLE_LABEL, ["encode", "encode-prefill", "encode-prefill-decode"], false)
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if parameters.label.is_empty() {
            return Err(BuildError::invalid("label", "must not be empty"));
        }
        if parameters.valid_values.is_empty() && !parameters.allows_no_label {
            let reason = "give a value, or set allowsNoLabel: no endpoint would be left";
            return Err(BuildError::invalid("validValues", reason));
        }
        Ok(Self::new(parameters.label, parameters.valid_values, parameters.allows_no_label))
    }
}

impl Filter for ByLabelFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            let value = endpoint.labels.get(&self.label);
            // As at the peer, a missing label is also an empty one.
            let text = value.map_or("", String::as_str);
            *keep = (value.is_none() && self.allows_no_label) || self.valid_values.iter().any(|v| v == text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use crate::built;

    const ROLES: [&str; 8] = [
        "decode",
        "prefill",
        "encode",
        "both",
        "prefill-decode",
        "encode-prefill",
        "encode-prefill-decode",
        "Decode",
    ];

    /// The roles that a filter keeps, and whether it keeps an endpoint without one.
    fn roles_of(plugin_type: &str) -> (Vec<&'static str>, bool) {
        let rows = ROLES.iter().map(|role| Row::never_scraped().label("llm-d.ai/role", *role));
        let unlabelled = Row::never_scraped().label("role", "decode");
        let table = CandidatesFixture::new(rows.chain([unlabelled]));
        let rows = kept(&*built::filter(plugin_type, json!({})), &table);
        let roles = rows.iter().filter_map(|&row| ROLES.get(row).copied()).collect();
        (roles, rows.contains(&ROLES.len()))
    }

    #[test]
    fn roles_are_read_from_the_label() {
        let decode = vec!["decode", "both", "prefill-decode", "encode-prefill-decode"];
        assert_eq!(roles_of("decode-filter"), (decode, true));
        let prefill = vec!["prefill", "both", "prefill-decode", "encode-prefill", "encode-prefill-decode"];
        assert_eq!(roles_of("prefill-filter"), (prefill, false));
        let encode = vec!["encode", "encode-prefill", "encode-prefill-decode"];
        assert_eq!(roles_of("encode-filter"), (encode, false));
    }

    #[test]
    fn role_filters_take_no_parameters() {
        for plugin_type in ["decode-filter", "prefill-filter", "encode-filter"] {
            let mistake = built::mistake(plugin_type, json!({"label": "x"}));
            assert!(mistake.starts_with("label: unknown field"), "{mistake}");
        }
    }

    fn by_label(parameters: Value) -> Vec<usize> {
        let row = Row::never_scraped;
        let rows = [row().label("tier", "a"), row().label("tier", "b"), row(), row().label("tier", "")];
        kept(&*built::filter("by-label", parameters), &CandidatesFixture::new(rows))
    }

    #[test]
    fn values_are_listed_and_a_missing_label_may_be_allowed() {
        let table: [(Value, &[usize]); 5] = [
            (json!({"label": "tier", "validValues": ["a"]}), &[0]),
            (json!({"label": "tier", "validValues": ["b", "a"], "allowsNoLabel": true}), &[0, 1, 2]),
            (json!({"label": "tier", "allowsNoLabel": true}), &[2]),
            (json!({"label": "tier", "validValues": [""]}), &[2, 3]),
            (json!({"label": "other", "validValues": ["a"]}), &[]),
        ];
        for (parameters, expected) in table {
            assert_eq!(by_label(parameters.clone()), expected, "{parameters}");
        }
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({}), "missing field `label`"),
            (json!({"label": "", "allowsNoLabel": true}), "label: must not be empty"),
            (json!({"label": "tier"}), "validValues: give a value, or set allowsNoLabel"),
            (json!({"label": "tier", "validValues": "a"}), "validValues: invalid type: string"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("by-label", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }
}
