use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::RwLock;

use crate::expected_chains::ExpectedChains;
use crate::key_counts::KeyCounts;
use crate::{BlockKey, EngineSlot};

/// The expectation of one request's blocks at one engine, to be withdrawn when the request is over. Each is its own:
/// withdrawing one never ends what another request expects of the same blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expectation {
    /// Stands first, so that expectations are in the order in which they end.
    pub(crate) deadline: Instant,
    pub(crate) number: u64,
    pub(crate) slot: EngineSlot,
    pub(crate) first: BlockKey,
    pub(crate) last: BlockKey,
    pub(crate) blocks: usize,
}

/// The live expectations of an index: how many, and what can be told of them without waiting for a lock.
pub(crate) struct Expectations {
    max_blocks: usize,
    blocks: AtomicUsize,
    last_number: AtomicU64,
    refused: AtomicU64,
    first_keys: KeyCounts,
    last_keys: KeyCounts,
    chains: RwLock<ExpectedChains>,
}

/// 32 KiB for each set.
const COUNTS: usize = 8_192;

impl Expectations {
    pub(crate) fn new(max_blocks: usize) -> Self {
        Self {
            max_blocks,
            blocks: AtomicUsize::new(0),
            last_number: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            first_keys: KeyCounts::new(COUNTS),
            last_keys: KeyCounts::new(COUNTS),
            chains: RwLock::default(),
        }
    }

    /// Expects a chain of blocks; `None` if it is empty or, which is counted, if there is no room.
    pub(crate) fn add(&self, slot: EngineSlot, keys: &[BlockKey], deadline: Instant) -> Option<Expectation> {
        let (first, last) = (*keys.first()?, *keys.last()?);
        if !self.reserve(keys.len()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let expectation = Expectation { deadline, number, slot, first, last, blocks: keys.len() };
        // Counted before it is there and until after it is gone: who counts none misses none.
        self.first_keys.add(first);
        self.last_keys.add(last);
        let keys = Box::from(keys);
        self.chains.write().insert(expectation, keys);
        Some(expectation)
    }

    fn reserve(&self, blocks: usize) -> bool {
        self.blocks
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                taken.checked_add(blocks).filter(|total| *total <= self.max_blocks)
            })
            .is_ok()
    }

    /// Ends an expectation, unless it has ended already.
    pub(crate) fn end(&self, expectation: &Expectation) {
        let is_live = self.chains.write().end(expectation);
        if is_live {
            self.forget(expectation);
        }
    }

    /// Ends the next expectation whose deadline has come; false if there is none.
    pub(crate) fn end_due(&self, now: Instant) -> bool {
        let due = self.chains.write().end_due(now);
        if let Some(expectation) = &due {
            self.forget(expectation);
        }
        due.is_some()
    }

    /// Ends what the engine's holding of the block `last` fulfils.
    pub(crate) fn fulfil(&self, last: BlockKey, slot: EngineSlot) {
        if self.blocks() == 0 || !self.last_keys.may_contain(last) {
            return;
        }
        let chains = self.chains.write().end_chains(last, slot);
        for expectation in chains.iter().flat_map(|chain| &chain.expectations) {
            self.forget(expectation);
        }
    }

    fn forget(&self, expectation: &Expectation) {
        self.first_keys.remove(expectation.first);
        self.last_keys.remove(expectation.last);
        self.blocks.fetch_sub(expectation.blocks, Ordering::AcqRel);
    }

    /// Whether a chain may begin with the block. False is certain, and takes no lock.
    pub(crate) fn may_begin(&self, first: BlockKey) -> bool {
        self.blocks() > 0 && self.first_keys.may_contain(first)
    }

    /// Visits the chains that begin with the block, each once for all expectations of it.
    pub(crate) fn visit(&self, first: BlockKey, mut visit: impl FnMut(EngineSlot, &[BlockKey])) {
        for chain in self.chains.read().beginning_with(first) {
            visit(chain.slot, &chain.keys);
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Acquire)
    }

    pub(crate) fn len(&self) -> usize {
        self.chains.read().expectations()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::Expectations;
    use crate::{BlockKey, EngineSlot};
    use std::time::{Duration, Instant};

    #[test]
    fn nothing_stays_counted_of_what_has_ended() {
        let expectations = Expectations::new(10);
        let (slot, start) = (EngineSlot { index: 0, generation: 0 }, Instant::now());
        let keys: Vec<BlockKey> = (1..=4).map(BlockKey).collect();
        let [first, .., last] = keys[..] else { unreachable!() };
        let counts = || {
            let is_counted =
                expectations.first_keys.may_contain(first) || expectations.last_keys.may_contain(last);
            (expectations.len(), expectations.blocks(), is_counted)
        };
        let add = || expectations.add(slot, &keys, start).unwrap();
        let one = add();
        assert_eq!(counts(), (1, 4, true));
        expectations.end(&one);
        expectations.end(&one);
        assert_eq!(counts(), (0, 0, false));
        add();
        assert!(!expectations.end_due(start - Duration::from_nanos(1)));
        assert!(expectations.end_due(start) && !expectations.end_due(start));
        assert_eq!(counts(), (0, 0, false));
        add();
        add();
        assert_eq!(expectations.add(slot, &keys, start), None);
        assert_eq!((counts(), expectations.refused()), ((2, 8, true), 1));
        expectations.fulfil(last, slot);
        assert_eq!(counts(), (0, 0, false));
    }
}
