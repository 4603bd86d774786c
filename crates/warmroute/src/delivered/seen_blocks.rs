use hashbrown::HashSet;
use warmroute_kv_index::BlockKey;

/// Most keys that are remembered: 64 Ki of 8 bytes, at most 1.2 MB with the table around them.
const MAX_KEYS: usize = 64 * 1024;

/// Which blocks were seen before: what a cache that never evicts would hold, in bounded memory.
///
/// Keys are remembered by a sample of their values: those that begin with enough zero bits. Which blocks are sampled
/// thus depends on the blocks alone, so a sampled block is remembered from its first time on; when too many are, one
/// more zero bit is asked for and half of them are dropped. That is SHARDS (Waldspurger, Park, Garthwaite, Ahmad:
/// "Efficient MRC Construction with SHARDS", FAST 2015), its version of fixed size, for the one cache size that is
/// infinite; a sample that has too few or too many of the references is corrected as in its section 3.2: blocks that
/// are missed that way are taken for hot ones, which every prompt begins with.
///
/// Until 64 Ki different blocks have been seen (a million tokens in blocks of 16) nothing is left out and the answer
/// is exact. Cost: a comparison per block, and for one in 2^bits of them a look into the table.
#[derive(Debug, Default)]
pub(super) struct SeenBlocks {
    keys: HashSet<u64>,
    /// Zero bits that a sampled key begins with.
    bits: u32,
    /// Sampled keys of one prompt, reused.
    sampled: Vec<(u32, u64)>,
}

impl SeenBlocks {
    /// How many of a prompt's leading blocks were seen before, of the first `reusable` ones; all of them are seen now.
    /// An estimate once blocks are sampled, which is right in the sum over many prompts and may be below 0 or too
    /// large for one.
    pub(super) fn see(&mut self, keys: &[BlockKey], reusable: usize) -> i64 {
        let bits = self.bits;
        self.sampled.clear();
        let sampled = (0u32..).zip(keys).filter(|(_, key)| key.0.leading_zeros() >= bits);
        self.sampled.extend(sampled.map(|(at, key)| (at, key.0)));
        // A key stands for the whole prompt up to its block: if one was seen, all before it were.
        let seen = self.sampled.partition_point(|(_, key)| self.keys.contains(key));
        for (_, key) in &self.sampled[seen..] {
            self.keys.insert(*key);
        }
        let reusable_sampled = self.sampled.partition_point(|(at, _)| (*at as usize) < reusable);
        while self.keys.len() > MAX_KEYS {
            self.bits += 1;
            let bits = self.bits;
            self.keys.retain(|key| key.leading_zeros() >= bits);
        }
        let hits = (seen.min(reusable_sampled) as i64) << bits;
        let references = (reusable_sampled as i64) << bits;
        hits + reusable.min(keys.len()) as i64 - references
    }

    /// Share of the blocks that are remembered.
    pub(super) fn sampled_share(&self) -> f64 {
        0.5_f64.powi(self.bits as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmroute_kv_index::{KeyExtras, block_keys};

    fn prompt(shared: u32, own: std::ops::Range<u32>) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        let tokens: Vec<u32> = (0..shared).chain(own).collect();
        block_keys(&tokens, 1, &KeyExtras::default(), &mut keys);
        keys
    }

    #[test]
    fn few_blocks_are_counted_exactly() {
        let mut seen = SeenBlocks::default();
        assert_eq!(seen.see(&prompt(4, 10..12), 6), 0);
        assert_eq!(seen.see(&prompt(4, 20..23), 7), 4);
        assert_eq!(seen.see(&prompt(4, 20..23), 6), 6, "the last block is computed anyway");
        assert_eq!(seen.see(&prompt(2, 40..42), 4), 2);
        assert_eq!(seen.see(&[], 0), 0);
    }

    #[test]
    fn many_blocks_are_estimated_in_bounded_memory() {
        let mut seen = SeenBlocks::default();
        let (mut estimate, mut exact) = (0, 0);
        for at in 0..4000_u32 {
            // 40 blocks that all share, 60 that every second prompt repeats, 60 new ones.
            let own = 1_000_000 + 1000 * (at / 2);
            let new = 10_000_000 + 100 * at;
            let tokens: Vec<u32> = (0..40).chain(own..own + 60).chain(new..new + 60).collect();
            let mut keys = Vec::new();
            block_keys(&tokens, 1, &KeyExtras::default(), &mut keys);
            estimate += seen.see(&keys, keys.len());
            exact += if at == 0 { 0 } else { 40 } + if at % 2 == 1 { 60 } else { 0 };
            assert!(seen.keys.len() <= MAX_KEYS);
        }
        assert!(seen.sampled_share() < 0.5, "{}", seen.sampled_share());
        let error = (estimate - exact) as f64 / exact as f64;
        assert!(error.abs() < 0.03, "{estimate} {exact}");
    }
}
