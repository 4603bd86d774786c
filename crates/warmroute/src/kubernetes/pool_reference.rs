//! References from objectives and rewrites to their pool.

use serde::Deserialize;

use super::{POOL_GROUP, PoolMembers, PoolSource};

/// `spec.poolRef` (`apix/v1alpha2` in github.com/llm-d/llm-d-router). Its kind isn't looked at, as there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct PoolReference {
    name: String,
    #[serde(default)]
    group: Option<String>,
}

impl PoolReference {
    /// Whether this pool is meant: both name and group must be its own.
    pub(super) fn means(&self, pool: &PoolSource) -> bool {
        let group = self.group.as_deref().filter(|group| !group.is_empty()).unwrap_or(POOL_GROUP);
        let PoolMembers::InferencePool { group: own } = &pool.members else { return false };
        self.name == pool.name && group == own
    }
}
