//! The physical KV blocks: who holds them, which are free, which are cached under which hash.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::block_hash::BlockHash;

/// Number of a physical block. Block 0 is the null block: it exists, but is never handed out.
pub type BlockId = u32;

const NO_BLOCK: BlockId = BlockId::MAX;

/// A change of what the engine has cached, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Consecutive full blocks of one request became cached.
    Stored {
        /// Their hashes, first block first.
        hashes: Vec<BlockHash>,
        /// The hash of the block before the first one; `None` at the start of a request.
        parent: Option<BlockHash>,
        /// The tokens of all these blocks.
        token_ids: Vec<u32>,
        /// The salt of the request, if it is salted and the first of these blocks is the request's first.
        cache_salt: Option<Arc<str>>,
    },
    /// One physical copy of a cached block was given to somebody else. Other copies may remain.
    Removed {
        /// The hash it was cached under.
        hash: BlockHash,
    },
    /// Nothing is cached in GPU memory any more.
    Cleared,
    /// A block was copied to the host's memory.
    HostStored {
        /// The hash it is cached under.
        hash: BlockHash,
    },
    /// A block left the host's memory.
    HostRemoved {
        /// The hash it was cached under.
        hash: BlockHash,
    },
}

#[derive(Clone, Copy)]
struct Block {
    holders: u32,
    hash: Option<BlockHash>,
    // Neighbours in the free queue; meaningless while the block is held.
    previous: BlockId,
    next: BlockId,
}

/// A fixed number of blocks, a free queue in eviction order (least recently freed first), and a map from hash
/// to the physical blocks that hold it. The same hash may be held by several blocks; a lookup finds the copy
/// that was cached first.
///
/// The rules are those of vLLM's `vllm/v1/core/block_pool.py`: a free block keeps its content until it is
/// handed out again, and only then is its removal published.
pub struct BlockPool {
    blocks: Vec<Block>,
    free_head: BlockId,
    free_tail: BlockId,
    free_blocks: u32,
    cached: HashMap<BlockHash, SmallVec<[BlockId; 2]>>,
    events: Vec<CacheEvent>,
}

impl BlockPool {
    /// A pool of `num_gpu_blocks` blocks, one of which (the null block) can't be used.
    pub(crate) fn new(num_gpu_blocks: u32) -> Self {
        let unlinked = Block { holders: 0, hash: None, previous: NO_BLOCK, next: NO_BLOCK };
        let mut pool = Self {
            blocks: vec![unlinked; num_gpu_blocks as usize],
            free_head: NO_BLOCK,
            free_tail: NO_BLOCK,
            free_blocks: 0,
            cached: HashMap::new(),
            events: Vec::new(),
        };
        for id in 1..num_gpu_blocks {
            pool.push_free(id);
        }
        pool
    }

    /// Blocks that can be used at all: one fewer than there are.
    #[must_use]
    pub fn usable_blocks(&self) -> u32 {
        (self.blocks.len() as u32).saturating_sub(1)
    }

    /// Blocks that nobody holds, cached or not.
    #[must_use]
    pub fn free_blocks(&self) -> u32 {
        self.free_blocks
    }

    /// Physical blocks that are cached, copies counted each.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.cached.values().map(SmallVec::len).sum()
    }

    /// Whether nobody holds the block.
    #[must_use]
    pub fn is_free(&self, id: BlockId) -> bool {
        self.blocks.get(id as usize).is_some_and(|block| block.holders == 0)
    }

    /// The block that holds this content, if any: of several copies the one cached first.
    #[must_use]
    pub fn cached_block(&self, hash: &BlockHash) -> Option<BlockId> {
        self.cached.get(hash).and_then(|ids| ids.first().copied())
    }

    /// Takes one more reference to each block; blocks that were free leave the free queue.
    pub(crate) fn touch(&mut self, ids: &[BlockId]) {
        for &id in ids {
            if self.blocks[id as usize].holders == 0 {
                self.unlink_free(id);
            }
            self.blocks[id as usize].holders += 1;
        }
    }

    /// Hands out `count` blocks from the head of the free queue and adds them to `taken`. What they had cached
    /// is removed. Hands out nothing and answers false if fewer are free.
    pub(crate) fn take(&mut self, count: u32, taken: &mut Vec<BlockId>) -> bool {
        if count > self.free_blocks {
            return false;
        }
        for _ in 0..count {
            let id = self.free_head;
            self.unlink_free(id);
            self.evict(id);
            self.blocks[id as usize].holders = 1;
            taken.push(id);
        }
        true
    }

    /// Caches held blocks of one request under their hashes and publishes that in one event.
    pub(crate) fn store(
        &mut self,
        ids: &[BlockId],
        hashes: &[BlockHash],
        parent: Option<BlockHash>,
        token_ids: &[u32],
        cache_salt: Option<Arc<str>>,
    ) {
        for (&id, &hash) in ids.iter().zip(hashes) {
            self.blocks[id as usize].hash = Some(hash);
            self.cached.entry(hash).or_default().push(id);
        }
        self.events.push(CacheEvent::Stored {
            hashes: hashes.to_vec(),
            parent,
            token_ids: token_ids.to_vec(),
            cache_salt,
        });
    }

    /// Announces blocks that are cached already once more, from the first of a request on: no further copies.
    pub(crate) fn announce(&mut self, hashes: &[BlockHash], token_ids: &[u32], cache_salt: Option<Arc<str>>) {
        let (hashes, token_ids) = (hashes.to_vec(), token_ids.to_vec());
        self.events.push(CacheEvent::Stored { hashes, parent: None, token_ids, cache_salt });
    }

    /// Gives up one reference to each block, in the order in which they may be evicted. Of those that nobody
    /// holds any more, the cached ones go to the tail of the free queue and stay cached there; one that isn't
    /// cached (the last, partly filled block) goes to the head, since reusing it costs nothing.
    pub(crate) fn release(&mut self, eviction_order: impl Iterator<Item = BlockId>) {
        for id in eviction_order {
            let block = &mut self.blocks[id as usize];
            block.holders = block.holders.saturating_sub(1);
            match (block.holders, block.hash) {
                (0, Some(_)) => self.push_free(id),
                (0, None) => self.push_free_first(id),
                _ => {}
            }
        }
    }

    /// Forgets everything cached; refused (false) while any block is held. The order of the free queue stays.
    pub(crate) fn reset(&mut self) -> bool {
        if self.free_blocks != self.usable_blocks() {
            return false;
        }
        self.cached.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
        self.events.push(CacheEvent::Cleared);
        true
    }

    /// The events since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    /// The free queue from its head, which is evicted first.
    pub fn free_queue(&self) -> impl Iterator<Item = BlockId> + '_ {
        std::iter::successors(Some(self.free_head), |&id| Some(self.blocks[id as usize].next))
            .take(self.free_blocks as usize)
    }

    fn evict(&mut self, id: BlockId) {
        let Some(hash) = self.blocks[id as usize].hash.take() else { return };
        if let Some(copies) = self.cached.get_mut(&hash) {
            copies.retain(|copy| *copy != id);
            if copies.is_empty() {
                self.cached.remove(&hash);
            }
        }
        self.events.push(CacheEvent::Removed { hash });
    }

    fn push_free(&mut self, id: BlockId) {
        let tail = self.free_tail;
        let block = &mut self.blocks[id as usize];
        (block.previous, block.next) = (tail, NO_BLOCK);
        match tail {
            NO_BLOCK => self.free_head = id,
            _ => self.blocks[tail as usize].next = id,
        }
        self.free_tail = id;
        self.free_blocks += 1;
    }

    fn push_free_first(&mut self, id: BlockId) {
        let head = self.free_head;
        let block = &mut self.blocks[id as usize];
        (block.previous, block.next) = (NO_BLOCK, head);
        match head {
            NO_BLOCK => self.free_tail = id,
            _ => self.blocks[head as usize].previous = id,
        }
        self.free_head = id;
        self.free_blocks += 1;
    }

    fn unlink_free(&mut self, id: BlockId) {
        let Block { previous, next, .. } = self.blocks[id as usize];
        match previous {
            NO_BLOCK => self.free_head = next,
            _ => self.blocks[previous as usize].next = next,
        }
        match next {
            NO_BLOCK => self.free_tail = previous,
            _ => self.blocks[next as usize].previous = previous,
        }
        self.free_blocks -= 1;
    }

    /// What must hold at any time, given the holders of every block; names the first violation.
    #[cfg(test)]
    pub(crate) fn check(&self, holders: &HashMap<BlockId, u32>) -> Result<(), String> {
        let queue: Vec<BlockId> = self.free_queue().collect();
        let distinct: std::collections::HashSet<_> = queue.iter().copied().collect();
        if distinct.len() != queue.len() || distinct.contains(&0) {
            return Err(format!("free queue holds a block twice or the null block: {queue:?}"));
        }
        for (id, block) in self.blocks.iter().enumerate().skip(1) {
            let id = id as BlockId;
            let expected = holders.get(&id).copied().unwrap_or(0);
            if block.holders != expected {
                return Err(format!("block {id} counts {} holders, has {expected}", block.holders));
            }
            if (expected == 0) != distinct.contains(&id) {
                return Err(format!("block {id} with {expected} holders is on the wrong side of the queue"));
            }
            let listed = block.hash.is_some_and(|hash| {
                self.cached.get(&hash).is_some_and(|copies| copies.iter().filter(|&&c| c == id).count() == 1)
            });
            if block.hash.is_some() && !listed {
                return Err(format!("block {id} has a hash but isn't listed under it once"));
            }
        }
        let hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        if self.cached_blocks() != hashed {
            return Err(format!("{} cached entries for {hashed} hashed blocks", self.cached_blocks()));
        }
        Ok(())
    }
}
