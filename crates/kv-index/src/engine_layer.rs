use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;
use warmroute_kv_events::{BlocksStored, EngineHash};

use crate::applied::Applied;
use crate::block_names::BlockNames;
use crate::runs::Place;
use crate::view_snapshot::ImportError;
use crate::{BlockKey, EngineSlot, KvIndex, Tier};

/// What an engine holds in one medium of one KV cache group, by its own names of blocks: a slot of the index.
pub(crate) struct EngineLayer {
    index: Arc<KvIndex>,
    slot: EngineSlot,
    /// Whether a block that is stored twice has to be removed twice.
    counts_copies: bool,
    /// By the engine's name of a block, where it is.
    blocks: BlockNames,
    /// The last block of the last store: the next one often goes on from it.
    last: Option<HeldBlock>,
    /// How many copies beyond the first, of the blocks of which there are several.
    more_copies: HashMap<u64, u32>,
    /// Keys that several engine hashes stand for, with how many there are beyond the first: an engine may hash in
    /// more than decides the content.
    shared_keys: HashMap<BlockKey, u32>,
    /// Names and keys of blocks that are about to be put into the index; kept for their memory.
    new_blocks: Vec<(u64, BlockKey)>,
    new_keys: Vec<BlockKey>,
    /// Where the blocks are that an event takes away; kept for its memory.
    released: Vec<Place>,
}

/// Blocks of one group in one tier.
pub(crate) struct FurtherLayer {
    pub(crate) tier: Tier,
    pub(crate) group: Option<u32>,
    pub(crate) layer: EngineLayer,
}

/// A block that the engine holds.
#[derive(Clone, Copy)]
pub(crate) struct HeldBlock {
    pub(crate) name: u64,
    pub(crate) place: Place,
    pub(crate) key: BlockKey,
}

/// A store that is taken in block by block.
pub(crate) struct StoreInProgress {
    /// The block before the next one.
    place: Option<Place>,
    /// Whether that one was left out.
    is_broken: bool,
    /// Whether its name stands for something else too.
    is_contradicted: bool,
    /// Entries taken for all blocks at once that aren't used yet.
    reserved: usize,
    /// Whether blocks that are held already are no further copies.
    announces_again: bool,
}

impl EngineLayer {
    pub(crate) fn new(index: Arc<KvIndex>, slot: EngineSlot, counts_copies: bool) -> Self {
        Self {
            index,
            slot,
            counts_copies,
            blocks: BlockNames::new(),
            last: None,
            more_copies: HashMap::new(),
            shared_keys: HashMap::new(),
            new_blocks: Vec::new(),
            new_keys: Vec::new(),
            released: Vec::new(),
        }
    }

    pub(crate) fn slot(&self) -> EngineSlot {
        self.slot
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where a block is, if it is held here.
    pub(crate) fn place(&self, name: u64) -> Option<Place> {
        self.blocks.get(name)
    }

    pub(crate) fn held_block(&self, name: u64) -> Option<HeldBlock> {
        self.last.filter(|last| last.name == name).or_else(|| {
            let place = self.blocks.get(name)?;
            Some(HeldBlock { name, place, key: self.index.runs.key_at(place)? })
        })
    }

    /// The engine's names of all blocks, and where they are.
    pub(crate) fn names(&self) -> impl Iterator<Item = (u64, Place)> {
        self.blocks.names()
    }

    /// How many copies of a block there are beyond the first.
    pub(crate) fn copies_beyond_first(&self, name: u64) -> u32 {
        if self.more_copies.is_empty() { 0 } else { self.more_copies.get(&name).copied().unwrap_or(0) }
    }

    /// Notes the name of a block that the slot holds already; `is_shared` if there is another name for it.
    pub(crate) fn take_name(
        &mut self,
        name: u64,
        place: Place,
        is_shared: bool,
        more_copies: u32,
    ) -> Result<(), ImportError> {
        if !self.index.try_reserve_entries(1) {
            return Err(ImportError::IndexFull);
        }
        if self.blocks.insert(name, place).is_some() {
            self.index.free_entries(1);
            return Err(ImportError::Malformed { what: "a name comes twice" });
        }
        if is_shared && let Some(key) = self.index.runs.key_at(place) {
            *self.shared_keys.entry(key).or_insert(0) += 1;
        }
        if more_copies > 0 && self.counts_copies {
            self.more_copies.insert(name, more_copies);
        }
        Ok(())
    }

    /// The same for a block that another slot holds.
    pub(crate) fn take_joined_name(
        &mut self,
        name: u64,
        place: Place,
        more_copies: u32,
    ) -> Result<(), ImportError> {
        let (place, is_new) = self.index.runs.join(place, self.slot.index);
        let taken = self.take_name(name, place, !is_new, more_copies);
        if taken.is_err() && is_new {
            self.index.runs.release(place, self.slot.index);
        }
        taken
    }

    /// Forgets everything. Readers may see some of it until it is done.
    pub(crate) fn purge(&mut self) {
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

    /// Begins to take in so many successive blocks, the first of them after `parent` or the first of a prompt.
    pub(crate) fn begin_store(
        &self,
        parent: Option<Place>,
        blocks: usize,
        announces_again: bool,
    ) -> StoreInProgress {
        // For all at once, or else one by one.
        let reserved = if self.index.try_reserve_entries(blocks) { blocks } else { 0 };
        StoreInProgress { place: parent, is_broken: false, is_contradicted: false, reserved, announces_again }
    }

    /// Takes in the next block of a store.
    pub(crate) fn store_next(
        &mut self,
        store: &mut StoreInProgress,
        name: u64,
        key: BlockKey,
        applied: &mut Applied,
    ) {
        if let Some(held) = self.blocks.get(name) {
            self.hold_new(store.place, applied);
            store.is_contradicted = self.index.runs.key_at(held) != Some(key);
            if store.announces_again {
                applied.announced_again += 1;
            } else {
                self.hold_copy(name, applied);
                applied.key_conflicts += u64::from(store.is_contradicted);
            }
            (store.place, store.is_broken) = (Some(held), false);
        } else if store.is_contradicted {
            // The engine's hash before it stands for something else too, so its place isn't there.
            applied.key_conflicts += 1;
        } else if !store.is_broken && (store.reserved > 0 || self.index.try_reserve_entries(1)) {
            store.reserved = store.reserved.saturating_sub(1);
            self.new_blocks.push((name, key));
        } else {
            // What comes after a block that was left out has no place either.
            self.index.refuse_blocks(1);
            applied.refused_blocks += 1;
            store.is_broken = true;
        }
    }

    pub(crate) fn end_store(&mut self, store: &StoreInProgress, applied: &mut Applied) {
        self.hold_new(store.place, applied);
        if store.reserved > 0 {
            self.index.free_entries(store.reserved);
        }
    }

    /// Takes in a block that is in another layer of the engine, where its place is known.
    pub(crate) fn store_known(&mut self, name: u64, place: Place, applied: &mut Applied) {
        if self.blocks.get(name).is_some() {
            self.hold_copy(name, applied);
            return;
        }
        if !self.index.try_reserve_entries(1) {
            self.index.refuse_blocks(1);
            applied.refused_blocks += 1;
            return;
        }
        let (place, is_new) = self.index.runs.join(place, self.slot.index);
        self.blocks.insert(name, place);
        if !is_new && let Some(key) = self.index.runs.key_at(place) {
            *self.shared_keys.entry(key).or_insert(0) += 1;
        }
        applied.stored_blocks += 1;
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

    fn hold_copy(&mut self, name: u64, applied: &mut Applied) {
        applied.stored_copies += 1;
        if self.counts_copies {
            let copies = self.more_copies.entry(name).or_insert(0);
            *copies = copies.saturating_add(1);
        }
    }

    /// Takes blocks out. Returns how many of them weren't known.
    pub(crate) fn remove(&mut self, hashes: &[EngineHash], applied: &mut Applied) -> u64 {
        let mut unknown = 0;
        for hash in hashes {
            unknown += u64::from(!self.remove_block(hash.low_u64(), applied));
        }
        self.index.free_entries(self.released.len());
        self.index.runs.release_all(&self.released, self.slot.index);
        self.released.clear();
        unknown
    }

    /// False if the block isn't known.
    fn remove_block(&mut self, name: u64, applied: &mut Applied) -> bool {
        if !self.more_copies.is_empty()
            && let Entry::Occupied(mut copies) = self.more_copies.entry(name)
        {
            *copies.get_mut() -= 1;
            if *copies.get() == 0 {
                copies.remove();
            }
            applied.removed_copies += 1;
            return true;
        }
        let Some(place) = self.blocks.remove(name) else { return false };
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
            return true;
        }
        self.released.push(place);
        true
    }

    /// Ends the layer: at once for readers that ask for its slot, and every trace before the slot is used again.
    pub(crate) fn retire(&mut self) {
        self.index.slots.retire(self.slot);
        self.purge();
        self.index.slots.give_back(self.slot);
    }
}

/// Whether hashes and tokens of a store line up, one block per hash.
pub(crate) fn lines_up(stored: &BlocksStored) -> bool {
    let tokens = stored.hashes.len().checked_mul(stored.block_size_tokens as usize);
    !stored.token_ids.is_empty() && Some(stored.token_ids.len()) == tokens
}
