//! `acme-near-best-picker`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Picker};

/// Picks the endpoint with the fewest requests in flight among those whose total is at most `tolerance` below the
/// best one.
pub struct NearBestPicker {
    tolerance: f64,
}

/// What the configuration may say.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    tolerance: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { tolerance: 0.1 }
    }
}

impl NearBestPicker {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if !(0.0..=f64::MAX).contains(&parameters.tolerance) {
            return Err(BuildError::invalid("tolerance", "must be 0 or more"));
        }
        Ok(Self { tolerance: parameters.tolerance })
    }
}

impl Picker for NearBestPicker {
    fn pick(&self, _: &InferenceRequest, candidates: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
        let best = totals.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let near = (0u32..).zip(totals).filter(|(_, total)| best - **total <= self.tolerance);
        let in_flight = candidates.in_flight();
        let picked = near.min_by_key(|(row, _)| in_flight[*row as usize].requests);
        order.extend(picked.map(|(row, _)| row));
    }
}
