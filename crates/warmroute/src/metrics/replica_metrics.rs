use prometheus::{Error, IntCounter, IntGaugeVec};

use super::maker::Maker;

/// Metrics of the replicas of one picker.
#[derive(Debug)]
pub struct ReplicaMetrics {
    leads: IntGaugeVec,
    /// Attempts to hold the lease that came to nothing.
    pub election_errors: IntCounter,
}

impl ReplicaMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            leads: make.gauges(
                "leader_election_master_status",
                "1 if this replica holds the lease, 0 if not; absent unless a leader is elected.",
                &["name"],
            )?,
            election_errors: make.counter(
                "warmroute_leader_election_errors_total",
                "Attempts to take or renew the lease that came to nothing.",
            )?,
        })
    }

    /// Shows whether this replica holds a lease.
    pub fn leads(&self, lease: &str, leads: bool) {
        self.leads.with_label_values(&[lease]).set(i64::from(leads));
    }
}
