use clap::Args;

/// Flags of a picker that isn't alone.
#[derive(Clone, Debug, Args)]
pub struct ReplicaFlags {
    /// Elect a leader among the replicas by a Lease: health checks then find the leader ready and nobody else. Not
    /// needed for more than one replica: all of them can serve.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub ha_enable_leader_election: bool,
}
