//! Block tables of requests on top of the pool: prefix hits, allocation, caching of full blocks.

use std::sync::Arc;

use crate::block_hash::{BlockHash, HashScheme};
use crate::block_pool::{BlockId, BlockPool, CacheEvent};
use crate::host_cache::HostCache;

/// The tokens of one request and the blocks that hold their KV.
#[derive(Clone, Debug)]
pub struct Sequence {
    token_ids: Vec<u32>,
    cache_salt: Option<Arc<str>>,
    hashes: Vec<BlockHash>,
    blocks: Vec<BlockId>,
    // Leading blocks of the table that are cached; they are announced once.
    cached_blocks: usize,
    computed_tokens: usize,
    reports_hits: bool,
}

impl Sequence {
    /// A request that holds no block yet.
    #[must_use]
    pub fn new(prompt_token_ids: Vec<u32>, cache_salt: Option<Arc<str>>) -> Self {
        Self {
            token_ids: prompt_token_ids,
            cache_salt,
            hashes: Vec::new(),
            blocks: Vec::new(),
            cached_blocks: 0,
            computed_tokens: 0,
            reports_hits: false,
        }
    }

    /// The same, of which cached blocks that it hits are announced again: vLLM's `kv_cache_report_mode=full`.
    #[must_use]
    pub fn reporting_hits(self, reports_hits: bool) -> Self {
        Self { reports_hits, ..self }
    }

    /// Prompt and output so far, in tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Leading tokens whose KV is there, from the cache or computed.
    #[must_use]
    pub fn computed_tokens(&self) -> usize {
        self.computed_tokens
    }

    /// The physical blocks held, in order of the tokens.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Appends a decoded token. Its KV is computed in the next step.
    pub fn push_token(&mut self, token_id: u32) {
        self.token_ids.push(token_id);
    }
}

/// The prefix cache of one engine with full attention in one KV cache group, step by step as in vLLM's
/// `vllm/v1/core/kv_cache_manager.py` (`get_computed_blocks`, `allocate_slots`, `free`).
pub struct PrefixCache {
    pool: BlockPool,
    host: HostCache,
    block_size_tokens: usize,
    scheme: HashScheme,
    none_hash: BlockHash,
    enabled: bool,
}

impl PrefixCache {
    /// An empty cache of `num_gpu_blocks` blocks (one of them the null block) of `block_size_tokens` tokens.
    /// With `enabled` false, blocks are only allocated, never cached.
    #[must_use]
    pub fn new(num_gpu_blocks: u32, block_size_tokens: u32, scheme: HashScheme, enabled: bool) -> Self {
        Self {
            pool: BlockPool::new(num_gpu_blocks),
            host: HostCache::new(0),
            block_size_tokens: block_size_tokens.max(1) as usize,
            none_hash: scheme.none_hash(),
            scheme,
            enabled,
        }
    }

    /// The same with copies of so many blocks in the host's memory.
    #[must_use]
    pub fn with_host_blocks(self, num_cpu_blocks: u32) -> Self {
        Self { host: HostCache::new(num_cpu_blocks), ..self }
    }

    /// Blocks in the host's memory.
    #[must_use]
    pub fn host_blocks(&self) -> usize {
        self.host.len()
    }

    /// Tokens that a sequence can load from the host's memory behind so many hits of [`Self::lookup`].
    #[must_use]
    pub fn loadable_tokens(&self, sequence: &Sequence, hits: usize) -> usize {
        let limit = sequence.tokens().saturating_sub(1) / self.block_size_tokens;
        let behind = sequence.hashes.iter().take(limit).skip(hits);
        behind.take_while(|hash| self.host.holds(hash)).count() * self.block_size_tokens
    }

    /// The blocks underneath.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Tokens per block.
    #[must_use]
    pub fn block_size_tokens(&self) -> usize {
        self.block_size_tokens
    }

    /// The share of usable blocks that somebody holds, 0 to 1 (vLLM's `kv_cache_usage_perc`).
    #[must_use]
    pub fn usage(&self) -> f64 {
        match self.pool.usable_blocks() {
            0 => 0.0,
            usable => 1.0 - f64::from(self.pool.free_blocks()) / f64::from(usable),
        }
    }

    /// The blocks of the longest cached prefix. The last token is never taken from the cache, because its
    /// output is wanted, so a prompt of n tokens hits at most (n − 1) div B blocks.
    pub fn lookup(&self, sequence: &mut Sequence) -> Vec<BlockId> {
        if !self.enabled {
            return Vec::new();
        }
        self.hash_full_blocks(sequence);
        let limit = sequence.tokens().saturating_sub(1) / self.block_size_tokens;
        sequence.hashes.iter().take(limit).map_while(|hash| self.pool.cached_block(hash)).collect()
    }

    /// Starts a sequence that holds no blocks: takes the `hits` of [`Self::lookup`] and room for `new_tokens`
    /// more, and counts both as computed. Full blocks are cached at once, so that a request scheduled later
    /// in the same step hits them. False, with nothing changed, if too few blocks are free.
    pub fn admit(&mut self, sequence: &mut Sequence, hits: &[BlockId], new_tokens: usize) -> bool {
        let hit_tokens = hits.len() * self.block_size_tokens;
        let needed = (hit_tokens + new_tokens).div_ceil(self.block_size_tokens).saturating_sub(hits.len());
        // A hit that nobody holds is in the free queue and is about to leave it.
        let leaving = hits.iter().filter(|&&id| self.pool.is_free(id)).count();
        if needed + leaving > self.pool.free_blocks() as usize {
            return false;
        }
        if sequence.reports_hits && !hits.is_empty() {
            let tokens = &sequence.token_ids[..hit_tokens];
            self.pool.announce(&sequence.hashes[..hits.len()], tokens, sequence.cache_salt.clone());
        }
        self.pool.touch(hits);
        sequence.blocks.extend_from_slice(hits);
        sequence.cached_blocks = hits.len();
        sequence.computed_tokens = hit_tokens;
        self.extend(sequence, new_tokens)
    }

    /// Makes room for the next `new_tokens` tokens of an admitted sequence and counts them as computed.
    /// False, with nothing changed, if too few blocks are free.
    pub fn extend(&mut self, sequence: &mut Sequence, new_tokens: usize) -> bool {
        let tokens = (sequence.computed_tokens + new_tokens).min(sequence.tokens());
        let needed = tokens.div_ceil(self.block_size_tokens).saturating_sub(sequence.blocks.len());
        if !self.pool.take(needed as u32, &mut sequence.blocks) {
            return false;
        }
        sequence.computed_tokens = tokens;
        if self.enabled {
            self.hash_full_blocks(sequence);
            self.store_full_blocks(sequence);
        }
        true
    }

    /// Gives back all blocks of a finished, aborted or preempted sequence, last block first, so that the tail
    /// of a prefix is evicted before its head.
    pub fn release(&mut self, sequence: &mut Sequence) {
        self.pool.release(sequence.blocks.drain(..).rev());
        sequence.cached_blocks = 0;
        sequence.computed_tokens = 0;
    }

    /// Forgets everything cached; refused (false) while any request holds blocks.
    pub fn reset(&mut self) -> bool {
        self.pool.reset()
    }

    /// The events since the last call, in order.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        let mut events = self.pool.take_events();
        // Behind the stores that tell the tokens of what is copied.
        events.append(&mut self.host.take_events());
        events
    }

    fn hash_full_blocks(&self, sequence: &mut Sequence) {
        let size = self.block_size_tokens;
        while (sequence.hashes.len() + 1) * size <= sequence.token_ids.len() {
            let index = sequence.hashes.len();
            let tokens = &sequence.token_ids[index * size..(index + 1) * size];
            let hash = match sequence.hashes.last() {
                None => self.scheme.block_hash(&self.none_hash, tokens, sequence.cache_salt.as_deref()),
                Some(parent) => self.scheme.block_hash(parent, tokens, None),
            };
            sequence.hashes.push(hash);
        }
    }

    fn store_full_blocks(&mut self, sequence: &mut Sequence) {
        let first = sequence.cached_blocks;
        let full = sequence.computed_tokens / self.block_size_tokens;
        if full <= first {
            return;
        }
        self.pool.store(
            &sequence.blocks[first..full],
            &sequence.hashes[first..full],
            first.checked_sub(1).map(|parent| sequence.hashes[parent]),
            &sequence.token_ids[first * self.block_size_tokens..full * self.block_size_tokens],
            sequence.cache_salt.clone().filter(|_| first == 0),
        );
        self.host.store(&sequence.hashes[first..full]);
        sequence.cached_blocks = full;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::Index;

    use super::{PrefixCache, Sequence};
    use crate::block_hash::{BlockHash, HashScheme};
    use crate::block_pool::{BlockId, CacheEvent};

    const BLOCK_SIZE: u32 = 4;
    const BLOCKS: u32 = 12;

    #[derive(Clone, Debug)]
    enum Operation {
        /// Admit a prompt made of one of few prefixes and a tail.
        Admit {
            prefix: u32,
            prefix_tokens: usize,
            tail: u32,
        },
        Decode(Index),
        Release(Index),
        Reset,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            4 => (0..3_u32, 1..20_usize, 0..3_u32)
                .prop_map(|(prefix, prefix_tokens, tail)| Operation::Admit { prefix, prefix_tokens, tail }),
            6 => any::<Index>().prop_map(Operation::Decode),
            3 => any::<Index>().prop_map(Operation::Release),
            1 => proptest::prelude::Just(Operation::Reset),
        ]
    }

    /// What a reader of the events alone believes to be cached: copies by hash.
    #[derive(Default)]
    struct Reader(HashMap<BlockHash, usize>);

    impl Reader {
        fn apply(&mut self, events: &[CacheEvent]) {
            for event in events {
                match event {
                    CacheEvent::Stored { hashes, parent, token_ids, .. } => {
                        assert_eq!(token_ids.len(), hashes.len() * BLOCK_SIZE as usize);
                        assert!(
                            !hashes.is_empty() && parent.is_none_or(|parent| self.0.contains_key(&parent))
                        );
                        hashes.iter().for_each(|hash| *self.0.entry(*hash).or_default() += 1);
                    }
                    CacheEvent::Removed { hash } => {
                        let copies = self.0.get_mut(hash).expect("removed before it was stored");
                        *copies -= 1;
                        if *copies == 0 {
                            self.0.remove(hash);
                        }
                    }
                    CacheEvent::Cleared => self.0.clear(),
                    CacheEvent::HostStored { .. } | CacheEvent::HostRemoved { .. } => {
                        panic!("there is no room for copies")
                    }
                }
            }
        }
    }

    fn holders(running: &[Sequence]) -> HashMap<BlockId, u32> {
        let mut holders = HashMap::new();
        for id in running.iter().flat_map(|sequence| sequence.blocks()) {
            *holders.entry(*id).or_default() += 1;
        }
        holders
    }

    fn admit(cache: &mut PrefixCache, reader: &Reader, mut sequence: Sequence) -> Option<Sequence> {
        let hits = cache.lookup(&mut sequence);
        let limit = (sequence.tokens() - 1) / BLOCK_SIZE as usize;
        let believed =
            sequence.hashes.iter().take(limit).take_while(|hash| reader.0.contains_key(*hash)).count();
        assert_eq!(hits.len(), believed, "events and lookup disagree");
        let free = cache.pool().free_blocks();
        let rest = sequence.tokens() - hits.len() * BLOCK_SIZE as usize;
        let admitted = cache.admit(&mut sequence, &hits, rest);
        assert!(admitted || cache.pool().free_blocks() == free);
        admitted.then_some(sequence)
    }

    proptest! {
        #[test]
        fn blocks_are_held_or_free_and_events_tell_what_is_cached(
            operations in proptest::collection::vec(operation(), 1..120)
        ) {
            let mut cache = PrefixCache::new(BLOCKS, BLOCK_SIZE, HashScheme::default(), true);
            let mut running: Vec<Sequence> = Vec::new();
            let mut reader = Reader::default();
            for operation in operations {
                match operation {
                    Operation::Admit { prefix, prefix_tokens, tail } => {
                        let mut prompt: Vec<u32> = (0..prefix_tokens as u32).map(|at| prefix * 100 + at).collect();
                        prompt.push(1000 + tail);
                        running.extend(admit(&mut cache, &reader, Sequence::new(prompt, None)));
                    }
                    Operation::Decode(index) if !running.is_empty() => {
                        let sequence = index.get_mut(&mut running);
                        let (blocks, computed) = (sequence.blocks().len(), sequence.computed_tokens());
                        sequence.push_token(7);
                        if !cache.extend(sequence, 1) {
                            prop_assert_eq!(cache.pool().free_blocks(), 0);
                            prop_assert_eq!((sequence.blocks().len(), sequence.computed_tokens()), (blocks, computed));
                            sequence.token_ids.pop();
                            sequence.hashes.truncate(sequence.token_ids.len() / BLOCK_SIZE as usize);
                        }
                    }
                    Operation::Release(index) if !running.is_empty() => {
                        let mut sequence = running.swap_remove(index.index(running.len()));
                        cache.release(&mut sequence);
                        prop_assert!(sequence.blocks().is_empty());
                    }
                    Operation::Reset => prop_assert_eq!(cache.reset(), running.is_empty()),
                    Operation::Decode(_) | Operation::Release(_) => {}
                }
                reader.apply(&cache.take_events());
                if let Err(problem) = cache.pool().check(&holders(&running)) {
                    return Err(proptest::test_runner::TestCaseError::fail(problem));
                }
                prop_assert_eq!(reader.0.values().sum::<usize>(), cache.pool().cached_blocks());
                for sequence in &running {
                    let needed = sequence.computed_tokens().div_ceil(BLOCK_SIZE as usize);
                    prop_assert_eq!(sequence.blocks().len(), needed);
                }
                let held = BLOCKS - 1 - cache.pool().free_blocks();
                prop_assert!((cache.usage() - f64::from(held) / f64::from(BLOCKS - 1)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_salt_separates_equal_tokens_and_is_announced_with_the_first_block() {
        let mut cache = PrefixCache::new(BLOCKS, BLOCK_SIZE, HashScheme::default(), true);
        let prompt: Vec<u32> = (0..9).collect();
        for salt in [None, Some("a".into()), Some("b".into())] {
            let mut sequence = Sequence::new(prompt.clone(), salt.clone());
            assert!(cache.lookup(&mut sequence).is_empty());
            assert!(cache.admit(&mut sequence, &[], prompt.len()));
            let stored = cache.take_events();
            assert!(matches!(&stored[..], [CacheEvent::Stored { cache_salt, .. }] if *cache_salt == salt));
            let mut again = Sequence::new(prompt.clone(), salt);
            assert_eq!(cache.lookup(&mut again).len(), 2);
        }
    }

    #[test]
    fn what_left_gpu_memory_is_loaded_from_the_hosts() {
        let mut cache = PrefixCache::new(6, BLOCK_SIZE, HashScheme::default(), true).with_host_blocks(16);
        let compute = |cache: &mut PrefixCache, tokens: std::ops::Range<u32>| {
            let mut sequence = Sequence::new(tokens.collect(), None);
            let hits = cache.lookup(&mut sequence);
            let loadable = cache.loadable_tokens(&sequence, hits.len());
            let rest = sequence.tokens() - hits.len() * BLOCK_SIZE as usize;
            assert!(cache.admit(&mut sequence, &hits, rest));
            cache.release(&mut sequence);
            (hits.len(), loadable)
        };
        assert_eq!(compute(&mut cache, 0..16), (0, 0));
        let copies = cache.take_events();
        assert_eq!(copies.iter().filter(|event| matches!(event, CacheEvent::HostStored { .. })).count(), 4);
        // The last token is computed, so of four blocks three are of use.
        assert_eq!(compute(&mut cache, 0..16), (3, 0));
        assert_eq!(compute(&mut cache, 100..120), (0, 0));
        assert_eq!(compute(&mut cache, 0..17), (0, 16));
        assert!(cache.reset());
        assert_eq!(compute(&mut cache, 0..17), (0, 16), "a reset leaves the copies alone");
        assert_eq!(cache.host_blocks(), 9);
    }

    #[test]
    fn a_hit_prefix_is_announced_again_in_one_store_if_asked_for() {
        let mut cache = PrefixCache::new(BLOCKS, BLOCK_SIZE, HashScheme::default(), true);
        for (tokens, reports_hits) in [(9, false), (13, true), (13, false)] {
            let mut sequence = Sequence::new((0..tokens).collect(), None).reporting_hits(reports_hits);
            let hits = cache.lookup(&mut sequence);
            assert!(cache.admit(&mut sequence, &hits, tokens as usize - hits.len() * BLOCK_SIZE as usize));
            let stores: Vec<(bool, usize)> = cache
                .take_events()
                .iter()
                .map(|event| match event {
                    CacheEvent::Stored { parent, hashes, .. } => (parent.is_some(), hashes.len()),
                    other => panic!("{other:?}"),
                })
                .collect();
            match (tokens, reports_hits) {
                (9, _) => assert_eq!(stores, [(false, 2)]),
                (_, true) => assert_eq!(stores, [(false, 2), (true, 1)]),
                (_, false) => assert_eq!(stores, []),
            }
            cache.release(&mut sequence);
        }
    }

    #[test]
    fn without_caching_nothing_is_hit_or_announced() {
        let mut cache = PrefixCache::new(BLOCKS, BLOCK_SIZE, HashScheme::default(), false);
        for _ in 0..2 {
            let mut sequence = Sequence::new((0..9).collect(), None);
            assert!(cache.lookup(&mut sequence).is_empty());
            assert!(cache.admit(&mut sequence, &[], 9));
            cache.release(&mut sequence);
        }
        assert_eq!(cache.take_events(), []);
    }
}
