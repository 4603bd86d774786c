use std::collections::HashMap;
use std::sync::Arc;

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::pool_collector::namespace_and_name;
use crate::delivered::ModelDeliveries;
use crate::pool::Pool;

/// What endpoints delivered of what was predicted, read when the page is made, so that no series outlives its endpoint.
pub(super) struct DeliveryCollector {
    pool: Arc<Pool>,
    families: Vec<(Desc, MetricType)>,
}

/// A metric: its name, its help text, and its value where there is one.
struct Shown {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&ModelDeliveries) -> Option<f64>,
}

const SHOWN: [Shown; 7] = [
    counter(
        "warmroute_compared_requests_total",
        "Finished requests whose predicted cached tokens could be compared with what the engine reports.",
        |model| Some(model.totals.requests as f64),
    ),
    counter(
        "warmroute_compared_unreported_total",
        "Finished requests whose answer was seen and tells no cached tokens.",
        |model| Some(model.totals.unreported as f64),
    ),
    counter(
        "warmroute_compared_predicted_tokens_total",
        "Of compared requests: prompt tokens that the engine was known to hold.",
        |model| Some(model.totals.predicted_tokens as f64),
    ),
    counter(
        "warmroute_compared_delivered_tokens_total",
        "Of compared requests: prompt tokens that the engine says it took from its cache.",
        |model| Some(model.totals.delivered_tokens as f64),
    ),
    counter("warmroute_overpredicted_tokens_total", "Tokens predicted and not delivered.", |model| {
        Some(model.totals.over_tokens as f64)
    }),
    counter(
        "warmroute_underpredicted_tokens_total",
        "Tokens delivered that were neither known nor expected.",
        |model| Some(model.totals.under_tokens as f64),
    ),
    Shown {
        name: "warmroute_prediction_bias",
        help: "Median relative error of the newest predictions: below 0 less is delivered, above 0 more.",
        kind: MetricType::GAUGE,
        value: |model| model.window().bias(),
    },
];

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&ModelDeliveries) -> Option<f64>,
) -> Shown {
    Shown { name, help, kind: MetricType::COUNTER, value }
}

/// Names of what a [`DeliveryCollector`] shows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SHOWN.iter().map(|shown| shown.name)
}

impl DeliveryCollector {
    pub(super) fn try_new(pool: Arc<Pool>) -> Result<Self, Error> {
        let family = |shown: &Shown| {
            let desc = Desc::new(shown.name.to_owned(), shown.help.to_owned(), Vec::new(), HashMap::new())?;
            Ok::<_, Error>((desc, shown.kind))
        };
        Ok(Self { pool, families: SHOWN.iter().map(family).collect::<Result<_, _>>()? })
    }
}

fn metric(kind: MetricType, value: f64, labels: &[LabelPair]) -> Metric {
    let mut metric = match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::default();
            metric.set_counter(counter);
            metric
        }
        _ => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            Metric::from_gauge(gauge)
        }
    };
    metric.set_label(labels.to_vec());
    metric
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

impl Collector for DeliveryCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics: [Vec<Metric>; SHOWN.len()] = Default::default();
        for state in &self.pool.snapshot().states {
            let (namespace, name) = namespace_and_name(&state.endpoint.name);
            for (model, deliveries) in state.deliveries.models() {
                let labels =
                    [pair("endpoint_name", name), pair("model_name", &model), pair("namespace", namespace)];
                for (shown, metrics) in SHOWN.iter().zip(&mut metrics) {
                    let value = (shown.value)(&deliveries);
                    metrics.extend(value.map(|value| metric(shown.kind, value, &labels)));
                }
            }
        }
        let family = |((desc, kind), metrics): (&(Desc, MetricType), Vec<Metric>)| {
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(*kind);
            family.set_metric(metrics);
            family
        };
        self.families.iter().zip(metrics).map(family).collect()
    }
}
