//! Replicas of one picker: every one serves and keeps its own view of the engines.
//!
//! Nothing here is on the path of a request. An election is held only for those who ask for it: the
//! leader alone is then told apart in health checks, and every replica goes on answering who asks it.

mod candidate;
mod election;
mod lease_name;
mod replica_flags;

pub use candidate::{Candidate, ElectionError, ElectionTimings, Standing};
pub use election::Election;
pub use lease_name::lease_name;
pub use replica_flags::ReplicaFlags;
