use std::time::Duration;

use prometheus::{Error, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::maker::Maker;

/// Metrics of the replicas of one picker.
#[derive(Debug)]
pub struct ReplicaMetrics {
    leads: IntGaugeVec,
    /// Attempts to hold the lease that came to nothing.
    pub election_errors: IntCounter,
    /// Siblings asked for what they know, by outcome.
    pub snapshots: IntCounterVec,
    /// Engines of which a sibling told something, by outcome.
    pub snapshot_engines: IntCounterVec,
    /// Siblings told what is known, by outcome.
    pub snapshots_served: IntCounterVec,
    snapshot_entries: IntGauge,
    snapshot_seconds: Gauge,
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
            snapshots: make.counters(
                "warmroute_replica_snapshots_total",
                "Siblings asked at the start for what they know of the engines.",
                &["outcome"],
            )?,
            snapshot_engines: make.counters(
                "warmroute_replica_snapshot_engines_total",
                "Engines of which a sibling told what it knows.",
                &["outcome"],
            )?,
            snapshots_served: make.counters(
                "warmroute_replica_snapshots_served_total",
                "Siblings told what is known of the engines.",
                &["outcome"],
            )?,
            snapshot_entries: make.gauge(
                "warmroute_replica_snapshot_entries",
                "Entries of the index that were taken over from siblings at the start.",
            )?,
            snapshot_seconds: make.float_gauge(
                "warmroute_replica_snapshot_seconds",
                "How long the start took beside siblings.",
            )?,
        })
    }

    /// Shows what was taken over at the start.
    pub fn snapshot_taken(&self, entries: u64, took: Duration) {
        self.snapshot_entries.set(entries as i64);
        self.snapshot_seconds.set(took.as_secs_f64());
    }

    /// Shows whether this replica holds a lease.
    pub fn leads(&self, lease: &str, leads: bool) {
        self.leads.with_label_values(&[lease]).set(i64::from(leads));
    }
}
