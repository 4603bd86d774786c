//! One engine as its shard sees it: what came of it, in order, and its view of the index.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::watch;
use warmroute_kv_events::{
    ApplyFacts, BatchDecoder, EngineFeed, EventBatch, FeedBatch, FeedEvent, FeedHistory, FeedSettings,
    FeedSink, KvEvent, ReplayOrder, Trust, TrustState, batch_time,
};
use warmroute_kv_index::{Applied, BlockRows, EngineView, ImportError, Tier, ViewOutline};

use super::engine_snapshot::{EngineSnapshot, SnapshotRefused};
use super::replayer::ReplayedBatches;
use super::state::EngineState;
use super::trust_change::shown;
use crate::metrics::Metrics;
use crate::prompt::AdapterNames;

/// Numbers and payloads of live messages that came together.
pub(crate) type LiveBatches = SmallVec<[(u64, Bytes); 1]>;

/// What a shard owns of an engine.
pub(super) struct FollowedEngine {
    feed: EngineFeed<Bytes>,
    sink: ViewSink,
    orders: watch::Sender<Option<ReplayOrder>>,
    /// A snapshot that is being taken in, or why that failed.
    importing: Option<Result<FeedHistory, ImportError>>,
    /// What was told last of how far the view can be trusted.
    told: TrustState,
}

/// Where the engine's batches go.
struct ViewSink {
    endpoint: Arc<str>,
    view: EngineView,
    decoder: BatchDecoder,
    state: Arc<EngineState>,
    metrics: Arc<Metrics>,
    adapters: Arc<AdapterNames>,
}

impl FollowedEngine {
    /// Replays are ordered by `orders`.
    pub(super) fn new(
        endpoint: Arc<str>,
        view: EngineView,
        state: Arc<EngineState>,
        settings: FeedSettings,
        orders: watch::Sender<Option<ReplayOrder>>,
        metrics: Arc<Metrics>,
        adapters: Arc<AdapterNames>,
    ) -> Self {
        let feed = EngineFeed::new(settings, unix_ms());
        let told = feed.trust();
        state.set_trust(told);
        let decoder = BatchDecoder::default();
        let sink = ViewSink { endpoint, view, decoder, state, metrics, adapters };
        Self { feed, told, sink, orders, importing: None }
    }

    /// The engine publishes elsewhere: nothing of what it said before can be continued.
    pub(super) fn moved(&mut self, settings: FeedSettings) {
        self.importing = None;
        self.sink.start_generation();
        self.feed = EngineFeed::new(settings, unix_ms());
        self.orders.send_replace(None);
        self.tell(None);
    }

    /// Attempts to connect begin.
    pub(super) fn followed(&mut self) {
        self.feed.followed(unix_ms());
        self.tell(None);
    }

    pub(super) fn connected(&mut self) {
        let order = self.feed.connected(unix_ms());
        self.tell(order);
    }

    pub(super) fn connection_lost(&mut self) {
        let order = self.feed.connection_lost(unix_ms());
        self.tell(order);
    }

    pub(super) fn speakers_changed(&mut self) {
        let is_contested = self.sink.state.is_contested();
        self.feed.contested(unix_ms(), is_contested);
        self.tell(None);
    }

    pub(super) fn lost_live(&mut self) {
        let order = self.feed.lost_live(unix_ms());
        self.tell(order);
    }

    pub(super) fn quiet(&mut self) {
        let order = self.feed.quiet(unix_ms());
        self.tell(order);
    }

    pub(super) fn live(&mut self, batches: LiveBatches) {
        let now_ms = unix_ms();
        for (seq, payload) in batches {
            let order = self.feed.live(now_ms, feed_batch(seq, payload), &mut self.sink);
            self.tell(order);
        }
    }

    pub(super) fn replayed(&mut self, epoch: u64, batches: ReplayedBatches) {
        for (seq, payload) in batches {
            let order = self.feed.replayed(unix_ms(), epoch, feed_batch(seq, payload), &mut self.sink);
            self.tell(order);
        }
    }

    pub(super) fn replay_ended(&mut self, epoch: u64, is_complete: bool) {
        let order = self.feed.replay_ended(unix_ms(), epoch, is_complete, &mut self.sink);
        self.tell(order);
    }

    /// What comes live waits for a snapshot.
    pub(super) fn await_history(&mut self) {
        self.feed.await_history();
    }

    /// What is known of the engine, unless that is nothing, or it isn't clear of whom it is.
    pub(super) fn export(&self, piece_bytes: usize) -> Option<EngineSnapshot> {
        let history = self.feed.history()?;
        Some(EngineSnapshot { history, view: self.sink.view.export(piece_bytes) })
    }

    pub(super) fn begin_import(
        &mut self,
        history: FeedHistory,
        outline: &ViewOutline,
    ) -> Result<(), SnapshotRefused> {
        if !self.feed.is_awaiting_history() || self.importing.is_some() {
            return Err(SnapshotRefused::NotAwaited);
        }
        if !self.feed.would_adopt(&history) {
            return Err(SnapshotRefused::Worse);
        }
        self.sink.view.begin_import(outline)?;
        self.importing = Some(Ok(history));
        Ok(())
    }

    pub(super) fn import(&mut self, rows: &BlockRows) {
        if let Some(importing @ Ok(_)) = &mut self.importing
            && let Err(error) = self.sink.view.import(rows)
        {
            *importing = Err(error);
        }
    }

    /// Goes on with a snapshot that is there as a whole, as if the connection to the engine had just been made again.
    pub(super) fn end_import(&mut self, names: u64) -> Result<u64, SnapshotRefused> {
        let importing = self.importing.take();
        let history = importing.ok_or(SnapshotRefused::NotAwaited)??;
        let found = self.sink.view.entries() as u64;
        if found != names {
            self.sink.view.abandon_import();
            return Err(SnapshotRefused::Incomplete { found, announced: names });
        }
        self.sink.view.end_import();
        // What waited is applied to it.
        self.sink.state.count_batch(history.next.saturating_sub(1));
        self.sink.tell_view();
        let (is_adopted, order) = self.feed.adopt(unix_ms(), &history, &mut self.sink);
        if !is_adopted {
            self.sink.start_generation();
        }
        self.tell(order);
        if is_adopted { Ok(found) } else { Err(SnapshotRefused::NotAwaited) }
    }

    pub(super) fn abandon_import(&mut self) {
        if self.importing.take().is_some() {
            self.sink.view.abandon_import();
        }
    }

    /// No snapshot comes.
    pub(super) fn no_history(&mut self) {
        self.abandon_import();
        let order = self.feed.no_history(unix_ms(), &mut self.sink);
        self.tell(order);
    }

    /// Passes an order on, and says once how far the view can be trusted now if that has changed.
    fn tell(&mut self, order: Option<ReplayOrder>) {
        if let Some(order) = order {
            self.orders.send_replace(Some(order));
        }
        let now = self.feed.trust();
        if self.told == now {
            return;
        }
        self.told = now;
        let ViewSink { endpoint, state, metrics, .. } = &self.sink;
        let change = state.set_trust(now);
        if now.trust <= Trust::Partial {
            state.nothing_is_missing();
        }
        change.tell(endpoint, state, &metrics.events);
    }
}

impl Drop for FollowedEngine {
    fn drop(&mut self) {
        let ViewSink { endpoint, metrics, state, .. } = &self.sink;
        metrics.events.show_trust(endpoint, shown(state.end_trust()), None);
        self.sink.tell_offloaded([0; 3]);
    }
}

fn feed_batch(seq: u64, payload: Bytes) -> FeedBatch<Bytes> {
    FeedBatch { seq, ts: batch_time(&payload).unwrap_or(f64::NAN), bytes: payload.len(), payload }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl FeedSink<Bytes> for ViewSink {
    fn apply(&mut self, seq: u64, payload: Bytes) -> ApplyFacts {
        // Out of the way while its batch is applied.
        let mut decoder = std::mem::take(&mut self.decoder);
        let facts = match decoder.decode(&payload) {
            Ok(batch) => self.apply_batch(seq, batch),
            Err(error) => {
                self.state.count_undecodable();
                self.metrics.events.skipped.with_label_values(&["undecodable-batch"]).inc();
                tracing::warn!(endpoint = %self.endpoint, seq, %error, bytes = payload.len(),
                    "KV event batch that can't be decoded: what it said is missing from the index");
                ApplyFacts { undecodable: true, ..ApplyFacts::default() }
            }
        };
        self.decoder = decoder;
        facts
    }

    fn start_generation(&mut self) {
        self.view.clear();
        self.state.begin_generation();
        self.state.nothing_is_missing();
        self.state.set_blocks(0);
        self.tell_offloaded([0; 3]);
    }

    fn note(&mut self, event: FeedEvent) {
        let (endpoint, events) = (&*self.endpoint, &self.metrics.events);
        match event {
            FeedEvent::JoinedLate { missed } => {
                tracing::info!(endpoint, missed, "joined an engine that has published before");
            }
            FeedEvent::Gap { missed } => {
                self.state.count_missed(missed);
                events.gaps.with_label_values(&[endpoint, "sequence"]).inc_by(missed);
                tracing::warn!(endpoint, missed, "KV events lost");
            }
            FeedEvent::Recovered { batches } => {
                self.state.count_recovered(batches);
                events.recovered.with_label_values(&[endpoint]).inc_by(batches);
            }
            FeedEvent::Restart { missed } => {
                self.state.count_restart();
                events.restarts.with_label_values(&[endpoint]).inc();
                tracing::info!(endpoint, missed, "engine restarted: its cache is empty");
            }
            FeedEvent::Duplicate => events.skipped.with_label_values(&["duplicate-batch"]).inc(),
            FeedEvent::HeldDropped { batches } => {
                events.gaps.with_label_values(&[endpoint, "waiting-for-replay"]).inc_by(batches);
            }
        }
    }
}

impl ViewSink {
    /// How many blocks the engine holds beside GPU memory, in the order of [`Tier::OFFLOADED`].
    fn tell_offloaded(&self, now: [u64; 3]) {
        let before = self.state.set_offloaded(now);
        if before == now {
            return;
        }
        for (tier, (before, now)) in Tier::OFFLOADED.iter().zip(before.into_iter().zip(now)) {
            let gauge = self.metrics.events.offloaded.with_label_values(&[tier.as_str()]);
            gauge.add(now as i64 - before as i64);
        }
    }

    fn apply_batch(&mut self, seq: u64, batch: &EventBatch) -> ApplyFacts {
        for event in &batch.events {
            if let KvEvent::Stored(stored) = event
                && let Some(name) = &stored.lora_name
            {
                self.adapters.add(name);
            }
        }
        let applied = self.view.apply(batch);
        for skipped in &batch.skipped.reasons {
            tracing::warn!(endpoint = %self.endpoint, seq, event = skipped.index, error = %skipped.reason, "KV event not understood");
        }
        let (skips, mut not_applied) = (&self.metrics.events.skipped, u64::from(batch.skipped.count));
        if not_applied > 0 {
            skips.with_label_values(&["not-understood"]).inc_by(not_applied);
        }
        for (reason, count) in skipped_by_reason(&applied).into_iter().filter(|(_, count)| *count > 0) {
            skips.with_label_values(&[reason]).inc_by(count);
            not_applied += count;
        }
        let Metrics { index, events, .. } = &*self.metrics;
        for (counter, count) in [
            (&index.refused, applied.refused_blocks),
            (&index.admissions, applied.stored_blocks),
            (&index.evictions, applied.removed_blocks),
            (&events.removals_forwarded, applied.removed_blocks),
            (&events.removals_suppressed, applied.removed_copies),
        ] {
            // All engines' shards share them.
            if count > 0 {
                counter.inc_by(count);
            }
        }
        if applied.unknown_parents > 0 {
            self.state.relearning.is_worthwhile();
        }
        if applied.cleared > 0 {
            self.state.begin_generation();
        }
        self.state.count_skipped(not_applied);
        self.state.count_batch(seq);
        self.tell_view();
        applied.facts()
    }

    fn tell_view(&self) {
        if let Some(tokens) = self.view.block_size_tokens() {
            self.state.set_block_size_tokens(tokens);
        }
        self.state.set_blocks(self.view.held_blocks() as u64);
        self.tell_offloaded(Tier::OFFLOADED.map(|tier| self.view.held_blocks_in(tier) as u64));
        self.state.set_unsupported(self.view.is_unsupported());
        self.state.set_several_groups(self.view.has_several_groups());
    }
}

/// What was understood and not applied, for the metric's `reason` label. Unknown removals are the other side of a store
/// that was left out or came before we listened, so they aren't counted again.
fn skipped_by_reason(applied: &Applied) -> [(&'static str, u64); 9] {
    [
        ("unknown-parent", applied.unknown_parents),
        ("hashes-and-tokens-uneven", applied.uneven_stores),
        ("no-tokens", applied.stores_without_tokens),
        ("other-block-size", applied.other_block_sizes),
        ("other-medium", applied.other_media),
        ("unknown-name", applied.unknown_names),
        ("unsupported-group", applied.unsupported_groups),
        ("unchained-hash", applied.unchained_hashes),
        ("key-conflict", applied.key_conflicts),
    ]
}
