//! `utilization-detector`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, EndpointMetrics, Filter, InferenceRequest, MetricsState,
};

use crate::Saturation;
use crate::go_duration::GoDuration;

/// Tells by the engines' metrics how full they are: an endpoint's share is the larger one of queue length /
/// `queueDepthThreshold` and KV cache in use / `kvCacheUtilThreshold`, and the pool's is the mean of the endpoints'.
///
/// In a profile it is a filter that keeps the endpoints whose queue and KV cache both are below their threshold ×
/// (1 + `headroom`). It never takes out all: if none is below, all stay, or those of which nothing is known if
/// there are any.
///
/// Formula: `utilization-detector` in `pkg/epp/framework/plugins/flowcontrol/saturationdetector/` of
/// github.com/llm-d/llm-d-router. What is made of metrics that are too old is [`StalenessPolicy`].
#[derive(Clone, Debug)]
pub struct UtilizationDetector {
    queue_depth_threshold: f64,
    kv_cache_threshold: f64,
    stale_after: Duration,
    staleness_policy: StalenessPolicy,
    headroom: f64,
}

/// What a [`UtilizationDetector`] makes of an endpoint whose metrics have been overdue for longer than
/// `metricsStalenessThreshold`, or were never read, or aren't numbers. Overdue is counted from the moment at which
/// the host should have had newer ones, so a healthy endpoint is never stale because of the host's own rhythm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StalenessPolicy {
    /// It says nothing: the mean is over the others. If there are no others, the saturation is unknown.
    /// As a filter, it stays only if no endpoint is known to be below the thresholds.
    #[default]
    Ignore,
    /// The default of the llm-d Router EPP: it counts as full (1.0), and as a filter it goes. So metrics that can't
    /// be read stop what saturation stops.
    Saturated,
    /// Its last metrics count, however old. One that was never read says nothing, as with `ignore`.
    Last,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    #[serde(default = "default_queue_depth")]
    queue_depth_threshold: i64,
    #[serde(default = "default_kv_cache")]
    kv_cache_util_threshold: f64,
    #[serde(default = "default_stale_after")]
    metrics_staleness_threshold: GoDuration,
    #[serde(default)]
    staleness_policy: StalenessPolicy,
    #[serde(default)]
    headroom: f64,
}

fn default_queue_depth() -> i64 {
    5
}

fn default_kv_cache() -> f64 {
    0.8
}

fn default_stale_after() -> GoDuration {
    GoDuration(Duration::from_millis(200))
}

/// What is known of one endpoint.
enum Known {
    Metrics(EndpointMetrics),
    Nothing,
    CountsAsFull,
}

impl UtilizationDetector {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters {
            queue_depth_threshold,
            kv_cache_util_threshold,
            metrics_staleness_threshold: GoDuration(stale_after),
            staleness_policy,
            headroom,
        } = parameters;
        if queue_depth_threshold <= 0 {
            return Err(BuildError::invalid("queueDepthThreshold", "must be 1 or more"));
        }
        if !(kv_cache_util_threshold > 0.0 && kv_cache_util_threshold <= 1.0) {
            let reason = "must be above 0 and at most 1: it is the share of the KV cache in use";
            return Err(BuildError::invalid("kvCacheUtilThreshold", reason));
        }
        if stale_after.is_zero() {
            return Err(BuildError::invalid("metricsStalenessThreshold", "must be more than 0"));
        }
        check_headroom(headroom)?;
        Ok(Self {
            queue_depth_threshold: queue_depth_threshold as f64,
            kv_cache_threshold: kv_cache_util_threshold,
            stale_after,
            staleness_policy,
            headroom,
        })
    }

    /// How full these endpoints are together.
    pub fn saturation(&self, endpoints: impl IntoIterator<Item = MetricsState>) -> Saturation {
        let (mut sum, mut counted, mut unknown_endpoints) = (0.0, 0u32, 0);
        for state in endpoints {
            match self.known(&state) {
                Known::Metrics(metrics) => sum += self.share(&metrics),
                Known::CountsAsFull => {
                    unknown_endpoints += 1;
                    sum += 1.0;
                }
                Known::Nothing => {
                    unknown_endpoints += 1;
                    continue;
                }
            }
            counted += 1;
        }
        match (counted, unknown_endpoints) {
            (0, 0) => Saturation::NO_ENDPOINT,
            (0, _) => Saturation { value: None, unknown_endpoints },
            _ => Saturation { value: Some(sum / f64::from(counted)), unknown_endpoints },
        }
    }

    fn share(&self, metrics: &EndpointMetrics) -> f64 {
        let queue = f64::from(metrics.waiting_requests) / self.queue_depth_threshold;
        queue.max(metrics.kv_cache_utilization / self.kv_cache_threshold)
    }

    fn known(&self, state: &MetricsState) -> Known {
        let last = state.last().filter(|metrics| !metrics.kv_cache_utilization.is_nan());
        let recent = |metrics: &EndpointMetrics| metrics.overdue <= self.stale_after;
        match (last, self.staleness_policy) {
            (Some(metrics), policy) if recent(metrics) || policy == StalenessPolicy::Last => {
                Known::Metrics(*metrics)
            }
            (_, StalenessPolicy::Saturated) => Known::CountsAsFull,
            _ => Known::Nothing,
        }
    }

    fn has_room(&self, metrics: &EndpointMetrics) -> bool {
        let limit = |threshold: f64| threshold * (1.0 + self.headroom);
        f64::from(metrics.waiting_requests) < limit(self.queue_depth_threshold)
            && metrics.kv_cache_utilization < limit(self.kv_cache_threshold)
    }
}

/// Headroom is a share of the threshold, 0 or more.
pub(crate) fn check_headroom(headroom: f64) -> Result<(), BuildError> {
    if headroom >= 0.0 && headroom.is_finite() {
        return Ok(());
    }
    Err(BuildError::invalid("headroom", "must be 0 or more: 0.2 is 20% above the threshold"))
}

impl Filter for UtilizationDetector {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        let mut is_unknown_kept = false;
        for (keep, state) in keep.iter_mut().zip(candidates.metrics()) {
            *keep = matches!(self.known(state), Known::Metrics(metrics) if self.has_room(&metrics));
        }
        if keep.contains(&true) {
            return;
        }
        for (keep, state) in keep.iter_mut().zip(candidates.metrics()) {
            *keep = matches!(self.known(state), Known::Nothing);
            is_unknown_kept |= *keep;
        }
        if !is_unknown_kept {
            keep.fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prop_assert_eq, proptest};
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use super::*;
    use crate::{SaturationDetector, built};

    const TYPE: &str = "utilization-detector";

    fn of(parameters: Value, rows: impl IntoIterator<Item = Row>) -> Saturation {
        let table = CandidatesFixture::new(rows);
        let candidates = table.candidates();
        let rows = candidates.metrics().iter().copied().zip(candidates.in_flight().iter().copied());
        SaturationDetector::try_new(TYPE, parameters).unwrap().saturation(rows)
    }

    fn filtered(parameters: Value, rows: impl IntoIterator<Item = Row>) -> Vec<usize> {
        kept(&*built::filter(TYPE, parameters), &CandidatesFixture::new(rows))
    }

    fn value(value: f64) -> Saturation {
        Saturation { value: Some(value), unknown_endpoints: 0 }
    }

    fn policy(policy: &str) -> Value {
        json!({"stalenessPolicy": policy})
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_scarcer_of_queue_and_cache_counts_and_the_mean_is_the_pools() {
        assert_eq!(of(json!({}), [Row::fresh(5, 0, 0.0)]), value(1.0));
        assert_eq!(of(json!({}), [Row::fresh(1, 99, 0.8)]), value(1.0));
        assert_eq!(of(json!({}), [Row::fresh(10, 0, 0.4), Row::fresh(0, 0, 0.4)]), value(1.25));
        let strict = json!({"queueDepthThreshold": 2, "kvCacheUtilThreshold": 1.0, "headroom": 3});
        assert_eq!(of(strict, [Row::fresh(1, 0, 0.25)]), value(0.5));
        assert!(!of(json!({}), [Row::fresh(4, 0, 0.0)]).is_full());
        assert!(of(json!({}), []).is_full());
    }

    #[test]
    fn what_is_not_known_is_neither_idle_nor_full_unless_wanted() {
        let rows = || [Row::fresh(10, 0, 0.0), Row::stale(0, 0, 0.0), Row::never_scraped()];
        let unknown = |value, unknown_endpoints| Saturation { value, unknown_endpoints };
        assert_eq!(of(json!({}), rows()), unknown(Some(2.0), 2));
        assert_eq!(of(policy("saturated"), rows()), unknown(Some(4.0 / 3.0), 2));
        assert_eq!(of(policy("last"), rows()), unknown(Some(1.0), 1));
        let nothing = [Row::never_scraped(), Row::stale(9, 9, 0.9)];
        assert_eq!(of(json!({}), nothing.clone()), unknown(None, 2));
        assert!(!of(json!({}), nothing.clone()).is_full());
        assert!(of(policy("saturated"), nothing).is_full());
        assert_eq!(of(policy("last"), [Row::never_scraped()]), unknown(None, 1));
        // A page whose share isn't a number says nothing.
        assert_eq!(of(json!({}), [Row::fresh(9, 0, f64::NAN)]), unknown(None, 1));
        assert_eq!(of(policy("saturated"), [Row::fresh(0, 0, f64::NAN)]), unknown(Some(1.0), 1));
    }

    #[test]
    fn metrics_are_stale_when_they_are_overdue_for_longer_than_the_threshold() {
        let overdue = |time| [Row::fresh(5, 0, 0.0).overdue_by(time)];
        assert_eq!(of(json!({}), overdue(ms(200))), value(1.0));
        assert_eq!(of(json!({}), overdue(ms(201))).value, None);
        let patient = json!({"metricsStalenessThreshold": "1.5s"});
        assert_eq!(of(patient.clone(), overdue(ms(1500))), value(1.0));
        // The host's own limit doesn't reach the detector.
        let old = Row::stale(5, 0, 0.0).overdue_by(ms(1000));
        assert_eq!(of(patient, [old]), value(1.0));
    }

    #[test]
    fn as_a_filter_it_keeps_what_has_room_and_never_takes_all() {
        let fresh = Row::fresh;
        let rows = [fresh(4, 0, 0.79), fresh(5, 0, 0.0), fresh(0, 0, 0.8), Row::never_scraped()];
        assert_eq!(filtered(json!({}), rows.clone()), [0]);
        assert_eq!(filtered(json!({"headroom": 0.2}), rows.clone()), [0, 1, 2]);
        assert_eq!(filtered(policy("saturated"), rows), [0]);
        let full = [fresh(9, 0, 0.0), Row::stale(0, 0, 0.0), fresh(0, 0, 1.0)];
        assert_eq!(filtered(json!({}), full.clone()), [1], "unknown is better than known to be full");
        assert_eq!(filtered(policy("saturated"), full.clone()), [0, 1, 2]);
        assert_eq!(filtered(policy("last"), full.clone()), [1]);
        assert_eq!(filtered(policy("ignore"), [fresh(9, 0, 0.0), fresh(0, 0, 1.0)]), [0, 1]);
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({"queueDepthThreshold": 0}), "queueDepthThreshold: must be 1"),
            (json!({"kvCacheUtilThreshold": 0}), "kvCacheUtilThreshold: must be above 0"),
            (json!({"kvCacheUtilThreshold": 1.1}), "kvCacheUtilThreshold: must be above 0"),
            (json!({"metricsStalenessThreshold": "0s"}), "metricsStalenessThreshold: must be more"),
            (
                json!({"metricsStalenessThreshold": "2"}),
                "metricsStalenessThreshold: invalid value: string \"2\", expected a duration",
            ),
            (json!({"headroom": -0.1}), "headroom: must be 0"),
            (json!({"stalenessPolicy": "idle"}), "stalenessPolicy: unknown variant"),
            (json!({"queueThreshold": 1}), "queueThreshold: unknown field"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake(TYPE, parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }

    proptest! {
        #[test]
        fn with_the_peers_policy_it_is_the_peers_formula(
            rows in collection::vec((0..3u8, 0..20u32, 0.0..=1.0f64), 0..12), headroom in 0.0..1.0f64,
        ) {
            let table = || rows.iter().map(|&(state, waiting, used)| match state {
                0 => Row::never_scraped(),
                1 => Row::stale(waiting, 0, used),
                _ => Row::fresh(waiting, 0, used),
            });
            let shares = rows.iter().map(|&(state, waiting, used)| match state {
                2 => (f64::from(waiting) / 5.0).max(used / 0.8),
                _ => 1.0,
            });
            let mean = if rows.is_empty() { 1.0 } else { shares.sum::<f64>() / rows.len() as f64 };
            let parameters = json!({"stalenessPolicy": "saturated", "headroom": headroom});
            prop_assert_eq!(of(parameters.clone(), table()).value, Some(mean));
            let within = |&(state, waiting, used): &(u8, u32, f64)| {
                state == 2 && f64::from(waiting) < 5.0 * (1.0 + headroom) && used < 0.8 * (1.0 + headroom)
            };
            let mut expected: Vec<usize> = (0..rows.len()).filter(|&row| within(&rows[row])).collect();
            if expected.is_empty() {
                expected = (0..rows.len()).collect();
            }
            prop_assert_eq!(filtered(parameters, table()), expected);
        }
    }
}
