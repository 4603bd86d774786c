//! A shard: a thread that decodes the events of its engines and alone owns their views of the index.
//!
//! One engine's messages go through one shard, in order; engines of different shards are written side by side.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use warmroute_kv_events::{FeedSettings, LiveMessage, ReplayOrder};
use warmroute_kv_index::EngineView;
use warmroute_plugin::EndpointId;

use super::followed_engine::FollowedEngine;
use super::replayer::ReplayedBatches;
use super::state::EngineState;
use crate::metrics::Metrics;
use crate::prompt::AdapterNames;

/// Messages that may wait for a shard.
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
    /// With the room that it takes of its connection's share of the queue, if that has one.
    Live(EndpointId, LiveMessage, Option<OwnedSemaphorePermit>),
    /// With the permit to wait here.
    Replayed(EndpointId, u64, ReplayedBatches, Option<OwnedSemaphorePermit>),
    ReplayEnded(EndpointId, u64, bool),
}

/// Gives work to one shard.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    queue: mpsc::Sender<Work>,
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
        let shard = Shard { engines: HashMap::new() };
        std::thread::Builder::new()
            .name(format!("kv-events-{index}"))
            .spawn(move || shard.run(work))
            .context("can't start a thread for KV events")?;
        Ok(Self { queue, metrics, adapters })
    }

    /// Takes an engine on, which metrics and logs call `label`. Replays that it needs are ordered through the receiver.
    pub(super) async fn add(
        &self,
        id: EndpointId,
        label: Arc<str>,
        view: EngineView,
        state: Arc<EngineState>,
        settings: FeedSettings,
    ) -> watch::Receiver<Option<ReplayOrder>> {
        let (orders, receiver) = watch::channel(None);
        let (metrics, adapters) = (self.metrics.clone(), self.adapters.clone());
        let engine = FollowedEngine::new(label, view, state, settings, orders, metrics, adapters);
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
    pub(super) async fn followed(&self, endpoint: EndpointId) {
        self.control(Work::Followed(endpoint)).await;
    }

    /// Tells that a connection to an engine's publisher is there.
    pub(super) async fn connected(&self, endpoint: EndpointId) {
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

    /// Offers a message; false if the queue is full and the message is dropped.
    pub(super) fn offer(&self, endpoint: EndpointId, message: LiveMessage) -> bool {
        self.queue.try_send(Work::Live(endpoint, message, None)).is_ok()
    }

    /// The same; `room` is given back when the message has been applied.
    pub(super) fn offer_within(
        &self,
        endpoint: EndpointId,
        message: LiveMessage,
        room: OwnedSemaphorePermit,
    ) -> bool {
        self.queue.try_send(Work::Live(endpoint, message, Some(room))).is_ok()
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

    /// Messages that wait.
    pub fn depth(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    async fn control(&self, work: Work) {
        if self.queue.send(work).await.is_err() {
            tracing::error!("a thread for KV events has ended: its engines' caches are not seen any more");
        }
    }
}

struct Shard {
    engines: HashMap<EndpointId, FollowedEngine>,
}

impl Shard {
    fn run(mut self, mut work: mpsc::Receiver<Work>) {
        while let Some(work) = work.blocking_recv() {
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
                Work::Live(endpoint, message, _room) => self.with(endpoint, |engine| engine.live(message)),
                Work::Replayed(endpoint, epoch, batches, _permit) => {
                    self.with(endpoint, |engine| engine.replayed(epoch, batches));
                }
                Work::ReplayEnded(endpoint, epoch, is_complete) => {
                    self.with(endpoint, |engine| engine.replay_ended(epoch, is_complete));
                }
            }
        }
    }

    /// Engines that have been let go get nothing more.
    fn with(&mut self, endpoint: EndpointId, work: impl FnOnce(&mut FollowedEngine)) {
        if let Some(engine) = self.engines.get_mut(&endpoint) {
            work(engine);
        }
    }
}
