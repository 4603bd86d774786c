use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

/// An engine's place in the index: a small number for bit sets, and which of the engines that have had it is meant.
/// What is asked about an engine that is gone is answered with nothing, also when its place has been taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineSlot {
    /// Dense, from 0.
    pub index: u32,
    /// Counts the engines that have had this index.
    pub generation: u32,
}

/// All slots. A slot's state is one word: generation (32 bits), epoch (31 bits, counts the times that everything
/// announced became void), and whether it is hidden. A reader that finds the same visible state before and after its
/// lookup has seen no block of another engine and none from before a reset.
pub(crate) struct Slots {
    states: Box<[AtomicU64]>,
    /// Counts the changes of all states, each before it is made.
    changes: AtomicU64,
    /// Slots that were ever taken: their indices are below it.
    used: AtomicU32,
    block_sizes_tokens: Box<[AtomicU32]>,
    /// How many tokens after its own a block of the slot's engine depends on.
    lookaheads_tokens: Box<[AtomicU32]>,
    /// Whether any engine ever had a lookahead; spares the others a look.
    has_lookahead: AtomicBool,
    free: Mutex<FreeSlots>,
}

struct FreeSlots {
    returned: Vec<u32>,
    next_unused: u32,
}

const HIDDEN: u64 = 1;
const EPOCH_STEP: u64 = 2;
const GENERATION_SHIFT: u32 = 32;

impl Slots {
    pub(crate) fn new(max_engines: u32) -> Self {
        Self {
            changes: AtomicU64::new(0),
            used: AtomicU32::new(0),
            states: (0..max_engines).map(|_| AtomicU64::new(HIDDEN)).collect(),
            block_sizes_tokens: (0..max_engines).map(|_| AtomicU32::new(0)).collect(),
            lookaheads_tokens: (0..max_engines).map(|_| AtomicU32::new(0)).collect(),
            has_lookahead: AtomicBool::new(false),
            free: Mutex::new(FreeSlots { returned: Vec::new(), next_unused: 0 }),
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.states.len() as u32
    }

    /// How many slots are taken.
    pub(crate) fn taken(&self) -> u32 {
        let free = self.free.lock();
        free.next_unused - free.returned.len() as u32
    }

    /// A visible slot of a new generation, or `None` if all are taken.
    pub(crate) fn take(&self) -> Option<EngineSlot> {
        let mut free = self.free.lock();
        let index = match free.returned.pop() {
            Some(index) => index,
            None if free.next_unused < self.capacity() => {
                free.next_unused += 1;
                self.used.store(free.next_unused, Ordering::Release);
                free.next_unused - 1
            }
            None => return None,
        };
        let state = self.states.get(index as usize)?;
        let generation = (state.load(Ordering::Acquire) >> GENERATION_SHIFT) as u32;
        self.changes.fetch_add(1, Ordering::AcqRel);
        state.store(u64::from(generation) << GENERATION_SHIFT, Ordering::Release);
        Some(EngineSlot { index, generation })
    }

    /// Makes everything announced for the slot void, at once for all readers.
    pub(crate) fn hide(&self, slot: EngineSlot) {
        self.update(slot, |state| {
            let generation = state & !(u64::MAX >> GENERATION_SHIFT);
            let epoch = state.wrapping_add(EPOCH_STEP) & (u64::MAX >> GENERATION_SHIFT);
            generation | epoch | HIDDEN
        });
    }

    /// Shows the slot again, after every trace of what was void is gone.
    pub(crate) fn show(&self, slot: EngineSlot) {
        self.update(slot, |state| state & !HIDDEN);
    }

    /// Ends the slot's generation at once for all readers. It stays hidden and isn't given to anyone until
    /// [`Self::give_back`].
    pub(crate) fn retire(&self, slot: EngineSlot) {
        self.set_block_size(slot, 0);
        self.set_lookahead(slot, 0);
        self.update(slot, |_| (u64::from(slot.generation.wrapping_add(1)) << GENERATION_SHIFT) | HIDDEN);
    }

    /// Allows the index to be used again, after every trace of its last generation is gone.
    pub(crate) fn give_back(&self, slot: EngineSlot) {
        self.free.lock().returned.push(slot.index);
    }

    fn update(&self, slot: EngineSlot, next: impl Fn(u64) -> u64) {
        if let Some(state) = self.states.get(slot.index as usize) {
            // Only the slot's owner writes.
            self.changes.fetch_add(1, Ordering::AcqRel);
            state.store(next(state.load(Ordering::Acquire)), Ordering::Release);
        }
    }

    /// The slot's state word if it is visible and of this generation.
    pub(crate) fn visible_state(&self, slot: EngineSlot) -> Option<u64> {
        let state = self.states.get(slot.index as usize)?.load(Ordering::Acquire);
        (state & HIDDEN == 0 && state >> GENERATION_SHIFT == u64::from(slot.generation)).then_some(state)
    }

    /// How often any slot's state has changed. Who finds the same number before it reads blocks and after it read
    /// states has seen no block that is void by a state that it read: what voids blocks takes them out between two
    /// changes.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// All slots' indices are below this number.
    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    /// Whether the slot still belongs to the engine, hidden or not.
    pub(crate) fn is_current(&self, slot: EngineSlot) -> bool {
        self.states.get(slot.index as usize).is_some_and(|state| {
            state.load(Ordering::Acquire) >> GENERATION_SHIFT == u64::from(slot.generation)
        })
    }

    pub(crate) fn set_block_size(&self, slot: EngineSlot, block_size_tokens: u32) {
        if let Some(size) = self.block_sizes_tokens.get(slot.index as usize) {
            size.store(block_size_tokens, Ordering::Release);
        }
    }

    pub(crate) fn set_lookahead(&self, slot: EngineSlot, tokens: u32) {
        if let Some(lookahead) = self.lookaheads_tokens.get(slot.index as usize) {
            lookahead.store(tokens, Ordering::Release);
            self.has_lookahead.fetch_or(tokens > 0, Ordering::AcqRel);
        }
    }

    pub(crate) fn has_lookahead(&self) -> bool {
        self.has_lookahead.load(Ordering::Acquire)
    }

    /// How many tokens after its own a block of the engine depends on.
    pub(crate) fn lookahead(&self, slot: EngineSlot) -> u32 {
        self.lookaheads_tokens
            .get(slot.index as usize)
            .map_or(0, |lookahead| lookahead.load(Ordering::Acquire))
    }

    /// The block size that the engine has announced, in tokens.
    pub(crate) fn block_size(&self, slot: EngineSlot) -> Option<u32> {
        let size = self.block_sizes_tokens.get(slot.index as usize)?.load(Ordering::Acquire);
        (size > 0 && self.is_current(slot)).then_some(size)
    }

    /// Block sizes of all slots, in tokens, 0 where none is known.
    pub(crate) fn block_sizes(&self) -> impl Iterator<Item = u32> {
        let used = self.free.lock().next_unused as usize;
        self.block_sizes_tokens.iter().take(used).map(|size| size.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;

    #[test]
    fn a_slot_is_reused_as_another_generation() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!((first.index, second.index, slots.taken()), (0, 1, 2));
        assert_eq!(slots.take(), None);
        slots.retire(first);
        assert_eq!(slots.visible_state(first), None);
        assert_eq!(slots.take(), None, "not before it is given back");
        slots.give_back(first);
        let third = slots.take().unwrap();
        assert_eq!((third.index, third.generation), (0, 1));
        assert!(slots.visible_state(third).is_some());
        assert_eq!(slots.visible_state(first), None);
        assert_eq!(slots.visible_state(super::EngineSlot { index: 9, generation: 0 }), None);
    }

    #[test]
    fn hiding_and_showing_is_another_state() {
        let slots = Slots::new(1);
        let slot = slots.take().unwrap();
        let before = slots.visible_state(slot).unwrap();
        slots.hide(slot);
        assert_eq!(slots.visible_state(slot), None);
        assert!(slots.is_current(slot));
        slots.show(slot);
        assert_ne!(slots.visible_state(slot), Some(before));
        assert!(slots.visible_state(slot).is_some());
    }
}
