use std::sync::Arc;

use crate::{DecodeError, EngineHash};

/// One message of an engine: everything that happened to its KV cache in one scheduler step, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EventBatch {
    /// When the engine made the batch, Unix time in seconds by the engine's own clock.
    pub ts: f64,
    /// The events in the order in which they happened; stores and removals interleave.
    pub events: Vec<KvEvent>,
    /// The data-parallel rank of the publisher; vLLM always fills it (0 for a single rank).
    pub data_parallel_rank: Option<u32>,
    /// Events of this batch that could not be understood and are missing from `events`.
    pub skipped: SkippedEvents,
}

/// One change of an engine's KV cache.
#[derive(Debug, Clone, PartialEq)]
pub enum KvEvent {
    /// Blocks became available for reuse (`BlockStored`).
    Stored(BlocksStored),
    /// Blocks were evicted (`BlockRemoved`).
    Removed(BlocksRemoved),
    /// The whole cache was reset (`AllBlocksCleared`).
    Cleared,
}

/// Consecutive blocks of one token sequence that the engine now holds.
///
/// **The hash list and the token list need not line up.** They do (one block of `block_size_tokens` tokens per hash)
/// only when `token_ids.len() == hashes.len() * block_size_tokens`; sliding-window groups announce fewer hashes than
/// their tokens span, and tier-only announcements carry no tokens at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlocksStored {
    /// The engine's names of the blocks, first block first.
    pub hashes: Vec<EngineHash>,
    /// The block before the first one; `None` at the start of a sequence.
    pub parent: Option<EngineHash>,
    /// The tokens of the blocks; empty when the engine announces by hash only.
    pub token_ids: Vec<u32>,
    /// Tokens per block; 0 in announcements without tokens.
    pub block_size_tokens: u32,
    /// The LoRA adapter's name (vLLM 0.14 and later).
    pub lora_name: Option<Arc<str>>,
    /// The engine's own number for the LoRA adapter; the only trace of it before vLLM 0.14.
    pub lora_id: Option<i64>,
    /// Where the blocks lie.
    pub medium: Medium,
    /// The KV cache group (vLLM 0.20 and later); models with several kinds of attention have several.
    pub group: Option<u32>,
    /// The kind of attention of that group (vLLM 0.22 and later).
    pub spec_kind: Option<SpecKind>,
    /// The window of a sliding-window group, in tokens.
    pub sliding_window_tokens: Option<u32>,
    /// What besides tokens decides a block's content, one entry per block (vLLM 0.17 and later). Empty when no block
    /// has any, which is the usual case.
    pub extra_keys: Vec<Option<Vec<ExtraKey>>>,
    /// The cache salt, where the engine sends it as a field of its own (SGLang). vLLM sends it in the first block's
    /// `extra_keys` instead.
    pub cache_salt: Option<Arc<str>>,
    /// How many tokens after its own a block depends on: 1 where SGLang names blocks by pairs of tokens, the length of
    /// `lookahead_token_ids` in vLLM 0.33 and later, else 0. A prompt finds a block only if it goes on with the same
    /// tokens, so blocks of equal tokens have several names.
    pub lookahead_tokens: u32,
    /// The token after the last block, where the engine names blocks by pairs.
    pub next_token: Option<u32>,
}

/// Blocks that an engine evicted; one physical copy each.
#[derive(Debug, Clone, PartialEq)]
pub struct BlocksRemoved {
    /// The engine's names of the blocks.
    pub hashes: Vec<EngineHash>,
    /// Where they lay.
    pub medium: Medium,
    /// The KV cache group they belonged to.
    pub group: Option<u32>,
}

/// Where a block lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Medium {
    /// Not said; engines that don't say mean the accelerator's memory.
    #[default]
    Unspecified,
    /// `GPU`.
    Gpu,
    /// `CPU`, SGLang's `CPU_PINNED`.
    Cpu,
    /// `STORAGE`; vLLM 0.26's `FS` and `OBJ`; SGLang's `DISK`.
    Storage,
    /// Anything else, as it was written.
    Other(Arc<str>),
}

impl Medium {
    /// Reads a medium's name in any case.
    pub fn from_name(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("GPU") {
            Self::Gpu
        } else if is("CPU") || is("CPU_PINNED") {
            Self::Cpu
        } else if is("STORAGE") || is("DISK") || is("FS") || is("OBJ") {
            Self::Storage
        } else {
            Self::Other(name.into())
        }
    }

    /// Whether a block there can be used without a transfer first.
    pub fn is_gpu(&self) -> bool {
        matches!(self, Self::Gpu | Self::Unspecified)
    }
}

/// The kind of attention of a KV cache group, by vLLM's names (`v1/kv_cache_interface.py`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpecKind {
    /// `full_attention`.
    FullAttention,
    /// `mla_attention`.
    MlaAttention,
    /// `sink_full_attention`.
    SinkFullAttention,
    /// `sliding_window`.
    SlidingWindow,
    /// `sliding_window_mla`.
    SlidingWindowMla,
    /// `mamba`.
    Mamba,
    /// `chunked_local_attention`.
    ChunkedLocalAttention,
    /// Any other name, as it was written.
    Other(Arc<str>),
}

impl SpecKind {
    /// Reads a kind's name.
    pub fn from_name(name: &str) -> Self {
        match name {
            "full_attention" => Self::FullAttention,
            "mla_attention" => Self::MlaAttention,
            "sink_full_attention" => Self::SinkFullAttention,
            "sliding_window" => Self::SlidingWindow,
            "sliding_window_mla" => Self::SlidingWindowMla,
            "mamba" => Self::Mamba,
            "chunked_local_attention" => Self::ChunkedLocalAttention,
            _ => Self::Other(name.into()),
        }
    }

    /// Whether every block of a prefix has to be there for the prefix to be reusable, so that a hash per block says
    /// all there is to know.
    pub fn is_full_attention(&self) -> bool {
        matches!(self, Self::FullAttention | Self::MlaAttention | Self::SinkFullAttention)
    }
}

/// One thing besides tokens that decides a block's content. vLLM publishes them untagged, in the order LoRA, media,
/// cache salt, prompt embeddings.
#[derive(Debug, Clone, PartialEq)]
pub enum ExtraKey {
    /// A bare string: a LoRA name, a cache salt or (vLLM 0.17, 0.18) the identifier of an image or other media item.
    Text(Arc<str>),
    /// A bare integer.
    Int(i64),
    /// Bytes: the SHA-256 of the block's prompt embeddings.
    Bytes(Box<[u8]>),
    /// A media item that touches the block (vLLM 0.19 and later).
    Media {
        /// Its identifier (a digest in hex, usually).
        id: Arc<str>,
        /// Where it starts, in tokens relative to the block's start; negative if it started before.
        offset_tokens: i64,
    },
    /// Anything else, as its raw msgpack.
    Other(Box<[u8]>),
}

/// The events of a batch that could not be understood.
///
/// A skipped store only means that less is known; a skipped removal means that a block may be believed held which is
/// gone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SkippedEvents {
    /// How many.
    pub count: u32,
    /// The first of them, at most [`SkippedEvents::MAX_REASONS`].
    pub reasons: Vec<SkippedEvent>,
}

impl SkippedEvents {
    /// How many reasons are kept per batch.
    pub const MAX_REASONS: usize = 8;

    pub(crate) fn push(&mut self, index: u32, reason: DecodeError) {
        self.count = self.count.saturating_add(1);
        if self.reasons.len() < Self::MAX_REASONS {
            self.reasons.push(SkippedEvent { index, reason });
        }
    }
}

/// Why one event was skipped.
#[derive(Debug, Clone, PartialEq)]
pub struct SkippedEvent {
    /// The event's position in the batch as sent, from 0.
    pub index: u32,
    /// What was wrong, with its byte offset in the payload.
    pub reason: DecodeError,
}
