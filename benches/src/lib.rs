//! Benches of each hot step of a request's path, and comparisons with bare baselines.
//!
//! `warmroute-bench` runs them all; `benches/README.md` says what each one compares and how to read it. One module per
//! step is in [`steps`]; the rest is what they share: [`cpu`] reads CPU time, [`timing`] repeats and pairs measurements,
//! [`report`] collects figures, [`gateway`] and [`server`] are the two ends of an ext-proc connection, [`publisher`] and
//! [`wire`] stand in for engines that publish KV events.

pub mod corpus;
pub mod cpu;
pub mod gateway;
pub mod publisher;
pub mod report;
pub mod server;
pub mod steps;
pub mod timing;
pub mod wire;
