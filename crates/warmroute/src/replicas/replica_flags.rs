use std::time::Duration;

use clap::Args;

use crate::cli::duration;

/// Flags of a picker that isn't alone.
#[derive(Clone, Debug, Args)]
pub struct ReplicaFlags {
    /// Elect a leader among the replicas by a Lease: health checks then find the leader ready and nobody else. Not
    /// needed for more than one replica: all of them can serve.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub ha_enable_leader_election: bool,
    /// Port on which replicas that start get what this one knows of the engines' caches; gRPC, plaintext. 0 turns it
    /// off.
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub replica_port: u16,
    /// Replicas to ask at the start for what they know of the engines' caches, separated by commas; of a DNS name, every
    /// address behind it.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,…")]
    pub replica_peers: Vec<String>,
    /// Longest time that readiness waits for what other replicas know. Engines of which nothing has come by then are
    /// replayed.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub replica_snapshot_timeout: Duration,
}
