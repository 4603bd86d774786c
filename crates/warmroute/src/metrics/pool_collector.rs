use std::collections::HashMap;
use std::sync::Arc;

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::maker::help_of;
use super::request_metrics::DEFAULT_FAIRNESS_ID;
use crate::pool::{EndpointState, Pool};

/// The producer of in-flight loads, which the peer has as a plugin and which is always there here.
const IN_FLIGHT_PRODUCER: &str = "inflight-load-producer";

/// What is read from the endpoints when the page is made, so that no series outlives its endpoint.
pub(super) struct PoolCollector {
    pool: Arc<Pool>,
    families: [Family; 3],
}

struct Family {
    desc: Desc,
    labels: fn(&Pool, &EndpointState) -> Vec<(&'static str, String)>,
    value: fn(&EndpointState) -> f64,
}

/// Names of what a [`PoolCollector`] shows.
pub(super) const NAMES: [&str; 3] =
    ["llm_d_epp_per_endpoint_queue_size", "llm_d_epp_inflight_requests", "llm_d_epp_inflight_tokens"];

impl PoolCollector {
    pub(super) fn try_new(pool: Arc<Pool>) -> Result<Self, Error> {
        let [queue, requests, tokens] = NAMES;
        let family = |name: &str, help: &str, labels, value| {
            let help = help_of(name, help).into_owned();
            Ok::<_, Error>(Family {
                desc: Desc::new(name.to_owned(), help, Vec::new(), HashMap::new())?,
                labels,
                value,
            })
        };
        let families = [
            family(queue, "Requests waiting in an engine, as last scraped.", queue_labels, |state| {
                state.last_scrape().map_or(0.0, |scrape| f64::from(scrape.metrics.waiting_requests))
            })?,
            family(
                requests,
                "Requests that this picker has in flight at an endpoint.",
                load_labels,
                |state| f64::from(state.load.in_flight().requests),
            )?,
            family(
                tokens,
                "Prompt tokens in flight at an endpoint that its engine has to compute.",
                load_labels,
                |state| state.load.in_flight().prompt_tokens as f64,
            )?,
        ];
        Ok(Self { pool, families })
    }
}

fn queue_labels(pool: &Pool, state: &EndpointState) -> Vec<(&'static str, String)> {
    vec![("model_server_endpoint", state.endpoint.name.to_string()), ("name", pool.name.clone())]
}

fn load_labels(_pool: &Pool, state: &EndpointState) -> Vec<(&'static str, String)> {
    let (namespace, name) = namespace_and_name(&state.endpoint.name);
    vec![
        ("endpoint_name", name.to_owned()),
        // Not broken down by flow: an endpoint's load is one number.
        ("fairness_id", DEFAULT_FAIRNESS_ID.to_owned()),
        ("namespace", namespace.to_owned()),
        ("priority", "0".to_owned()),
        ("producer_name", IN_FLIGHT_PRODUCER.to_owned()),
    ]
}

/// The two parts of an endpoint's name; the first is empty for endpoints of the command line.
pub(crate) fn namespace_and_name(endpoint: &str) -> (&str, &str) {
    endpoint.split_once('/').unwrap_or(("", endpoint))
}

impl Family {
    fn collect(&self, pool: &Pool, states: &[Arc<EndpointState>]) -> MetricFamily {
        let metric = |state: &Arc<EndpointState>| {
            let mut gauge = Gauge::default();
            gauge.set_value((self.value)(state));
            let mut metric = Metric::from_gauge(gauge);
            let pair = |(name, value): (&str, String)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value);
                pair
            };
            metric.set_label((self.labels)(pool, state).into_iter().map(pair).collect());
            metric
        };
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric(states.iter().map(metric).collect());
        family
    }
}

impl Collector for PoolCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|family| &family.desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.pool.snapshot();
        self.families.iter().map(|family| family.collect(&self.pool, &snapshot.states)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use warmroute_plugin::EndpointMetrics;

    use crate::metrics::Metrics;
    use crate::pool::{EndpointSpec, Pool};

    #[test]
    fn what_is_shown_follows_the_pool() {
        let metrics = Metrics::try_new().unwrap();
        let pool = std::sync::Arc::new(Pool::new("p"));
        metrics.show_pool(&pool).unwrap();
        let spec = |name: &str| EndpointSpec::new(name, "h", 1);
        pool.update(&[spec("gpu/vllm-0")]);
        let state = pool.snapshot().states[0].clone();
        state.scraped(EndpointMetrics::new(7, 1, 0.0), Instant::now());
        let _charge = state.load.charge(100);
        let page = metrics.page().unwrap();
        for line in [
            "llm_d_epp_per_endpoint_queue_size{model_server_endpoint=\"gpu/vllm-0\",name=\"p\"} 7",
            "llm_d_epp_inflight_tokens{endpoint_name=\"vllm-0\",fairness_id=\"default-flow\",namespace=\"gpu\",\
             priority=\"0\",producer_name=\"inflight-load-producer\"} 100",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line} is not in:\n{page}");
        }
        pool.update::<EndpointSpec>(&[]);
        assert!(!metrics.page().unwrap().contains("vllm-0"));
    }
}
