use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::block_keys::{KeyBuffer, next_key, update_piece};
use crate::runs::Place;
use crate::sent_order::SentOrder;
use crate::{
    BlockKey, EngineSlot, Expectation, IndexError, IndexLimits, IndexStats, KvIndex, LookupScratch, Match,
};

/// What besides tokens tells prompts apart in an [`ApproximateIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApproximateExtras<'a> {
    /// The model that the request names, which may be a LoRA adapter.
    pub model: &'a str,
    /// The request's `cache_salt`; the empty salt is none.
    pub cache_salt: Option<&'a str>,
    /// Whether the tokens are guessed, so that they never match exact ones.
    pub is_estimated: bool,
}

/// Appends the keys of a prompt's first `max_blocks` blocks, first block first; the last block of the prompt counts even
/// if it isn't full. Nothing is appended for a block size of 0.
///
/// The same chain as [`block_keys`](crate::block_keys), from another seed: these keys never equal those of an exact
/// index. The llm-d Router EPP builds its chain likewise (model and salt in the seed, the partial block hashed;
/// `pkg/epp/framework/plugins/requestcontrol/dataproducer/prefixhash/` in github.com/llm-d/llm-d-router).
pub fn approximate_keys(
    tokens: &[u32],
    block_size_tokens: u32,
    extras: &ApproximateExtras<'_>,
    max_blocks: usize,
    keys: &mut Vec<BlockKey>,
) {
    let block_size = block_size_tokens as usize;
    if block_size == 0 {
        return;
    }
    keys.reserve(tokens.len().div_ceil(block_size).min(max_blocks));
    let mut parent = approximate_seed(block_size_tokens, extras);
    let mut buffer = KeyBuffer::EMPTY;
    for block in tokens.chunks(block_size).take(max_blocks) {
        parent = next_key(parent, block, &mut buffer);
        keys.push(parent);
    }
}

fn approximate_seed(block_size_tokens: u32, extras: &ApproximateExtras<'_>) -> BlockKey {
    let mut hash = Xxh3::new();
    hash.update(b"warmroute approximate block key 1");
    hash.update(&block_size_tokens.to_le_bytes());
    hash.update(if extras.is_estimated { b"e" } else { b"x" });
    update_piece(&mut hash, b'm', extras.model.as_bytes());
    if let Some(salt) = extras.cache_salt.filter(|salt| !salt.is_empty()) {
        update_piece(&mut hash, b's', salt.as_bytes());
    }
    BlockKey(hash.digest())
}

/// Which endpoint was sent which blocks: what an engine probably holds, where nothing better is known.
///
/// A prompt's blocks count as held as soon as it is sent, whatever becomes of the request, and until as many other
/// blocks were sent to that endpoint as it has room for. What other pickers send there, and what the engine computes by
/// itself, isn't seen.
///
/// Of an endpoint's blocks one never goes before those that come after it, so what is held of a prompt is always its
/// beginning: the match of the llm-d Router EPP, which counts blocks behind a hole, could be no other here.
///
/// It is a [`KvIndex`] that is written by sending in place of events. A block takes about 30 bytes beside those that it
/// takes there.
pub struct ApproximateIndex {
    index: Arc<KvIndex>,
}

impl ApproximateIndex {
    /// An empty index.
    pub fn new(limits: IndexLimits) -> Self {
        Self { index: KvIndex::new(limits) }
    }

    /// Adds an endpoint that was sent nothing yet. Dropping the value removes every trace of it.
    ///
    /// # Errors
    /// [`IndexError::TooManyEngines`].
    pub fn add_endpoint(&self) -> Result<SentBlocks, IndexError> {
        let slot = self.index.take_slot()?;
        Ok(SentBlocks { index: self.index.clone(), slot, order: Mutex::default() })
    }

    /// For each of `slots`, how many leading blocks it was sent; `matches[i]` belongs to `slots[i]`. Known are blocks
    /// that were [sent](SentBlocks::send), expected also those of [`SentBlocks::expect`].
    pub fn lookup(
        &self,
        keys: &[BlockKey],
        slots: &[EngineSlot],
        scratch: &mut LookupScratch,
        matches: &mut [Match],
    ) {
        self.index.lookup(keys, slots, scratch, matches);
    }

    /// Ends what was expected for too long, see [`SentBlocks::expect`].
    pub fn expire(&self, now: Instant) {
        self.index.expire(now);
    }

    /// How full it is. An endpoint counts as an engine, and a block that several were sent as an entry for each.
    pub fn stats(&self) -> IndexStats {
        self.index.stats()
    }
}

/// What one endpoint was sent, the newest blocks up to its capacity. Dropping it removes the endpoint from the index: at
/// once for readers, and every trace before its slot is used again.
pub struct SentBlocks {
    index: Arc<KvIndex>,
    slot: EngineSlot,
    order: Mutex<SentOrder>,
}

impl SentBlocks {
    /// The endpoint's place in the index, by which to look it up.
    pub fn slot(&self) -> EngineSlot {
        self.slot
    }

    /// Expects blocks that are about to be [sent](Self::send): cheap whatever their number. It ends with
    /// [`ApproximateIndex::expire`] after `ttl`, or by [`Self::sent`].
    pub fn expect(
        &self,
        keys: &[BlockKey],
        known_blocks: u32,
        now: Instant,
        ttl: Duration,
    ) -> Option<Expectation> {
        self.index.expect(self.slot, keys, known_blocks, now, ttl)
    }

    /// Notes that a prompt was sent, and forgets the blocks that are beyond the endpoint's capacity then: those that
    /// were sent longest ago, and of one prompt its last ones first, as engines evict them.
    ///
    /// Where the index is full, an endpoint's new blocks take the place of its own old ones; what has no place is
    /// counted as refused.
    pub fn send(&self, keys: &[BlockKey], capacity_blocks: usize) {
        let mut order = self.order.lock();
        let keys = &keys[..keys.len().min(capacity_blocks)];
        let held = keys.iter().take_while(|key| order.contains(**key)).count();
        let room = self.make_room(&mut order, &keys[..held], keys.len() - held);
        let keys = &keys[..held + room];
        let mut places: Vec<Place> = Vec::with_capacity(keys.len());
        self.index.runs.hold(None, keys, self.slot.index, |place, _| places.push(place));
        // The last block first, so that a block is always newer than those that come after it.
        for (key, place) in keys.iter().zip(places).skip(held).rev() {
            order.push(*key, place);
        }
        keys[..held].iter().rev().for_each(|key| order.touch(*key));
        while order.len() > capacity_blocks {
            let Some(oldest) = order.pop_oldest() else { break };
            self.index.runs.release(oldest, self.slot.index);
            self.index.free_entries(1);
        }
    }

    /// Makes room in the index for new blocks, without touching those of the same prompt that are there; returns for how
    /// many.
    fn make_room(&self, order: &mut SentOrder, held: &[BlockKey], blocks: usize) -> usize {
        if self.index.try_reserve_entries(blocks) {
            return blocks;
        }
        held.iter().rev().for_each(|key| order.touch(*key));
        for made in 0..blocks {
            if self.index.try_reserve_entries(1) {
                continue;
            }
            let oldest = if order.len() > held.len() { order.pop_oldest() } else { None };
            let Some(oldest) = oldest else {
                self.index.refuse_blocks((blocks - made) as u64);
                return made;
            };
            self.index.runs.release(oldest, self.slot.index);
        }
        blocks
    }

    /// Ends an expectation whose blocks were [sent](Self::send).
    pub fn sent(&self, expectation: Expectation) {
        self.index.withdraw(expectation);
    }

    /// Blocks that it counts as holding.
    pub fn blocks(&self) -> usize {
        self.order.lock().len()
    }
}

impl Drop for SentBlocks {
    fn drop(&mut self) {
        self.index.slots.retire(self.slot);
        let order = self.order.get_mut();
        order.places().for_each(|place| self.index.runs.release_run(place, self.slot.index));
        self.index.free_entries(order.len());
        self.index.slots.give_back(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::{ApproximateExtras, approximate_keys};
    use crate::{BlockKey, KeyExtras, block_keys};
    use std::collections::HashSet;

    fn keys(tokens: &[u32], block_size: u32, extras: ApproximateExtras<'_>, max: usize) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        approximate_keys(tokens, block_size, &extras, max, &mut keys);
        keys
    }

    #[test]
    fn the_last_block_counts_and_prefixes_share_keys() {
        let tokens: Vec<u32> = (0..70).collect();
        let extras = ApproximateExtras { model: "m", ..ApproximateExtras::default() };
        let all = keys(&tokens, 16, extras, usize::MAX);
        assert_eq!(all.len(), 5);
        assert_eq!(keys(&tokens[..64], 16, extras, usize::MAX), all[..4]);
        assert_ne!(keys(&tokens[..69], 16, extras, usize::MAX)[4], all[4]);
        assert_eq!(keys(&tokens, 16, extras, 3), all[..3]);
        assert_eq!(keys(&[], 16, extras, 3), []);
        assert_eq!(keys(&tokens, 0, extras, 3), []);
        assert_eq!(keys(&tokens, u32::MAX, extras, usize::MAX).len(), 1);
    }

    #[test]
    fn models_salts_sizes_and_guesses_have_keys_of_their_own() {
        let tokens = [7; 64];
        let plain = ApproximateExtras { model: "m", ..ApproximateExtras::default() };
        let variants = [
            plain,
            ApproximateExtras { model: "n", ..plain },
            ApproximateExtras { model: "", ..plain },
            ApproximateExtras { cache_salt: Some("m"), ..plain },
            ApproximateExtras { is_estimated: true, ..plain },
        ];
        let mut exact = Vec::new();
        block_keys(&tokens, 16, &KeyExtras::default(), &mut exact);
        let mut seen: HashSet<BlockKey> = exact.into_iter().collect();
        for extras in variants {
            for block_size in [16, 32] {
                for key in keys(&tokens, block_size, extras, usize::MAX) {
                    assert!(seen.insert(key), "{extras:?} {block_size}");
                }
            }
        }
        let empty_salt = ApproximateExtras { cache_salt: Some(""), ..plain };
        assert_eq!(keys(&tokens, 16, empty_salt, 9), keys(&tokens, 16, plain, 9));
    }
}
