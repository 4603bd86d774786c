use crate::holders::{bit_of, bits, word_of};
use crate::layered_lookup::LayeredScratch;
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
    known: Survivors,
    /// By beginning.
    covers: Vec<Cover>,
    /// State of the slot of each row when the lookup began; `None` for a slot that is gone.
    states: Vec<Option<u64>>,
    pub(crate) layered: LayeredScratch,
}

/// Blocks of the prompt that a slot is expected to hold.
#[derive(Debug)]
struct Cover {
    slot: u32,
    begin_blocks: u32,
    end_blocks: u32,
}

/// The slots that hold all blocks so far, and how far each came.
#[derive(Debug, Default)]
struct Survivors {
    slots: Vec<u64>,
    next: Vec<u64>,
    /// By slot index.
    depths_blocks: Vec<u32>,
}

impl Survivors {
    /// Begins with so many slots, which hold all of nothing.
    fn reset(&mut self, slots: u32) {
        let words = (slots as usize).div_ceil(64);
        self.slots.clear();
        self.slots.resize(words, u64::MAX);
        self.next.clear();
        self.next.resize(words, 0);
        self.depths_blocks.clear();
        self.depths_blocks.resize(words * 64, 0);
    }

    fn is_any(&self) -> bool {
        self.slots.iter().any(|word| *word != 0)
    }

    /// Goes on with those that hold all blocks of a run, of which the first `alike` are the prompt's next ones, after
    /// `depth_blocks` blocks.
    fn pass(&mut self, run: &Run, depth_blocks: u32, alike: u32) {
        let Self { slots, next, depths_blocks } = self;
        run.full().add_wanted(slots, next);
        for (slot, lead) in run.partly() {
            let is_survivor = slots.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0);
            if let Some(depth) = depths_blocks.get_mut(slot as usize).filter(|_| is_survivor) {
                *depth = depth_blocks + lead.min(alike);
            }
        }
        for (word, depths_blocks) in next.iter().zip(depths_blocks.as_chunks_mut::<64>().0) {
            if *word == u64::MAX {
                depths_blocks.fill(depth_blocks + alike);
            } else {
                bits(&[*word]).for_each(|bit| depths_blocks[bit as usize] = depth_blocks + alike);
            }
        }
        std::mem::swap(slots, next);
        next.fill(0);
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
        let rows = slots.len().min(matches.len());
        // Before the holders: an expectation that is over by now leaves its blocks behind.
        let is_any_expected = self.expectations.blocks() > 0;
        if !is_any_expected && !keys.first().is_some_and(|first| self.runs.may_begin_with(*first)) {
            matches[..rows].fill(Match::default());
            return;
        }
        let changes = self.slots.changes();
        self.find_covers(keys, scratch);
        if !self.find_known(keys, scratch) && scratch.covers.is_empty() {
            matches[..rows].fill(Match::default());
            return;
        }
        // After what was found above: where it is held is told before it is stored.
        self.find_layered(keys, slots, &mut scratch.layered);
        self.tell(keys, slots, scratch, matches, |slot, _| self.slots.visible_state(slot).is_some());
        if self.slots.changes() != changes {
            self.lookup_during_changes(keys, slots, scratch, matches);
        }
        if self.slots.has_lookahead() {
            self.claim_less(keys.len() as u32, slots, scratch, matches);
        }
    }

    /// Some engines find a block only for a prompt that goes on with certain `lookahead` tokens after it, which our
    /// keys don't hold. Those of a block that another held one follows are its first tokens, so what is left of the
    /// match without its last ⌈lookahead / block size⌉ blocks is found for certain. What is never found are blocks
    /// whose lookahead would reach the prompt's last token.
    #[cold]
    fn claim_less(
        &self,
        prompt_blocks: u32,
        slots: &[EngineSlot],
        scratch: &LookupScratch,
        matches: &mut [Match],
    ) {
        for (at, (slot, row)) in slots.iter().zip(matches).enumerate() {
            let (lookahead, size) = (self.slots.lookahead(*slot), self.slots.block_size(*slot));
            if let Some(size) = size.filter(|_| lookahead > 0) {
                let (lost, unreachable) = (lookahead.div_ceil(size), (lookahead + 1).div_ceil(size));
                // Groups that need the end of a prefix say nothing of a shorter one.
                let lost = if scratch.layered.has_several_groups(at) { u32::MAX } else { lost };
                let found =
                    |blocks: u32| blocks.saturating_sub(lost).min(prompt_blocks.saturating_sub(unreachable));
                row.known_blocks = found(row.known_blocks);
                row.expected_blocks = found(row.expected_blocks);
            }
        }
    }

    /// The same while engines come, go or are reset: each slot's state is compared with what it was.
    #[cold]
    fn lookup_during_changes(
        &self,
        keys: &[BlockKey],
        slots: &[EngineSlot],
        scratch: &mut LookupScratch,
        matches: &mut [Match],
    ) {
        let mut states = std::mem::take(&mut scratch.states);
        states.clear();
        states.extend(slots.iter().map(|slot| self.slots.visible_state(*slot)));
        self.find_covers(keys, scratch);
        self.find_known(keys, scratch);
        self.find_layered(keys, slots, &mut scratch.layered);
        self.tell(keys, slots, scratch, matches, |slot, row| {
            let state = self.slots.visible_state(slot);
            state.is_some() && states.get(row) == Some(&state)
        });
        scratch.states = states;
    }

    /// Tells of each slot what was found, if it counts.
    fn tell(
        &self,
        keys: &[BlockKey],
        slots: &[EngineSlot],
        scratch: &LookupScratch,
        matches: &mut [Match],
        counts: impl Fn(EngineSlot, usize) -> bool,
    ) {
        for (at, (slot, row)) in slots.iter().zip(&mut *matches).enumerate() {
            let known_blocks = scratch.known.depth_blocks(slot.index);
            let expected_blocks = self.expected_blocks(keys, slot.index, known_blocks, &scratch.covers);
            // Last, so that what was found in between belongs to the state.
            let counts = expected_blocks > 0 && counts(*slot, at);
            *row = if counts { Match { known_blocks, expected_blocks } } else { Match::default() };
        }
        if !scratch.layered.is_empty() {
            let expected = |slot, known| self.expected_blocks(keys, slot, known, &scratch.covers);
            self.tell_layered(slots, &scratch.layered, matches, expected, counts);
        }
    }

    /// Goes from run to run as long as somebody holds all blocks so far. False if nobody holds the first.
    fn find_known(&self, keys: &[BlockKey], scratch: &mut LookupScratch) -> bool {
        let mut depth = 0;
        while let Some(run) = keys.get(depth).and_then(|key| self.runs.beginning_with(*key)) {
            if depth == 0 {
                scratch.known.reset(self.slots.used());
            }
            let alike = common_blocks(&run.keys, &keys[depth..], 0);
            scratch.known.pass(&run, depth as u32, alike as u32);
            depth += alike;
            if alike < run.len() || !scratch.known.is_any() {
                break;
            }
        }
        if depth == 0 {
            scratch.known.reset(0);
        }
        depth > 0
    }

    /// Finds the expected chains that are part of the prompt.
    fn find_covers(&self, keys: &[BlockKey], scratch: &mut LookupScratch) {
        let covers = &mut scratch.covers;
        covers.clear();
        if self.expectations.blocks() == 0 {
            return;
        }
        for (depth, key) in keys.iter().enumerate() {
            if !self.expectations.may_begin(*key) {
                continue;
            }
            self.expectations.visit(*key, |slot, chain| {
                // The slot may have passed to another engine since.
                if self.slots.is_current(slot) {
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
