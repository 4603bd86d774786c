//! A shard: a thread that decodes the events of its engines and alone owns their views of the index.
//!
//! One engine's messages go through one shard, in order; engines of different shards are written side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use warmroute_kv_events::{FeedHistory, FeedSettings, LiveMessage, ReplayOrder};
use warmroute_kv_index::{BlockRows, EngineView, ViewOutline};
use warmroute_plugin::EndpointId;

use super::engine_snapshot::{EngineSnapshot, SnapshotRefused};
use super::followed_engine::{FollowedEngine, LiveBatches};
use super::replayer::ReplayedBatches;
use super::state::EngineState;
use crate::metrics::Metrics;
use crate::prompt::AdapterNames;

/// Messages that may wait for a shard, and other work besides.
const QUEUE_MESSAGES: usize = 16 * 1024;

/// Engines are told apart by their endpoint's incarnation, not by its address: one that left and its successor under the
/// same address may be in the queue at the same time.
enum Work {
    Add(EndpointId, Box<FollowedEngine>),
    Remove(EndpointId),
    Moved(EndpointId, FeedSettings),
    Followed(EndpointId),
    Connected(EndpointId),
    ConnectionLost(EndpointId),
    SpeakersChanged(EndpointId),
    LostLive(EndpointId),
    Quiet(EndpointId),
    /// With the room that they take of their connection's share of the queue, if that has one.
    Live(EndpointId, LiveBatches, Option<OwnedSemaphorePermit>),
    /// With the permit to wait here.
    Replayed(EndpointId, u64, ReplayedBatches, Option<OwnedSemaphorePermit>),
    ReplayEnded(EndpointId, u64, bool),
    Export(EndpointId, usize, oneshot::Sender<Option<EngineSnapshot>>),
    BeginImport(EndpointId, Box<(FeedHistory, ViewOutline)>, oneshot::Sender<Result<(), SnapshotRefused>>),
    /// With the permit to wait here.
    Import(EndpointId, Box<BlockRows>, Option<OwnedSemaphorePermit>),
    EndImport(EndpointId, u64, oneshot::Sender<Result<u64, SnapshotRefused>>),
    AbandonImport(EndpointId),
    NoHistory(EndpointId),
}

/// Gives work to one shard.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    queue: mpsc::Sender<Work>,
    /// Live messages in the queue.
    waiting: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    adapters: Arc<AdapterNames>,
}

impl ShardHandle {
    /// Starts the thread. It ends when the last handle is gone.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(index: usize, metrics: Arc<Metrics>, adapters: Arc<AdapterNames>) -> anyhow::Result<Self> {
        let (queue, work) = mpsc::channel(QUEUE_MESSAGES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let shard = Shard { engines: HashMap::new(), waiting: waiting.clone() };
        std::thread::Builder::new()
            .name(format!("kv-events-{index}"))
            .spawn(move || shard.run(work))
            .context("can't start a thread for KV events")?;
        Ok(Self { queue, waiting, metrics, adapters })
    }

    /// Takes an engine on, which metrics and logs call `label`. Replays that it needs are ordered through the receiver.
    /// If it `awaits` a snapshot, what comes live waits for that.
    pub(crate) async fn add(
        &self,
        id: EndpointId,
        label: Arc<str>,
        view: EngineView,
        state: Arc<EngineState>,
        settings: FeedSettings,
        awaits: bool,
    ) -> watch::Receiver<Option<ReplayOrder>> {
        let (orders, receiver) = watch::channel(None);
        let (metrics, adapters) = (self.metrics.clone(), self.adapters.clone());
        let mut engine = FollowedEngine::new(label, view, state, settings, orders, metrics, adapters);
        if awaits {
            engine.await_history();
        }
        self.control(Work::Add(id, Box::new(engine))).await;
        receiver
    }

    /// Lets an engine go: every trace of it leaves the index.
    pub async fn remove(&self, endpoint: EndpointId) {
        self.control(Work::Remove(endpoint)).await;
    }

    /// Tells that the engine publishes elsewhere, and that nobody is connected there yet.
    pub(super) async fn moved(&self, endpoint: EndpointId, settings: FeedSettings) {
        self.control(Work::Moved(endpoint, settings)).await;
    }

    /// Tells that attempts to connect begin.
    pub(crate) async fn followed(&self, endpoint: EndpointId) {
        self.control(Work::Followed(endpoint)).await;
    }

    /// Tells that a connection to an engine's publisher is there.
    pub(crate) async fn connected(&self, endpoint: EndpointId) {
        self.control(Work::Connected(endpoint)).await;
    }

    /// Tells that it was lost.
    pub(super) async fn connection_lost(&self, endpoint: EndpointId) {
        self.control(Work::ConnectionLost(endpoint)).await;
    }

    /// Tells that the number of connections that publish as this engine has changed; how many there are stands in its
    /// state.
    pub(super) async fn speakers_changed(&self, endpoint: EndpointId) {
        self.control(Work::SpeakersChanged(endpoint)).await;
    }

    /// Tells that messages were dropped since the last one that was taken; false if that can't be told now.
    pub(super) fn offer_lost_live(&self, endpoint: EndpointId) -> bool {
        self.queue.try_send(Work::LostLive(endpoint)).is_ok()
    }

    /// Tells that nothing has come for a while, unless the queue is full.
    pub(super) fn offer_quiet(&self, endpoint: EndpointId) {
        let _ = self.queue.try_send(Work::Quiet(endpoint));
    }

    /// Offers messages that came together; false if there is no room for them in the queue and they are dropped.
    pub(crate) fn offer(&self, endpoint: EndpointId, batches: LiveBatches) -> bool {
        self.offer_live(endpoint, batches, None)
    }

    /// The same for one message; `room` is given back when it has been applied.
    pub(super) fn offer_within(
        &self,
        endpoint: EndpointId,
        message: &LiveMessage<'_>,
        room: OwnedSemaphorePermit,
    ) -> bool {
        let batches = LiveBatches::from_iter([(message.seq, message.payload.clone())]);
        self.offer_live(endpoint, batches, Some(room))
    }

    fn offer_live(
        &self,
        endpoint: EndpointId,
        batches: LiveBatches,
        room: Option<OwnedSemaphorePermit>,
    ) -> bool {
        let count = batches.len();
        let more = |waiting: usize| waiting.checked_add(count).filter(|waiting| *waiting <= QUEUE_MESSAGES);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let is_queued = self.queue.try_send(Work::Live(endpoint, batches, room)).is_ok();
        if !is_queued {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
        }
        is_queued
    }

    /// Hands over batches of a replay; `permit` is given back when they have been applied.
    pub(super) async fn replayed(
        &self,
        endpoint: EndpointId,
        epoch: u64,
        batches: ReplayedBatches,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        self.control(Work::Replayed(endpoint, epoch, batches, permit)).await;
    }

    /// Tells that a replay is over.
    pub(super) async fn replay_ended(&self, endpoint: EndpointId, epoch: u64, is_complete: bool) {
        self.control(Work::ReplayEnded(endpoint, epoch, is_complete)).await;
    }

    /// What is known of an engine; `None` if that is nothing.
    pub(super) async fn export(&self, endpoint: EndpointId, piece_bytes: usize) -> Option<EngineSnapshot> {
        let (reply, answer) = oneshot::channel();
        self.control(Work::Export(endpoint, piece_bytes, reply)).await;
        answer.await.ok().flatten()
    }

    /// Begins to take in what another picker knows of an engine.
    pub(super) async fn begin_import(
        &self,
        endpoint: EndpointId,
        history: FeedHistory,
        outline: ViewOutline,
    ) -> Result<(), SnapshotRefused> {
        let (reply, answer) = oneshot::channel();
        self.control(Work::BeginImport(endpoint, Box::new((history, outline)), reply)).await;
        answer.await.unwrap_or(Err(SnapshotRefused::NotAwaited))
    }

    /// Takes in some blocks; `room` is given back then.
    pub(super) async fn import(
        &self,
        endpoint: EndpointId,
        rows: BlockRows,
        room: Option<OwnedSemaphorePermit>,
    ) {
        self.control(Work::Import(endpoint, Box::new(rows), room)).await;
    }

    /// Ends a snapshot that should have so many names. Returns the entries that it has become.
    pub(super) async fn end_import(&self, endpoint: EndpointId, names: u64) -> Result<u64, SnapshotRefused> {
        let (reply, answer) = oneshot::channel();
        self.control(Work::EndImport(endpoint, names, reply)).await;
        answer.await.unwrap_or(Err(SnapshotRefused::NotAwaited))
    }

    /// Forgets a snapshot that doesn't go on.
    pub(super) async fn abandon_import(&self, endpoint: EndpointId) {
        self.control(Work::AbandonImport(endpoint)).await;
    }

    /// Tells that no snapshot comes.
    pub(super) async fn no_history(&self, endpoint: EndpointId) {
        self.control(Work::NoHistory(endpoint)).await;
    }

    /// Messages that wait.
    pub fn depth(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn control(&self, work: Work) {
        if self.queue.send(work).await.is_err() {
            tracing::error!("a thread for KV events has ended: its engines' caches are not seen any more");
        }
    }
}

struct Shard {
    engines: HashMap<EndpointId, FollowedEngine>,
    waiting: Arc<AtomicUsize>,
}

impl Shard {
    fn run(mut self, mut work: mpsc::Receiver<Work>) {
        while let Some(work) = work.blocking_recv() {
            self.take(work);
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Add(endpoint, engine) => {
                self.engines.insert(endpoint, *engine);
            }
            Work::Remove(endpoint) => {
                self.engines.remove(&endpoint);
            }
            Work::Moved(endpoint, settings) => self.with(endpoint, |engine| engine.moved(settings)),
            Work::Followed(endpoint) => self.with(endpoint, FollowedEngine::followed),
            Work::Connected(endpoint) => self.with(endpoint, FollowedEngine::connected),
            Work::ConnectionLost(endpoint) => self.with(endpoint, FollowedEngine::connection_lost),
            Work::SpeakersChanged(endpoint) => self.with(endpoint, FollowedEngine::speakers_changed),
            Work::Quiet(endpoint) => self.with(endpoint, FollowedEngine::quiet),
            Work::LostLive(endpoint) => self.with(endpoint, FollowedEngine::lost_live),
            Work::Live(endpoint, batches, _room) => {
                self.waiting.fetch_sub(batches.len(), Ordering::Relaxed);
                self.with(endpoint, |engine| engine.live(batches));
            }
            Work::Replayed(endpoint, epoch, batches, _permit) => {
                self.with(endpoint, |engine| engine.replayed(epoch, batches));
            }
            Work::ReplayEnded(endpoint, epoch, is_complete) => {
                self.with(endpoint, |engine| engine.replay_ended(epoch, is_complete));
            }
            // Who asked may have gone.
            Work::Export(endpoint, piece_bytes, reply) => {
                let snapshot = self.engines.get(&endpoint).and_then(|engine| engine.export(piece_bytes));
                let _ = reply.send(snapshot);
            }
            Work::BeginImport(endpoint, begin, reply) => {
                let (history, outline) = *begin;
                self.with(endpoint, |engine| drop(reply.send(engine.begin_import(history, &outline))));
            }
            Work::Import(endpoint, rows, _permit) => self.with(endpoint, |engine| engine.import(&rows)),
            Work::EndImport(endpoint, names, reply) => {
                self.with(endpoint, |engine| drop(reply.send(engine.end_import(names))));
            }
            Work::AbandonImport(endpoint) => self.with(endpoint, FollowedEngine::abandon_import),
            Work::NoHistory(endpoint) => self.with(endpoint, FollowedEngine::no_history),
        }
    }

    /// Engines that have been let go get nothing more.
    fn with(&mut self, endpoint: EndpointId, work: impl FnOnce(&mut FollowedEngine)) {
        if let Some(engine) = self.engines.get_mut(&endpoint) {
            work(engine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_queue_is_bounded_by_messages_however_they_came() {
        let (queue, work) = mpsc::channel(QUEUE_MESSAGES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (metrics, adapters) = (Arc::new(Metrics::try_new().unwrap()), Arc::default());
        let handle = ShardHandle { queue, waiting: waiting.clone(), metrics, adapters };
        let offer = |count: usize| {
            let batches = (0..count as u64).map(|seq| (seq, Bytes::new())).collect();
            handle.offer(EndpointId(1), batches)
        };
        assert!(offer(QUEUE_MESSAGES - 1));
        assert!(!offer(2), "there is room for one");
        assert!(offer(1));
        assert!(!offer(1));
        assert_eq!(handle.depth(), QUEUE_MESSAGES);
        drop(handle);
        // It ends when nothing is left and nobody can send any more.
        Shard { engines: HashMap::new(), waiting: waiting.clone() }.run(work);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }
}
