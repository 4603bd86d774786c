use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::RwLock;
use smallvec::SmallVec;
use warmroute_kv_events::Medium;

/// Where an engine keeps blocks, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The accelerator's memory, where blocks are used.
    Gpu,
    /// The host's memory.
    Cpu,
    /// Files or objects, on the host or elsewhere.
    Storage,
    /// Media of any other name.
    Other,
}

impl Tier {
    /// The tiers beside [`Tier::Gpu`], best first.
    pub const OFFLOADED: [Self; 3] = [Self::Cpu, Self::Storage, Self::Other];

    /// The tier that an event's medium is.
    pub fn of(medium: &Medium) -> Self {
        match medium {
            Medium::Unspecified | Medium::Gpu => Self::Gpu,
            Medium::Cpu => Self::Cpu,
            Medium::Storage => Self::Storage,
            Medium::Other(_) => Self::Other,
        }
    }

    /// The word used in configurations, metrics and receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Storage => "storage",
            Self::Other => "other",
        }
    }
}

/// A bound for what events can make grow: several tiers of several groups.
pub(crate) const MOST_LAYERS: usize = 64;

/// The slots of an engine that holds blocks in more than one layer, for readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineSlots {
    /// The group that says where blocks are, then the others.
    pub(crate) groups: SmallVec<[GroupSlots; 2]>,
}

/// Where the blocks of one KV cache group are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupSlots {
    /// How many blocks at its end a prefix must have here to be reusable.
    pub(crate) window_blocks: u32,
    pub(crate) gpu: u32,
    /// Each with the tier that it is.
    pub(crate) offloaded: SmallVec<[(Tier, u32); 1]>,
}

/// All engines that hold blocks in more than one layer.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// By the index of the engine's own slot.
    by_slot: RwLock<HashMap<u32, Arc<EngineSlots>>>,
    /// How many of them.
    engines: AtomicUsize,
    /// Slots taken beside the engines' own.
    slots: AtomicUsize,
}

impl Layers {
    pub(crate) fn is_empty(&self) -> bool {
        self.engines.load(Ordering::Acquire) == 0
    }

    pub(crate) fn of_slot(&self, slot: u32) -> Option<Arc<EngineSlots>> {
        self.by_slot.read().get(&slot).cloned()
    }

    /// Says where an engine holds blocks beside its own slot; `None`: nowhere.
    pub(crate) fn set(&self, slot: u32, slots: Option<EngineSlots>) {
        let mut by_slot = self.by_slot.write();
        match slots {
            Some(slots) => by_slot.insert(slot, Arc::new(slots)),
            None => by_slot.remove(&slot),
        };
        self.engines.store(by_slot.len(), Ordering::Release);
    }

    pub(crate) fn took_slot(&self) {
        self.slots.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn gave_slots_back(&self, slots: usize) {
        self.slots.fetch_sub(slots, Ordering::Relaxed);
    }

    /// Slots taken beside the engines' own.
    pub(crate) fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }
}
