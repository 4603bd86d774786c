use crate::holders::{bit_of, bits, set, word_of};
use crate::run::Run;
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
    /// By beginning.
    covers: Vec<Cover>,
    expected_blocks: Vec<u32>,
}

/// Blocks of the prompt that a slot is expected to hold.
#[derive(Debug)]
struct Cover {
    slot: u32,
    begin_blocks: u32,
    end_blocks: u32,
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

    fn contains(&self, slot: u32) -> bool {
        self.slots.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0)
    }

    fn is_any(&self) -> bool {
        self.slots.iter().any(|word| *word != 0)
    }

    /// Goes on with those that hold all blocks of a run, of which the first `alike` are the prompt's next ones, after
    /// `depth_blocks` blocks.
    fn pass(&mut self, run: &Run, depth_blocks: u32, alike: u32) {
        let Self { slots, next, depths_blocks } = self;
        run.full().add_wanted(slots, next);
        for (lost, next) in slots.iter_mut().zip(&*next) {
            *lost &= !next;
        }
        let mut end = |slot: u32, depth: u32| {
            if let Some(place) = depths_blocks.get_mut(slot as usize) {
                *place = depth;
            }
        };
        bits(slots).for_each(|slot| end(slot, depth_blocks));
        for (slot, lead) in run.partly() {
            if slots.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0) {
                end(slot, depth_blocks + lead.min(alike));
            }
        }
        std::mem::swap(slots, next);
        next.fill(0);
    }

    /// Ends with those that are left, after `depth_blocks` blocks.
    fn stay(&mut self, depth_blocks: u32) {
        let Self { slots, depths_blocks, .. } = self;
        for slot in bits(slots) {
            if let Some(place) = depths_blocks.get_mut(slot as usize) {
                *place = depth_blocks;
            }
        }
    }

    fn depth_blocks(&self, slot: u32) -> u32 {
        self.depths_blocks.get(slot as usize).copied().unwrap_or_default()
    }
}

/// How many leading blocks two chains have in common, if that is more than `least`, or else some number up to `least`.
/// A key hashes all that comes before its block, so chains that are alike somewhere are alike up to there.
pub(crate) fn common_blocks(one: &[BlockKey], other: &[BlockKey], least: usize) -> usize {
    let blocks = one.len().min(other.len());
    let is_alike = |at: usize| one.get(at) == other.get(at);
    if blocks <= least || !is_alike(least) {
        return least.min(blocks);
    }
    if is_alike(blocks - 1) {
        return blocks;
    }
    let (mut alike, mut differ) = (least, blocks - 1);
    while differ - alike > 1 {
        let middle = alike.midpoint(differ);
        if is_alike(middle) {
            alike = middle;
        } else {
            differ = middle;
        }
    }
    differ
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
        self.begin(slots, scratch);
        // Before the holders: an expectation that is over by now leaves its blocks behind.
        self.find_covers(keys, scratch);
        self.find_known(keys, scratch);
        for (slot, state) in slots.iter().zip(&scratch.states) {
            if state.is_some() {
                let known_blocks = scratch.known.depth_blocks(slot.index);
                let expected_blocks = self.expected_blocks(keys, slot.index, known_blocks, &scratch.covers);
                scratch.expected_blocks.push(expected_blocks);
            } else {
                scratch.expected_blocks.push(0);
            }
        }
        let rows = slots.iter().zip(&scratch.states).zip(&scratch.expected_blocks);
        for (((slot, state), expected_blocks), row) in rows.zip(matches) {
            let is_unchanged = state.is_some() && self.slots.visible_state(*slot) == *state;
            *row = if is_unchanged {
                let known_blocks = scratch.known.depth_blocks(slot.index);
                Match { known_blocks, expected_blocks: *expected_blocks }
            } else {
                Match::default()
            };
        }
    }

    fn begin(&self, slots: &[EngineSlot], scratch: &mut LookupScratch) {
        let LookupScratch { states, known, covers, expected_blocks } = scratch;
        states.clear();
        states.extend(slots.iter().map(|slot| self.slots.visible_state(*slot)));
        let live =
            || slots.iter().zip(&*states).filter(|(_, state)| state.is_some()).map(|(slot, _)| slot.index);
        known.reset(live().max().map_or(0, |highest| word_of(highest) + 1));
        live().for_each(|slot| set(&mut known.slots, slot));
        covers.clear();
        expected_blocks.clear();
    }

    /// Goes from run to run as long as somebody holds all blocks so far.
    fn find_known(&self, keys: &[BlockKey], scratch: &mut LookupScratch) {
        let mut depth = 0;
        while let Some(run) = keys.get(depth).and_then(|key| self.runs.beginning_with(*key)) {
            let alike = common_blocks(&run.keys, &keys[depth..], 0);
            scratch.known.pass(&run, depth as u32, alike as u32);
            depth += alike;
            if alike < run.len() || !scratch.known.is_any() {
                break;
            }
        }
        scratch.known.stay(depth as u32);
    }

    /// Finds the expected chains that are part of the prompt.
    fn find_covers(&self, keys: &[BlockKey], scratch: &mut LookupScratch) {
        if self.expectations.blocks() == 0 {
            return;
        }
        let LookupScratch { known, covers, .. } = scratch;
        for (depth, key) in keys.iter().enumerate() {
            if !self.expectations.may_begin(*key) {
                continue;
            }
            self.expectations.visit(*key, |slot, chain| {
                // The slot may have passed to another engine since.
                if known.contains(slot.index) && self.slots.is_current(slot) {
                    let common = common_blocks(&keys[depth..], chain, 0);
                    let end_blocks = (depth + common) as u32;
                    covers.push(Cover { slot: slot.index, begin_blocks: depth as u32, end_blocks });
                }
            });
        }
    }

    /// How many leading blocks the slot holds or is expected to hold, of which it is known to hold `known_blocks`.
    fn expected_blocks(&self, keys: &[BlockKey], slot: u32, known_blocks: u32, covers: &[Cover]) -> u32 {
        let mut reached = known_blocks;
        // In the order of their beginnings, so that one pass is enough.
        for cover in covers.iter().filter(|cover| cover.slot == slot) {
            if cover.begin_blocks > reached {
                break;
            }
            if cover.end_blocks > reached {
                reached = cover.end_blocks + self.held_from(keys, slot, cover.end_blocks);
            }
        }
        reached
    }

    /// How many blocks in a row the slot holds from a depth on, whatever it holds before.
    fn held_from(&self, keys: &[BlockKey], slot: u32, depth_blocks: u32) -> u32 {
        let first = depth_blocks as usize;
        let (mut depth, mut held) = (0, 0);
        while let Some(run) = keys.get(depth).and_then(|key| self.runs.beginning_with(*key)) {
            let alike = common_blocks(&run.keys, &keys[depth..], 0);
            let end = depth + alike;
            if end > first {
                let at = first.max(depth) - depth;
                let row = run.held_from(slot, at).min(alike - at);
                held += row;
                if at + row < alike {
                    break;
                }
            }
            depth = end;
            if alike < run.len() {
                break;
            }
        }
        held as u32
    }
}

#[cfg(test)]
mod tests {
    use super::common_blocks;
    use crate::BlockKey;
    use proptest::prelude::{prop_assert_eq, proptest};

    /// Chains that are alike up to block `alike` and nowhere after it.
    fn chains(one: usize, other: usize, alike: usize) -> (Vec<BlockKey>, Vec<BlockKey>) {
        let chain = |blocks: usize, seed: u64| -> Vec<BlockKey> {
            (0..blocks).map(|at| BlockKey(at as u64 + if at < alike { 0 } else { seed })).collect()
        };
        (chain(one, 1_000), chain(other, 2_000))
    }

    proptest! {
        #[test]
        fn common_blocks_are_counted(
            one in 0..40_usize,
            other in 0..40_usize,
            alike in 0..45_usize,
            least in 0..45_usize,
        ) {
            let common = one.min(other).min(alike);
            let (one, other) = chains(one, other, alike);
            prop_assert_eq!(common_blocks(&one, &other, least).max(least), common.max(least));
        }
    }
}
