//! How full a pool is.

use serde_json::{Map, Value};
use warmroute_plugin::{BuildContext, BuildError, InFlight, MetricsState, Needs};

use crate::{ConcurrencyDetector, UtilizationDetector};

/// Tells how full a pool is, so that requests that may be refused can be.
///
/// The same plugins are filters when they stand in a profile; there they look at each endpoint by itself, with the
/// headroom that is configured.
#[derive(Clone, Debug)]
pub enum SaturationDetector {
    /// `utilization-detector`: by what the engines say.
    Utilization(UtilizationDetector),
    /// `concurrency-detector`: by what we have in flight.
    Concurrency(ConcurrencyDetector),
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturation {
    /// 0 is idle, 1 and more is full; `None` if nothing is known, which is neither.
    pub value: Option<f64>,
    /// Endpoints of which too little is known to say how full they are.
    pub unknown_endpoints: u32,
}

impl Saturation {
    /// Full, because there is nothing that could serve.
    pub(crate) const NO_ENDPOINT: Self = Self { value: Some(1.0), unknown_endpoints: 0 };

    /// Whether the pool is known to be full.
    pub fn is_full(&self) -> bool {
        self.value.is_some_and(|value| value >= 1.0)
    }
}

impl SaturationDetector {
    /// Plugin type of [`UtilizationDetector`].
    pub const UTILIZATION: &str = "utilization-detector";
    /// Plugin type of [`ConcurrencyDetector`].
    pub const CONCURRENCY: &str = "concurrency-detector";

    /// Builds a detector from its plugin type and parameters (an object, or null for none).
    ///
    /// # Errors
    ///
    /// There is no such detector, or it doesn't take these parameters.
    pub fn try_new(plugin_type: &str, parameters: Value) -> Result<Self, BuildError> {
        let mut needs = Needs::default();
        let mut context = BuildContext::new(plugin_type, &mut needs);
        let parameters = if parameters.is_null() { Value::Object(Map::new()) } else { parameters };
        let wrong = |error: serde_json::Error| BuildError::Parameters {
            path: String::new(),
            reason: error.to_string(),
        };
        match plugin_type {
            Self::UTILIZATION => {
                let parameters = serde_json::from_value(parameters).map_err(wrong)?;
                UtilizationDetector::build(parameters, &mut context).map(Self::Utilization)
            }
            Self::CONCURRENCY => {
                let parameters = serde_json::from_value(parameters).map_err(wrong)?;
                ConcurrencyDetector::build(parameters, &mut context).map(Self::Concurrency)
            }
            _ => Err(BuildError::UnknownType {
                plugin_type: plugin_type.to_owned(),
                known: vec![Self::UTILIZATION, Self::CONCURRENCY],
            }),
        }
    }

    /// How full these endpoints are together. A pool without endpoints is full.
    pub fn saturation(&self, endpoints: impl IntoIterator<Item = (MetricsState, InFlight)>) -> Saturation {
        match self {
            Self::Utilization(detector) => {
                detector.saturation(endpoints.into_iter().map(|(metrics, _)| metrics))
            }
            Self::Concurrency(detector) => {
                detector.saturation(endpoints.into_iter().map(|(_, in_flight)| in_flight))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::EndpointMetrics;

    use super::*;

    #[test]
    fn a_detector_is_built_by_its_type() {
        let full = MetricsState::Fresh(EndpointMetrics::new(5, 0, 0.0));
        let rows = [(full, InFlight::default())];
        let of = |plugin_type: &str, parameters| SaturationDetector::try_new(plugin_type, parameters);
        assert!(of("utilization-detector", Value::Null).unwrap().saturation(rows).is_full());
        let concurrency = of("concurrency-detector", json!({"maxConcurrency": 1})).unwrap();
        assert_eq!(concurrency.saturation(rows), Saturation { value: Some(0.0), unknown_endpoints: 0 });
        assert!(of("queue-scorer", json!({})).unwrap_err().to_string().contains("queue-scorer"));
        assert!(of("concurrency-detector", json!({"maxConcurency": 1})).is_err());
        for plugin_type in ["utilization-detector", "concurrency-detector"] {
            assert_eq!(of(plugin_type, json!({})).unwrap().saturation([]), Saturation::NO_ENDPOINT);
        }
    }
}
