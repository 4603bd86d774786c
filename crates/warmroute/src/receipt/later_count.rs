use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A number that is known only when the request is over, when the receipt is shared already. It is set once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<u32>", into = "Option<u32>")]
pub struct LaterCount(OnceLock<u32>);

impl LaterCount {
    /// The number, if it is known.
    pub fn get(&self) -> Option<u32> {
        self.0.get().copied()
    }

    /// Sets it; the first one stays.
    pub fn set(&self, count: u32) {
        let _ = self.0.set(count);
    }

    pub(super) fn is_absent(&self) -> bool {
        self.get().is_none()
    }
}

impl From<Option<u32>> for LaterCount {
    fn from(count: Option<u32>) -> Self {
        Self(count.map_or_else(OnceLock::new, OnceLock::from))
    }
}

impl From<LaterCount> for Option<u32> {
    fn from(count: LaterCount) -> Self {
        count.get()
    }
}
