use std::hash::{BuildHasher, RandomState};

use crate::run::NO_RUN;
use crate::runs::Place;

/// Where the blocks of one engine are, by its names of them.
///
/// A table in the order of the names' hashes: each entry stands at the place that its hash points to, or as near after
/// it as there was room, and nothing stands empty between the two. So a search ends at the first greater hash, a removal
/// leaves nothing behind, and a table grows by a quarter, in one pass from front to back. At most 13 of 16 places are
/// taken: 20 to 25 bytes per block.
pub(crate) struct BlockNames {
    entries: Vec<Entry>,
    /// How many places hashes point to. A few more come after them, the last of which stays empty.
    homes: usize,
    len: usize,
    /// Unknown to whoever makes the names, so that they can't be made to collide.
    seed: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The greatest number where there is none.
    hash: u64,
    place: Place,
}

const EMPTY: Entry = Entry { hash: u64::MAX, place: Place { run: NO_RUN, position: 0 } };
const LEAST_GROWTH: usize = 32;
/// Places behind the last one that a hash points to.
const SPARE: usize = 48;

impl Entry {
    fn is_empty(&self) -> bool {
        self.place.run == NO_RUN
    }

    fn is(&self, hash: u64) -> bool {
        self.hash == hash && !self.is_empty()
    }
}

impl BlockNames {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), homes: 0, len: 0, seed: RandomState::new().hash_one(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn get(&self, name: u64) -> Option<Place> {
        let hash = self.hash(name);
        let entry = self.entries.get(self.search(hash))?;
        entry.is(hash).then_some(entry.place)
    }

    /// Notes where a block is, unless there is one of that name, whose place is returned.
    pub(crate) fn insert(&mut self, name: u64, place: Place) -> Option<Place> {
        if self.len >= self.homes - self.homes * 3 / 16 {
            self.grow();
        }
        let hash = self.hash(name);
        let at = self.search(hash);
        if let Some(entry) = self.entries.get(at).filter(|entry| entry.is(hash)) {
            return Some(entry.place);
        }
        let mut moving = Entry { hash, place };
        let after = self.entries.get_mut(at..).unwrap_or_default();
        for entry in &mut *after {
            std::mem::swap(entry, &mut moving);
            if moving.is_empty() {
                break;
            }
        }
        self.len += 1;
        // The last one stays empty, so there was room for all.
        if self.entries.last().is_none_or(|last| !last.is_empty()) {
            self.grow();
        }
        None
    }

    pub(crate) fn remove(&mut self, name: u64) -> Option<Place> {
        let hash = self.hash(name);
        let at = self.search(hash);
        let removed = *self.entries.get(at).filter(|entry| entry.is(hash))?;
        let mut free = at;
        while let Some(next) = self.entries.get(free + 1).copied() {
            if next.is_empty() || home_of(next.hash, self.homes) > free {
                break;
            }
            self.entries[free] = next;
            free += 1;
        }
        self.entries[free] = EMPTY;
        self.len -= 1;
        Some(removed.place)
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.entries.iter().filter(|entry| !entry.is_empty()).map(|entry| entry.place)
    }

    /// All names, in no order that means anything, and where their blocks are.
    pub(crate) fn names(&self) -> impl Iterator<Item = (u64, Place)> {
        let held = self.entries.iter().filter(|entry| !entry.is_empty());
        held.map(|entry| (self.name(entry.hash), entry.place))
    }

    /// Forgets all, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.entries.fill(EMPTY);
        self.len = 0;
    }

    /// One to one, and spreads any names evenly (the finaliser of MurmurHash3, which is in the public domain:
    /// <https://github.com/aappleby/smhasher>).
    fn hash(&self, name: u64) -> u64 {
        let mut hash = name ^ self.seed;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }

    /// The name of a hash: [`Self::hash`] backwards.
    fn name(&self, mut hash: u64) -> u64 {
        hash = (hash ^ (hash >> 33)).wrapping_mul(0x9cb4_b2f8_1293_37db);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0x4f74_430c_22a5_4005);
        hash ^ (hash >> 33) ^ self.seed
    }

    /// Where the entry of that hash is, or would be.
    fn search(&self, hash: u64) -> usize {
        let home = home_of(hash, self.homes);
        let after = self.entries.get(home..).unwrap_or_default();
        home + after.iter().position(|entry| entry.hash >= hash).unwrap_or(after.len())
    }

    fn grow(&mut self) {
        let mut homes = self.homes;
        loop {
            homes += homes / 4 + LEAST_GROWTH;
            if self.try_resize(homes) {
                return;
            }
        }
    }

    /// False, and nothing has changed, if too many hashes point to the end.
    fn try_resize(&mut self, homes: usize) -> bool {
        let mut entries = vec![EMPTY; homes + SPARE];
        let mut free = 0;
        for entry in self.entries.iter().filter(|entry| !entry.is_empty()) {
            let at = home_of(entry.hash, homes).max(free);
            free = at + 1;
            if free >= entries.len() {
                return false;
            }
            entries[at] = *entry;
        }
        (self.entries, self.homes) = (entries, homes);
        true
    }
}

/// In the order of the hashes.
fn home_of(hash: u64, homes: usize) -> usize {
    ((u128::from(hash) * homes as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::BlockNames;
    use crate::runs::Place;

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in vec((0..5_u8, 0..400_u64, any::<u32>()), 0..1_500)) {
            let (mut names, mut model) = (BlockNames::new(), HashMap::new());
            for (what, name, number) in steps {
                let place = Place { run: number / 2, position: number };
                match what {
                    0..=2 => {
                        prop_assert_eq!(names.insert(name, place), model.get(&name).copied());
                        model.entry(name).or_insert(place);
                    }
                    3 => prop_assert_eq!(names.remove(name), model.remove(&name)),
                    _ if number < u32::MAX / 50 => {
                        names.clear();
                        model.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!(names.get(name), model.get(&name).copied());
                prop_assert_eq!((names.len(), names.is_empty()), (model.len(), model.is_empty()));
            }
            for name in 0..400 {
                prop_assert_eq!(names.get(name), model.get(&name).copied());
            }
            let mut places: Vec<_> = names.places().map(|place| place.position).collect();
            let mut expected: Vec<_> = model.values().map(|place| place.position).collect();
            places.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(places, expected);
            prop_assert_eq!(names.names().collect::<HashMap<_, _>>(), model);
        }
    }

    #[test]
    fn hashes_at_the_end_make_it_grow() {
        let mut names = BlockNames::new();
        let mut high: Vec<u64> = (0..200_000).collect();
        high.sort_unstable_by_key(|name| std::cmp::Reverse(names.hash(*name)));
        for (number, name) in high.iter().take(300).enumerate() {
            assert_eq!(names.insert(*name, Place { run: 1, position: number as u32 }), None);
        }
        for (number, name) in high.iter().take(300).enumerate() {
            assert_eq!(names.remove(*name).map(|place| place.position), Some(number as u32));
        }
        assert!(names.is_empty());
    }
}
