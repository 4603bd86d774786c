use crate::Tier;

/// What an engine is known to hold, to be taken in by another index: see [`EngineView::export`](crate::EngineView::export).
///
/// Blocks go by our own keys and by the engine's names of them, so a snapshot means something only to an index whose keys
/// are made the same way ([`key_check`](crate::key_check)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewSnapshot {
    /// What all blocks have in common.
    pub outline: ViewOutline,
    /// The blocks, each after those that come before it in a prompt.
    pub rows: Vec<BlockRows>,
}

/// What the blocks of an engine have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewOutline {
    /// Tokens per block; 0 if not known.
    pub block_size_tokens: u32,
    /// How many tokens after its own a block depends on.
    pub lookahead_tokens: u32,
    /// Whether the engine's names say nothing of what comes before a block; `None` before its first store.
    pub is_unchained: Option<bool>,
    /// Whether the engine has announced a cached prefix again.
    pub announces_again: bool,
    /// The KV cache groups that it announced, in that order.
    pub groups: Vec<GroupOutline>,
    /// Position in `groups` of the one that tells the tokens of all blocks.
    pub main_group: Option<u32>,
    /// Where it holds blocks beside GPU memory of that group: tier and group. Layer n of [`LayerRows`] is the one at n − 1
    /// here; layer 0 is the main one.
    pub layers: Vec<(Tier, Option<u32>)>,
}

/// A KV cache group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupOutline {
    /// Its number, if the engine numbers it.
    pub number: Option<u32>,
    /// What it must hold of a prefix that is to be reused.
    pub need: GroupNeed,
    /// Tokens per block.
    pub block_size_tokens: u32,
}

/// What a KV cache group must hold of a prefix that is to be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupNeed {
    /// Its kind isn't said: if it is the only one, all blocks.
    Unsaid,
    /// All blocks.
    All,
    /// So many blocks at the end.
    Last(u32),
    /// Its kind isn't understood.
    Unclear,
}

/// Some blocks of a snapshot, in columns. Blocks are numbered from 0 over the whole snapshot, in the order in which they
/// come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRows {
    /// Rows of successive blocks: how many blocks each has.
    pub lengths: Vec<u32>,
    /// The block before each row's first one: its number plus 1, or 0 if the row begins a prompt.
    pub parents: Vec<u32>,
    /// Keys of the blocks of all rows. Some blocks are nobody's: they lie between one that is held and a prompt's first.
    pub keys: Vec<u64>,
    /// Who holds which blocks, of these rows and of earlier ones.
    pub layers: Vec<LayerRows>,
}

/// Blocks that a layer of an engine holds, in columns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerRows {
    /// Which layer: see [`ViewOutline::layers`].
    pub layer: u32,
    /// The number of the first block.
    pub first: u32,
    /// For each further block, its number less the one after the block before it; empty if all are 0. A block comes again
    /// if the engine has several names for it.
    pub steps: Vec<i32>,
    /// The engine's names of the blocks.
    pub names: Vec<u64>,
    /// Copies beyond the first, for each block; empty if there are none.
    pub more_copies: Vec<u32>,
}

impl BlockRows {
    /// About how many bytes this takes on the wire.
    pub fn wire_bytes(&self) -> usize {
        let layer =
            |layer: &LayerRows| 16 + 8 * layer.names.len() + layer.steps.len() + layer.more_copies.len();
        8 * self.keys.len() + 6 * self.lengths.len() + self.layers.iter().map(layer).sum::<usize>()
    }
}

/// Why a snapshot can't be taken in. What was taken in so far is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Blocks are known of the engine already, or a snapshot is being taken in.
    #[error("blocks of this engine are known already")]
    NotEmpty,
    /// There is no room.
    #[error("the index is full")]
    IndexFull,
    /// Nobody who exports a view makes this.
    #[error("snapshot is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}
