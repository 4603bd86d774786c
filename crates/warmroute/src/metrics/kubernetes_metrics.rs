use prometheus::{Error, IntCounterVec, IntGaugeVec};

use super::maker::Maker;

/// Metrics of what is read from a cluster, per kind of objects.
#[derive(Debug)]
pub struct KubernetesMetrics {
    /// 1 while the API server tells of every change.
    pub following: IntGaugeVec,
    /// Objects known.
    pub objects: IntGaugeVec,
    /// Requests to the API server that failed, per cause.
    pub failures: IntCounterVec,
    /// Versions of objects that can't be used.
    pub refused: IntCounterVec,
}

impl KubernetesMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            following: make.gauges(
                "warmroute_kubernetes_following",
                "1 while the API server tells of every change of these objects, 0 while what was known before counts.",
                &["resource"],
            )?,
            objects: make.gauges(
                "warmroute_kubernetes_objects",
                "Objects that are known and usable.",
                &["resource"],
            )?,
            failures: make.counters(
                "warmroute_kubernetes_failures_total",
                "Lists and watches that the API server refused, didn't answer or broke off.",
                &["resource", "cause"],
            )?,
            refused: make.counters(
                "warmroute_kubernetes_objects_refused_total",
                "Versions of objects that can't be used; the last good version of each stays in effect.",
                &["resource"],
            )?,
        })
    }
}
