//! Blocks in the host's memory, least recently used first out.

use std::collections::{BTreeMap, HashMap};

use crate::block_hash::BlockHash;
use crate::block_pool::CacheEvent;

/// Copies of blocks in the host's memory, as vLLM's `OffloadingConnector` keeps them: every block that is cached in GPU
/// memory is copied at once, the block that wasn't used for longest makes room, and a reset of the prefix cache leaves
/// them alone (`vllm/v1/kv_offload/cpu/manager.py`).
#[derive(Debug)]
pub(crate) struct HostCache {
    capacity_blocks: usize,
    /// When each was last used.
    used_at: HashMap<BlockHash, u64>,
    by_use: BTreeMap<u64, BlockHash>,
    uses: u64,
    events: Vec<CacheEvent>,
}

impl HostCache {
    /// An empty one with room for so many blocks.
    pub(crate) fn new(capacity_blocks: u32) -> Self {
        Self {
            capacity_blocks: capacity_blocks as usize,
            used_at: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            events: Vec::new(),
        }
    }

    pub(crate) fn holds(&self, hash: &BlockHash) -> bool {
        self.used_at.contains_key(hash)
    }

    /// Blocks held.
    pub(crate) fn len(&self) -> usize {
        self.used_at.len()
    }

    /// Copies blocks that aren't there yet; all of them count as used now, the first of them last.
    pub(crate) fn store(&mut self, hashes: &[BlockHash]) {
        for hash in hashes.iter().rev() {
            if self.capacity_blocks == 0 {
                return;
            }
            if !self.use_now(hash) {
                if self.len() == self.capacity_blocks
                    && let Some((_, oldest)) = self.by_use.pop_first()
                {
                    self.used_at.remove(&oldest);
                    self.events.push(CacheEvent::HostRemoved { hash: oldest });
                }
                self.uses += 1;
                self.used_at.insert(*hash, self.uses);
                self.by_use.insert(self.uses, *hash);
                self.events.push(CacheEvent::HostStored { hash: *hash });
            }
        }
    }

    /// False if the block isn't there.
    fn use_now(&mut self, hash: &BlockHash) -> bool {
        let Some(used_at) = self.used_at.get_mut(hash) else { return false };
        self.by_use.remove(used_at);
        self.uses += 1;
        *used_at = self.uses;
        self.by_use.insert(self.uses, *hash);
        true
    }

    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::HostCache;
    use crate::block_hash::BlockHash;
    use crate::block_pool::CacheEvent;

    #[test]
    fn the_block_that_was_not_used_for_longest_makes_room() {
        let hash = |number: u8| BlockHash([number; 32]);
        let mut cache = HostCache::new(2);
        cache.store(&[hash(1)]);
        cache.store(&[hash(2)]);
        cache.store(&[hash(1)]);
        cache.store(&[hash(3)]);
        let stored = |number| CacheEvent::HostStored { hash: hash(number) };
        let removed = CacheEvent::HostRemoved { hash: hash(2) };
        assert_eq!(cache.take_events(), [stored(1), stored(2), removed, stored(3)]);
        assert!(cache.holds(&hash(1)) && !cache.holds(&hash(2)) && cache.len() == 2);
        let mut none = HostCache::new(0);
        none.store(&[hash(1)]);
        assert_eq!(none.take_events(), []);
    }
}
