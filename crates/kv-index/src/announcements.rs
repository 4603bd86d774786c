use smallvec::SmallVec;
use warmroute_kv_events::{BlocksStored, EngineHash};

/// What a batch as a whole says of its stores that have no parent.
#[derive(Default)]
pub(crate) struct Announcements {
    /// First blocks of stores of the main group that it held before.
    pub(crate) again: SmallVec<[u64; 2]>,
    /// Last blocks of stores of other groups that name some of their blocks only, as no announcement of a prefix does.
    pub(crate) new: SmallVec<[u64; 2]>,
}

impl Announcements {
    /// Whether a store may announce a prefix that is cached already, so that blocks of it that are held are no further
    /// copies.
    ///
    /// With `kv_cache_report_mode=full` (vLLM from 0.26 on) a request makes the engine announce the cached prefix that it
    /// hit, as one store without a parent. Copies come otherwise: two requests decode the same block, or compute the last
    /// block of a prompt that it fills exactly; what comes before it is hit and not stored. So a store without a parent has a
    /// copy only if it is of one block, and of an engine that is known to announce prefixes again, not even then: taken for
    /// a copy, a block would be claimed after it is gone.
    ///
    /// With several groups a prefix that one holds isn't hit if another lacks what it needs, and is stored again as copies;
    /// the other group then names only the blocks that it keeps.
    pub(crate) fn may_be_announced_again(&self, stored: &BlocksStored) -> bool {
        let is_first = stored.parent.is_none_or(|parent| parent == EngineHash::from_u64(0));
        let is_new = |last: &EngineHash| self.new.contains(&last.low_u64());
        is_first && !stored.hashes.last().is_some_and(is_new)
    }
}
