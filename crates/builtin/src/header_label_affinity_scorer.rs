//! `header-label-affinity-scorer`.

use http::HeaderName;
use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

/// Prefers endpoints whose label equals a header of the request: 1 if so, else 0. Without the header, or
/// with an empty one, all get 0. Of a header that comes several times the first counts.
#[derive(Clone, Debug)]
pub struct HeaderLabelAffinityScorer {
    header: HeaderName,
    label: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    header_name: String,
    label_key: String,
}

impl HeaderLabelAffinityScorer {
    /// A scorer that compares this header with this label.
    pub fn new(header: HeaderName, label: impl Into<String>) -> Self {
        Self { header, label: label.into() }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let not_a_name =
            |_| BuildError::invalid("headerName", "must be the name of a header, like x-tenant-tier");
        let header = HeaderName::try_from(parameters.header_name).map_err(not_a_name)?;
        if parameters.label_key.is_empty() {
            return Err(BuildError::invalid("labelKey", "must not be empty"));
        }
        Ok(Self::new(header, parameters.label_key))
    }
}

impl Scorer for HeaderLabelAffinityScorer {
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let Some(wanted) = request.headers.get(&self.header).filter(|value| !value.is_empty()) else {
            return;
        };
        for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
            let label = endpoint.labels.get(&self.label);
            let fits = label.is_some_and(|label| label.as_bytes() == wanted.as_bytes());
            *score = f64::from(u8::from(fits));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, request};

    use crate::built;

    /// Scores of rows with tier gold, tier silver, an empty tier, and none.
    fn of(header: Option<&[u8]>) -> Vec<f64> {
        let parameters = json!({"headerName": "X-Tenant-Tier", "labelKey": "tier"});
        let mut request = request();
        if let Some(value) = header {
            request.headers.append("x-tenant-tier", HeaderValue::from_bytes(value).unwrap());
            request.headers.append("x-tenant-tier", HeaderValue::from_static("silver"));
        }
        let row = Row::never_scraped;
        let rows =
            [row().label("tier", "gold"), row().label("tier", "silver"), row().label("tier", ""), row()];
        let scorer = built::scorer("header-label-affinity-scorer", parameters);
        built::scores(&*scorer, &request, &CandidatesFixture::new(rows))
    }

    #[test]
    fn rows_whose_label_is_the_header_get_1() {
        let table: [(Option<&[u8]>, [f64; 4]); 6] = [
            (Some(b"gold"), [1.0, 0.0, 0.0, 0.0]),
            (Some(b"Gold"), [0.0; 4]),
            (Some(b"bronze"), [0.0; 4]),
            (Some(b""), [0.0; 4]),
            (Some(b"\xFFgold"), [0.0; 4]),
            (None, [0.0; 4]),
        ];
        for (header, expected) in table {
            assert_eq!(of(header), expected, "{header:?}");
        }
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({}), "missing field `headerName`"),
            (json!({"headerName": "x-tier"}), "missing field `labelKey`"),
            (json!({"headerName": "", "labelKey": "tier"}), "headerName: must be the name of a header"),
            (json!({"headerName": "x tier", "labelKey": "tier"}), "headerName: must be the name of a header"),
            (json!({"headerName": "x-tier", "labelKey": ""}), "labelKey: must not be empty"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("header-label-affinity-scorer", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }
}
