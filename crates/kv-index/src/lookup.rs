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
    covers: Covers,
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

/// How far expectations cover the slots.
#[derive(Debug, Default)]
struct Covers {
    /// By slot index. Only the entries of slots that are looked up are meaningful.
    ends_blocks: Vec<u32>,
    /// The slots that are covered beyond the block that the lookup is at.
    slots: Vec<u32>,
}

impl Covers {
    fn reset(&mut self, words: usize) {
        self.slots.clear();
        self.ends_blocks.clear();
        self.ends_blocks.resize(words * 64, 0);
    }

    fn end_blocks(&self, slot: u32) -> u32 {
        self.ends_blocks.get(slot as usize).copied().unwrap_or_default()
    }

    /// Covers the slot, beyond the block that the lookup is at, by a chain from that block on, if that is further than
    /// it is covered. `keys` are the prompt's from that block on.
    fn extend(&mut self, slot: u32, depth_blocks: u32, keys: &[BlockKey], chain: &[BlockKey]) {
        let Some(end_blocks) = self.ends_blocks.get_mut(slot as usize) else { return };
        let is_covered = *end_blocks > depth_blocks;
        let covered = end_blocks.saturating_sub(depth_blocks) as usize;
        let common = common_blocks(keys, chain, covered);
        if common > covered {
            *end_blocks = depth_blocks + common as u32;
            if !is_covered {
                self.slots.push(slot);
            }
        }
    }

    /// Sets in `next` the slots that are covered beyond `depth_blocks`.
    fn add_covered(&mut self, depth_blocks: u32, next: &mut [u64]) {
        let Self { ends_blocks, slots } = self;
        slots.retain(|slot| ends_blocks.get(*slot as usize).is_some_and(|end| *end > depth_blocks));
        slots.iter().for_each(|slot| set(next, *slot));
    }
}

/// How many leading blocks two chains have in common, if that is more than `least`, or else some number up to `least`.
/// A key hashes all that comes before its block, so chains that are alike somewhere are alike up to there.
fn common_blocks(one: &[BlockKey], other: &[BlockKey], least: usize) -> usize {
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
        self.begin(keys, slots, scratch);
        // Up to where all is decided: nobody holds all blocks, and all who are left are covered.
        let mut decided_blocks = 0;
        for (depth, key) in keys.iter().enumerate() {
            let depth_blocks = depth as u32;
            let may_begin = self.expectations.may_begin(*key);
            if depth_blocks < decided_blocks && !may_begin {
                continue;
            }
            // Before the holders: an expectation that is over by now leaves its blocks behind.
            if may_begin {
                self.extend_covers(&keys[depth..], depth_blocks, scratch);
            }
            self.collect_holders(*key, scratch);
            let LookupScratch { known, any, covers, .. } = &mut *scratch;
            covers.add_covered(depth_blocks, &mut any.next);
            let is_known = known.advance(depth_blocks);
            if !any.advance(depth_blocks) {
                break;
            }
            decided_blocks = match is_known {
                true => 0,
                false => bits(&any.slots).map(|slot| covers.end_blocks(slot)).min().unwrap_or_default(),
            };
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
        let LookupScratch { states, known, any, covers } = scratch;
        states.clear();
        states.extend(slots.iter().map(|slot| self.slots.visible_state(*slot)));
        let live =
            || slots.iter().zip(&*states).filter(|(_, state)| state.is_some()).map(|(slot, _)| slot.index);
        let words = live().max().map_or(0, |highest| word_of(highest) + 1);
        known.reset(words);
        any.reset(words);
        covers.reset(words);
        for slot in live() {
            known.add(slot, keys.len() as u32);
            any.add(slot, keys.len() as u32);
        }
    }

    /// Covers surviving slots by the expected chains that begin where `keys` does, at `depth_blocks`.
    fn extend_covers(&self, keys: &[BlockKey], depth_blocks: u32, scratch: &mut LookupScratch) {
        let (Some(first), LookupScratch { any, covers, .. }) = (keys.first(), scratch) else { return };
        self.expectations.visit(*first, |slot, chain| {
            // The slot may have passed to another engine since.
            if any.contains(slot.index) && self.slots.is_current(slot) {
                covers.extend(slot.index, depth_blocks, keys, chain);
            }
        });
    }

    /// Puts those of the surviving slots that hold the block into `next`.
    fn collect_holders(&self, key: BlockKey, scratch: &mut LookupScratch) {
        let LookupScratch { known, any, .. } = scratch;
        if let Some(holders) = self.shard(key).read().get(&key) {
            holders.add_wanted(&known.slots, &mut known.next);
            holders.add_wanted(&any.slots, &mut any.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Covers, common_blocks};
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

    #[test]
    fn a_cover_only_grows_and_ends() {
        let mut covers = Covers::default();
        covers.reset(1);
        let (prompt, chain) = chains(20, 30, 12);
        covers.extend(5, 0, &prompt, &chain[..4]);
        assert_eq!((covers.end_blocks(5), &*covers.slots), (4, &[5][..]));
        covers.extend(5, 0, &prompt, &chain[..2]);
        assert_eq!(covers.end_blocks(5), 4);
        covers.extend(5, 2, &prompt[2..], &chain[2..]);
        assert_eq!((covers.end_blocks(5), &*covers.slots), (12, &[5][..]));
        let mut next = [0];
        covers.add_covered(11, &mut next);
        assert_eq!(next, [1 << 5]);
        covers.add_covered(12, &mut [0]);
        assert!(covers.slots.is_empty());
        covers.extend(5, 14, &prompt[14..], &prompt[14..]);
        assert_eq!((covers.end_blocks(5), &*covers.slots), (20, &[5][..]));
        covers.reset(1);
        assert_eq!((covers.end_blocks(5), covers.slots.len()), (0, 0));
    }
}
