//! What is known of one engine from its events, for decisions, the status page and receipts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use serde::Serialize;
use warmroute_kv_index::EngineSlot;

/// Written by the engine's subscription and shard, read by everyone.
#[derive(Debug, Default)]
pub struct EngineState {
    slot: OnceLock<EngineSlot>,
    block_size_tokens: AtomicU32,
    connected: AtomicBool,
    connections: AtomicU64,
    batches: AtomicU64,
    missed: AtomicU64,
    restarts: AtomicU64,
    undecodable: AtomicU64,
    skipped: AtomicU64,
    blocks: AtomicU64,
    unsupported: AtomicBool,
    last_seq_plus_one: AtomicU64,
}

/// The same at one moment, for the status page.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// Whether the subscription is connected now.
    pub connected: bool,
    /// Tokens per block, if known.
    pub block_size_tokens: Option<u32>,
    /// Blocks that the engine is known to hold.
    pub blocks: u64,
    /// Batches applied.
    pub batches: u64,
    /// Sequence number of the newest one.
    pub last_seq: Option<u64>,
    /// Batches known to be missing since the engine's cache was last empty.
    pub missed_batches: u64,
    /// Restarts of the engine's publisher seen.
    pub restarts: u64,
    /// Messages that could not be decoded.
    pub undecodable_messages: u64,
    /// Events that were understood but not applied.
    pub skipped_events: u64,
}

impl EngineState {
    /// The engine's place in the index, once it has one.
    pub fn slot(&self) -> Option<EngineSlot> {
        self.slot.get().copied()
    }

    /// Gives the engine its place in the index; the first one stays.
    pub fn set_slot(&self, slot: EngineSlot) {
        let _ = self.slot.set(slot);
    }

    /// Tokens per block as events say; 0 if none has said so yet.
    pub fn block_size_tokens(&self) -> u32 {
        self.block_size_tokens.load(Ordering::Relaxed)
    }

    /// Whether events are known to be missing.
    pub fn has_gaps(&self) -> bool {
        self.missed.load(Ordering::Relaxed) > 0
    }

    /// For the status page; `block_size_tokens` is the one that decisions use.
    pub fn status(&self, block_size_tokens: Option<u32>) -> EngineStatus {
        EngineStatus {
            connected: self.is_connected(),
            block_size_tokens,
            blocks: self.blocks.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            last_seq: self.last_seq_plus_one.load(Ordering::Relaxed).checked_sub(1),
            missed_batches: self.missed.load(Ordering::Relaxed),
            restarts: self.restarts.load(Ordering::Relaxed),
            undecodable_messages: self.undecodable.load(Ordering::Relaxed),
            skipped_events: self.skipped.load(Ordering::Relaxed),
        }
    }

    /// Whether what the engine holds is seen: its events arrive, at least one batch was applied, its block size is known,
    /// and it has no KV cache groups for which nothing can be claimed.
    pub fn is_seen(&self) -> bool {
        self.is_connected()
            && self.batches.load(Ordering::Relaxed) > 0
            && self.block_size_tokens() > 0
            && !self.unsupported.load(Ordering::Relaxed)
    }

    /// Whether the engine's events arrive.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Says whether the engine's events arrive. Returns what it was before.
    pub fn set_connected(&self, connected: bool) -> bool {
        self.connected.swap(connected, Ordering::Relaxed)
    }

    /// Returns how many connections there were, with this one.
    pub(super) fn count_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A batch was applied.
    pub fn count_batch(&self, seq: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.last_seq_plus_one.store(seq.wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn count_missed(&self, batches: u64) {
        self.missed.fetch_add(batches, Ordering::Relaxed);
    }

    /// A restart makes everything before it irrelevant, gaps included.
    pub(super) fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.missed.store(0, Ordering::Relaxed);
    }

    /// Everything that events before this one said is void, gaps included.
    pub(super) fn cache_is_cleared(&self) {
        self.missed.store(0, Ordering::Relaxed);
    }

    pub(super) fn count_undecodable(&self) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_skipped(&self, events: u64) {
        self.skipped.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn set_unsupported(&self, unsupported: bool) {
        self.unsupported.store(unsupported, Ordering::Relaxed);
    }

    pub(super) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// The engine has told the size of its blocks.
    pub fn set_block_size_tokens(&self, tokens: u32) {
        self.block_size_tokens.store(tokens, Ordering::Relaxed);
    }
}
