//! The picker's side: where probes are registered and read, on the metrics port.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use warmroute_ext_proc::{ProbeOrder, Probes};

/// How the ext-proc port is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtProcTls {
    /// Without TLS.
    Plaintext,
    /// With a certificate that the picker made for itself at its start, which nobody can verify.
    SelfSigned,
    /// With a certificate from files.
    Certificate,
}

/// What a picker says of itself to somebody who examines a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PickerFacts {
    /// Its version.
    pub version: String,
    /// Tells processes behind one address apart.
    pub instance: String,
    /// How its ext-proc port is served.
    pub tls: ExtProcTls,
    /// Whether it lets in only who shows a certificate of an authority that it knows.
    pub asks_for_certificates: bool,
    /// Largest request body that it takes.
    pub max_request_body_bytes: usize,
    /// Longest time that it takes for a prompt's tokens, in milliseconds.
    pub tokenize_deadline_ms: u64,
    /// Addresses of the endpoints in its pool.
    pub endpoints: Vec<String>,
    /// Ext-proc streams opened since its start.
    pub streams: u64,
}

/// Registers probes and shows what was seen of them.
#[derive(Clone)]
pub struct ProbeDesk {
    probes: Arc<Probes>,
    facts: Arc<dyn Fn() -> PickerFacts + Send + Sync>,
}

/// The answer to a registration.
#[derive(Debug, Serialize, Deserialize)]
pub struct RegisteredProbe {
    /// What the request's header has to name.
    pub nonce: String,
    /// How long it counts, in milliseconds.
    pub expires_in_ms: u64,
}

impl ProbeDesk {
    /// A desk for the probes of one ext-proc service.
    pub fn new(probes: Arc<Probes>, facts: Arc<dyn Fn() -> PickerFacts + Send + Sync>) -> Self {
        Self { probes, facts }
    }

    /// `GET /debug/probes`: the picker's facts. `POST /debug/probes` with an order (`{"answer": "pick", "delay_ms": 0}`):
    /// registers one. `GET /debug/probes/{nonce}`: what was seen. Nonces are never listed.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/debug/probes", post(register).get(facts))
            .route("/debug/probes/{nonce}", get(record))
            .with_state(self)
    }
}

async fn facts(State(desk): State<ProbeDesk>) -> Json<PickerFacts> {
    Json((desk.facts)())
}

async fn register(State(desk): State<ProbeDesk>, Json(order): Json<ProbeOrder>) -> Response {
    match desk.probes.register(order) {
        Ok(nonce) => {
            let expires_in_ms = Probes::LIFETIME.as_millis() as u64;
            (StatusCode::CREATED, Json(RegisteredProbe { nonce, expires_in_ms })).into_response()
        }
        Err(refused) => (StatusCode::TOO_MANY_REQUESTS, format!("{refused}\n")).into_response(),
    }
}

async fn record(State(desk): State<ProbeDesk>, Path(nonce): Path<String>) -> Response {
    match desk.probes.record(&nonce) {
        Some(record) => Json(record).into_response(),
        None => {
            (StatusCode::NOT_FOUND, "no such probe: it has expired, or is another picker's\n").into_response()
        }
    }
}
