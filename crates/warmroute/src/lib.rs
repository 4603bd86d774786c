//! Warmroute: an Envoy ext-proc endpoint picker for LLM inference.
//!
//! This crate is the composition root: it does all IO and puts the pure crates together. To run the picker with plugins
//! of your own, depend on it and write a main of three lines:
//!
//! ```no_run
//! fn register(_registry: &mut warmroute_plugin::Registry) -> Result<(), warmroute_plugin::DuplicateType> {
//!     Ok(()) // registry.scorer("acme-zone-scorer", "Prefers the request's zone.", ZoneScorer::build)
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     warmroute::Warmroute::new().plugin(register).main()
//! }
//! ```
//!
//! The path of a request, module by module: [`grpc`] accepts Envoy's stream and `warmroute-ext-proc` turns its messages
//! into one request; [`picker`] reads top-down what happens then: [`prompt`] makes tokens and block keys, [`decision`]
//! looks them up, scores, picks and charges in one step, the [`lease`] is dropped when the stream ends. The write side
//! is apart: [`discovery`] writes the [`pool`], [`scrape`] publishes metrics, [`engine_events`] fills the index.

pub mod admin;
pub mod admin_client;
pub mod app;
pub mod approximate_producer;
pub mod attributes;
pub mod check;
pub mod cli;
pub mod control_headers;
pub mod dataflow;
pub mod decision;
pub mod delivered;
pub mod discovery;
pub mod doctor;
pub mod effective_config;
pub mod engine_events;
pub mod explain;
pub mod grpc;
mod handler;
pub mod health;
pub mod kubernetes;
pub mod lease;
pub mod metrics;
pub mod metrics_auth;
pub mod model_rewrites;
pub mod objectives;
pub mod open_event_ports;
pub mod peer_flags;
pub mod picker;
pub mod plugin_list;
pub mod plugin_names;
pub mod policy;
pub mod pool;
pub mod prefix_plan;
pub mod preflight;
pub mod profile;
pub mod prompt;
pub mod readiness;
pub mod receipt;
pub mod reload;
pub mod replicas;
pub mod response_watch;
pub mod scrape;
pub mod serve;
pub mod session_ids;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use app::Warmroute;
