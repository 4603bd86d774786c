//! The picker's own Prometheus metrics.
//!
//! Names that begin with `llm_d_epp_` are the llm-d Router EPP's, with its labels and buckets, so that its dashboards
//! work. Names that begin with `warmroute_` have no counterpart there; `leader_election_master_status` is client-go's. `docs/operations.md` lists them all.

mod admission_metrics;
mod bounded_names;
mod buckets;
mod delivery_collector;
mod deprecated_names;
mod event_metrics;
mod index_metrics;
mod kubernetes_metrics;
mod loss_collector;
mod maker;
mod pool_collector;
mod pool_metrics;
mod process_collector;
mod replica_metrics;
mod request_metrics;
mod rewrite_metrics;
mod scheduling_metrics;
mod stream_metrics;
mod tls_metrics;

use std::sync::Arc;

use prometheus::{Error, IntCounterVec, IntGaugeVec, Registry, TextEncoder};

pub use admission_metrics::AdmissionMetrics;
pub use event_metrics::EventMetrics;
pub use index_metrics::IndexMetrics;
pub use kubernetes_metrics::KubernetesMetrics;
pub(crate) use pool_collector::namespace_and_name;
pub use pool_metrics::PoolMetrics;
pub use replica_metrics::ReplicaMetrics;
pub use request_metrics::{DEFAULT_FAIRNESS_ID, RequestFigure, RequestMetrics, RequestSeries};
pub use rewrite_metrics::RewriteMetrics;
pub use scheduling_metrics::{
    EndpointLabels, ExtensionPoint, PluginLabels, PrefixPrediction, SchedulingMetrics,
};
pub use stream_metrics::StreamMetrics;
pub use tls_metrics::TlsMetrics;

use crate::pool::Pool;
use delivery_collector::DeliveryCollector;
use loss_collector::LossCollector;
use maker::Maker;
use pool_collector::PoolCollector;
use process_collector::ProcessCollector;

/// All metrics of one picker. Nothing is global: a process may hold several.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    names: Vec<&'static str>,
    options: MetricsOptions,
    /// Of requests.
    pub requests: RequestMetrics,
    /// Of admission.
    pub admission: AdmissionMetrics,
    /// Of rules that ask for another model.
    pub rewrites: RewriteMetrics,
    /// Of scheduling.
    pub scheduling: SchedulingMetrics,
    /// Of the pool and its scraping.
    pub pool: PoolMetrics,
    /// Of what is read from a cluster.
    pub kubernetes: KubernetesMetrics,
    /// Of the engines' KV events.
    pub events: EventMetrics,
    /// Of the KV index.
    pub index: IndexMetrics,
    /// Of the replicas.
    pub replicas: Arc<ReplicaMetrics>,
    /// Of ext-proc streams.
    pub streams: StreamMetrics,
    /// Of TLS.
    pub tls: TlsMetrics,
    /// Requests to the metrics port, by what the fence around it said.
    pub metrics_port_requests: IntCounterVec,
    /// Findings, per cause.
    pub findings: IntGaugeVec,
    /// Requests that asked an engine to announce again what they hit, per endpoint.
    pub reports_asked: IntCounterVec,
}

/// What is shown beyond what is always shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsOptions {
    /// Also the names that the llm-d Router EPP deprecates.
    pub deprecated: bool,
    /// Also the EPP's metrics of ext-proc streams.
    pub ext_proc_streams: bool,
}

impl Metrics {
    /// Registers everything that is always shown in a registry of its own.
    ///
    /// # Errors
    /// Two metrics share a name or a name is malformed: a mistake in this module.
    pub fn try_new() -> Result<Self, Error> {
        Self::try_with(MetricsOptions::default())
    }

    /// The same with what the options ask for.
    ///
    /// # Errors
    /// Two metrics share a name or a name is malformed: a mistake in this module.
    pub fn try_with(options: MetricsOptions) -> Result<Self, Error> {
        let make = Maker::new();
        let build = [
            ("commit", option_env!("WARMROUTE_COMMIT").unwrap_or("unknown")),
            ("build_ref", env!("CARGO_PKG_VERSION")),
        ];
        make.info("llm_d_epp_info", "This build.", &build)?;
        make.registry.register(Box::new(ProcessCollector::try_new()?))?;
        Ok(Self {
            options,
            requests: RequestMetrics::try_new(&make)?,
            admission: AdmissionMetrics::try_new(&make)?,
            rewrites: RewriteMetrics::try_new(&make)?,
            scheduling: SchedulingMetrics::try_new(&make)?,
            pool: PoolMetrics::try_new(&make)?,
            kubernetes: KubernetesMetrics::try_new(&make)?,
            events: EventMetrics::try_new(&make)?,
            index: IndexMetrics::try_new(&make)?,
            replicas: Arc::new(ReplicaMetrics::try_new(&make)?),
            streams: StreamMetrics::try_new(&make, options.ext_proc_streams)?,
            tls: TlsMetrics::try_new(&make)?,
            metrics_port_requests: make.counters(
                "warmroute_metrics_auth_requests_total",
                "Requests to the metrics port, by what became of their tokens.",
                &["outcome"],
            )?,
            findings: make.gauges(
                "warmroute_findings",
                "Likely causes of lasting differences between predicted and delivered, each once per model.",
                &["cause"],
            )?,
            reports_asked: make.counters(
                "warmroute_kv_reports_asked_total",
                "Requests that asked the engine to announce again what they hit in its cache.",
                &["pod_identifier"],
            )?,
            registry: make.registry,
            names: make.names.into_inner(),
        })
    }

    /// Shows the endpoints of a pool from now on; to be called once.
    ///
    /// # Errors
    /// A pool is shown already.
    pub fn show_pool(&self, pool: &Arc<Pool>) -> Result<(), Error> {
        self.registry.register(Box::new(DeliveryCollector::try_new(pool.clone())?))?;
        self.registry.register(Box::new(LossCollector::try_new(pool.clone())?))?;
        self.registry.register(Box::new(PoolCollector::try_new(pool.clone())?))
    }

    /// The names of all metrics, also of those that the page leaves out until they have a value.
    pub fn names(&self) -> Vec<&'static str> {
        let own = self.names.iter().copied();
        own.chain(pool_collector::NAMES)
            .chain(delivery_collector::names())
            .chain(loss_collector::NAMES)
            .chain(process_collector::names())
            .collect()
    }

    /// The page in Prometheus text format.
    ///
    /// # Errors
    /// A metric can't be encoded.
    pub fn page(&self) -> Result<String, Error> {
        let mut families = self.registry.gather();
        if self.options.deprecated {
            families.extend(deprecated_names::twins_of(&families));
        }
        TextEncoder::new().encode_to_string(&families)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_clash_and_the_page_is_text() {
        let metrics = Metrics::try_new().unwrap();
        metrics.requests.series("m", "m", DEFAULT_FAIRNESS_ID, 0).total.inc();
        let page = metrics.page().unwrap();
        assert!(
            page.contains("llm_d_epp_request_total{fairness_id=\"default-flow\",model_name=\"m\""),
            "{page}"
        );
        assert!(page.contains("warmroute_decision_duration_seconds_bucket{le=\"0.0001\"} 0"));
        assert!(page.contains("# HELP llm_d_epp_request_total [ALPHA] "));
        assert!(page.contains("# HELP warmroute_decision_duration_seconds From "));
        assert!(page.contains("llm_d_epp_info{build_ref="));
    }

    #[test]
    fn metrics_of_streams_have_to_be_asked_for() {
        let show = |ext_proc_streams| {
            let metrics =
                Metrics::try_with(MetricsOptions { ext_proc_streams, ..MetricsOptions::default() }).unwrap();
            metrics.streams.set_open(3);
            metrics.streams.ended(std::time::Duration::from_secs(2), "OK");
            metrics.page().unwrap()
        };
        assert!(show(true).contains("llm_d_epp_extproc_streams_inflight 3"));
        assert!(show(true).contains("llm_d_epp_extproc_streams_total{code=\"OK\"} 1"));
        assert!(!show(false).contains("extproc"));
    }
}
