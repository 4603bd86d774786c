//! End to end: real Envoy with the recipes of `deploy/envoy`, the picker as a process, real sockets; only the engines'
//! GPUs are simulated. Needs what `make setup` fetches.
//!
//! Each test starts what it needs on free loopback ports, waits for events rather than for time to pass, and ends when
//! its processes have. Logs are left in `target/tmp/e2e`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

#[macro_use]
mod fixture;

mod bodies;
mod bursts;
mod centralised;
mod client_headers;
mod conformance;
mod disaggregation;
mod engine_views;
mod faults;
mod findings;
mod golden;
mod golden_ranks;
mod headers;
mod health;
mod metrics_port;
mod prefix_routing;
mod preflight;
mod ranks;
mod refusals;
mod relearning;
mod reload;
mod rolling;
mod sglang;
mod shutdown;
mod sibling_snapshot;
mod streaming;
mod tiers;
mod tls;
mod unreachable;
