//! Metrics of admission.

use std::sync::Arc;

use prometheus::{GaugeVec, IntCounterVec};
use warmroute_builtin::Saturation;

use super::maker::Maker;

/// Metrics of admission: how full the pool is, and what was refused for it.
#[derive(Debug)]
pub struct AdmissionMetrics {
    /// Requests of negative priority refused since the pool was full, per detector.
    pub refused: IntCounterVec,
    pool_saturation: GaugeVec,
    stale_endpoints: GaugeVec,
}

/// The pool as a whole: there is no split into prefill and decode without a queue that waits for either.
const STAGE: &str = "effective";

impl AdmissionMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        Ok(Self {
            refused: make.counters(
                "warmroute_saturation_refusals_total",
                "Requests of negative priority refused since the pool was saturated.",
                &["detector"],
            )?,
            pool_saturation: make.float_gauges(
                "llm_d_epp_flow_control_pool_saturation",
                "How full the pool is: from 1 on, requests of negative priority are refused. Absent if unknown.",
                &["inference_pool", "stage"],
            )?,
            stale_endpoints: make.float_gauges(
                "llm_d_epp_flow_control_stale_endpoints",
                "Endpoints of which the saturation detector knows too little.",
                &["detector"],
            )?,
        })
    }

    /// Shows what a detector, by its name, says of the pool: `None` if the pool is empty.
    pub fn observe(&self, pool: &str, saturation: Option<(Arc<str>, Saturation)>) {
        // A detector that was replaced says nothing any more.
        self.stale_endpoints.reset();
        let mut value = None;
        if let Some((detector, saturation)) = saturation {
            let stale = f64::from(saturation.unknown_endpoints);
            self.stale_endpoints.with_label_values(&[&*detector]).set(stale);
            value = saturation.value;
        }
        match value {
            Some(value) => self.pool_saturation.with_label_values(&[pool, STAGE]).set(value),
            None => self.pool_saturation.reset(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn an_unknown_saturation_is_not_shown() {
        let metrics = Metrics::try_new().unwrap();
        let page = |saturation| {
            metrics.admission.observe("epp", saturation);
            metrics.page().unwrap()
        };
        let of = |value, unknown_endpoints| Some(("ours".into(), Saturation { value, unknown_endpoints }));
        let shown = "llm_d_epp_flow_control_pool_saturation{inference_pool=\"epp\",stage=\"effective\"} 1.25";
        let known = page(of(Some(1.25), 0));
        assert!(known.contains(shown), "{known}");
        let unknown = page(of(None, 2));
        assert!(!unknown.contains("pool_saturation{"), "{unknown}");
        assert!(unknown.contains("llm_d_epp_flow_control_stale_endpoints{detector=\"ours\"} 2"), "{unknown}");
        assert!(!page(None).contains("stale_endpoints{"));
    }
}
