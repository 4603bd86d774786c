mod chain_start;
mod export;
mod import;

use std::sync::Arc;

use smallvec::SmallVec;
use warmroute_kv_events::{BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent};

use crate::announcements::Announcements;
use crate::applied::Applied;
use crate::block_extras::block_extras;
use crate::block_keys::{KeyBuffer, KeyChain};
use crate::engine_layer::{EngineLayer, FurtherLayer, lines_up};
use crate::kv_groups::{ALL_BLOCKS, KvGroups};
use crate::layers::{EngineSlots, GroupSlots, MOST_LAYERS, Tier};
use crate::runs::Place;
use crate::unchained_hash::is_unchained;
use crate::{EngineSlot, KvIndex};
use chain_start::ChainStart;
use import::Import;

pub use import::key_check;

/// The write side of one engine: what it holds by its own hashes. Owned by whoever reads its events, without a lock.
/// Dropping it removes the engine from the index: at once for readers, and every trace before the slot is used again.
pub struct EngineView {
    index: Arc<KvIndex>,
    /// The main layer: GPU memory, and of several groups the first with full attention, whose stores tell the tokens of
    /// all blocks.
    main: EngineLayer,
    /// What else the engine has announced.
    further: Vec<FurtherLayer>,
    groups: KvGroups,
    /// Whether nothing is claimed of the engine.
    is_unsupported: bool,
    /// 0 until known.
    block_size_tokens: u32,
    /// The longest announced.
    lookahead_tokens: u32,
    /// Set by the first store: whether its names say what comes before a block.
    is_unchained: Option<bool>,
    /// Whether the engine has announced a cached prefix again.
    announces_again: bool,
    /// Blocks stored by names that aren't known yet, each with the place of its layer: a group's store may come before
    /// the one in the same batch that tells its tokens.
    unplaced: Vec<(usize, u64)>,
    key_buffer: Box<KeyBuffer>,
    /// A snapshot that is being taken in; readers see nothing of the engine meanwhile.
    importing: Option<Box<Import>>,
}

impl EngineView {
    pub(crate) fn new(index: Arc<KvIndex>, slot: EngineSlot) -> Self {
        Self {
            main: EngineLayer::new(Arc::clone(&index), slot, true),
            index,
            further: Vec::new(),
            groups: KvGroups::default(),
            is_unsupported: false,
            block_size_tokens: 0,
            lookahead_tokens: 0,
            is_unchained: None,
            announces_again: false,
            unplaced: Vec::new(),
            key_buffer: Box::new(KeyBuffer::EMPTY),
            importing: None,
        }
    }

    /// The engine's place in the index, by which to look it up.
    pub fn slot(&self) -> EngineSlot {
        self.main.slot()
    }

    /// The size of its blocks in tokens, once it has told it.
    pub fn block_size_tokens(&self) -> Option<u32> {
        self.index.block_size(self.slot())
    }

    /// How many blocks the engine is known to hold in GPU memory, by its own hashes, copies not counted.
    pub fn held_blocks(&self) -> usize {
        self.main.len()
    }

    /// Entries of the index that are its own: blocks in all tiers and groups, each counted where it is.
    pub fn entries(&self) -> usize {
        self.main.len() + self.further.iter().map(|further| further.layer.len()).sum::<usize>()
    }

    /// The same in one tier, of the group that tells the tokens.
    pub fn held_blocks_in(&self, tier: Tier) -> usize {
        if tier == Tier::Gpu {
            return self.held_blocks();
        }
        let of_main =
            self.further.iter().filter(|further| further.tier == tier && self.is_main(further.group));
        of_main.map(|further| further.layer.len()).sum()
    }

    /// Whether the engine announced what nothing is claimed for: names of blocks that don't say what comes before them,
    /// or groups of which what it holds doesn't say what it reuses (kinds that aren't understood, several groups whose
    /// kinds aren't said, block sizes that differ, none with full attention).
    pub fn is_unsupported(&self) -> bool {
        self.is_unsupported || self.is_unchained == Some(true)
    }

    /// Whether the engine has several KV cache groups. With `kv_cache_report_mode=full` such an engine announces more
    /// than it holds, which can't be told from a new prompt by whoever doesn't know what it held before.
    pub fn has_several_groups(&self) -> bool {
        self.groups.others().next().is_some()
    }

    /// Applies the events of one batch, in order.
    pub fn apply(&mut self, batch: &EventBatch) -> Applied {
        let mut applied = Applied { malformed: u64::from(batch.skipped.count), ..Applied::default() };
        // Before the first of them counts: an engine's groups announce themselves in one batch.
        let announcements = self.note(batch);
        for event in &batch.events {
            match event {
                KvEvent::Stored(stored) => self.store(stored, &announcements, &mut applied),
                KvEvent::Removed(removed) => self.remove(removed, &mut applied),
                KvEvent::Cleared => {
                    self.reset(&mut applied);
                    applied.cleared += 1;
                }
            }
        }
        self.place_unplaced(&mut applied);
        applied
    }

    /// Forgets everything the engine holds, and its groups: another process may have taken its place. At once for
    /// readers. What is expected of it stays: a restart is seen with the first request after it, so expected blocks are
    /// of requests that come after it.
    pub fn clear(&mut self) {
        self.give_back_borrowed();
        self.forget_all();
        self.groups.clear();
        self.is_unsupported = false;
        self.forget_names();
        if self.importing.take().is_some() {
            self.index.slots.show(self.slot());
        }
    }

    /// Forgets what all blocks have in common, once none is known.
    fn forget_names(&mut self) {
        self.block_size_tokens = 0;
        self.lookahead_tokens = 0;
        self.index.slots.set_lookahead(self.slot(), 0);
        self.is_unchained = None;
    }

    fn forget_all(&mut self) {
        if self.main.is_empty() && self.further.is_empty() {
            return;
        }
        let slot = self.slot();
        self.index.slots.hide(slot);
        self.main.purge();
        self.drop_further();
        self.index.slots.show(slot);
    }

    /// Forgets what the engine's reset takes away. `AllBlocksCleared` never says of which tier. vLLM announces it when
    /// its GPU block pool is reset, and with one kind of offloading when the pool in the host's memory is
    /// (`v1/core/block_pool.py`, `v1/simple_kv_offload/manager.py`); a reset of the prefix cache leaves the connector's
    /// blocks alone unless that is asked for, and a connector's reset leaves files and objects alone
    /// (`v1/kv_offload/tiering/manager.py`). So storage stays, and of the rest nothing is claimed that may be gone.
    fn reset(&mut self, applied: &mut Applied) {
        let is_reset = |tier| tier != Tier::Storage;
        let offloaded = |further: &&FurtherLayer| further.tier != Tier::Gpu && is_reset(further.tier);
        applied.other_media +=
            self.further.iter().filter(offloaded).map(|further| further.layer.len() as u64).sum::<u64>();
        let Self { index, main, further, unplaced, .. } = self;
        unplaced.retain(|(at, _)| further.get(*at).is_some_and(|further| !is_reset(further.tier)));
        if !main.is_empty() || further.iter().any(|further| !further.layer.is_empty()) {
            index.slots.hide(main.slot());
            main.purge();
            let reset = further.iter_mut().filter(|further| is_reset(further.tier));
            reset.for_each(|further| further.layer.purge());
            index.slots.show(main.slot());
        }
        if further.iter().all(|further| further.layer.is_empty()) {
            self.forget_names();
        }
    }

    /// Notes which groups the engine has, and what the batch as a whole says of its stores.
    fn note(&mut self, batch: &EventBatch) -> Announcements {
        let stores = || {
            batch
                .events
                .iter()
                .filter_map(|event| if let KvEvent::Stored(s) = event { Some(s) } else { None })
        };
        let in_gpu = || stores().filter(|stored| stored.medium.is_gpu());
        let mut is_new = false;
        in_gpu().for_each(|stored| is_new |= self.groups.note(stored));
        if is_new {
            self.take_layers_of_groups();
        }
        let mut announcements = Announcements::default();
        if self.groups.others().next().is_some() {
            for stored in in_gpu().filter(|stored| stored.parent.is_none()) {
                let (Some(first), Some(last)) = (stored.hashes.first(), stored.hashes.last()) else {
                    continue;
                };
                let is_main = self.is_main(stored.group);
                if is_main && self.main.place(first.low_u64()).is_some() {
                    announcements.again.push(first.low_u64());
                } else if !is_main && !lines_up(stored) {
                    announcements.new.push(last.low_u64());
                }
            }
        }
        announcements
    }

    /// Makes a layer for every group beside the main one, or gives the engine up.
    fn take_layers_of_groups(&mut self) {
        let others: SmallVec<[Option<u32>; 4]> = self.groups.others().map(|(group, _)| group).collect();
        let mut is_supported = self.groups.is_supported();
        for group in others {
            is_supported = is_supported && self.layer(Tier::Gpu, group).is_some();
        }
        self.is_unsupported = !is_supported;
        if self.is_unsupported {
            self.forget_all();
        }
        self.publish();
    }

    fn is_main(&self, group: Option<u32>) -> bool {
        self.groups.main() == Some(group)
    }

    /// The place of a layer, which is made if there is none. `None` if there are too many.
    fn layer(&mut self, tier: Tier, group: Option<u32>) -> Option<usize> {
        let same = |further: &FurtherLayer| further.tier == tier && further.group == group;
        if let Some(at) = self.further.iter().position(same) {
            return Some(at);
        }
        if self.further.len() >= MOST_LAYERS {
            return None;
        }
        let slot = self.index.take_slot().ok()?;
        self.index.layers.took_slot();
        // Only GPU memory holds a block twice; a removal elsewhere is of all that there is.
        let layer = EngineLayer::new(Arc::clone(&self.index), slot, tier == Tier::Gpu);
        self.further.push(FurtherLayer { tier, group, layer });
        self.publish();
        Some(self.further.len() - 1)
    }

    /// Says to readers where the engine holds blocks beside its main layer.
    fn publish(&self) {
        let slots_of = |group: Option<u32>, gpu: u32, window_blocks: u32| {
            let mut offloaded: SmallVec<[(Tier, u32); 1]> = self
                .further
                .iter()
                .filter(|further| further.tier != Tier::Gpu && further.group == group)
                .map(|further| (further.tier, further.layer.slot().index))
                .collect();
            offloaded.sort_unstable();
            GroupSlots { window_blocks, gpu, offloaded }
        };
        let slots = self.groups.main().filter(|_| !self.further.is_empty()).map(|main| {
            let mut groups: SmallVec<[GroupSlots; 2]> =
                std::iter::once(slots_of(main, self.slot().index, ALL_BLOCKS)).collect();
            for (group, window_blocks) in self.groups.others() {
                let same = |further: &&FurtherLayer| further.tier == Tier::Gpu && further.group == group;
                let layer = self.further.iter().find(same).map(|further| further.layer.slot().index);
                groups.extend(layer.map(|gpu| slots_of(group, gpu, window_blocks)));
            }
            EngineSlots { groups }
        });
        self.index.layers.set(self.slot().index, slots);
    }

    fn drop_further(&mut self) {
        if self.further.is_empty() {
            return;
        }
        self.unplaced.clear();
        self.index.layers.set(self.slot().index, None);
        self.index.layers.gave_slots_back(self.further.len());
        self.further.drain(..).for_each(|mut further| further.layer.retire());
    }

    fn store(&mut self, stored: &BlocksStored, announcements: &Announcements, applied: &mut Applied) {
        let tier = Tier::of(&stored.medium);
        if self.is_unsupported {
            applied.unsupported_groups += 1;
        } else if tier == Tier::Gpu && (self.groups.is_empty() || self.is_main(stored.group)) {
            self.store_main(stored, announcements, applied);
        } else {
            self.store_further(tier, stored, announcements, applied);
        }
    }

    fn store_main(&mut self, stored: &BlocksStored, announcements: &Announcements, applied: &mut Applied) {
        if stored.token_ids.is_empty() || stored.block_size_tokens == 0 {
            applied.stores_without_tokens += 1;
        } else if !lines_up(stored) {
            applied.uneven_stores += 1;
        } else if self.block_size_tokens != 0 && self.block_size_tokens != stored.block_size_tokens {
            applied.other_block_sizes += 1;
        } else if *self.is_unchained.get_or_insert_with(|| is_unchained(stored)) {
            applied.unchained_hashes += 1;
        } else if let Some(start) = self.chain_start(stored) {
            let is_prefix = announcements.may_be_announced_again(stored);
            let is_several = stored.hashes.len() > 1;
            let announces_again = is_prefix && (is_several || self.announces_again);
            let before = applied.announced_again;
            self.store_chain(None, stored, &start, announces_again, applied);
            self.announces_again |= applied.announced_again > before;
        } else {
            applied.unknown_parents += 1;
        }
    }

    /// A store in another tier or of another group.
    fn store_further(
        &mut self,
        tier: Tier,
        stored: &BlocksStored,
        announcements: &Announcements,
        applied: &mut Applied,
    ) {
        // Early versions number the groups of GPU memory only.
        let group = stored.group.or(self.groups.main().flatten());
        let Some(at) = self.layer(tier, group) else {
            applied.other_media += stored.hashes.len() as u64;
            return;
        };
        let is_of_size = self.block_size_tokens == 0 || self.block_size_tokens == stored.block_size_tokens;
        let is_in_line = lines_up(stored) && is_of_size;
        if self.is_unchained == Some(true)
            || is_in_line && *self.is_unchained.get_or_insert_with(|| is_unchained(stored))
        {
            applied.unchained_hashes += 1;
            return;
        }
        let is_new = stored.hashes.last().is_some_and(|last| announcements.new.contains(&last.low_u64()));
        let is_again = |first: &EngineHash| !is_new && announcements.again.contains(&first.low_u64());
        let is_prefix = tier == Tier::Gpu && is_in_line && stored.parent.is_none();
        if is_prefix && stored.hashes.first().is_some_and(is_again) {
            self.store_end_of_prefix(at, group, stored, applied);
        } else if is_in_line && let Some(start) = self.chain_start(stored) {
            self.store_chain(Some(at), stored, &start, false, applied);
        } else {
            for hash in &stored.hashes {
                self.store_name(at, hash.low_u64(), applied);
            }
        }
    }

    /// Takes in what is sure of a prefix that is announced again, perhaps. With `kv_cache_report_mode=full` a group
    /// announces all blocks of a prefix that was hit, also those that it doesn't hold because it needs its end only.
    fn store_end_of_prefix(
        &mut self,
        at: usize,
        group: Option<u32>,
        stored: &BlocksStored,
        applied: &mut Applied,
    ) {
        let needed =
            self.groups.others().find(|(number, _)| *number == group).map_or(0, |(_, blocks)| blocks);
        let first = stored.hashes.len().saturating_sub(needed as usize);
        applied.announced_again += first as u64;
        for hash in &stored.hashes[first..] {
            let name = hash.low_u64();
            if self.further.get(at).is_some_and(|further| further.layer.place(name).is_some()) {
                applied.announced_again += 1;
            } else {
                self.store_name(at, name, applied);
            }
        }
    }

    /// Takes in a block of which only the name is told, or leaves it for later.
    fn store_name(&mut self, at: usize, name: u64, applied: &mut Applied) {
        match (self.place_of(name), self.further.get_mut(at)) {
            (Some(place), Some(further)) => further.layer.store_known(name, place, applied),
            _ => self.unplaced.push((at, name)),
        }
    }

    fn place_unplaced(&mut self, applied: &mut Applied) {
        for (at, name) in std::mem::take(&mut self.unplaced) {
            let place = self.place_of(name);
            let Some(FurtherLayer { tier, layer, .. }) = self.further.get_mut(at) else { continue };
            match place {
                Some(place) => layer.store_known(name, place, applied),
                None if *tier == Tier::Gpu => applied.unknown_names += 1,
                None => applied.other_media += 1,
            }
        }
    }

    fn place_of(&self, name: u64) -> Option<Place> {
        let in_further = || self.further.iter().find_map(|further| further.layer.place(name));
        self.main.place(name).or_else(in_further)
    }

    fn store_chain(
        &mut self,
        further: Option<usize>,
        stored: &BlocksStored,
        start: &ChainStart,
        announces_again: bool,
        applied: &mut Applied,
    ) {
        if self.block_size_tokens == 0 {
            self.block_size_tokens = stored.block_size_tokens;
            self.index.slots.set_block_size(self.slot(), stored.block_size_tokens);
        }
        if stored.lookahead_tokens > self.lookahead_tokens {
            self.lookahead_tokens = stored.lookahead_tokens;
            self.index.slots.set_lookahead(self.slot(), stored.lookahead_tokens);
        }
        let Self { main, further: layers, key_buffer, .. } = self;
        let layer = match further {
            None => main,
            Some(at) => &mut layers[at].layer,
        };
        let mut chain = KeyChain::after(start.key);
        let mut store = layer.begin_store(start.place, stored.hashes.len(), announces_again);
        let blocks = stored.token_ids.chunks_exact(stored.block_size_tokens as usize);
        for (position, (hash, tokens)) in stored.hashes.iter().zip(blocks).enumerate() {
            let salt_position = start.salt_position.filter(|_| position == 0);
            let key = chain.next_block(key_buffer, tokens, block_extras(stored, position, salt_position));
            layer.store_next(&mut store, hash.low_u64(), key, applied);
        }
        layer.end_store(&store, applied);
    }

    fn remove(&mut self, removed: &BlocksRemoved, applied: &mut Applied) {
        if self.is_unsupported {
            applied.unsupported_groups += 1;
            return;
        }
        if self.is_unchained == Some(true) {
            return;
        }
        let tier = Tier::of(&removed.medium);
        let is_meant = |group: Option<u32>| removed.group.is_none() || removed.group == group;
        let Self { main, further, unplaced, groups, .. } = self;
        // Unknown in every layer that may be meant; usually one is.
        let mut unknown = removed.hashes.len() as u64;
        if tier == Tier::Gpu && groups.main().is_none_or(is_meant) {
            unknown = unknown.min(main.remove(&removed.hashes, applied));
        }
        for (at, further) in further.iter_mut().enumerate() {
            if further.tier != tier || !is_meant(further.group) {
                continue;
            }
            unknown = unknown.min(further.layer.remove(&removed.hashes, applied));
            for hash in &removed.hashes {
                let same = |(layer, name): &(usize, u64)| *layer == at && *name == hash.low_u64();
                if let Some(place) = unplaced.iter().position(same) {
                    unplaced.swap_remove(place);
                    unknown = unknown.saturating_sub(1);
                }
            }
        }
        if tier == Tier::Gpu {
            applied.unknown_removed_blocks += unknown;
        } else {
            applied.other_media += unknown;
        }
    }
}

impl Drop for EngineView {
    fn drop(&mut self) {
        self.index.slots.retire(self.slot());
        self.give_back_borrowed();
        self.drop_further();
        self.main.retire();
    }
}
