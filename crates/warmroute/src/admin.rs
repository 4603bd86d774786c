//! The server on the metrics port: `/metrics`, `/status`, `/debug/decisions`, `/debug/probes`, `/healthz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::approximate_producer::ApproximateStatus;
use crate::decision::Decider;
use crate::delivered::{Diagnosis, Finding, LossReport, ModelDeliveries};
use crate::engine_events::{EventListener, ListenerStatus};
use crate::kubernetes::{KubernetesReport, KubernetesStatus};
use crate::metrics::Metrics;
use crate::metrics_auth::TokenFence;
use crate::pool::{Adapters, EndpointState, Pool, ServedModel};
use crate::preflight::ProbeDesk;
use crate::readiness::Readiness;
use crate::receipt::{Fallback, Freshness, Receipt, ReceiptRing};
use crate::reload::ReloadStatus;
use crate::replicas::{SnapshotReport, SnapshotStatus};
use crate::tls::{ServingTls, TlsListener};

/// Receipts that `/debug/decisions` lists unless `?limit=` says otherwise.
const LISTED_DECISIONS: usize = 50;

/// To whom the server shows it.
#[derive(Default)]
pub struct AdminAccess {
    /// None: plaintext.
    pub tls: Option<ServingTls>,
    /// None: nobody is asked for a token.
    pub fence: Option<Arc<TokenFence>>,
}

/// What the server shows.
#[derive(Clone)]
pub struct Admin {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The decisions.
    pub receipts: Arc<ReceiptRing>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Brings gauges that are read on demand up to date before a page is made.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    /// Whether the picker is ready.
    pub readiness: Readiness,
    /// Metrics older than this are stale.
    pub stale_after: Duration,
    /// Knows the policy in effect.
    pub decider: Arc<Decider>,
    /// What became of changes of the configuration.
    pub reloads: Arc<Mutex<ReloadStatus>>,
    /// Makes the findings.
    pub diagnosis: Arc<Diagnosis>,
    /// What takes the connections of engines that publish events, if they may connect.
    pub listener: Option<EventListener>,
    /// What came of asking siblings at the start, if there are any to ask.
    pub snapshot: Option<SnapshotStatus>,
    /// What is known of the cluster that the endpoints come from, if they come from one.
    pub kubernetes: Option<KubernetesStatus>,
    /// Where gateways are probed.
    pub probes: ProbeDesk,
}

impl Admin {
    /// Serves until `stop`; to whom `access` says.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        access: AdminAccess,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let probes = self.probes.clone().routes();
        let router = Router::new()
            .route("/metrics", get(metrics_page))
            .route("/healthz", get(health))
            .route("/status", get(status))
            .route("/debug/decisions", get(decisions))
            .route("/debug/decisions/{id}", get(decision))
            .with_state(self)
            .merge(probes);
        let AdminAccess { tls, fence } = access;
        let router = match fence {
            Some(fence) => fence.around(router),
            None => router,
        };
        let stopped = stop.cancelled_owned();
        match tls {
            Some(tls) => {
                let listener = TlsListener::new(listener, tls);
                axum::serve(listener, router).with_graceful_shutdown(stopped).await?;
            }
            None => axum::serve(listener, router).with_graceful_shutdown(stopped).await?,
        }
        Ok(())
    }
}

async fn metrics_page(State(admin): State<Admin>) -> Response {
    (admin.refresh)();
    match admin.metrics.page() {
        Ok(page) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn health(State(admin): State<Admin>) -> Response {
    if admin.readiness.is_ready() {
        "ok\n".into_response()
    } else {
        let why = admin.kubernetes.as_ref().and_then(|kubernetes| kubernetes.report().why_no_pool());
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready{why}\n")).into_response()
    }
}

/// Query of the list.
#[derive(Debug, Deserialize)]
struct ListQuery {
    limit: Option<usize>,
}

async fn decisions(State(admin): State<Admin>, Query(query): Query<ListQuery>) -> Json<Vec<Arc<Receipt>>> {
    Json(admin.receipts.newest(query.limit.unwrap_or(LISTED_DECISIONS)))
}

async fn decision(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match admin.receipts.find(&id) {
        Some(receipt) => Json(receipt).into_response(),
        None => (StatusCode::NOT_FOUND, "no such decision: it is not kept any more, or never was\n")
            .into_response(),
    }
}

/// The picker and its pool at one moment.
#[derive(Debug, Serialize)]
struct Status {
    version: &'static str,
    ready: bool,
    /// What siblings told at the start; absent if none was to be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    sibling_snapshot: Option<SnapshotReport>,
    /// Whether this replica leads; absent unless a leader is elected.
    #[serde(skip_serializing_if = "Option::is_none")]
    leads: Option<bool>,
    pool: String,
    policy: String,
    config_changes: ReloadStatus,
    decisions: u64,
    /// Decisions poorer than the policy asked for, per kind; kinds that never happened are left out.
    fallbacks: BTreeMap<&'static str, u64>,
    /// Requests by the stages that had an endpoint of their own; empty unless a handler has several stages.
    disaggregation: BTreeMap<String, u64>,
    /// Producers of prefix matches that count what is sent.
    approximate_prefixes: Vec<ApproximateStatus>,
    /// What is wrong, with the likely cause and what to do.
    findings: Vec<Finding>,
    /// Where cached tokens are lost on the way from what the workload allows to what is delivered.
    loss: LossReport,
    /// Where engines connect to publish KV events, if they may.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_event_listener: Option<ListenerStatus>,
    /// What is known of the cluster that the endpoints come from, if they come from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<KubernetesReport>,
    endpoints: Vec<EndpointStatus>,
}

/// One endpoint at that moment.
#[derive(Debug, Serialize)]
struct EndpointStatus {
    name: String,
    address: String,
    /// The data-parallel rank that is meant of those behind the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u16>,
    metrics: Freshness,
    metrics_age_ms: Option<u64>,
    waiting_requests: u32,
    running_requests: u32,
    kv_cache_utilization: f64,
    in_flight_requests: u32,
    in_flight_prompt_tokens: u64,
    /// The kind of engine that its metrics are read as.
    #[serde(skip_serializing_if = "str::is_empty")]
    engine: Arc<str>,
    /// Custom metrics.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, f64>,
    /// LoRA adapters with requests; absent if the engine tells nothing of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapters: Option<AdapterStatus>,
    /// What it says that it serves; absent unless the configuration asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<ServedModel>>,
    kv_events: crate::engine_events::EngineStatus,
    /// Predicted against delivered, per model of which a request has finished.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deliveries: Vec<DeliveryStatus>,
    /// Requests by what came of the engine's own prefix cache counters; verdicts without any are left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    counter_requests: BTreeMap<&'static str, u64>,
}

/// What an endpoint delivered of one model.
#[derive(Debug, Serialize)]
struct DeliveryStatus {
    model: String,
    /// Finished requests whose cached tokens are known.
    requests: u64,
    /// Those of which the engine didn't tell.
    unreported: u64,
    /// Those whose answers weren't seen; the engine's counters may tell of them.
    hidden: u64,
    predicted_tokens: u64,
    delivered_tokens: u64,
    /// Predicted and not delivered.
    over_tokens: u64,
    /// Delivered, and neither known nor expected.
    under_tokens: u64,
    /// Median relative error of the newest; absent if too few tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    bias: Option<f64>,
    /// Whether the engine lastingly delivers less than its events promise, so that matches count less.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    breaks_promises: bool,
}

impl DeliveryStatus {
    fn of(model: &str, deliveries: &ModelDeliveries) -> Self {
        let totals = &deliveries.totals;
        Self {
            model: model.to_owned(),
            requests: totals.requests,
            unreported: totals.unreported,
            hidden: totals.hidden,
            predicted_tokens: totals.predicted_tokens,
            delivered_tokens: totals.delivered_tokens,
            over_tokens: totals.over_tokens,
            under_tokens: totals.under_tokens,
            bias: deliveries.window().bias(),
            breaks_promises: deliveries.breaks_promises(),
        }
    }
}

/// LoRA adapters with requests in an engine.
#[derive(Debug, Serialize)]
struct AdapterStatus {
    running: Vec<String>,
    waiting: Vec<String>,
    max: u32,
}

impl AdapterStatus {
    fn of(adapters: &Adapters) -> Self {
        let names = |names: &[Box<str>]| names.iter().map(ToString::to_string).collect();
        Self { running: names(&adapters.running), waiting: names(&adapters.waiting), max: adapters.max }
    }
}

async fn status(State(admin): State<Admin>) -> Json<Status> {
    (admin.refresh)();
    let now = Instant::now();
    let snapshot = admin.pool.snapshot();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        ready: admin.readiness.is_ready(),
        sibling_snapshot: admin.snapshot.as_ref().map(SnapshotStatus::report),
        leads: admin.readiness.leadership(),
        pool: admin.pool.name.clone(),
        policy: admin.decider.policy().summary.clone(),
        config_changes: admin.reloads.lock().clone(),
        decisions: admin.receipts.decided(),
        fallbacks: fallbacks(&admin.metrics),
        disaggregation: admin.metrics.requests.decisions_by_type(),
        approximate_prefixes: admin.decider.approximate_status(),
        findings: admin.diagnosis.refresh(),
        loss: admin.pool.loss.report(now),
        kubernetes: admin.kubernetes.as_ref().map(KubernetesStatus::report),
        kv_event_listener: admin.listener.as_ref().map(EventListener::status),
        endpoints: snapshot
            .states
            .iter()
            .map(|state| endpoint_status(state, now, admin.stale_after))
            .collect(),
    })
}

fn fallbacks(metrics: &Metrics) -> BTreeMap<&'static str, u64> {
    let count = |kind: &Fallback| metrics.requests.fallbacks.with_label_values(&[kind.as_str()]).get();
    Fallback::ALL.iter().map(|kind| (kind.as_str(), count(kind))).filter(|(_, count)| *count > 0).collect()
}

fn endpoint_status(state: &EndpointState, now: Instant, stale_after: Duration) -> EndpointStatus {
    let scrape = state.last_scrape();
    let scrape = scrape.as_deref();
    let metrics = scrape.map(|scrape| scrape.metrics).unwrap_or_default();
    let attributes =
        scrape.into_iter().flat_map(|scrape| scrape.attribute_keys.iter().zip(&scrape.attributes));
    let in_flight = state.load.in_flight();
    EndpointStatus {
        name: state.endpoint.name.to_string(),
        address: state.endpoint.address.to_string(),
        rank: state.spec.ranks.sharing(),
        metrics: Freshness::of(&state.metrics_state(now, stale_after)),
        metrics_age_ms: scrape.map(|scrape| now.saturating_duration_since(scrape.at).as_millis() as u64),
        waiting_requests: metrics.waiting_requests,
        running_requests: metrics.running_requests,
        kv_cache_utilization: metrics.kv_cache_utilization,
        in_flight_requests: in_flight.requests,
        in_flight_prompt_tokens: in_flight.prompt_tokens,
        engine: scrape.map(|scrape| scrape.engine.clone()).unwrap_or_default(),
        attributes: attributes.filter_map(|(key, value)| Some((key.clone(), (*value)?))).collect(),
        adapters: scrape.and_then(|scrape| scrape.adapters.as_deref()).map(AdapterStatus::of),
        models: state.models().map(|models| models.models.to_vec()),
        kv_events: state.engine.status(state.block_size_tokens()),
        deliveries: state
            .deliveries
            .models()
            .iter()
            .map(|(model, deliveries)| DeliveryStatus::of(model, deliveries))
            .collect(),
        counter_requests: state
            .deliveries
            .counter_verdicts()
            .into_iter()
            .filter(|(_, requests)| *requests > 0)
            .map(|(verdict, requests)| (verdict.as_str(), requests))
            .collect(),
    }
}
