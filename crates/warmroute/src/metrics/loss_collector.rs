use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};

use super::pool_collector::namespace_and_name;
use crate::delivered::CounterVerdict;
use crate::pool::{EndpointState, Pool};

/// Where cached tokens are lost, and what came of comparing engines' counters; read when the page is made.
pub(super) struct LossCollector {
    pool: Arc<Pool>,
    tokens: Desc,
    requests: Desc,
    /// The largest estimate shown so far: a counter never falls.
    seen_tokens: AtomicI64,
}

const TOKENS: &str = "warmroute_prefix_tokens_total";
const REQUESTS: &str = "warmroute_counter_requests_total";

/// Names of what it shows.
pub(super) const NAMES: [&str; 2] = [TOKENS, REQUESTS];

impl LossCollector {
    pub(super) fn try_new(pool: Arc<Pool>) -> Result<Self, Error> {
        let desc =
            |name: &str, help: &str| Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new());
        Ok(Self {
            pool,
            tokens: desc(
                TOKENS,
                "Prompt tokens that could have been served from a cache, by how far on the way they were lost.",
            )?,
            requests: desc(
                REQUESTS,
                "Requests by what came of the engine's own prefix cache counters between which they ended.",
            )?,
            seen_tokens: AtomicI64::new(0),
        })
    }

    fn tokens(&self) -> Vec<Metric> {
        let all = self.pool.loss.report(Instant::now()).all;
        let seen = self.seen_tokens.fetch_max(all.seen_tokens, Ordering::Relaxed).max(all.seen_tokens);
        let steps = [
            ("prompt", all.prompt_tokens),
            ("seen", seen as u64),
            ("held", all.held_tokens),
            ("reachable", all.reachable_tokens),
            ("promised", all.promised_tokens),
            ("compared", all.compared_tokens),
            ("delivered", all.delivered_tokens),
        ];
        steps.into_iter().map(|(step, tokens)| counter(tokens, &[("step", step)])).collect()
    }

    fn requests(&self) -> Vec<Metric> {
        let snapshot = self.pool.snapshot();
        let of_endpoint = |state: &Arc<EndpointState>| {
            let (namespace, name) = namespace_and_name(&state.endpoint.name);
            let told = state.deliveries.counter_verdicts().into_iter().filter(|(_, requests)| *requests > 0);
            let metric = |(verdict, requests): (CounterVerdict, u64)| {
                let labels =
                    [("endpoint_name", name), ("namespace", namespace), ("verdict", verdict.as_str())];
                counter(requests, &labels)
            };
            told.map(metric).collect::<Vec<_>>()
        };
        snapshot.states.iter().flat_map(of_endpoint).collect()
    }
}

fn counter(value: u64, labels: &[(&str, &str)]) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

impl Collector for LossCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.tokens, &self.requests]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = [(&self.tokens, self.tokens()), (&self.requests, self.requests())];
        let family = |(desc, metrics): (&Desc, Vec<Metric>)| {
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(MetricType::COUNTER);
            family.set_metric(metrics);
            family
        };
        families.into_iter().map(family).collect()
    }
}
