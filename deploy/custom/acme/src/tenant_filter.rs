//! `acme-tenant-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};

/// Keeps the endpoints whose label `tenants`, names with dots between them, has the tenant of the request, and those
/// without the label. Without the header all are kept.
pub struct TenantFilter {
    header: String,
}

/// What the configuration may say. A parameter that isn't here is refused with its place in the file.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    header_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { header_name: "x-tenant".to_owned() }
    }
}

impl TenantFilter {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if parameters.header_name.is_empty() {
            return Err(BuildError::invalid("headerName", "must not be empty"));
        }
        Ok(Self { header: parameters.header_name.to_lowercase() })
    }
}

impl Filter for TenantFilter {
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        let tenant = request.headers.get(&self.header).and_then(|value| value.to_str().ok());
        let Some(tenant) = tenant else { return };
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            let tenants = endpoint.labels.get("tenants");
            *keep = tenants.is_none_or(|tenants| tenants.split('.').any(|served| served == tenant));
        }
    }
}
