use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::expectation::Expectations;
use crate::layers::Layers;
use crate::lookup::common_blocks;
use crate::runs::{Place, Runs};
use crate::slots::Slots;
use crate::{BlockKey, EngineSlot, EngineView, Expectation};

/// What an index may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Most blocks known over all engines: one entry per engine and block hash, 25 to 61 bytes each. A store beyond
    /// it is refused and counted.
    pub max_entries: usize,
    /// Most engines at a time, where each further layer of an engine counts as another one; a lookup takes one bit per
    /// slot and block.
    pub max_engines: u32,
    /// Most blocks expected over all requests, 8 bytes each beside about 300 bytes for each request. An expectation
    /// beyond it is refused and counted.
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
    /// Different block keys, with those that lie between the blocks that an engine holds and the first of a prompt.
    pub keys: usize,
    /// Engines.
    pub engines: u32,
    /// Blocks of all live expectations, confirmed or not.
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
/// Readers never wait for an engine: writers hold one run's lock for one event at a time. A lookup may miss what is
/// being announced while it runs; what it does claim was announced and not yet withdrawn at some instant of it.
pub struct KvIndex {
    limits: IndexLimits,
    pub(crate) runs: Runs,
    pub(crate) slots: Slots,
    /// Writers write it all the time, so that it mustn't lie beside what readers read.
    entries: CachePadded<AtomicUsize>,
    refused_blocks: AtomicU64,
    pub(crate) expectations: Expectations,
    pub(crate) layers: Layers,
}

/// Longer ones are cut, so that no sum with a time overflows.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

impl KvIndex {
    /// An empty index.
    pub fn new(limits: IndexLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            runs: Runs::new(),
            slots: Slots::new(limits.max_engines),
            entries: CachePadded::default(),
            refused_blocks: AtomicU64::new(0),
            expectations: Expectations::new(limits.max_expected_blocks),
            layers: Layers::default(),
        })
    }

    /// Adds an engine that holds nothing yet. Whoever reads its events owns the view; dropping it removes every trace
    /// of the engine.
    ///
    /// # Errors
    /// [`IndexError::TooManyEngines`].
    pub fn add_engine(self: &Arc<Self>) -> Result<EngineView, IndexError> {
        Ok(EngineView::new(Arc::clone(self), self.take_slot()?))
    }

    pub(crate) fn take_slot(&self) -> Result<EngineSlot, IndexError> {
        self.slots.take().ok_or(IndexError::TooManyEngines { max_engines: self.slots.capacity() })
    }

    /// The block size that an engine has announced, in tokens; `None` before its first usable event.
    pub fn block_size(&self, slot: EngineSlot) -> Option<u32> {
        self.slots.block_size(slot)
    }

    /// The block sizes in use over all engines, in tokens, smallest first. A prompt needs one set of keys for each.
    pub fn block_sizes(&self) -> BTreeSet<u32> {
        self.slots.block_sizes().filter(|size| *size > 0).collect()
    }

    /// Expects an engine to hold the blocks of a prompt that was just sent to it, until its events confirm the last of
    /// them, the expectation is withdrawn, or `ttl` (at most a day) has passed (see [`Self::expire`]). `now` is any
    /// monotonic time, the same one as for [`Self::expire`].
    ///
    /// `keys` are the whole prompt's, as for [`Self::lookup`], and `known_blocks` is what the lookup found of them for
    /// this engine ([`Match::known_blocks`](crate::Match::known_blocks)). Expected are the blocks after those, up to the
    /// last one that the engine doesn't hold. They count from the first on, also while only some are confirmed, and
    /// stay expected when the engine's cache is reset, but not beyond the engine's removal. Once the last is
    /// confirmed, only what is held counts, also if some before it are gone again.
    ///
    /// `None` if no blocks are left to expect, if the engine is gone, or if there would be more than
    /// [`IndexLimits::max_expected_blocks`], which is counted. The cost besides a copy of the keys doesn't depend on
    /// the prompt's length.
    pub fn expect(
        &self,
        slot: EngineSlot,
        keys: &[BlockKey],
        known_blocks: u32,
        now: Instant,
        ttl: Duration,
    ) -> Option<Expectation> {
        if !self.slots.is_current(slot) {
            return None;
        }
        // No event would confirm a last block that is there already. It rarely is without those before it.
        let blocks = self.last_unheld(keys, known_blocks as usize, slot.index)? + 1;
        self.expectations.add(slot, keys.get(known_blocks as usize..blocks)?, now + ttl.min(LONGEST_TTL))
    }

    /// Ends an expectation: its request is over. Nothing happens if it has ended already.
    pub fn withdraw(&self, expectation: Expectation) {
        self.expectations.end(&expectation);
    }

    /// Ends the expectations whose time is up; returns how many. Cheap when there are none.
    pub fn expire(&self, now: Instant) -> usize {
        std::iter::from_fn(|| self.expectations.end_due(now).then_some(())).count()
    }

    /// How full the index is.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            entries: self.entries.load(Ordering::Relaxed),
            max_entries: self.limits.max_entries,
            keys: self.runs.keys(),
            engines: self.slots.taken().saturating_sub(self.layers.slots() as u32),
            expected_blocks: self.expectations.blocks(),
            expectations: self.expectations.len(),
            refused_blocks: self.refused_blocks.load(Ordering::Relaxed),
            refused_expectations: self.expectations.refused(),
        }
    }

    /// Index of the last block of a prompt, from `first` on, that the slot doesn't hold.
    fn last_unheld(&self, keys: &[BlockKey], first: usize, slot_index: u32) -> Option<usize> {
        let (mut depth, mut last) = (0, None);
        while let Some(run) = keys.get(depth).and_then(|key| self.runs.beginning_with(*key)) {
            let alike = common_blocks(&run.keys, &keys[depth..], 0);
            last = (0..alike).rev().find(|at| !run.holds(slot_index, *at)).map(|at| depth + at).or(last);
            depth += alike;
            if alike < run.len() {
                break;
            }
        }
        let last = if depth < keys.len() { Some(keys.len() - 1) } else { last };
        last.filter(|last| *last >= first)
    }

    /// Room for so many more entries, or false.
    pub(crate) fn try_reserve_entries(&self, count: usize) -> bool {
        let max_entries = self.limits.max_entries;
        let more = |entries: usize| entries.checked_add(count).filter(|entries| *entries <= max_entries);
        self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Counts blocks for which there was no room, or would have been, but not for the ones before them.
    pub(crate) fn refuse_blocks(&self, blocks: u64) {
        self.refused_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(crate) fn free_entries(&self, count: usize) {
        self.entries.fetch_sub(count, Ordering::Relaxed);
    }

    /// Notes that the engine holds successive blocks after one that it holds, or from the first on, which fulfils what
    /// was expected up to one of them. Says of each where it is, and whether it wasn't noted before.
    pub(crate) fn hold(
        &self,
        parent: Option<Place>,
        keys: &[BlockKey],
        slot: EngineSlot,
        held: impl FnMut(Place, bool),
    ) {
        self.runs.hold(parent, keys, slot.index, held);
        if self.expectations.blocks() == 0 {
            return;
        }
        // Only now, so that a lookup which finds no expectation any more finds the blocks.
        keys.iter().for_each(|key| self.expectations.fulfil(*key, slot));
    }
}
