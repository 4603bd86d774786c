//! What is applied to a cluster: the manifests in `deploy/kubernetes`, and with the feature `helm` what the chart renders
//! (`make charts`). Every flag is taken by the picker's own parser, every configuration by `warmroute check`, every
//! Envoy by Envoy; pods, rights and ports are held against rules. Needs what `make setup` fetches.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod chart_readme;
mod configurations;
mod deployed;
mod engine_examples;
mod envoys;
mod live;
mod network;
mod objects;
mod picker_args;
mod pods;
mod rights;
mod wiring;

#[cfg(feature = "helm")]
mod chart;
#[cfg(feature = "helm")]
mod refused_values;
#[cfg(feature = "helm")]
mod rendered;

use objects::Objects;

/// Everything that holds of any set of objects that has a picker in it. `what` names it where something doesn't hold.
fn holds(what: &str, objects: &Objects) {
    pods::are_confined(what, objects);
    pods::are_probed_and_stop_in_time(what, objects);
    picker_args::are_taken(what, objects);
    configurations::are_taken(what, objects);
    envoys::are_taken(what, objects);
    rights::are_as_few_as_needed(what, objects);
    wiring::leads_somewhere(what, objects);
    network::is_closed_to_strangers(what, objects);
}
