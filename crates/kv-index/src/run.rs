use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;

use crate::BlockKey;
use crate::holders::Holders;
use crate::part::Part;

/// In place of a run's number: none.
pub(crate) const NO_RUN: u32 = u32::MAX;

/// Successive blocks that are stored together, and who holds which of them.
///
/// Positions count from where the run began when it was made. A run that is split keeps its number and its end, and
/// `start` says how many blocks were cut off in front; those are its parent's.
pub(crate) struct Run {
    /// Empty in a run that is free, or that is kept only so that positions in what was cut off stay found.
    pub(crate) keys: SmallVec<[BlockKey; 2]>,
    pub(crate) start: u32,
    /// The run whose last block comes before the first of this one.
    pub(crate) parent: u32,
    /// Runs whose parent this is. Atomic, since one is added while others read this run.
    pub(crate) children: AtomicU32,
    /// Those of them that are empty.
    pub(crate) empty_children: EmptyRuns,
    /// Who holds all blocks.
    full: Holders,
    /// Who holds some.
    parts: SmallVec<[Part; 1]>,
}

/// Numbers of runs; there rarely are any.
#[derive(Default)]
pub(crate) struct EmptyRuns(
    #[expect(clippy::box_collection, reason = "most runs have none")] Option<Box<Vec<u32>>>,
);

/// A run with more holders than this isn't added to: its holders would all have to be told apart.
const MOST_HOLDERS_THAT_GROW: usize = 4;

impl EmptyRuns {
    pub(crate) fn push(&mut self, id: u32) {
        self.0.get_or_insert_default().push(id);
    }

    pub(crate) fn into_vec(self) -> Vec<u32> {
        self.0.map(|runs| *runs).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |runs| runs.len())
    }
}

impl Default for Run {
    /// A run that is free.
    fn default() -> Self {
        Self {
            keys: SmallVec::new(),
            start: 0,
            parent: NO_RUN,
            children: AtomicU32::new(0),
            empty_children: EmptyRuns::default(),
            full: Holders::default(),
            parts: SmallVec::new(),
        }
    }
}

impl Run {
    pub(crate) fn new(key: BlockKey, parent: u32, slot: u32) -> Self {
        let mut run = Self { keys: SmallVec::from_slice(&[key]), parent, ..Self::default() };
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
        self.children.load(Ordering::Relaxed) as usize == self.empty_children.len()
    }

    /// Whether blocks of this slot, which holds the last one, may be added behind it: nothing else goes on there, and
    /// few hold anything of the run.
    pub(crate) fn takes_more_of(&self, slot: u32) -> bool {
        let Some(full) = self.full.few() else { return false };
        let is_holder = || full.contains(&slot) || self.part(slot).is_some();
        full.len() + self.parts.len() <= MOST_HOLDERS_THAT_GROW && self.is_last() && is_holder()
    }

    /// Adds blocks of a holder behind the last one, which the others don't hold.
    pub(crate) fn extend(&mut self, slot: u32, keys: &[BlockKey]) {
        let len = self.len();
        if self.keys.capacity() - len < keys.len() {
            // By a quarter, since there are many runs, and each stops growing.
            self.keys.reserve_exact(keys.len().max(len / 4).max(2));
        }
        self.keys.extend_from_slice(keys);
        let is_full = self.full.contains(slot);
        if !is_full || !self.full.is_only(slot) {
            let full = std::mem::take(&mut self.full);
            let others = full.few().unwrap_or_default().iter().filter(|other| **other != slot);
            self.parts.extend(others.map(|other| Part::leading(*other, len)));
            if is_full {
                self.full.insert(slot);
            }
        }
        if let Some(place) = self.place_of_part(slot) {
            self.parts[place].insert(len, self.keys.len());
            self.promote_part(place);
        }
    }

    pub(crate) fn holds(&self, slot: u32, at: usize) -> bool {
        let in_part = || self.part(slot).is_some_and(|part| part.holds(at));
        at < self.len() && (self.full.contains(slot) || in_part())
    }

    /// Notes that the slot holds the blocks `from..to`.
    pub(crate) fn insert(&mut self, slot: u32, from: usize, to: usize) {
        if from >= to || self.full.contains(slot) {
            return;
        }
        if from == 0 && to == self.len() {
            self.parts.retain(|part| part.slot != slot);
            self.full.insert(slot);
            return;
        }
        let place = self.place_of_part(slot).unwrap_or_else(|| {
            self.parts.push(Part::leading(slot, 0));
            self.parts.len() - 1
        });
        self.parts[place].insert(from, to);
        self.promote_part(place);
    }

    /// Notes that the slot doesn't hold the blocks `from..to` any more, and drops blocks at the end that nobody holds.
    pub(crate) fn remove(&mut self, slot: u32, from: usize, to: usize) {
        if self.full.remove(slot) {
            if from > 0 || to < self.len() {
                let mut part = Part::leading(slot, self.len());
                part.remove(from, to);
                self.parts.push(part);
            }
        } else if let Some(place) = self.place_of_part(slot) {
            self.parts[place].remove(from, to);
            if self.parts[place].is_empty() {
                self.parts.swap_remove(place);
            }
        }
        if to == self.len() {
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
        let kept = self.parts.iter().map(Part::end).max().unwrap_or(0).max(1);
        if kept >= self.len() {
            return;
        }
        self.keys.truncate(kept);
        if self.keys.spilled() && self.keys.capacity() > 2 * kept + 4 {
            self.keys.shrink_to_fit();
        }
        self.promote();
    }

    /// Moves those who hold all blocks to where they belong.
    fn promote(&mut self) {
        let len = self.keys.len();
        let full = &mut self.full;
        self.parts.retain(|part| {
            let is_full = part.is_full(len);
            if is_full {
                full.insert(part.slot);
            }
            !is_full
        });
    }

    fn promote_part(&mut self, place: usize) {
        if self.parts[place].is_full(self.keys.len()) {
            let part = self.parts.swap_remove(place);
            self.full.insert(part.slot);
        }
    }

    /// Cuts the blocks before `at` off and returns them as a run that comes before this one; the caller makes it the
    /// parent.
    pub(crate) fn split(&mut self, at: usize) -> Self {
        let rest = SmallVec::from_slice(&self.keys[at..]);
        let mut front = Self {
            keys: std::mem::replace(&mut self.keys, rest),
            start: self.start,
            parent: self.parent,
            children: AtomicU32::new(1),
            empty_children: EmptyRuns::default(),
            full: self.full.clone(),
            parts: SmallVec::new(),
        };
        front.keys.truncate(at);
        front.keys.shrink_to_fit();
        self.start += at as u32;
        front.parts.extend(self.parts.iter_mut().map(|part| part.split(at)).filter(|part| !part.is_empty()));
        self.parts.retain(|part| !part.is_empty());
        self.promote();
        front.promote();
        front
    }

    /// How many blocks in a row the slot holds from `at` on.
    pub(crate) fn held_from(&self, slot: u32, at: usize) -> usize {
        if self.full.contains(slot) {
            return self.len().saturating_sub(at);
        }
        self.part(slot).map_or(0, |part| part.row(at))
    }

    /// The slots that hold all blocks.
    pub(crate) fn full(&self) -> &Holders {
        &self.full
    }

    /// The slots that hold some, each with how many from the first on.
    pub(crate) fn partly(&self) -> impl Iterator<Item = (u32, u32)> {
        self.parts.iter().map(|part| (part.slot, part.row(0) as u32))
    }

    pub(crate) fn part(&self, slot: u32) -> Option<&Part> {
        self.parts.iter().find(|part| part.slot == slot)
    }

    fn place_of_part(&self, slot: u32) -> Option<usize> {
        self.parts.iter().position(|part| part.slot == slot)
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
            steps in vec((0..7_u8, 0..4_u32, any::<usize>()), 0..60),
        ) {
            let key = |position: u32| BlockKey(u64::from(position));
            let mut run = Run::new(key(0), NO_RUN, 0);
            (1..length as u32).for_each(|position| run.extend(0, &[key(position)]));
            let mut model = Model::from([(0, (0..length as u32).collect())]);
            for (what, slot, at) in steps {
                let at = at % run.len();
                let position = run.start + at as u32;
                match what {
                    0 | 1 => {
                        let to = run.len().min(at + what as usize * 3 + 1);
                        run.insert(slot, at, to);
                        model.entry(slot).or_default().extend(position..position + (to - at) as u32);
                    }
                    2 if model.entry(slot).or_default().remove(&position) => run.remove(slot, at, at + 1),
                    // The last one that it holds, with those in a row before it.
                    4 => if let Some(last) = model.entry(slot).or_default().pop_last() {
                        let held = model.entry(slot).or_default();
                        let mut first = last;
                        while first > run.start && held.remove(&(first - 1)) {
                            first -= 1;
                        }
                        run.remove(slot, (first - run.start) as usize, (last + 1 - run.start) as usize);
                    },
                    5 if run.takes_more_of(slot) && run.holds(slot, run.len() - 1) => {
                        let end = run.start + run.len() as u32;
                        run.extend(slot, &[key(end), key(end + 1)]);
                        model.entry(slot).or_default().extend([end, end + 1]);
                    }
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
        (1..200).for_each(|key| run.extend(7, &[BlockKey(key)]));
        run.insert(9, 100, 101);
        (101..200).rev().for_each(|at| run.remove(7, at, at + 1));
        assert_eq!(run.len(), 101);
        run.remove(7, 100, 101);
        assert_eq!(run.len(), 101, "9 holds it");
        run.remove(9, 100, 101);
        assert_eq!((run.len(), run.partly().count()), (100, 0), "7 holds all that is left");
        assert!(run.takes_more_of(7) && !run.takes_more_of(9));
    }
}
