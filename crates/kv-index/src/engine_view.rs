use std::ops::AddAssign;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;
use warmroute_kv_events::{
    ApplyFacts, BlocksRemoved, BlocksStored, EngineHash, EventBatch, ExtraKey, KvEvent, SpecKind,
};

use crate::block_keys::{Adapter, KeyBuffer, KeyChain, chain_seed};
use crate::block_names::BlockNames;
use crate::runs::Place;
use crate::unchained_hash::is_unchained;
use crate::{BlockKey, EngineSlot, KvIndex};

/// What became of the events of a batch (or of several, by `+=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Blocks that are new to the engine.
    pub stored_blocks: u64,
    /// Further copies of blocks that the engine holds already.
    pub stored_copies: u64,
    /// Blocks that the engine holds already and that it only announced again: no further copies.
    pub announced_again: u64,
    /// Blocks that are gone.
    pub removed_blocks: u64,
    /// Copies that are gone of blocks that are still there.
    pub removed_copies: u64,
    /// Times that the whole cache was reset.
    pub cleared: u64,
    /// Removed blocks that weren't known: left out when they were stored, or announced before we listened.
    pub unknown_removed_blocks: u64,
    /// Stores left out because the block before theirs isn't known.
    pub unknown_parents: u64,
    /// Stores left out because hashes and tokens don't line up, one block per hash.
    pub uneven_stores: u64,
    /// Stores left out because they carry no tokens.
    pub stores_without_tokens: u64,
    /// Stores left out because their block size isn't that of the engine's other blocks.
    pub other_block_sizes: u64,
    /// Events left out because the blocks aren't in GPU memory.
    pub other_media: u64,
    /// Events left out because the engine has a kind of attention, or several groups, for which held blocks don't say
    /// what is reusable.
    pub unsupported_groups: u64,
    /// Stores left out because the engine names a block by its own tokens alone.
    pub unchained_hashes: u64,
    /// Blocks left out because the index is full.
    pub refused_blocks: u64,
    /// Copies announced with other tokens (or LoRA, salt, media) than the first time, and blocks left out that come
    /// after such a one.
    pub key_conflicts: u64,
    /// Events that couldn't be decoded.
    pub malformed: u64,
}

impl Applied {
    /// What this says about how far the view can be trusted.
    pub fn facts(&self) -> ApplyFacts {
        ApplyFacts {
            cleared: self.cleared > 0,
            undecodable: false,
            undecodable_events: self.malformed > 0,
            unknown_parents: self.unknown_parents > 0,
            unknown_removals: self.unknown_removed_blocks > 0,
            unreadable_stores: self.stores_without_tokens
                + self.uneven_stores
                + self.other_block_sizes
                + self.key_conflicts
                > 0,
            other_tiers: self.other_media > 0,
            unsupported_groups: self.unsupported_groups > 0,
            unchained_hashes: self.unchained_hashes > 0,
            refused_blocks: self.refused_blocks > 0,
        }
    }
}

impl AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.stored_blocks += other.stored_blocks;
        self.stored_copies += other.stored_copies;
        self.announced_again += other.announced_again;
        self.removed_blocks += other.removed_blocks;
        self.removed_copies += other.removed_copies;
        self.cleared += other.cleared;
        self.unknown_removed_blocks += other.unknown_removed_blocks;
        self.unknown_parents += other.unknown_parents;
        self.uneven_stores += other.uneven_stores;
        self.stores_without_tokens += other.stores_without_tokens;
        self.other_block_sizes += other.other_block_sizes;
        self.other_media += other.other_media;
        self.unsupported_groups += other.unsupported_groups;
        self.unchained_hashes += other.unchained_hashes;
        self.refused_blocks += other.refused_blocks;
        self.key_conflicts += other.key_conflicts;
        self.malformed += other.malformed;
    }
}

/// The write side of one engine: what it holds by its own hashes. Owned by whoever reads its events, without a lock.
/// Dropping it removes the engine from the index: at once for readers, and every trace before the slot is used again.
pub struct EngineView {
    index: Arc<KvIndex>,
    slot: EngineSlot,
    /// By the engine's name of a block, where it is.
    blocks: BlockNames,
    /// The last block of the last store: the next one often goes on from it.
    last: Option<HeldBlock>,
    /// How many copies beyond the first, of the blocks of which there are several.
    more_copies: HashMap<u64, u32>,
    /// Keys that several engine hashes stand for, with how many there are beyond the first: an engine may hash in
    /// more than decides the content.
    shared_keys: HashMap<BlockKey, u32>,
    /// 0 until known.
    block_size_tokens: u32,
    /// The longest announced.
    lookahead_tokens: u32,
    /// Set by the first store: whether its names say what comes before a block.
    is_unchained: Option<bool>,
    groups: Groups,
    /// Whether the engine has announced a cached prefix again.
    announces_again: bool,
    /// Names and keys of blocks that are about to be put into the index; kept for their memory.
    new_blocks: Vec<(u64, BlockKey)>,
    new_keys: Vec<BlockKey>,
    /// Where the blocks are that an event takes away; kept for its memory.
    released: Vec<Place>,
    key_buffer: Box<KeyBuffer>,
}

/// A block that the engine holds.
#[derive(Clone, Copy)]
struct HeldBlock {
    name: u64,
    place: Place,
    key: BlockKey,
}

/// Which KV cache groups the engine has announced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Groups {
    None,
    /// One, whose blocks must all be there for a prefix to be reusable. Early versions don't number it.
    One(Option<u32>),
    /// More, or of another kind: what is held then doesn't tell what is reusable, so nothing is claimed.
    Unsupported,
}

impl EngineView {
    pub(crate) fn new(index: Arc<KvIndex>, slot: EngineSlot) -> Self {
        Self {
            index,
            slot,
            blocks: BlockNames::new(),
            last: None,
            more_copies: HashMap::new(),
            new_blocks: Vec::new(),
            new_keys: Vec::new(),
            released: Vec::new(),
            key_buffer: Box::new(KeyBuffer::EMPTY),
            shared_keys: HashMap::new(),
            block_size_tokens: 0,
            lookahead_tokens: 0,
            is_unchained: None,
            groups: Groups::None,
            announces_again: false,
        }
    }

    /// The engine's place in the index, by which to look it up.
    pub fn slot(&self) -> EngineSlot {
        self.slot
    }

    /// How many blocks the engine is known to hold, by its own hashes, copies not counted.
    pub fn held_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the engine announced what nothing is claimed for: groups (sliding windows, Mamba, several groups), or
    /// names of blocks that don't say what comes before them.
    pub fn is_unsupported(&self) -> bool {
        self.groups == Groups::Unsupported || self.is_unchained == Some(true)
    }

    /// Applies the events of one batch, in order.
    pub fn apply(&mut self, batch: &EventBatch) -> Applied {
        let mut applied = Applied { malformed: u64::from(batch.skipped.count), ..Applied::default() };
        // Before the first of them counts: an engine's groups announce themselves in one batch.
        for event in &batch.events {
            if let KvEvent::Stored(stored) = event {
                self.note_group(stored);
            }
        }
        for event in &batch.events {
            match event {
                KvEvent::Stored(stored) => self.store(stored, &mut applied),
                KvEvent::Removed(removed) => self.remove(removed, &mut applied),
                KvEvent::Cleared => {
                    self.clear();
                    applied.cleared += 1;
                }
            }
        }
        applied
    }

    /// Forgets everything the engine holds, at once for readers. What is expected of it stays: a reset is announced
    /// with the first request after it, so expected blocks are of requests that come after the reset.
    pub fn clear(&mut self) {
        if !self.blocks.is_empty() {
            self.index.slots.hide(self.slot);
            self.purge();
            self.index.slots.show(self.slot);
        }
        self.block_size_tokens = 0;
        self.lookahead_tokens = 0;
        self.index.slots.set_lookahead(self.slot, 0);
        self.is_unchained = None;
    }

    fn purge(&mut self) {
        for place in self.blocks.places() {
            self.index.runs.release_run(place, self.slot.index);
        }
        self.index.free_entries(self.blocks.len());
        self.last = None;
        // An engine refills its cache, so the memory is kept for it.
        self.blocks.clear();
        self.shared_keys.clear();
        self.more_copies.clear();
    }

    fn note_group(&mut self, stored: &BlocksStored) {
        if !stored.medium.is_gpu() || self.groups == Groups::Unsupported {
            return;
        }
        let is_full = stored.spec_kind.as_ref().is_none_or(SpecKind::is_full_attention);
        self.groups = match self.groups {
            Groups::None if is_full => Groups::One(stored.group),
            Groups::One(group) if is_full && group == stored.group => return,
            _ => Groups::Unsupported,
        };
        if self.is_unsupported() {
            self.clear();
        }
    }

    fn store(&mut self, stored: &BlocksStored, applied: &mut Applied) {
        if !stored.medium.is_gpu() {
            applied.other_media += 1;
        } else if self.groups == Groups::Unsupported {
            applied.unsupported_groups += 1;
        } else if stored.token_ids.is_empty() || stored.block_size_tokens == 0 {
            applied.stores_without_tokens += 1;
        } else if Some(stored.token_ids.len())
            != stored.hashes.len().checked_mul(stored.block_size_tokens as usize)
        {
            applied.uneven_stores += 1;
        } else if self.block_size_tokens != 0 && self.block_size_tokens != stored.block_size_tokens {
            applied.other_block_sizes += 1;
        } else if *self.is_unchained.get_or_insert_with(|| is_unchained(stored)) {
            applied.unchained_hashes += 1;
        } else if let Some(start) = self.chain_start(stored) {
            self.store_chain(stored, &start, applied);
        } else {
            applied.unknown_parents += 1;
        }
    }

    fn store_chain(&mut self, stored: &BlocksStored, start: &ChainStart, applied: &mut Applied) {
        if self.block_size_tokens == 0 {
            self.block_size_tokens = stored.block_size_tokens;
            self.index.slots.set_block_size(self.slot, stored.block_size_tokens);
        }
        if stored.lookahead_tokens > self.lookahead_tokens {
            self.lookahead_tokens = stored.lookahead_tokens;
            self.index.slots.set_lookahead(self.slot, stored.lookahead_tokens);
        }
        let mut chain = KeyChain::after(start.key);
        let (mut place, mut is_broken, mut is_contradicted) = (start.place, false, false);
        // For all at once, or else one by one.
        let mut reserved = stored.hashes.len();
        if !self.index.try_reserve_entries(reserved) {
            reserved = 0;
        }
        let blocks = stored.token_ids.chunks_exact(stored.block_size_tokens as usize);
        for (position, (hash, tokens)) in stored.hashes.iter().zip(blocks).enumerate() {
            let salt_position = start.salt_position.filter(|_| position == 0);
            let key =
                chain.next_block(&mut self.key_buffer, tokens, block_extras(stored, position, salt_position));
            let name = hash.low_u64();
            if let Some(held) = self.blocks.get(name) {
                self.hold_new(place, applied);
                if self.announces_again(stored) {
                    applied.announced_again += 1;
                } else {
                    self.hold_copy(name, held, key, applied);
                }
                is_contradicted = self.index.runs.key_at(held) != Some(key);
                (place, is_broken) = (Some(held), false);
            } else if is_contradicted {
                // The engine's hash before it stands for something else too, so its place isn't there.
                applied.key_conflicts += 1;
            } else if !is_broken && (reserved > 0 || self.index.try_reserve_entries(1)) {
                reserved = reserved.saturating_sub(1);
                self.new_blocks.push((name, key));
            } else {
                // What comes after a block that was left out has no place either.
                self.index.refuse_blocks(1);
                applied.refused_blocks += 1;
                is_broken = true;
            }
        }
        self.hold_new(place, applied);
        if reserved > 0 {
            self.index.free_entries(reserved);
        }
    }

    /// Puts the new blocks into the index, the first of them after `parent`.
    fn hold_new(&mut self, parent: Option<Place>, applied: &mut Applied) {
        if self.new_blocks.is_empty() {
            return;
        }
        let Self { index, slot, blocks, last, shared_keys, new_blocks, new_keys, .. } = self;
        new_keys.clear();
        new_keys.extend(new_blocks.iter().map(|(_, key)| *key));
        let mut news = new_blocks.iter();
        let mut twice: SmallVec<[Place; 1]> = SmallVec::new();
        index.hold(parent, new_keys, *slot, |place, is_new| {
            let Some((name, key)) = news.next() else { return };
            match blocks.insert(*name, place) {
                None => {
                    if !is_new {
                        *shared_keys.entry(*key).or_insert(0) += 1;
                    }
                    *last = Some(HeldBlock { name: *name, place, key: *key });
                    applied.stored_blocks += 1;
                }
                // One name for two blocks of one event: the first one counts.
                Some(_) => {
                    index.free_entries(1);
                    applied.key_conflicts += 1;
                    if is_new {
                        twice.push(place);
                    }
                }
            }
        });
        self.new_blocks.clear();
        for place in twice {
            self.index.runs.release(place, self.slot.index);
        }
    }

    /// Whether blocks of this store that are held already are no further copies.
    ///
    /// With `kv_cache_report_mode=full` (vLLM from 0.26 on) a request makes the engine announce the cached prefix that it
    /// hit, as one store without a parent. Copies come otherwise: two requests decode the same block, or compute the last
    /// block of a prompt that it fills exactly; what comes before it is hit and not stored. So a store without a parent
    /// has a copy only if it is of one block, and of an engine that is known to announce prefixes again, not even then:
    /// taken for a copy, a block would be claimed after it is gone.
    fn announces_again(&mut self, stored: &BlocksStored) -> bool {
        let is_first = stored.parent.is_none_or(|parent| parent == EngineHash::from_u64(0));
        self.announces_again |= is_first && stored.hashes.len() > 1;
        is_first && self.announces_again
    }

    fn hold_copy(&mut self, name: u64, held: Place, key: BlockKey, applied: &mut Applied) {
        let copies = self.more_copies.entry(name).or_insert(0);
        *copies = copies.saturating_add(1);
        applied.stored_copies += 1;
        applied.key_conflicts += u64::from(self.index.runs.key_at(held) != Some(key));
    }

    fn remove(&mut self, removed: &BlocksRemoved, applied: &mut Applied) {
        if !removed.medium.is_gpu() {
            applied.other_media += 1;
            return;
        }
        if self.is_unchained == Some(true) {
            return;
        }
        if self.groups != Groups::One(removed.group) && self.groups != Groups::None {
            applied.unsupported_groups += 1;
            return;
        }
        for hash in &removed.hashes {
            self.remove_block(*hash, applied);
        }
        self.index.free_entries(self.released.len());
        self.index.runs.release_all(&self.released, self.slot.index);
        self.released.clear();
    }

    fn remove_block(&mut self, hash: EngineHash, applied: &mut Applied) {
        let name = hash.low_u64();
        if !self.more_copies.is_empty()
            && let Entry::Occupied(mut copies) = self.more_copies.entry(name)
        {
            *copies.get_mut() -= 1;
            if *copies.get() == 0 {
                copies.remove();
            }
            applied.removed_copies += 1;
            return;
        }
        let Some(place) = self.blocks.remove(name) else {
            applied.unknown_removed_blocks += 1;
            return;
        };
        self.last = self.last.filter(|last| last.name != name);
        applied.removed_blocks += 1;
        if !self.shared_keys.is_empty()
            && let Some(key) = self.index.runs.key_at(place)
            && let Entry::Occupied(mut others) = self.shared_keys.entry(key)
        {
            *others.get_mut() -= 1;
            if *others.get() == 0 {
                others.remove();
            }
            self.index.free_entries(1);
            return;
        }
        self.released.push(place);
    }

    fn held_block(&self, name: u64) -> Option<HeldBlock> {
        self.last.filter(|last| last.name == name).or_else(|| {
            let place = self.blocks.get(name)?;
            Some(HeldBlock { name, place, key: self.index.runs.key_at(place)? })
        })
    }

    /// What the first block's key goes on from; `None` if the parent isn't known.
    fn chain_start(&self, stored: &BlocksStored) -> Option<ChainStart> {
        if let Some(parent) = stored.parent {
            if let Some(HeldBlock { place, key, .. }) = self.held_block(parent.low_u64()) {
                return Some(ChainStart { key, place: Some(place), salt_position: None });
            }
            // Some emitters write 0 for none.
            if parent != EngineHash::from_u64(0) {
                return None;
            }
        }
        let adapter = match (&stored.lora_name, stored.lora_id) {
            (Some(name), _) => Adapter::Name(name),
            (None, Some(number)) => Adapter::Number(number),
            (None, None) => Adapter::None,
        };
        let salt = salt_in_extras(stored);
        let cache_salt = stored.cache_salt.as_deref().or(salt.map(|(_, text)| text));
        let key = chain_seed(stored.block_size_tokens, adapter, cache_salt);
        Some(ChainStart { key, place: None, salt_position: salt.map(|(position, _)| position) })
    }
}

impl Drop for EngineView {
    fn drop(&mut self) {
        self.index.slots.retire(self.slot);
        self.purge();
        self.index.slots.give_back(self.slot);
    }
}

struct ChainStart {
    /// The key of the block before the first one, or what stands in for it.
    key: BlockKey,
    /// Where that block is.
    place: Option<Place>,
    /// Where among the first block's extra keys the cache salt is, which the seed holds already.
    salt_position: Option<usize>,
}

fn extras_of(stored: &BlocksStored, block: usize) -> &[ExtraKey] {
    stored.extra_keys.get(block).and_then(Option::as_deref).unwrap_or_default()
}

/// Where among a block's extra keys the LoRA name is, which comes as a bare string on every block.
fn adapter_position(stored: &BlocksStored, extras: &[ExtraKey]) -> Option<usize> {
    let name = stored.lora_name.as_deref()?;
    extras.iter().position(|extra| matches!(extra, ExtraKey::Text(text) if **text == *name))
}

/// The cache salt of a sequence: the last bare string of its first block that isn't the LoRA name. (An image's
/// identifier is one too in vLLM 0.17 and 0.18; taken for a salt it still keeps the block apart from all text.)
fn salt_in_extras(stored: &BlocksStored) -> Option<(usize, &str)> {
    let extras = extras_of(stored, 0);
    let adapter = adapter_position(stored, extras);
    extras.iter().enumerate().rev().find_map(|(position, extra)| match extra {
        ExtraKey::Text(text) if Some(position) != adapter => Some((position, &**text)),
        _ => None,
    })
}

/// The extra keys of a block without those that the chain's seed holds.
fn block_extras(
    stored: &BlocksStored,
    block: usize,
    salt_position: Option<usize>,
) -> impl Iterator<Item = &ExtraKey> {
    let extras = extras_of(stored, block);
    let adapter = adapter_position(stored, extras);
    extras
        .iter()
        .enumerate()
        .filter(move |(position, _)| Some(*position) != adapter && Some(*position) != salt_position)
        .map(|(_, extra)| extra)
}
