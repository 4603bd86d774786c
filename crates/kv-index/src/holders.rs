use smallvec::SmallVec;

/// The slots that hold something: a short list, or a bit set once there are many.
#[derive(Clone)]
pub(crate) enum Holders {
    Few(SmallVec<[u32; 4]>),
    Many(Box<[u64]>),
}

/// From more holders than this on a bit set.
const FEW: usize = 16;
/// Back to a list from this few on; apart from [`FEW`] so that a holder that comes and goes doesn't rebuild it.
const FEW_AGAIN: usize = 8;

impl Default for Holders {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Holders {
    /// Whether the slot is a holder and the only one.
    pub(crate) fn is_only(&self, slot: u32) -> bool {
        match self {
            Self::Few(slots) => slots.as_slice() == [slot],
            Self::Many(_) => false,
        }
    }

    /// The slots, unless there are many.
    pub(crate) fn few(&self) -> Option<&[u32]> {
        match self {
            Self::Few(slots) => Some(slots),
            Self::Many(_) => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Few(slots) => slots.is_empty(),
            // A bit set becomes a list long before it is empty.
            Self::Many(_) => false,
        }
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        match self {
            Self::Few(slots) => slots.contains(&slot),
            Self::Many(words) => words.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0),
        }
    }

    /// Adds a holder; false if it was one already.
    pub(crate) fn insert(&mut self, slot: u32) -> bool {
        match self {
            Self::Few(slots) if slots.contains(&slot) => false,
            Self::Few(slots) if slots.len() < FEW => {
                slots.push(slot);
                true
            }
            Self::Few(slots) => {
                slots.push(slot);
                let highest = slots.iter().copied().max().unwrap_or(slot);
                let mut words = vec![0; word_of(highest) + 1].into_boxed_slice();
                slots.iter().for_each(|slot| set(&mut words, *slot));
                *self = Self::Many(words);
                true
            }
            Self::Many(words) => {
                if word_of(slot) >= words.len() {
                    let mut longer = std::mem::take(words).into_vec();
                    longer.resize(word_of(slot) + 1, 0);
                    *words = longer.into_boxed_slice();
                }
                let is_new = words[word_of(slot)] & bit_of(slot) == 0;
                set(words, slot);
                is_new
            }
        }
    }

    /// Takes a holder out; false if it was none.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        match self {
            Self::Few(slots) => match slots.iter().position(|held| *held == slot) {
                Some(position) => {
                    slots.swap_remove(position);
                    true
                }
                None => false,
            },
            Self::Many(words) => {
                let Some(word) = words.get_mut(word_of(slot)).filter(|word| **word & bit_of(slot) != 0)
                else {
                    return false;
                };
                *word &= !bit_of(slot);
                if words.iter().map(|word| word.count_ones() as usize).sum::<usize>() <= FEW_AGAIN {
                    *self = Self::Few(bits(words).collect());
                }
                true
            }
        }
    }

    /// Sets in `held` the bits of `wanted` whose slots are holders.
    pub(crate) fn add_wanted(&self, wanted: &[u64], held: &mut [u64]) {
        match self {
            Self::Few(slots) => {
                for slot in slots {
                    if let (Some(wanted), Some(held)) =
                        (wanted.get(word_of(*slot)), held.get_mut(word_of(*slot)))
                    {
                        *held |= wanted & bit_of(*slot);
                    }
                }
            }
            Self::Many(words) => {
                for ((word, wanted), held) in words.iter().zip(wanted).zip(held) {
                    *held |= word & wanted;
                }
            }
        }
    }
}

pub(crate) fn word_of(slot: u32) -> usize {
    slot as usize / 64
}

pub(crate) fn bit_of(slot: u32) -> u64 {
    1 << (slot % 64)
}

pub(crate) fn set(words: &mut [u64], slot: u32) {
    if let Some(word) = words.get_mut(word_of(slot)) {
        *word |= bit_of(slot);
    }
}

/// The slots whose bits are set.
pub(crate) fn bits(words: &[u64]) -> impl Iterator<Item = u32> {
    words.iter().enumerate().flat_map(|(index, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(index as u32 * 64 + bit)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Holders, bits};
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(steps in prop::collection::vec((any::<bool>(), 0..200_u32), 0..300)) {
            let (mut holders, mut model) = (Holders::default(), BTreeSet::new());
            for (insert, slot) in steps {
                if insert {
                    prop_assert_eq!(holders.insert(slot), model.insert(slot));
                } else {
                    prop_assert_eq!(holders.remove(slot), model.remove(&slot));
                }
                prop_assert_eq!(holders.is_empty(), model.is_empty());
            }
            let mut held = [0; 4];
            holders.add_wanted(&[u64::MAX; 4], &mut held);
            prop_assert_eq!(bits(&held).collect::<BTreeSet<_>>(), model.clone());
            for slot in 0..200 {
                prop_assert_eq!(holders.contains(slot), model.contains(&slot));
            }
            let mut even = [0; 4];
            holders.add_wanted(&[0x5555_5555_5555_5555; 4], &mut even);
            prop_assert_eq!(bits(&even).collect::<Vec<_>>(), model.into_iter().filter(|slot| slot % 2 == 0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn hundreds_of_holders_come_and_go() {
        let slots = (0..1_000_u32).rev();
        let mut holders = Holders::default();
        for slot in slots.clone() {
            assert!(holders.insert(slot));
        }
        for slot in slots {
            assert!(holders.remove(slot));
        }
        assert!(holders.is_empty());
    }
}
