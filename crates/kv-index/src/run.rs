use smallvec::SmallVec;

use crate::BlockKey;
use crate::holders::Holders;

/// In place of a run's number: none.
pub(crate) const NO_RUN: u32 = u32::MAX;

/// Successive blocks that are stored together, and who holds which of them.
///
/// Positions count from where the run began when it was made. A run that is split keeps its number and its end, and
/// `start` says how many blocks were cut off in front; those are its parent's.
pub(crate) struct Run {
    /// Empty in a run that is free, or that is kept only so that positions in what was cut off stay found.
    pub(crate) keys: Vec<BlockKey>,
    pub(crate) start: u32,
    /// The run whose last block comes before the first of this one.
    pub(crate) parent: u32,
    /// Runs whose parent this is.
    pub(crate) children: u32,
    /// Those of them that are empty.
    pub(crate) empty_children: Vec<u32>,
    /// Who holds all blocks.
    full: Holders,
    /// Who holds some.
    parts: Vec<Part>,
}

/// Which blocks of a run one slot holds: at least one, and not all.
struct Part {
    slot: u32,
    bits: Bits,
}

/// One bit per block of the run.
type Bits = SmallVec<[u64; 2]>;

impl Default for Run {
    /// A run that is free.
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            start: 0,
            parent: NO_RUN,
            children: 0,
            empty_children: Vec::new(),
            full: Holders::default(),
            parts: Vec::new(),
        }
    }
}

impl Run {
    pub(crate) fn new(key: BlockKey, parent: u32, slot: u32) -> Self {
        let mut run = Self { keys: vec![key], parent, ..Self::default() };
        run.full.insert(slot);
        run
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn begins_with(&self, key: BlockKey) -> bool {
        self.keys.first() == Some(&key)
    }

    pub(crate) fn is_held(&self) -> bool {
        !self.full.is_empty() || !self.parts.is_empty()
    }

    /// Whether nothing goes on behind the last block.
    pub(crate) fn is_last(&self) -> bool {
        self.children as usize == self.empty_children.len()
    }

    /// Whether a block of this slot may be added behind the last one: nothing else goes on there, and no other slot
    /// holds blocks that would have to be told from those it doesn't hold.
    pub(crate) fn takes_more_of(&self, slot: u32) -> bool {
        let is_only = match self.parts.as_slice() {
            [] => self.full.is_only(slot),
            [part] => part.slot == slot && self.full.is_empty(),
            _ => false,
        };
        is_only && self.is_last()
    }

    /// Adds a block behind the last one, for the only holder.
    pub(crate) fn push(&mut self, key: BlockKey) {
        let at = self.keys.len();
        self.keys.push(key);
        if let Some(part) = self.parts.first_mut() {
            set_bit(&mut part.bits, at);
        }
    }

    pub(crate) fn holds(&self, slot: u32, at: usize) -> bool {
        let in_part = || self.part(slot).is_some_and(|part| bit(&part.bits, at));
        at < self.len() && (self.full.contains(slot) || in_part())
    }

    /// Notes that the slot holds a block; false if that was noted before.
    pub(crate) fn insert(&mut self, slot: u32, at: usize) -> bool {
        if self.full.contains(slot) {
            return false;
        }
        let place = self.parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
            self.parts.push(Part { slot, bits: Bits::new() });
            self.parts.len() - 1
        });
        let Some(part) = self.parts.get_mut(place) else { return false };
        let is_new = !bit(&part.bits, at);
        set_bit(&mut part.bits, at);
        if ones(&part.bits) == self.keys.len() {
            self.parts.swap_remove(place);
            self.full.insert(slot);
        }
        is_new
    }

    /// Notes that the slot doesn't hold a block any more, and drops blocks at the end that nobody holds.
    pub(crate) fn remove(&mut self, slot: u32, at: usize) {
        let is_end = at + 1 == self.len();
        if is_end && self.len() > 1 && self.parts.is_empty() && self.takes_more_of(slot) {
            self.keys.pop();
            return;
        }
        if self.full.remove(slot) {
            if self.len() > 1 {
                let mut bits = Bits::new();
                (0..self.len()).filter(|other| *other != at).for_each(|other| set_bit(&mut bits, other));
                self.parts.push(Part { slot, bits });
            }
        } else if let Some(place) = self.parts.iter().position(|part| part.slot == slot) {
            let part = &mut self.parts[place];
            clear_bit(&mut part.bits, at);
            if ones(&part.bits) == 0 {
                self.parts.swap_remove(place);
            }
        }
        if is_end {
            self.drop_end();
        }
    }

    /// Takes the slot out altogether; false if it held nothing.
    pub(crate) fn remove_holder(&mut self, slot: u32) -> bool {
        let parts = self.parts.len();
        self.parts.retain(|part| part.slot != slot);
        let was_holder = self.full.remove(slot) || self.parts.len() < parts;
        if was_holder {
            self.drop_end();
        }
        was_holder
    }

    /// Drops blocks at the end that nobody holds, but for the first.
    pub(crate) fn drop_end(&mut self) {
        if !self.is_last() || !self.full.is_empty() {
            return;
        }
        let is_held = |at: usize| self.parts.iter().any(|part| bit(&part.bits, at));
        let kept = (1..self.len()).rev().find(|at| is_held(*at)).map_or(1, |last| last + 1);
        if kept == self.len() {
            return;
        }
        self.keys.truncate(kept);
        self.promote();
    }

    /// Moves those who hold all blocks to where they belong.
    fn promote(&mut self) {
        let len = self.keys.len();
        let full = &mut self.full;
        self.parts.retain(|part| {
            let is_full = ones(&part.bits) == len;
            if is_full {
                full.insert(part.slot);
            }
            !is_full
        });
    }

    /// Cuts the blocks before `at` off and returns them as a run that comes before this one; the caller makes it the
    /// parent.
    pub(crate) fn split(&mut self, at: usize) -> Self {
        let rest = self.keys.split_off(at);
        let mut front = Self {
            keys: std::mem::replace(&mut self.keys, rest),
            start: self.start,
            parent: self.parent,
            children: 1,
            empty_children: Vec::new(),
            full: self.full.clone(),
            parts: Vec::new(),
        };
        front.keys.shrink_to_fit();
        self.start += at as u32;
        for part in &mut self.parts {
            let mut bits: Bits = part.bits.clone();
            truncate_bits(&mut bits, at);
            if ones(&bits) > 0 {
                front.parts.push(Part { slot: part.slot, bits });
            }
            skip_bits(&mut part.bits, at);
        }
        self.parts.retain(|part| ones(&part.bits) > 0);
        self.promote();
        front.promote();
        front
    }

    /// How many blocks in a row the slot holds from `at` on.
    pub(crate) fn held_from(&self, slot: u32, at: usize) -> usize {
        if self.full.contains(slot) {
            return self.len().saturating_sub(at);
        }
        self.part(slot).map_or(0, |part| ones_from(&part.bits, at))
    }

    /// The slots that hold all blocks.
    pub(crate) fn full(&self) -> &Holders {
        &self.full
    }

    /// The slots that hold some, each with how many from the first on.
    pub(crate) fn partly(&self) -> impl Iterator<Item = (u32, u32)> {
        self.parts.iter().map(|part| (part.slot, ones_from(&part.bits, 0) as u32))
    }

    fn part(&self, slot: u32) -> Option<&Part> {
        self.parts.iter().find(|part| part.slot == slot)
    }
}

fn bit(bits: &Bits, at: usize) -> bool {
    bits.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
}

fn set_bit(bits: &mut Bits, at: usize) {
    if bits.len() <= at / 64 {
        bits.resize(at / 64 + 1, 0);
    }
    bits[at / 64] |= 1 << (at % 64);
}

fn clear_bit(bits: &mut Bits, at: usize) {
    if let Some(word) = bits.get_mut(at / 64) {
        *word &= !(1 << (at % 64));
    }
}

fn ones(bits: &Bits) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

/// How many bits in a row are set from `at` on.
fn ones_from(bits: &Bits, at: usize) -> usize {
    let Some(first) = bits.get(at / 64) else { return 0 };
    let offset = at % 64;
    let mut count = (first >> offset).trailing_ones() as usize;
    if count < 64 - offset {
        return count;
    }
    for word in &bits[at / 64 + 1..] {
        count += word.trailing_ones() as usize;
        if *word != u64::MAX {
            break;
        }
    }
    count
}

/// Keeps the bits before `at`.
fn truncate_bits(bits: &mut Bits, at: usize) {
    bits.truncate(at.div_ceil(64));
    if let Some(last) = bits.get_mut(at / 64) {
        *last &= (1 << (at % 64)) - 1;
    }
}

/// Drops the bits before `at`.
fn skip_bits(bits: &mut Bits, at: usize) {
    bits.drain(..(at / 64).min(bits.len()));
    let shift = at % 64;
    if shift > 0 {
        for index in 0..bits.len() {
            let high = bits.get(index + 1).copied().unwrap_or(0);
            bits[index] = (bits[index] >> shift) | (high << (64 - shift));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{NO_RUN, Run};
    use crate::BlockKey;

    /// Blocks held by slot, by position.
    type Model = BTreeMap<u32, BTreeSet<u32>>;

    fn assert_like(run: &Run, model: &Model, slots: u32) {
        let end = model.values().flatten().max().map_or(run.start, |last| last + 1);
        let run_end = run.start + run.len() as u32;
        assert!(run_end >= end, "{run_end} < {end}");
        for slot in 0..slots {
            for position in run.start..run_end {
                let at = (position - run.start) as usize;
                let held = |position| model.get(&slot).is_some_and(|held| held.contains(&position));
                assert_eq!(run.holds(slot, at), held(position), "{slot} {position}");
                let row = (position..run_end).take_while(|position| held(*position)).count();
                assert_eq!(run.held_from(slot, at), row, "{slot} {position}");
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_as_sets_of_positions(
            length in 1..150_usize,
            steps in vec((0..5_u8, 0..4_u32, any::<usize>()), 0..60),
        ) {
            let key = |position: u32| BlockKey(u64::from(position));
            let mut run = Run::new(key(0), NO_RUN, 0);
            (1..length as u32).for_each(|position| run.push(key(position)));
            let mut model = Model::from([(0, (0..length as u32).collect())]);
            for (what, slot, at) in steps {
                let at = at % run.len();
                let position = run.start + at as u32;
                match what {
                    0 | 1 => {
                        let is_new = run.insert(slot, at);
                        prop_assert_eq!(is_new, model.entry(slot).or_default().insert(position));
                    }
                    2 if model.entry(slot).or_default().remove(&position) => run.remove(slot, at),
                    3 => {
                        let was_holder = model.remove(&slot).is_some_and(|held| !held.is_empty());
                        prop_assert_eq!(run.remove_holder(slot), was_holder);
                    }
                    _ if at > 0 => {
                        let front = run.split(at);
                        let mut cut = model.clone();
                        cut.values_mut().for_each(|held| held.retain(|held| *held < position));
                        assert_like(&front, &cut, 4);
                        prop_assert_eq!((front.start + front.len() as u32, run.start), (position, position));
                        model.values_mut().for_each(|held| held.retain(|held| *held >= position));
                    }
                    _ => {}
                }
                model.retain(|_, held| !held.is_empty());
                prop_assert_eq!(run.is_held(), !model.is_empty());
                prop_assert!(run.keys.iter().zip(run.start..).all(|(found, position)| *found == key(position)));
                assert_like(&run, &model, 4);
                if !run.is_held() {
                    break;
                }
            }
        }
    }

    #[test]
    fn blocks_that_nobody_holds_are_dropped_from_the_end() {
        let mut run = Run::new(BlockKey(0), NO_RUN, 7);
        (1..200).for_each(|key| run.push(BlockKey(key)));
        run.insert(9, 100);
        (101..200).rev().for_each(|at| run.remove(7, at));
        assert_eq!(run.len(), 101);
        run.remove(7, 100);
        assert_eq!(run.len(), 101, "9 holds it");
        run.remove(9, 100);
        assert_eq!((run.len(), run.partly().count()), (100, 0), "7 holds all that is left");
        assert!(run.takes_more_of(7) && !run.takes_more_of(9));
    }
}
