use std::collections::BTreeSet;
use std::time::Instant;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::{BlockKey, EngineSlot, Expectation};

/// Successive blocks of a prompt that an engine is expected to hold, and who expects them.
pub(crate) struct ExpectedChain {
    pub(crate) slot: EngineSlot,
    pub(crate) keys: Box<[BlockKey]>,
    pub(crate) expectations: SmallVec<[Expectation; 1]>,
}

/// The chains of the live expectations. A key hashes all that comes before its block, so the first and the last key
/// stand for a whole chain, and any number of requests with one prompt share it.
#[derive(Default)]
pub(crate) struct ExpectedChains {
    by_first: HashMap<BlockKey, SmallVec<[ExpectedChain; 1]>>,
    /// Where the chains are that end with a block.
    by_last: HashMap<BlockKey, SmallVec<[Place; 1]>>,
    by_deadline: BTreeSet<Expectation>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: EngineSlot,
    first: BlockKey,
}

impl ExpectedChains {
    /// Adds an expectation of a chain, whose keys are given too.
    pub(crate) fn insert(&mut self, expectation: Expectation, keys: Box<[BlockKey]>) {
        let Expectation { slot, first, last, .. } = expectation;
        self.by_deadline.insert(expectation);
        let chains = self.by_first.entry(first).or_default();
        if let Some(chain) = chains.iter_mut().find(|chain| chain.is(slot, last)) {
            chain.expectations.push(expectation);
            return;
        }
        let expectations = SmallVec::from_buf([expectation]);
        chains.push(ExpectedChain { slot, keys, expectations });
        self.by_last.entry(last).or_default().push(Place { slot, first });
    }

    pub(crate) fn beginning_with(&self, first: BlockKey) -> &[ExpectedChain] {
        self.by_first.get(&first).map_or(&[], SmallVec::as_slice)
    }

    /// Ends one expectation; false if it has ended already.
    pub(crate) fn end(&mut self, expectation: &Expectation) -> bool {
        let is_live = self.by_deadline.remove(expectation);
        if is_live {
            self.leave_chain(expectation);
        }
        is_live
    }

    /// Ends the first expectation whose deadline has come.
    pub(crate) fn end_due(&mut self, now: Instant) -> Option<Expectation> {
        self.by_deadline.first().filter(|first| first.deadline <= now)?;
        let expectation = self.by_deadline.pop_first()?;
        self.leave_chain(&expectation);
        Some(expectation)
    }

    /// Ends all expectations of an engine whose last block is `last`.
    pub(crate) fn end_chains(&mut self, last: BlockKey, slot: EngineSlot) -> SmallVec<[ExpectedChain; 1]> {
        let mut ended = SmallVec::new();
        let Some(places) = self.by_last.get(&last) else { return ended };
        let firsts: SmallVec<[BlockKey; 4]> =
            places.iter().filter(|place| place.slot == slot).map(|place| place.first).collect();
        for first in firsts {
            remove_one(&mut self.by_last, last, |place| *place == Place { slot, first });
            ended.extend(remove_one(&mut self.by_first, first, |chain| chain.is(slot, last)));
        }
        for expectation in ended.iter().flat_map(|chain| &chain.expectations) {
            self.by_deadline.remove(expectation);
        }
        ended
    }

    pub(crate) fn expectations(&self) -> usize {
        self.by_deadline.len()
    }

    fn leave_chain(&mut self, expectation: &Expectation) {
        let Expectation { slot, first, last, .. } = *expectation;
        let Some(chain) =
            self.by_first.get_mut(&first).and_then(|chains| chains.iter_mut().find(|one| one.is(slot, last)))
        else {
            return;
        };
        if let Some(at) = chain.expectations.iter().position(|one| one.number == expectation.number) {
            chain.expectations.swap_remove(at);
        }
        if chain.expectations.is_empty() {
            remove_one(&mut self.by_first, first, |chain| chain.is(slot, last));
            remove_one(&mut self.by_last, last, |place| *place == Place { slot, first });
        }
    }
}

impl ExpectedChain {
    /// Whether it is the one of an engine with this last block, among those with the same first block.
    fn is(&self, slot: EngineSlot, last: BlockKey) -> bool {
        self.slot == slot && self.keys.last() == Some(&last)
    }
}

/// Takes an item from the list at `key`, and the list with its last item.
fn remove_one<T>(
    lists: &mut HashMap<BlockKey, SmallVec<[T; 1]>>,
    key: BlockKey,
    is_it: impl Fn(&T) -> bool,
) -> Option<T> {
    let Entry::Occupied(mut list) = lists.entry(key) else { return None };
    let at = list.get().iter().position(is_it)?;
    let item = list.get_mut().swap_remove(at);
    if list.get().is_empty() {
        list.remove();
    }
    Some(item)
}

#[cfg(test)]
mod tests {
    use super::ExpectedChains;
    use crate::{BlockKey, EngineSlot, Expectation};
    use std::time::{Duration, Instant};

    const SLOT: EngineSlot = EngineSlot { index: 3, generation: 1 };

    fn insert(
        chains: &mut ExpectedChains,
        number: u64,
        slot: EngineSlot,
        keys: std::ops::Range<u64>,
    ) -> Expectation {
        let keys: Box<[BlockKey]> = keys.map(BlockKey).collect();
        let (first, last, blocks) = (keys[0], keys[keys.len() - 1], keys.len());
        let expectation = Expectation { deadline: Instant::now(), number, slot, first, last, blocks };
        chains.insert(expectation, keys);
        expectation
    }

    fn assert_empty(chains: &ExpectedChains) {
        assert_eq!((chains.by_first.len(), chains.by_last.len(), chains.by_deadline.len()), (0, 0, 0));
    }

    #[test]
    fn requests_with_one_prompt_share_a_chain() {
        let mut chains = ExpectedChains::default();
        let burst: Vec<_> = (0..200).map(|number| insert(&mut chains, number, SLOT, 10..20)).collect();
        let longer = insert(&mut chains, 200, SLOT, 10..30);
        let elsewhere = insert(&mut chains, 201, EngineSlot { index: 4, generation: 1 }, 10..20);
        // What a lookup goes through.
        assert_eq!(chains.beginning_with(BlockKey(10)).len(), 3);
        assert_eq!((chains.by_last[&BlockKey(19)].len(), chains.expectations()), (2, 202));
        for one in &burst[1..] {
            assert!(chains.end(one));
            assert!(!chains.end(one), "it has ended already");
            assert_eq!(chains.beginning_with(BlockKey(10)).len(), 3);
        }
        assert!(chains.end(&burst[0]));
        assert_eq!(chains.beginning_with(BlockKey(10)).len(), 2);
        assert!(chains.end(&elsewhere) && chains.end(&longer));
        assert_empty(&chains);
    }

    #[test]
    fn a_last_block_ends_all_chains_of_its_engine_that_end_with_it() {
        let mut chains = ExpectedChains::default();
        let first = insert(&mut chains, 1, SLOT, 10..20);
        insert(&mut chains, 2, SLOT, 10..20);
        insert(&mut chains, 3, SLOT, 15..20);
        let other = insert(&mut chains, 4, EngineSlot { index: 3, generation: 0 }, 15..20);
        let ended = chains.end_chains(BlockKey(19), SLOT);
        let mut numbers: Vec<u64> =
            ended.iter().flat_map(|chain| &chain.expectations).map(|one| one.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3]);
        assert!(!chains.end(&first));
        assert!(chains.end_chains(BlockKey(19), SLOT).is_empty());
        assert!(chains.end_chains(BlockKey(15), other.slot).is_empty(), "that is where it begins");
        assert_eq!(chains.end_chains(BlockKey(19), other.slot).len(), 1);
        assert_empty(&chains);
    }

    #[test]
    fn what_is_due_ends_in_order() {
        let mut chains = ExpectedChains::default();
        let early = insert(&mut chains, 2, SLOT, 0..4);
        let late = Expectation { deadline: early.deadline + Duration::from_secs(1), number: 1, ..early };
        chains.insert(late, (0..4).map(BlockKey).collect());
        assert_eq!(chains.end_due(early.deadline - Duration::from_nanos(1)), None);
        assert_eq!(chains.end_due(late.deadline), Some(early));
        assert_eq!(chains.end_due(late.deadline), Some(late));
        assert_eq!(chains.end_due(late.deadline), None);
        assert_empty(&chains);
    }
}
