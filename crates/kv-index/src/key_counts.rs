use std::sync::atomic::{AtomicU32, Ordering};

use crate::BlockKey;

/// A collection of keys that can be asked without a lock whether it lacks one: how many keys there are by some of their
/// bits (a counting Bloom filter with one hash; Fan et al., "Summary Cache", 1998).
pub(crate) struct KeyCounts {
    counts: Box<[AtomicU32]>,
}

impl KeyCounts {
    /// With so many counts, a power of two, of 4 bytes each. Few of them stay in a core's cache; many say of more keys
    /// that one isn't there.
    pub(crate) fn new(counts: usize) -> Self {
        Self { counts: (0..counts.next_power_of_two()).map(|_| AtomicU32::new(0)).collect() }
    }

    pub(crate) fn add(&self, key: BlockKey) {
        self.count(key).fetch_add(1, Ordering::AcqRel);
    }

    /// Takes out what was added.
    pub(crate) fn remove(&self, key: BlockKey) {
        self.count(key).fetch_sub(1, Ordering::AcqRel);
    }

    /// False if the key isn't there; true is no proof.
    pub(crate) fn may_contain(&self, key: BlockKey) -> bool {
        self.count(key).load(Ordering::Acquire) > 0
    }

    fn count(&self, key: BlockKey) -> &AtomicU32 {
        &self.counts[key.0 as usize & (self.counts.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::KeyCounts;
    use crate::BlockKey;

    #[test]
    fn keys_that_share_a_count_are_told_from_none() {
        let counts = KeyCounts::new(64);
        let (one, other) = (BlockKey(5), BlockKey(5 + 64));
        assert!(!counts.may_contain(one));
        counts.add(one);
        counts.add(other);
        counts.remove(one);
        assert!(counts.may_contain(other), "it is still there");
        counts.remove(other);
        assert!(!counts.may_contain(one) && !counts.may_contain(other));
    }
}
