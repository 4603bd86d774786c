//! What is known of one engine from its events, for decisions, the status page and receipts.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::Serialize;
use warmroute_kv_events::{Trust, TrustReason, TrustState};
use warmroute_kv_index::EngineSlot;

use super::event_target::SourceStatus;
use super::relearning::Relearning;
use super::trust_change::TrustChange;

/// Written by the engine's subscription and shard, read by everyone.
#[derive(Debug, Default)]
pub struct EngineState {
    slot: OnceLock<EngineSlot>,
    block_size_tokens: AtomicU32,
    connected: AtomicBool,
    /// Connected to at its own address, not by the event listener.
    dialled: AtomicBool,
    /// Open connections to the event listener that have published as this engine.
    speakers: AtomicU32,
    connections: AtomicU64,
    batches: AtomicU64,
    missed: AtomicU64,
    restarts: AtomicU64,
    undecodable: AtomicU64,
    skipped: AtomicU64,
    blocks: AtomicU64,
    /// In the order of [`Tier::OFFLOADED`](warmroute_kv_index::Tier::OFFLOADED).
    offloaded: [AtomicU64; 3],
    unsupported: AtomicBool,
    several_groups: AtomicBool,
    last_seq_plus_one: AtomicU64,
    /// Position in [`Trust::ALL`], counted from the end, for decisions.
    trust_from_worst: AtomicU8,
    trust: Mutex<TrustFacts>,
    generation: AtomicU64,
    /// When requests ask it to announce again what they hit.
    pub relearning: Relearning,
    source: Mutex<SourceStatus>,
    /// Further data-parallel ranks that a request to the same endpoint may come to; nearly always none.
    further: Box<[Arc<EngineState>]>,
}

/// What trust in an engine's view follows from.
#[derive(Debug, Default)]
struct TrustFacts {
    by_events: TrustState,
    /// Since when it delivers less than its events promise, if it does.
    delivers_less_since_ms: Option<u64>,
    /// Nothing of it is told any more.
    is_over: bool,
}

impl TrustFacts {
    fn in_effect(&self) -> TrustState {
        match self.delivers_less_since_ms {
            Some(since_ms) if self.by_events.trust <= Trust::Partial => {
                TrustState { trust: Trust::Doubtful, reason: TrustReason::DeliversLess, since_ms }
            }
            _ => self.by_events,
        }
    }
}

/// The same at one moment, for the status page.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// How far the view of the engine's cache can be trusted.
    pub trust: Trust,
    /// Why.
    pub trust_reason: TrustReason,
    /// Since when it is so for that reason, in milliseconds since the Unix epoch; 0 if it isn't followed.
    pub trust_since_unix_ms: u64,
    /// Whether the subscription is connected now.
    pub connected: bool,
    /// Tokens per block, if known.
    pub block_size_tokens: Option<u32>,
    /// Blocks that the engine is known to hold in GPU memory.
    pub blocks: u64,
    /// Blocks that it is known to hold in the host's memory, in files or objects, and in tiers of other names, whether
    /// or not it holds them in GPU memory too.
    pub offloaded_blocks: OffloadedStatus,
    /// Batches applied.
    pub batches: u64,
    /// Sequence number of the newest one.
    pub last_seq: Option<u64>,
    /// Batches known to be missing: not replayed, and the engine's cache wasn't empty since.
    pub missed_batches: u64,
    /// Restarts of the engine's publisher seen.
    pub restarts: u64,
    /// Messages that could not be decoded.
    pub undecodable_messages: u64,
    /// Events that were understood but not applied.
    pub skipped_events: u64,
    /// Where its events are read. Of several ranks, the first one's, or that of the first with a problem.
    #[serde(flatten)]
    pub source: SourceStatus,
}

/// Blocks beside GPU memory, by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OffloadedStatus {
    /// In the host's memory.
    pub cpu: u64,
    /// In files or objects.
    pub storage: u64,
    /// In tiers of other names.
    pub other: u64,
}

impl EngineState {
    /// So many ranks, of which the engine chooses one for each request. Whatever is asked of them all is true of each:
    /// they are seen if all are, and trusted as far as the worst.
    pub fn of_ranks(ranks: u16) -> Self {
        Self { further: (1..ranks).map(|_| Arc::default()).collect(), ..Self::default() }
    }

    /// The further ranks that a request to the same endpoint may come to.
    pub fn further_ranks(&self) -> &[Arc<EngineState>] {
        &self.further
    }

    /// The engine's place in the index, once it has one. Of several ranks, the first one's.
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

    /// How far the view of the engine's cache can be trusted.
    pub fn trust(&self) -> Trust {
        let from_worst = usize::from(self.trust_from_worst.load(Ordering::Relaxed));
        let trust = Trust::ALL.into_iter().rev().nth(from_worst).unwrap_or_default();
        self.further.iter().map(|rank| rank.trust()).fold(trust, Trust::max)
    }

    /// The same with its reason, and since when.
    pub fn trust_state(&self) -> TrustState {
        let own = self.trust.lock().in_effect();
        let worse = |worst: TrustState, rank: TrustState| if rank.trust > worst.trust { rank } else { worst };
        self.further.iter().map(|rank| rank.trust_state()).fold(own, worse)
    }

    /// How far the view could be trusted if deliveries were as promised.
    pub fn trust_by_events(&self) -> TrustState {
        self.trust.lock().by_events
    }

    /// Says how far the view can be trusted by its events.
    pub fn set_trust(&self, trust: TrustState) -> TrustChange {
        self.change_trust(|facts| facts.by_events = trust)
    }

    /// Says whether the engine lastingly delivers less than its events promise. `now_ms` is Unix time.
    pub fn set_delivers_less(&self, delivers_less: bool, now_ms: u64) -> TrustChange {
        self.change_trust(|facts| match (delivers_less, facts.delivers_less_since_ms) {
            (true, None) => facts.delivers_less_since_ms = Some(now_ms),
            (false, _) => facts.delivers_less_since_ms = None,
            (true, Some(_)) => {}
        })
    }

    /// Ends the telling of trust: what comes later changes nothing. Returns the last one.
    pub(super) fn end_trust(&self) -> TrustState {
        let mut facts = self.trust.lock();
        facts.is_over = true;
        facts.in_effect()
    }

    fn change_trust(&self, change: impl FnOnce(&mut TrustFacts)) -> TrustChange {
        let mut facts = self.trust.lock();
        let before = facts.in_effect();
        if !facts.is_over {
            change(&mut facts);
        }
        let now = facts.in_effect();
        let from_worst = Trust::ALL.iter().rev().position(|known| *known == now.trust).unwrap_or(0);
        self.trust_from_worst.store(from_worst as u8, Ordering::Relaxed);
        TrustChange { before, now }
    }

    /// How often the view began anew: evidence about an earlier one says nothing of this one.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The view begins anew, because the engine did or nothing of it can be relied on.
    pub fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.relearning.is_worthwhile();
    }

    /// Blocks that the engine is known to hold.
    pub fn blocks(&self) -> u64 {
        self.sum(|rank| &rank.blocks)
    }

    /// For the status page; `block_size_tokens` is the one that decisions use.
    pub fn status(&self, block_size_tokens: Option<u32>) -> EngineStatus {
        let trust = self.trust_state();
        let offloaded: [fn(&Self) -> &AtomicU64; 3] =
            [|rank| &rank.offloaded[0], |rank| &rank.offloaded[1], |rank| &rank.offloaded[2]];
        let [cpu, storage, other] = offloaded.map(|blocks| self.sum(blocks));
        EngineStatus {
            trust: trust.trust,
            trust_reason: trust.reason,
            trust_since_unix_ms: trust.since_ms,
            connected: self.is_connected(),
            block_size_tokens,
            blocks: self.blocks(),
            offloaded_blocks: OffloadedStatus { cpu, storage, other },
            batches: self.sum(|rank| &rank.batches),
            last_seq: self.last_seq_plus_one.load(Ordering::Relaxed).checked_sub(1),
            missed_batches: self.sum(|rank| &rank.missed),
            restarts: self.sum(|rank| &rank.restarts),
            undecodable_messages: self.sum(|rank| &rank.undecodable),
            skipped_events: self.sum(|rank| &rank.skipped),
            source: self.source(),
        }
    }

    fn source(&self) -> SourceStatus {
        let own = self.source.lock().clone();
        let mut further = self.further.iter().map(|rank| rank.source());
        match own.problem {
            None => further.find(|source| source.problem.is_some()).unwrap_or(own),
            Some(_) => own,
        }
    }

    /// Says where events are read. Returns whether that is new.
    pub(super) fn set_source(&self, source: SourceStatus) -> bool {
        let before = std::mem::replace(&mut *self.source.lock(), source.clone());
        before != source
    }

    /// Whether what the engine holds is seen: its events arrive, at least one batch was applied, its block size is known,
    /// and it has no KV cache groups for which nothing can be claimed.
    pub fn is_seen(&self) -> bool {
        self.trust() != Trust::Blind
            && self.batches.load(Ordering::Relaxed) > 0
            && self.block_size_tokens() > 0
            && !self.unsupported.load(Ordering::Relaxed)
            && self.further.iter().all(|rank| rank.is_seen())
    }

    /// A counter, over all ranks.
    fn sum(&self, counter: fn(&Self) -> &AtomicU64) -> u64 {
        let further: u64 = self.further.iter().map(|rank| counter(rank).load(Ordering::Relaxed)).sum();
        counter(self).load(Ordering::Relaxed) + further
    }

    /// Whether the engine may hold blocks that were stored before anybody listened, and tells of those that can be
    /// matched when it is asked. Not one with several KV cache groups: it would announce blocks that it doesn't hold.
    pub fn may_hold_unknown(&self) -> bool {
        use TrustReason::{
            BufferOverflowed, JoinedLate, NothingHeard, ReplayFailed, RestartSeenLate, UnknownParents,
            UnknownRemovals,
        };
        let began_late = matches!(
            self.trust_by_events().reason,
            BufferOverflowed
                | JoinedLate
                | NothingHeard
                | ReplayFailed
                | RestartSeenLate
                | UnknownParents
                | UnknownRemovals
        );
        let has_one_group =
            !self.unsupported.load(Ordering::Relaxed) && !self.several_groups.load(Ordering::Relaxed);
        began_late && has_one_group
    }

    /// Whether the engine's events arrive.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed) && self.further.iter().all(|rank| rank.is_connected())
    }

    /// Says whether the engine's events arrive. Returns what it was before.
    pub fn set_connected(&self, connected: bool) -> bool {
        self.connected.swap(connected, Ordering::Relaxed)
    }

    /// Whether it is subscribed to at its own address, at this moment.
    pub(super) fn is_dialled(&self) -> bool {
        self.dialled.load(Ordering::Acquire)
    }

    /// Says so. Returns what it was before.
    pub(super) fn set_dialled(&self, dialled: bool) -> bool {
        self.dialled.swap(dialled, Ordering::AcqRel)
    }

    /// Says how many open connections to the event listener have published as this engine.
    pub(super) fn set_speakers(&self, speakers: usize) {
        self.speakers.store(u32::try_from(speakers).unwrap_or(u32::MAX), Ordering::Release);
    }

    /// Whether there is more than one.
    pub(super) fn is_contested(&self) -> bool {
        self.speakers.load(Ordering::Acquire) > 1
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

    /// Missing batches came after all.
    pub(super) fn count_recovered(&self, batches: u64) {
        let less = |missed: u64| Some(missed.saturating_sub(batches));
        let _ = self.missed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub(super) fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// The view is sound: what was missed doesn't matter any more.
    pub(super) fn nothing_is_missing(&self) {
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

    /// The engine has announced several KV cache groups, or one.
    pub(super) fn set_several_groups(&self, several: bool) {
        self.several_groups.store(several, Ordering::Relaxed);
    }

    pub(super) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// In the order of [`Tier::OFFLOADED`](warmroute_kv_index::Tier::OFFLOADED). Returns what it was before.
    pub(super) fn set_offloaded(&self, blocks: [u64; 3]) -> [u64; 3] {
        let [cpu, storage, other] = &self.offloaded;
        [(cpu, blocks[0]), (storage, blocks[1]), (other, blocks[2])]
            .map(|(tier, blocks)| tier.swap(blocks, Ordering::Relaxed))
    }

    /// The engine has told the size of its blocks.
    pub fn set_block_size_tokens(&self, tokens: u32) {
        self.block_size_tokens.store(tokens, Ordering::Relaxed);
    }
}
