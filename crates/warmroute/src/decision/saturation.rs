//! How full the pool is, for requests that may be refused.

use std::sync::Arc;
use std::time::Instant;

use warmroute_builtin::Saturation;

use super::Decider;

impl Decider {
    /// How full the endpoints are that a request may go to, and the name of the detector that says so. `None` if there
    /// are no such endpoints.
    pub fn saturation(&self, subset: Option<&[String]>) -> Option<(Arc<str>, Saturation)> {
        let (policy, snapshot) = (self.policy(), self.pool.snapshot());
        let subset_rows = subset.map(|subset| snapshot.subset_rows(subset));
        let now = Instant::now();
        let signals = |row: usize| {
            let state = &snapshot.states[row];
            (state.metrics_state(now, self.stale_after), state.load.in_flight())
        };
        let saturation = match &subset_rows {
            Some(rows) if !rows.is_empty() => {
                policy.saturation_detector.saturation(rows.iter().map(|row| signals(*row as usize)))
            }
            None if !snapshot.states.is_empty() => {
                policy.saturation_detector.saturation((0..snapshot.states.len()).map(signals))
            }
            _ => return None,
        };
        Some((policy.saturation_detector_name.clone(), saturation))
    }
}
