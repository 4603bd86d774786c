use std::ops::AddAssign;

use warmroute_kv_events::ApplyFacts;

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
    /// Blocks outside GPU memory left out because it isn't known which they are, or forgotten with a reset that may not
    /// have been theirs; and removals of such blocks.
    pub other_media: u64,
    /// Blocks of further groups left out because they come by names that aren't known.
    pub unknown_names: u64,
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
                + self.unknown_names
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
        self.unknown_names += other.unknown_names;
        self.unsupported_groups += other.unsupported_groups;
        self.unchained_hashes += other.unchained_hashes;
        self.refused_blocks += other.refused_blocks;
        self.key_conflicts += other.key_conflicts;
        self.malformed += other.malformed;
    }
}
