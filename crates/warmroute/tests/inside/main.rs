//! The picker from inside: decisions, leases and subscriptions, without Envoy.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation is the failure of a test")]

mod approximate;
mod centralised;
mod certificates;
mod commands;
mod compatibility;
mod counters;
mod delivered;
mod docs;
mod engines;
mod expectations;
mod expressions;
mod fake_api;
mod fixture;
mod kubernetes;
mod leases;
mod metrics_auth;
mod metrics_page;
mod overload;
mod parsing;
mod picking;
mod ranks;
mod relearning;
mod reload;
mod rendering;
mod repository;
mod sessions;
mod stages;
mod subscription;
mod tls;
mod traces;
mod trust;
