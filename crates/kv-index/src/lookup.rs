use crate::holders::{bit_of, bits, set, word_of};
use crate::{BlockKey, EngineSlot, KvIndex};

/// How much of a prompt one engine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Match {
    /// Leading blocks that the engine has announced and not withdrawn.
    pub known_blocks: u32,
    /// Leading blocks that it has announced or that requests just sent to it will make it hold; never less than
    /// `known_blocks`.
    pub expected_blocks: u32,
}

/// Working memory of lookups, to be kept and used again: after the first few lookups nothing is allocated.
#[derive(Debug, Default)]
pub struct LookupScratch {
    /// State of the slot of each row when the lookup began; `None` for a slot that is gone.
    states: Vec<Option<u64>>,
    known: Survivors,
    any: Survivors,
}

/// The slots that hold all blocks so far, and how far each of the others came.
#[derive(Debug, Default)]
struct Survivors {
    slots: Vec<u64>,
    next: Vec<u64>,
    /// By slot index. Only the entries of slots that are looked up are meaningful.
    depths_blocks: Vec<u32>,
}

impl Survivors {
    fn reset(&mut self, words: usize) {
        self.slots.clear();
        self.slots.resize(words, 0);
        self.next.clear();
        self.next.resize(words, 0);
        self.depths_blocks.resize((words * 64).max(self.depths_blocks.len()), 0);
    }

    fn add(&mut self, slot: u32, depth_blocks: u32) {
        set(&mut self.slots, slot);
        if let Some(depth) = self.depths_blocks.get_mut(slot as usize) {
            *depth = depth_blocks;
        }
    }

    fn contains(&self, slot: u32) -> bool {
        self.slots.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0)
    }

    /// Goes on with the slots in `next`, after `depth_blocks` blocks; false if there are none left.
    fn advance(&mut self, depth_blocks: u32) -> bool {
        for (lost, next) in self.slots.iter_mut().zip(&self.next) {
            *lost &= !next;
        }
        for slot in bits(&self.slots) {
            if let Some(depth) = self.depths_blocks.get_mut(slot as usize) {
                *depth = depth_blocks;
            }
        }
        std::mem::swap(&mut self.slots, &mut self.next);
        self.next.fill(0);
        self.slots.iter().any(|word| *word != 0)
    }

    fn depth_blocks(&self, slot: u32) -> u32 {
        self.depths_blocks.get(slot as usize).copied().unwrap_or_default()
    }
}

impl KvIndex {
    /// For each of `slots`, how many leading blocks of a prompt it holds; `matches[i]` belongs to `slots[i]` (the
    /// shorter of the two ends it). `keys` are the prompt's [`block_keys`](crate::block_keys) in the block size of
    /// these engines; engines of another size match nothing.
    ///
    /// Stops at the first block that none of the slots holds. An engine that was removed, or whose cache was reset,
    /// before or during the lookup matches nothing.
    pub fn lookup(
        &self,
        keys: &[BlockKey],
        slots: &[EngineSlot],
        scratch: &mut LookupScratch,
        matches: &mut [Match],
    ) {
        self.begin(keys, slots, scratch);
        for (depth, key) in keys.iter().enumerate() {
            let depth_blocks = depth as u32;
            self.collect_holders(*key, scratch);
            scratch.known.advance(depth_blocks);
            if !scratch.any.advance(depth_blocks) {
                break;
            }
        }
        for ((slot, state), row) in slots.iter().zip(&scratch.states).zip(matches) {
            let is_unchanged = state.is_some() && self.slots.visible_state(*slot) == *state;
            *row = if is_unchanged {
                Match {
                    known_blocks: scratch.known.depth_blocks(slot.index),
                    expected_blocks: scratch.any.depth_blocks(slot.index),
                }
            } else {
                Match::default()
            };
        }
    }

    fn begin(&self, keys: &[BlockKey], slots: &[EngineSlot], scratch: &mut LookupScratch) {
        let LookupScratch { states, known, any } = scratch;
        states.clear();
        states.extend(slots.iter().map(|slot| self.slots.visible_state(*slot)));
        let live =
            || slots.iter().zip(&*states).filter(|(_, state)| state.is_some()).map(|(slot, _)| slot.index);
        let words = live().max().map_or(0, |highest| word_of(highest) + 1);
        known.reset(words);
        any.reset(words);
        for slot in live() {
            known.add(slot, keys.len() as u32);
            any.add(slot, keys.len() as u32);
        }
    }

    /// Puts those of the surviving slots that hold the block into `next`.
    fn collect_holders(&self, key: BlockKey, scratch: &mut LookupScratch) {
        let LookupScratch { known, any, .. } = scratch;
        let shard = self.shard(key).read();
        if let Some(holders) = shard.held.get(&key) {
            holders.add_wanted(&known.slots, &mut known.next);
            holders.add_wanted(&any.slots, &mut any.next);
        }
        if shard.expected.is_empty() {
            return;
        }
        for expecting in shard.expected.get(&key).into_iter().flatten() {
            let slot = expecting.slot;
            if any.contains(slot.index) && self.slots.is_current(slot) {
                set(&mut any.next, slot.index);
            }
        }
    }
}
