use smallvec::SmallVec;
use warmroute_kv_events::{BlocksStored, SpecKind};

use crate::view_snapshot::{GroupNeed, GroupOutline};

/// The KV cache groups that an engine has announced in GPU memory, and what each says about reuse.
///
/// An engine reuses a prefix of so many blocks if every group holds what it needs of it (the rules of vLLM 0.32,
/// `v1/core/kv_cache_coordinator.py` and `single_type_kv_cache_manager.py`): a group with full attention all of its
/// blocks, one with a sliding window of w tokens the last ⌈(w − 1) / B⌉ (all if the prefix has fewer), one of Mamba
/// layers the last.
#[derive(Debug, Clone, Default)]
pub(crate) struct KvGroups {
    groups: SmallVec<[Group; 1]>,
    main: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    /// Early versions don't number the one that they have.
    number: Option<u32>,
    need: GroupNeed,
    /// Tokens per block.
    block_size_tokens: u32,
}

/// In place of a number of blocks: all of them.
pub(crate) const ALL_BLOCKS: u32 = u32::MAX;

/// More than any model has; a bound for what events can make grow.
const MOST_GROUPS: usize = 32;

impl KvGroups {
    /// Notes the group of a store in GPU memory. True if that changes what the engine's groups are.
    pub(crate) fn note(&mut self, stored: &BlocksStored) -> bool {
        if self.place(stored.group).is_some() || stored.block_size_tokens == 0 {
            return false;
        }
        if self.groups.len() > MOST_GROUPS {
            return false;
        }
        let need = need_of(stored);
        let group = Group { number: stored.group, need, block_size_tokens: stored.block_size_tokens };
        self.groups.push(group);
        if self.main.is_none() && matches!(need, GroupNeed::All | GroupNeed::Unsaid) {
            self.main = Some(self.groups.len() - 1);
        }
        true
    }

    /// All groups as announced, and the place of the main one.
    pub(crate) fn outline(&self) -> (Vec<GroupOutline>, Option<u32>) {
        let outline = |group: &Group| GroupOutline {
            number: group.number,
            need: group.need,
            block_size_tokens: group.block_size_tokens,
        };
        (self.groups.iter().map(outline).collect(), self.main.map(|main| main as u32))
    }

    /// What [`Self::outline`] was made of; `None` if it can't be.
    pub(crate) fn restored(groups: &[GroupOutline], main: Option<u32>) -> Option<Self> {
        let main = main.map(|main| main as usize);
        if groups.len() > MOST_GROUPS + 1 || main.is_some_and(|main| main >= groups.len()) {
            return None;
        }
        let group = |outline: &GroupOutline| Group {
            number: outline.number,
            need: outline.need,
            block_size_tokens: outline.block_size_tokens,
        };
        Some(Self { groups: groups.iter().map(group).collect(), main })
    }

    /// Forgets all, for another process.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether what is held tells what is reusable: there is a group with full attention, and every other one is
    /// understood and has blocks of the same size.
    pub(crate) fn is_supported(&self) -> bool {
        let Some(main) = self.main.and_then(|main| self.groups.get(main)) else { return self.is_empty() };
        let is_understood = |group: &Group| {
            matches!(group.need, GroupNeed::All | GroupNeed::Last(_))
                && group.block_size_tokens == main.block_size_tokens
        };
        self.groups.len() == 1 || (self.groups.len() <= MOST_GROUPS && self.groups.iter().all(is_understood))
    }

    /// The number of the group that says where blocks are, once one is known.
    pub(crate) fn main(&self) -> Option<Option<u32>> {
        Some(self.groups.get(self.main?)?.number)
    }

    /// The groups beside the main one: number, and how many blocks each needs at the end of a prefix.
    pub(crate) fn others(&self) -> impl Iterator<Item = (Option<u32>, u32)> {
        let others = self.groups.iter().enumerate().filter(|(at, _)| Some(*at) != self.main);
        others.map(|(_, group)| match group.need {
            GroupNeed::Last(blocks) => (group.number, blocks),
            GroupNeed::All | GroupNeed::Unsaid | GroupNeed::Unclear => (group.number, ALL_BLOCKS),
        })
    }

    fn place(&self, number: Option<u32>) -> Option<usize> {
        self.groups.iter().position(|group| group.number == number)
    }
}

/// What a store's group must hold.
fn need_of(stored: &BlocksStored) -> GroupNeed {
    match (&stored.spec_kind, stored.sliding_window_tokens) {
        (None, _) => GroupNeed::Unsaid,
        (Some(kind), _) if kind.is_full_attention() => GroupNeed::All,
        (Some(SpecKind::SlidingWindow | SpecKind::SlidingWindowMla), Some(window_tokens)) => {
            let blocks = window_tokens.saturating_sub(1).div_ceil(stored.block_size_tokens);
            GroupNeed::Last(blocks.max(1))
        }
        (Some(SpecKind::Mamba), _) => GroupNeed::Last(1),
        _ => GroupNeed::Unclear,
    }
}
