//! `utilization-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, EndpointMetrics, Filter, InFlight, InferenceRequest,
};

use crate::{UnknownMetrics, producers};

/// Takes out the endpoints that are above any of some limits.
///
/// An endpoint whose metrics aren't fresh can't be judged by them. It ranks below every endpoint that is
/// known to pass, and above those that are known not to: it stays only if no endpoint is known to pass. With
/// `as-peer` metrics never scraped are zeros, and old ones count as fresh; see [`UnknownMetrics`]. Requests
/// in flight are our own count and always known.
#[derive(Clone, Debug)]
pub struct UtilizationFilter {
    conditions: Vec<Condition>,
    fallback_on_empty: bool,
    unknown_metrics: UnknownMetrics,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    conditions: Vec<Condition>,
    /// Whether every endpoint stays where none would.
    #[serde(default)]
    fallback_on_empty: bool,
    /// Only the default is possible.
    #[serde(default = "producers::default_in_flight")]
    in_flight_load_producer_name: String,
    #[serde(default)]
    unknown_metrics: UnknownMetrics,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    metric: Metric,
    max_value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Metric {
    /// Requests of ours in flight.
    ActiveRequests,
    RunningRequests,
    WaitingQueue,
    KvCacheUtilization,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passes,
    Unknown,
    Exceeds,
}

impl Metric {
    /// `None` if the metrics aren't known.
    fn value(self, in_flight: InFlight, metrics: Option<&EndpointMetrics>) -> Option<f64> {
        match self {
            Self::ActiveRequests => Some(in_flight.requests.into()),
            Self::RunningRequests => metrics.map(|metrics| metrics.running_requests.into()),
            Self::WaitingQueue => metrics.map(|metrics| metrics.waiting_requests.into()),
            Self::KvCacheUtilization => metrics.map(|metrics| metrics.kv_cache_utilization),
        }
    }
}

impl UtilizationFilter {
    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { conditions, fallback_on_empty, in_flight_load_producer_name, unknown_metrics } =
            parameters;
        producers::check_in_flight(&in_flight_load_producer_name)?;
        if conditions.is_empty() {
            return Err(BuildError::invalid("conditions", "must have at least one condition"));
        }
        for (index, condition) in conditions.iter().enumerate() {
            let invalid =
                |reason: &str| Err(BuildError::invalid(format!("conditions[{index}].maxValue"), reason));
            if !(condition.max_value >= 0.0 && condition.max_value.is_finite()) {
                return invalid("must be 0 or more");
            }
            if condition.metric == Metric::KvCacheUtilization && condition.max_value > 1.0 {
                return invalid("must be from 0 to 1: it is the share of the KV cache in use");
            }
        }
        Ok(Self { conditions, fallback_on_empty, unknown_metrics })
    }

    fn verdict(&self, candidates: &Candidates<'_>, row: usize) -> Verdict {
        let in_flight = candidates.in_flight().get(row).copied().unwrap_or_default();
        let state = candidates.metrics().get(row).copied().unwrap_or_default();
        let metrics = self.unknown_metrics.metrics(&state);
        let mut verdict = Verdict::Passes;
        for condition in &self.conditions {
            match condition.metric.value(in_flight, metrics.as_ref()) {
                Some(value) if value > condition.max_value => return Verdict::Exceeds,
                Some(_) => {}
                None => verdict = Verdict::Unknown,
            }
        }
        verdict
    }
}

impl Filter for UtilizationFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for wanted in [Verdict::Passes, Verdict::Unknown] {
            for (row, keep) in keep.iter_mut().enumerate() {
                *keep = self.verdict(candidates, row) == wanted;
            }
            if keep.contains(&true) {
                return;
            }
        }
        if self.fallback_on_empty {
            keep.fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_oneof};
    use proptest::{collection, prop_assert_eq, proptest};
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};

    use crate::built;

    fn of(parameters: Value, rows: impl IntoIterator<Item = Row>) -> Vec<usize> {
        kept(&*built::filter("utilization-filter", parameters), &CandidatesFixture::new(rows))
    }

    fn one(metric: &str, max_value: f64) -> Value {
        json!({"conditions": [{"metric": metric, "maxValue": max_value}]})
    }

    #[test]
    fn what_is_above_a_limit_goes() {
        let fresh = Row::fresh;
        let rows = [fresh(3, 5, 0.5).requests_in_flight(7), fresh(4, 6, 0.75).requests_in_flight(8)];
        let table: [(Value, &[usize]); 7] = [
            (one("waiting-queue", 3.0), &[0]),
            (one("waiting-queue", 2.5), &[]),
            (one("running-requests", 5.0), &[0]),
            (one("kv-cache-utilization", 0.5), &[0]),
            (one("kv-cache-utilization", 1.0), &[0, 1]),
            (one("active-requests", 7.0), &[0]),
            (
                json!({"conditions": [
                    {"metric": "waiting-queue", "maxValue": 3}, {"metric": "active-requests", "maxValue": 0},
                ]}),
                &[],
            ),
        ];
        for (parameters, expected) in table {
            assert_eq!(of(parameters.clone(), rows.clone()), expected, "{parameters}");
        }
    }

    #[test]
    fn what_cannot_be_judged_stays_only_if_nothing_is_known_to_pass() {
        let (never, stale) = (Row::never_scraped, || Row::stale(9, 9, 0.9));
        let limit = || one("waiting-queue", 3.0);
        assert_eq!(of(limit(), [never(), Row::fresh(3, 0, 0.0), stale()]), [1]);
        assert_eq!(of(limit(), [never(), Row::fresh(4, 0, 0.0), stale()]), [0, 2]);
        assert_eq!(of(limit(), [Row::fresh(0, 0, f64::NAN), Row::fresh(1, 0, 0.0)]), [1]);
        // Requests in flight are always known.
        assert_eq!(of(one("active-requests", 0.0), [never(), stale().requests_in_flight(1)]), [0]);
        let both = json!({"conditions": [
            {"metric": "waiting-queue", "maxValue": 3}, {"metric": "active-requests", "maxValue": 0},
        ]});
        assert_eq!(of(both, [never().requests_in_flight(1), never()]), [1]);
    }

    #[test]
    fn as_peer_takes_unknown_for_idle_and_old_for_fresh() {
        let mut parameters = one("waiting-queue", 3.0);
        parameters["unknownMetrics"] = json!("as-peer");
        let rows =
            [Row::never_scraped(), Row::fresh(3, 0, 0.0), Row::stale(4, 0, 0.0), Row::stale(2, 0, 0.0)];
        assert_eq!(of(parameters, rows), [0, 1, 3]);
    }

    #[test]
    fn all_stay_where_none_would_if_wanted() {
        let mut parameters = one("waiting-queue", 0.0);
        let rows = [Row::fresh(1, 0, 0.0), Row::fresh(2, 0, 0.0)];
        assert_eq!(of(parameters.clone(), rows.clone()), [0; 0]);
        parameters["fallbackOnEmpty"] = json!(true);
        assert_eq!(of(parameters.clone(), rows), [0, 1]);
        // What can't be judged is better than what is known to be above.
        assert_eq!(of(parameters, [Row::fresh(1, 0, 0.0), Row::never_scraped()]), [1]);
    }

    #[test]
    fn parameters_are_checked() {
        let table = [
            (json!({}), "missing field `conditions`"),
            (json!({"conditions": []}), "conditions: must have at least one condition"),
            (one("waiting-queue", -1.0), "conditions[0].maxValue: must be 0 or more"),
            (one("kv-cache-utilization", 1.5), "conditions[0].maxValue: must be from 0 to 1"),
            (one("queue", 1.0), "conditions[0].metric: unknown variant `queue`"),
            (json!({"conditions": [{"metric": "waiting-queue"}]}), "conditions[0]: missing field `maxValue`"),
        ];
        for (parameters, expected) in table {
            let got = built::mistake("utilization-filter", parameters.clone());
            assert!(got.starts_with(expected), "{parameters}: {got}");
        }
    }

    fn rows() -> impl Strategy<Value = Vec<(u8, u32, u32, f64, u32)>> {
        let share = prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0];
        collection::vec((0..3u8, 0..9u32, 0..9u32, share, 0..9u32), 0..12)
    }

    proptest! {
        #[test]
        fn tables_of_fresh_rows_are_filtered_as_at_the_peer(rows in rows(), fallback in any::<bool>()) {
            let parameters = json!({
                "conditions": [
                    {"metric": "waiting-queue", "maxValue": 4}, {"metric": "running-requests", "maxValue": 6},
                    {"metric": "kv-cache-utilization", "maxValue": 0.8}, {"metric": "active-requests", "maxValue": 5},
                ],
                "fallbackOnEmpty": fallback,
            });
            let table = rows.iter().map(|&(_, waiting, running, used, active)| {
                Row::fresh(waiting, running, used).requests_in_flight(active)
            });
            let within = |&(_, waiting, running, used, active): &(u8, u32, u32, f64, u32)| {
                waiting <= 4 && running <= 6 && used <= 0.8 && active <= 5
            };
            let mut expected: Vec<usize> = (0..rows.len()).filter(|&row| within(&rows[row])).collect();
            if expected.is_empty() && fallback {
                expected = (0..rows.len()).collect();
            }
            prop_assert_eq!(of(parameters, table), expected);
        }
    }
}
