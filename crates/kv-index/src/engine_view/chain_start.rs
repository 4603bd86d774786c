use warmroute_kv_events::{BlocksStored, EngineHash};

use super::EngineView;
use crate::BlockKey;
use crate::block_extras::seed_of;
use crate::engine_layer::HeldBlock;
use crate::runs::Place;

/// Where a store goes on.
pub(super) struct ChainStart {
    /// The key of the block before the first one, or what stands in for it.
    pub(super) key: BlockKey,
    /// Where that block is.
    pub(super) place: Option<Place>,
    /// Where among the first block's extra keys the cache salt is, which the seed holds already.
    pub(super) salt_position: Option<usize>,
}

impl EngineView {
    fn held_block(&self, name: u64) -> Option<HeldBlock> {
        let in_further = || self.further.iter().find_map(|further| further.layer.held_block(name));
        self.main.held_block(name).or_else(in_further)
    }

    /// What the first block's key goes on from; `None` if the parent isn't known.
    pub(super) fn chain_start(&self, stored: &BlocksStored) -> Option<ChainStart> {
        if let Some(parent) = stored.parent {
            if let Some(HeldBlock { place, key, .. }) = self.held_block(parent.low_u64()) {
                return Some(ChainStart { key, place: Some(place), salt_position: None });
            }
            // Some emitters write 0 for none.
            if parent != EngineHash::from_u64(0) {
                return None;
            }
        }
        let (key, salt_position) = seed_of(stored);
        Some(ChainStart { key, place: None, salt_position })
    }
}
