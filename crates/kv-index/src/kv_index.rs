use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::RwLock;
use smallvec::SmallVec;

use crate::expectation::{Expectations, Expecting};
use crate::holders::Holders;
use crate::slots::Slots;
use crate::{BlockKey, EngineSlot, EngineView, Expectation};

/// What an index may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Most blocks known over all engines: one entry per engine and block hash, about 100 bytes each. A store beyond
    /// it is refused and counted.
    pub max_entries: usize,
    /// Most engines at a time; a lookup takes one bit per slot and block.
    pub max_engines: u32,
    /// Most blocks expected over all requests, about 40 bytes each. An expectation beyond it is refused and counted.
    pub max_expected_blocks: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self { max_entries: 16_000_000, max_engines: 4_096, max_expected_blocks: 4_000_000 }
    }
}

/// Why the index can't do what is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// All slots are taken.
    #[error("index holds {max_engines} engines, which is its limit")]
    TooManyEngines {
        /// The limit.
        max_engines: u32,
    },
}

/// How full an index is and what it refused so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexStats {
    /// Blocks known, counted once per engine and block hash.
    pub entries: usize,
    /// [`IndexLimits::max_entries`].
    pub max_entries: usize,
    /// Different block keys.
    pub keys: usize,
    /// Engines.
    pub engines: u32,
    /// Blocks that live expectations cover.
    pub expected_blocks: usize,
    /// Live expectations.
    pub expectations: usize,
    /// Blocks refused because the index was full, since the start.
    pub refused_blocks: u64,
    /// Expectations refused because there were too many, since the start.
    pub refused_expectations: u64,
}

/// Which engine holds which block: the concurrent prefix index of one pool.
///
/// Readers never wait for an engine: writers hold one shard's lock for one block at a time. A lookup may miss what is
/// being announced while it runs; what it does claim was announced and not yet withdrawn at some instant of it.
pub struct KvIndex {
    limits: IndexLimits,
    shards: Box<[RwLock<Shard>]>,
    pub(crate) slots: Slots,
    entries: AtomicUsize,
    refused_blocks: AtomicU64,
    expectations: Expectations,
}

/// A part of the key space.
#[derive(Default)]
pub(crate) struct Shard {
    pub(crate) held: HashMap<BlockKey, Holders>,
    pub(crate) expected: HashMap<BlockKey, SmallVec<[Expecting; 1]>>,
}

/// Longer ones are cut, so that no sum with a time overflows.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// A power of two.
const SHARDS: usize = 64;

impl KvIndex {
    /// An empty index.
    pub fn new(limits: IndexLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            slots: Slots::new(limits.max_engines),
            entries: AtomicUsize::new(0),
            refused_blocks: AtomicU64::new(0),
            expectations: Expectations::new(limits.max_expected_blocks),
        })
    }

    /// Adds an engine that holds nothing yet. Whoever reads its events owns the view; dropping it removes every trace
    /// of the engine.
    ///
    /// # Errors
    /// [`IndexError::TooManyEngines`].
    pub fn add_engine(self: &Arc<Self>) -> Result<EngineView, IndexError> {
        let slot =
            self.slots.take().ok_or(IndexError::TooManyEngines { max_engines: self.slots.capacity() })?;
        Ok(EngineView::new(Arc::clone(self), slot))
    }

    /// The block size that an engine has announced, in tokens; `None` before its first usable event.
    pub fn block_size(&self, slot: EngineSlot) -> Option<u32> {
        self.slots.block_size(slot)
    }

    /// The block sizes in use over all engines, in tokens, smallest first. A prompt needs one set of keys for each.
    pub fn block_sizes(&self) -> BTreeSet<u32> {
        self.slots.block_sizes().filter(|size| *size > 0).collect()
    }

    /// Expects an engine to hold the blocks of a prompt that was just sent to it, until its events say so, the
    /// expectation is withdrawn, or `ttl` (at most a day) has passed (see [`Self::expire`]). `now` is any monotonic time, the same
    /// one as for [`Self::expire`].
    ///
    /// Blocks that the engine already holds aren't expected. `None` if that leaves none, if the engine is gone, or if
    /// there would be more than [`IndexLimits::max_expected_blocks`], which is counted.
    pub fn expect(
        &self,
        slot: EngineSlot,
        keys: &[BlockKey],
        now: Instant,
        ttl: Duration,
    ) -> Option<Expectation> {
        if !self.slots.is_current(slot) {
            return None;
        }
        let first_unknown = keys.iter().position(|key| !self.is_held(*key, slot.index))?;
        let keys = &keys[first_unknown..];
        let expectation = self.expectations.reserve(keys.len())?;
        let mut expected = Vec::with_capacity(keys.len());
        for key in keys {
            let mut shard = self.shard(*key).write();
            if !shard.held.get(key).is_some_and(|holders| holders.contains(slot.index)) {
                shard.expected.entry(*key).or_default().push(Expecting { slot, expectation });
                expected.push(*key);
            }
        }
        self.expectations.unreserve(keys.len() - expected.len());
        self.expectations.register(expectation, expected, now + ttl.min(LONGEST_TTL))
    }

    /// Ends an expectation: its request is over. Nothing happens if it has ended already.
    pub fn withdraw(&self, expectation: Expectation) {
        if let Some(keys) = self.expectations.take(expectation) {
            self.forget_expected(expectation, &keys);
        }
    }

    /// Ends the expectations whose time is up; returns how many. Cheap when there are none.
    pub fn expire(&self, now: Instant) -> usize {
        let mut expired = 0;
        while let Some((expectation, keys)) = self.expectations.take_due(now) {
            self.forget_expected(expectation, &keys);
            expired += 1;
        }
        expired
    }

    /// How full the index is. Takes each shard's lock once.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            entries: self.entries.load(Ordering::Relaxed),
            max_entries: self.limits.max_entries,
            keys: self.shards.iter().map(|shard| shard.read().held.len()).sum(),
            engines: self.slots.taken(),
            expected_blocks: self.expectations.blocks(),
            expectations: self.expectations.len(),
            refused_blocks: self.refused_blocks.load(Ordering::Relaxed),
            refused_expectations: self.expectations.refused(),
        }
    }

    pub(crate) fn shard(&self, key: BlockKey) -> &RwLock<Shard> {
        // Bits that the maps inside hash anyway; any will do.
        &self.shards[(key.0 >> 32) as usize % SHARDS]
    }

    fn is_held(&self, key: BlockKey, slot_index: u32) -> bool {
        self.shard(key).read().held.get(&key).is_some_and(|holders| holders.contains(slot_index))
    }

    fn forget_expected(&self, expectation: Expectation, keys: &[BlockKey]) {
        for key in keys {
            retain_expected(&mut self.shard(*key).write(), *key, |expecting| {
                expecting.expectation != expectation
            });
        }
    }

    /// Room for one more entry, or false (and counted) if the index is full.
    pub(crate) fn reserve_entry(&self) -> bool {
        let max_entries = self.limits.max_entries;
        let reserved = self
            .entries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |entries| {
                (entries < max_entries).then_some(entries + 1)
            })
            .is_ok();
        if !reserved {
            self.refused_blocks.fetch_add(1, Ordering::Relaxed);
        }
        reserved
    }

    pub(crate) fn free_entries(&self, count: usize) {
        self.entries.fetch_sub(count, Ordering::Relaxed);
    }

    /// Notes that the engine holds the block, which ends its being expected. False if it was noted before.
    pub(crate) fn hold(&self, key: BlockKey, slot: EngineSlot) -> bool {
        let mut shard = self.shard(key).write();
        if !shard.expected.is_empty() {
            retain_expected(&mut shard, key, |expecting| expecting.slot != slot);
        }
        shard.held.entry(key).or_insert_with(Holders::new).insert(slot.index)
    }

    /// Notes that the engine doesn't hold the block any more.
    pub(crate) fn release(&self, key: BlockKey, slot: EngineSlot) {
        let mut shard = self.shard(key).write();
        if let Some(holders) = shard.held.get_mut(&key) {
            holders.remove(slot.index);
            if holders.is_empty() {
                shard.held.remove(&key);
            }
        }
    }
}

fn retain_expected(shard: &mut Shard, key: BlockKey, keep: impl Fn(&Expecting) -> bool) {
    if let Some(expecting) = shard.expected.get_mut(&key) {
        expecting.retain(|expecting| keep(expecting));
        if expecting.is_empty() {
            shard.expected.remove(&key);
        }
    }
}
