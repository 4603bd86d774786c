//! The picker's own Prometheus metrics.
//!
//! Names that begin with `llm_d_epp_` are the llm-d Router EPP's, with its labels and buckets, so that its dashboards
//! work. Names that begin with `warmroute_` have no counterpart there.

mod admission_metrics;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use admission_metrics::AdmissionMetrics;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Model names, and fairness ids, that become label values; later ones are counted as `other`, since clients make them up.
const MODEL_LABELS: usize = 1000;

/// Bucket bounds in seconds of the peer's fast steps.
const FAST_SECONDS: [f64; 10] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];

/// Labels of decisions about stages.
const DECISION_LABELS: [&str; 4] = ["plugin_name", "plugin_type", "model_name", "decision_type"];

/// Finer bounds in seconds for steps that take microseconds.
const STEP_SECONDS: [f64; 18] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.0001, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002,
    0.003, 0.005, 0.01, 0.02, 0.05, 0.1,
];

/// All metrics of one picker. Nothing is global: a process may hold several.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    models: Mutex<HashSet<Arc<str>>>,
    fairness_ids: Mutex<HashSet<Arc<str>>>,
    /// Of admission.
    pub admission: AdmissionMetrics,
    /// Of requests.
    pub requests: RequestMetrics,
    /// Of the pool and its scraping.
    pub pool: PoolMetrics,
    /// Of the engines' KV events.
    pub events: EventMetrics,
    /// Of the KV index.
    pub index: IndexMetrics,
    /// Of ext-proc streams.
    pub streams: StreamMetrics,
}

/// Metrics of requests. Labels are the peer's: model, target model, fairness id, priority.
#[derive(Debug)]
pub struct RequestMetrics {
    /// Requests decided or refused, per model.
    pub total: IntCounterVec,
    /// Requests refused, per model and code.
    pub errors: IntCounterVec,
    /// Requests in flight, per model.
    pub running: IntGaugeVec,
    /// Look-up, scores, pick and charge.
    pub scheduler_seconds: Histogram,
    /// From the complete request to the answer.
    pub processing_seconds: Histogram,
    /// Parsing, tokens and block keys.
    pub prompt_seconds: Histogram,
    /// From the complete request to the answer, in finer buckets.
    pub decision_seconds: Histogram,
    /// Decisions that were poorer than the profile asked for, per kind.
    pub fallbacks: IntCounterVec,
    /// Where the stages of a request run, per handler, model and decision type.
    pub disaggregation: IntCounterVec,
    /// The same for pd-profile-handler alone, under the name that it had.
    pub prefill_decode: IntCounterVec,
    /// Changes of the configuration, per outcome.
    pub reloads: IntCounterVec,
    /// Prompt tokens of decided requests.
    pub prompt_tokens: IntCounter,
    /// Of those: tokens that the picked engine is known to hold.
    pub predicted_cached_tokens: IntCounter,
}

/// Metrics of the pool.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Endpoints in the pool.
    pub endpoints: IntGaugeVec,
    /// Scrapes that failed.
    pub scrape_errors: IntCounterVec,
    /// Pages that lack something that is read out of them, per source and extractor.
    pub extract_errors: IntCounterVec,
    /// Changes of the endpoints file that were refused, and DNS names that couldn't be resolved, per cause.
    pub discovery_errors: IntCounterVec,
}

/// Metrics of KV events, per endpoint where that says something.
#[derive(Debug)]
pub struct EventMetrics {
    /// Subscriptions connected.
    pub subscribers: IntGauge,
    /// Batches received.
    pub batches: IntCounterVec,
    /// Connections after the first.
    pub reconnects: IntCounterVec,
    /// Failures of the subscription, per operation.
    pub errors: IntCounterVec,
    /// Batches known to be missing, per cause.
    pub gaps: IntCounterVec,
    /// Events that were not applied, per reason.
    pub skipped: IntCounterVec,
    /// Batches waiting for their shard.
    pub queue_depth: IntGauge,
}

/// Metrics of the KV index.
#[derive(Debug)]
pub struct IndexMetrics {
    /// (Block, engine) pairs.
    pub entries: IntGauge,
    /// Stores refused because it was full.
    pub refused: IntCounter,
    /// Look-ups.
    pub lookups: IntCounter,
    /// Blocks matched, at the best candidate of each look-up.
    pub hits: IntCounter,
    /// One look-up over all candidates.
    pub lookup_seconds: Histogram,
}

/// Metrics of ext-proc streams.
#[derive(Debug)]
pub struct StreamMetrics {
    /// Open streams.
    pub open: IntGauge,
    /// Streams that ended before their response could begin: the gateway hides the response from the picker.
    pub lease_blind: IntGauge,
    /// Messages that no ext-proc client should send.
    pub protocol_violations: IntGauge,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    ///
    /// # Errors
    /// Two metrics share a name or a name is malformed: a mistake in this file.
    pub fn try_new() -> Result<Self, prometheus::Error> {
        let make = Maker { registry: Registry::new() };
        Ok(Self {
            models: Mutex::default(),
            fairness_ids: Mutex::default(),
            admission: AdmissionMetrics::try_new(&make)?,
            requests: RequestMetrics::try_new(&make)?,
            pool: PoolMetrics::try_new(&make)?,
            events: EventMetrics::try_new(&make)?,
            index: IndexMetrics::try_new(&make)?,
            streams: StreamMetrics::try_new(&make)?,
            registry: make.registry,
        })
    }

    /// The page in Prometheus text format.
    ///
    /// # Errors
    /// A metric can't be encoded.
    pub fn page(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// A model name as a label value: itself, or `other` once there are too many.
    pub fn model_label<'a>(&self, model: &'a str) -> &'a str {
        bounded(&self.models, model)
    }

    /// A fairness id as a label value: itself, or `other` once there are too many.
    pub fn fairness_label<'a>(&self, fairness_id: &'a str) -> &'a str {
        bounded(&self.fairness_ids, fairness_id)
    }
}

/// `name` if it is among the first [`MODEL_LABELS`] names, else `other`.
fn bounded<'a>(names: &Mutex<HashSet<Arc<str>>>, name: &'a str) -> &'a str {
    let mut names = names.lock();
    if names.contains(name) {
        return name;
    }
    if names.len() >= MODEL_LABELS {
        return "other";
    }
    names.insert(name.into());
    name
}

impl RequestMetrics {
    /// Requests by the stages that had an endpoint of their own, over all handlers and models.
    pub fn decisions_by_type(&self) -> BTreeMap<String, u64> {
        let mut by_type = BTreeMap::new();
        for metric in self.disaggregation.collect().iter().flat_map(|family| family.get_metric()) {
            let label = metric.get_label().iter().find(|label| label.name() == "decision_type");
            if let Some(label) = label {
                *by_type.entry(label.value().to_owned()).or_default() +=
                    metric.get_counter().get_value() as u64;
            }
        }
        by_type
    }

    fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        let model = ["model_name", "target_model_name", "fairness_id", "priority"];
        Ok(Self {
            total: make.counters("llm_d_epp_request_total", "Requests.", &model)?,
            errors: make.counters(
                "llm_d_epp_request_error_total",
                "Requests refused.",
                &["model_name", "target_model_name", "fairness_id", "priority", "error_code"],
            )?,
            running: make.gauges("llm_d_epp_request_running", "Requests in flight.", &model)?,
            scheduler_seconds: make.histogram(
                "llm_d_epp_scheduler_e2e_duration_seconds",
                "Look-up, scores, pick and charge.",
                &FAST_SECONDS,
            )?,
            processing_seconds: make.histogram(
                "llm_d_epp_request_processing_duration_seconds",
                "From the complete request to the answer.",
                &[
                    0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5,
                    5.0, 10.0,
                ],
            )?,
            prompt_seconds: make.histogram(
                "warmroute_prompt_duration_seconds",
                "Parsing, tokens and block keys, with waiting for a slot.",
                &STEP_SECONDS,
            )?,
            decision_seconds: make.histogram(
                "warmroute_decision_duration_seconds",
                "From the complete request to the pick, in finer buckets.",
                &STEP_SECONDS,
            )?,
            fallbacks: make.counters(
                "warmroute_fallbacks_total",
                "Decisions that were poorer than the profile asked for.",
                &["kind"],
            )?,
            disaggregation: make.counters(
                "llm_d_epp_disagg_decision_total",
                "Requests by the stages that have an endpoint of their own.",
                &DECISION_LABELS,
            )?,
            prefill_decode: make.counters(
                "llm_d_epp_pd_decision_total",
                "The same for pd-profile-handler alone.",
                &DECISION_LABELS,
            )?,
            reloads: make.counters(
                "warmroute_config_reloads_total",
                "Changes of the configuration file.",
                &["outcome"],
            )?,
            prompt_tokens: make
                .counter("warmroute_prompt_tokens_total", "Prompt tokens of decided requests.")?,
            predicted_cached_tokens: make.counter(
                "warmroute_predicted_cached_tokens_total",
                "Prompt tokens that the picked engine is known to hold.",
            )?,
        })
    }
}

impl PoolMetrics {
    fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        Ok(Self {
            endpoints: make.gauges("llm_d_epp_ready_endpoints", "Endpoints in the pool.", &["name"])?,
            scrape_errors: make.counters(
                "llm_d_epp_datalayer_poll_errors_total",
                "Scrapes of an engine's metrics that failed.",
                &["source_type"],
            )?,
            extract_errors: make.counters(
                "llm_d_epp_datalayer_extract_errors_total",
                "Pages of an engine that lack something that is read out of them.",
                &["source_type", "extractor_type"],
            )?,
            discovery_errors: make.counters(
                "warmroute_discovery_errors_total",
                "Endpoints files refused (file) and DNS look-ups that failed (dns); the last good list stays.",
                &["cause"],
            )?,
        })
    }
}

impl EventMetrics {
    fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        Ok(Self {
            subscribers: make
                .gauge("llm_d_epp_kv_cache_events_active_subscribers", "Connected subscriptions.")?,
            batches: make.counters(
                "llm_d_epp_kv_cache_events_messages_received_total",
                "Batches of KV events received.",
                &["pod_identifier"],
            )?,
            reconnects: make.counters(
                "llm_d_epp_kv_cache_events_subscriber_reconnections_total",
                "Connections to an engine's KV events after the first.",
                &["pod_identifier"],
            )?,
            errors: make.counters(
                "llm_d_epp_kv_cache_events_zmq_errors_total",
                "Failures of a subscription.",
                &["pod_identifier", "operation"],
            )?,
            gaps: make.counters(
                "warmroute_kv_event_batches_missed_total",
                "Batches known to be missing: sequence gaps, and batches dropped here under load.",
                &["pod_identifier", "cause"],
            )?,
            skipped: make.counters(
                "warmroute_kv_events_skipped_total",
                "KV events that were not applied.",
                &["reason"],
            )?,
            queue_depth: make.gauge("llm_d_epp_kv_cache_events_pool_queue_depth", "Batches waiting.")?,
        })
    }
}

impl IndexMetrics {
    fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        Ok(Self {
            entries: make.gauge("warmroute_kv_index_entries", "Pairs of block and engine in the index.")?,
            refused: make
                .counter("warmroute_kv_index_refused_stores_total", "Stores refused: index full.")?,
            lookups: make.counter("llm_d_epp_kv_cache_index_lookup_requests_total", "Look-ups.")?,
            hits: make.counter(
                "llm_d_epp_kv_cache_index_lookup_hits_total",
                "Blocks matched at the best candidate of each look-up.",
            )?,
            lookup_seconds: make.histogram(
                "llm_d_epp_kv_cache_index_lookup_latency_seconds",
                "One look-up over all candidates.",
                &STEP_SECONDS,
            )?,
        })
    }
}

impl StreamMetrics {
    fn try_new(make: &Maker) -> Result<Self, prometheus::Error> {
        Ok(Self {
            open: make.gauge("llm_d_epp_extproc_streams_inflight", "Open ext-proc streams.")?,
            lease_blind: make.gauge(
                "warmroute_lease_blind_streams",
                "Streams that ended before their response could begin.",
            )?,
            protocol_violations: make
                .gauge("warmroute_protocol_violations", "Messages that no ext-proc client should send.")?,
        })
    }
}

struct Maker {
    registry: Registry,
}

impl Maker {
    fn keep<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.keep(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        let family = HistogramVec::new(opts, &[])?;
        self.registry.register(Box::new(family.clone()))?;
        family.get_metric_with_label_values::<&str>(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_clash_and_the_page_is_text() {
        let metrics = Metrics::try_new().unwrap();
        metrics.requests.total.with_label_values(&["m", "m", "default-flow", "0"]).inc();
        let page = metrics.page().unwrap();
        assert!(page.contains("llm_d_epp_request_total{"));
        assert!(page.contains("warmroute_decision_duration_seconds_bucket{le=\"0.0001\"} 0"));
    }

    #[test]
    fn client_made_model_names_are_bounded() {
        let metrics = Metrics::try_new().unwrap();
        for i in 0..MODEL_LABELS {
            let name = format!("model-{i}");
            assert_eq!(metrics.model_label(&name), name);
        }
        assert_eq!(metrics.model_label("one-too-many"), "other");
        assert_eq!(metrics.model_label("model-3"), "model-3");
    }
}
