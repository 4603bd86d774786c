use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::{BlockKey, EngineSlot};

/// The expectation of one request's blocks at one engine, to be withdrawn when the request is over. Each is its own:
/// ending one never ends what another request expects of the same blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expectation(u64);

/// One expected block of one expectation.
pub(crate) struct Expecting {
    pub(crate) slot: EngineSlot,
    pub(crate) expectation: Expectation,
}

/// The live expectations and when they end.
pub(crate) struct Expectations {
    max_blocks: usize,
    blocks: AtomicUsize,
    last: AtomicU64,
    refused: AtomicU64,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    by_id: HashMap<Expectation, (Instant, Box<[BlockKey]>)>,
    by_deadline: BTreeSet<(Instant, Expectation)>,
}

impl Expectations {
    pub(crate) fn new(max_blocks: usize) -> Self {
        Self {
            max_blocks,
            blocks: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            live: Mutex::default(),
        }
    }

    /// Room for an expectation of `blocks` blocks and its name; `None`, and counted, if there is no room.
    pub(crate) fn reserve(&self, blocks: usize) -> Option<Expectation> {
        let reserved = self.blocks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(blocks).filter(|total| *total <= self.max_blocks)
        });
        if reserved.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Expectation(self.last.fetch_add(1, Ordering::Relaxed) + 1))
    }

    pub(crate) fn unreserve(&self, blocks: usize) {
        self.blocks.fetch_sub(blocks, Ordering::Relaxed);
    }

    /// Keeps an expectation of `keys`; `None` if there are none.
    pub(crate) fn register(
        &self,
        expectation: Expectation,
        keys: Vec<BlockKey>,
        deadline: Instant,
    ) -> Option<Expectation> {
        if keys.is_empty() {
            return None;
        }
        let mut live = self.live.lock();
        live.by_id.insert(expectation, (deadline, keys.into_boxed_slice()));
        live.by_deadline.insert((deadline, expectation));
        Some(expectation)
    }

    /// Ends an expectation; its blocks, if it was live.
    pub(crate) fn take(&self, expectation: Expectation) -> Option<Box<[BlockKey]>> {
        let mut live = self.live.lock();
        let (deadline, keys) = live.by_id.remove(&expectation)?;
        live.by_deadline.remove(&(deadline, expectation));
        self.unreserve(keys.len());
        Some(keys)
    }

    /// Ends the next expectation whose deadline has come.
    pub(crate) fn take_due(&self, now: Instant) -> Option<(Expectation, Box<[BlockKey]>)> {
        let mut live = self.live.lock();
        let (deadline, expectation) = live.by_deadline.first().copied()?;
        if deadline > now {
            return None;
        }
        live.by_deadline.pop_first();
        let (_, keys) = live.by_id.remove(&expectation)?;
        self.unreserve(keys.len());
        Some((expectation, keys))
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        self.live.lock().by_id.len()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
