//! Replicas of one picker: every one serves and keeps its own view of the engines.
//!
//! Nothing here is on the path of a request. A replica that starts takes over what a sibling knows of the engines'
//! caches ([`WarmStart`]) and goes on by itself; without siblings engines are replayed. An election is held only for
//! those who ask for it: the leader alone is then told apart in health checks, and every replica goes on answering who
//! asks it.

mod candidate;
mod election;
mod lease_name;
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    clippy::allow_attributes_without_reason,
    reason = "made of proto/warmroute/replica/v1/snapshot.proto: see `make proto`"
)]
#[rustfmt::skip]
mod pb;
mod replica_flags;
mod snapshot_client;
mod snapshot_parts;
mod snapshot_server;
mod warm_start;

pub use candidate::{Candidate, ElectionError, ElectionTimings, Standing};
pub use election::Election;
pub use lease_name::lease_name;
pub use replica_flags::ReplicaFlags;
pub use snapshot_client::{FetchError, Fetched, SnapshotClient};
pub use snapshot_parts::{BadPart, FORMAT, MOST_ENGINES, PIECE_BYTES};
pub use snapshot_server::SnapshotServer;
pub use warm_start::{SnapshotFrom, SnapshotReport, SnapshotStatus, WarmStart};

#[cfg(test)]
mod snapshot_tests;
