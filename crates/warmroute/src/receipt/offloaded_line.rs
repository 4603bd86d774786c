use serde::{Deserialize, Serialize};
use warmroute_kv_index::OffloadedBlocks;

/// Blocks that an engine has to load before it uses them, by the best tier that has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadedLine {
    /// In the host's memory.
    pub cpu: u32,
    /// In files or objects.
    pub storage: u32,
    /// In tiers of other names.
    pub other: u32,
}

impl OffloadedLine {
    /// What a look-up said, if there are any.
    pub fn of(blocks: OffloadedBlocks) -> Option<Self> {
        let OffloadedBlocks { cpu, storage, other } = blocks;
        (blocks.total() > 0).then_some(Self { cpu, storage, other })
    }
}

impl std::fmt::Display for OffloadedLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tiers = [(self.cpu, "cpu"), (self.storage, "storage"), (self.other, "other")];
        let mut tiers = tiers.into_iter().filter(|(blocks, _)| *blocks > 0);
        tiers.try_for_each(|(blocks, tier)| write!(f, ", {blocks} in {tier}"))
    }
}
