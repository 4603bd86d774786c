//! The election of a leader, for those who ask for it.

use anyhow::Context;
use kube::Api;

use super::Parts;
use crate::cli::ServeOptions;
use crate::replicas::{Candidate, Election, ElectionTimings, lease_name};

/// This replica's part in the election, if there is one: its lease is the pool's, in the pool's namespace.
///
/// # Errors
/// No API server is known.
pub(super) fn election(options: &ServeOptions, parts: &Parts) -> anyhow::Result<Option<Election>> {
    if !options.replicas.ha_enable_leader_election {
        return Ok(None);
    }
    let client = parts.cluster.kube.clone().context("a Lease needs a Kubernetes API server")?;
    let namespace = parts.cluster.namespace(options);
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let pod = given("POD_NAME").or_else(|| given("HOSTNAME")).unwrap_or_else(|| "warmroute".to_owned());
    // A pod that starts again under its old name is another candidate.
    let identity = format!("{pod}_{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let name = lease_name(&namespace, &parts.pool.name);
    let timings = ElectionTimings::default();
    let candidate = Candidate::new(Api::namespaced(client, &namespace), name, identity, timings);
    let metrics = parts.metrics.replicas.clone();
    Ok(Some(Election::new(candidate, timings, parts.readiness.clone(), metrics)))
}
