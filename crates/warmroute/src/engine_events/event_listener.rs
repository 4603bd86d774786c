//! The event listener: engines connect their PUB sockets to the picker, instead of being subscribed to one by one.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use warmroute_kv_events::zmtp::{Limits, SessionEvent, SocketType};
use warmroute_kv_events::{LiveMessage, batch_rank};

use super::connection::{Connection, ConnectionEnd};
use super::publishers::{
    ConnectionId, EngineTarget, Offered, Publishers, UnknownPublisher, address_in, why_unknown,
};
use super::subscription::Heartbeat;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// Connections at a time; a pool has one per engine and rank.
const MOST_CONNECTIONS: usize = 1024;
/// Engines that one connection may speak for: a publisher is one engine, a proxy may stand for a few.
const MOST_ENGINES: usize = 256;
/// Longest message. A batch of a prompt of a million tokens has about 10 MB.
const LONGEST_MESSAGE_BYTES: usize = 16 << 20;
/// What one connection may have waiting for shards, so that none crowds out the others: 8 MiB, at most 2,048 messages.
const SHARE_UNITS: usize = 2048;
const ROOM_UNIT_BYTES: usize = 4096;
/// How the listener is called in metrics that name an endpoint.
const NAME: &str = "listener";

/// Takes the connections of engines.
#[derive(Clone)]
pub struct EventListener {
    inner: Arc<Inner>,
}

struct Inner {
    address: SocketAddr,
    topic_filter: String,
    publishers: Arc<Publishers>,
    connections: AtomicUsize,
    refused: AtomicU64,
    ignored: AtomicU64,
    next_connection: AtomicU64,
    metrics: Arc<Metrics>,
}

/// The listener at one moment, for the status page.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Open connections.
    pub connections: usize,
    /// Connections that were closed at once because there were too many.
    pub refused_connections: u64,
    /// Messages left out because another connection speaks for the engine that they name.
    pub ignored_messages: u64,
    /// Names that no engine has, most heard first.
    pub unknown_publishers: Vec<UnknownPublisher>,
    /// Messages of further such names.
    pub other_unknown_messages: u64,
}

impl EventListener {
    pub(super) fn new(
        address: SocketAddr,
        topic_filter: String,
        publishers: Arc<Publishers>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (connections, refused) = (AtomicUsize::new(0), AtomicU64::new(0));
        let (ignored, next_connection) = (AtomicU64::new(0), AtomicU64::new(0));
        let inner = Inner {
            address,
            topic_filter,
            publishers,
            connections,
            refused,
            ignored,
            next_connection,
            metrics,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where it is to listen.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Takes connections until cancelled.
    pub async fn run(self, listener: TcpListener, tasks: Tasks) -> anyhow::Result<()> {
        tracing::info!(address = %self.inner.address, "engines may connect here to publish KV events");
        let mut is_full = false;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: others may close some.
                    self.inner.count_error("accept");
                    tracing::warn!(%error, "can't take a connection for KV events");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = Place::take(&self.inner) else {
                self.inner.refused.fetch_add(1, Ordering::Relaxed);
                self.inner.count_error("too-many");
                if !std::mem::replace(&mut is_full, true) {
                    tracing::warn!(%peer, most = MOST_CONNECTIONS, "too many connections for KV events: no more are taken");
                }
                continue;
            };
            is_full = false;
            tasks.spawn("event publisher", async move { place.serve(stream, peer).await });
        }
    }

    /// What became of it so far.
    pub fn status(&self) -> ListenerStatus {
        let (unknown_publishers, other_unknown_messages) = self.inner.publishers.unknown();
        ListenerStatus {
            address: self.inner.address,
            connections: self.inner.connections.load(Ordering::Relaxed),
            refused_connections: self.inner.refused.load(Ordering::Relaxed),
            ignored_messages: self.inner.ignored.load(Ordering::Relaxed),
            unknown_publishers,
            other_unknown_messages,
        }
    }
}

impl Inner {
    fn count_error(&self, operation: &str) {
        self.metrics.events.errors.with_label_values(&[NAME, operation]).inc();
    }
}

/// One of the connections that there may be at a time.
struct Place {
    inner: Arc<Inner>,
    id: ConnectionId,
}

impl Place {
    fn take(inner: &Arc<Inner>) -> Option<Self> {
        let most = |open: usize| (open < MOST_CONNECTIONS).then_some(open + 1);
        inner.connections.fetch_update(Ordering::AcqRel, Ordering::Relaxed, most).ok()?;
        let id = inner.next_connection.fetch_add(1, Ordering::Relaxed);
        Some(Self { inner: inner.clone(), id })
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        let mut speaker = Speaker {
            inner: self.inner.clone(),
            id: self.id,
            peer,
            names: HashSet::new(),
            room: Arc::new(Semaphore::new(SHARE_UNITS)),
            lossy: HashSet::new(),
        };
        let Err(end) = speaker.read_until_it_ends(stream).await;
        self.inner.count_error(end.operation());
        tracing::debug!(%peer, error = %end, "a connection for KV events ended");
        speaker.leave().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection, and whom it speaks for.
struct Speaker {
    inner: Arc<Inner>,
    id: ConnectionId,
    peer: SocketAddr,
    names: HashSet<(Arc<str>, u32)>,
    /// What it may have waiting for shards.
    room: Arc<Semaphore>,
    /// Of these, messages were dropped since their shard was last told so.
    lossy: HashSet<(Arc<str>, u32)>,
}

impl Speaker {
    async fn read_until_it_ends(
        &mut self,
        stream: TcpStream,
    ) -> Result<std::convert::Infallible, ConnectionEnd> {
        let limits = Limits {
            max_frame_bytes: LONGEST_MESSAGE_BYTES,
            max_message_bytes: LONGEST_MESSAGE_BYTES,
            ..Limits::default()
        };
        let mut connection = Connection::accept(stream, SocketType::Sub, limits).await?;
        connection.session().subscribe(self.inner.topic_filter.as_bytes())?;
        connection.flush().await?;
        let mut heartbeat = Heartbeat::new(connection.session().knows_heartbeats());
        loop {
            while let Some(event) = connection.session().next_event()? {
                match event {
                    SessionEvent::Message(frames) => match LiveMessage::try_new(&frames) {
                        Ok(message) => self.hand_over(message).await,
                        Err(error) => {
                            self.inner
                                .metrics
                                .events
                                .skipped
                                .with_label_values(&["not-a-live-message"])
                                .inc();
                            tracing::debug!(peer = %self.peer, %error, "message that is no event batch");
                        }
                    },
                    SessionEvent::Pong(_) => heartbeat.is_answered = true,
                    SessionEvent::Ready => {}
                }
            }
            connection.flush().await?;
            match tokio::time::timeout_at(heartbeat.next_at, connection.read()).await {
                Ok(read) => {
                    read?;
                    heartbeat.heard_at = Instant::now();
                }
                Err(_) => heartbeat.beat(&mut connection)?,
            }
        }
    }

    async fn hand_over(&mut self, message: LiveMessage<'_>) {
        // Engines of one rank say 0 or nothing.
        let rank = batch_rank(&message.payload).unwrap_or_default();
        let Some(address) = address_in(message.topic) else { return self.unknown(message.topic, rank) };
        let name = (Arc::from(address), rank);
        let room = || self.room_for(message.payload.len());
        let mut offered = self.inner.publishers.offer(self.id, &name, &message, room);
        if let Offered::NewSpeaker(target) = offered {
            if self.names.len() >= MOST_ENGINES && !self.names.contains(&name) {
                self.inner.publishers.leave(self.id, [&name]);
                return self.unknown(message.topic, rank);
            }
            self.names.insert(name.clone());
            self.announce(&target).await;
            if !self.inner.publishers.announced(self.id, &name) {
                return self.ignored();
            }
            let room = || self.room_for(message.payload.len());
            offered = self.inner.publishers.offer(self.id, &name, &message, room);
        }
        match offered {
            Offered::Taken(target) => {
                self.count_batch(&target);
                if self.lossy.contains(&name) && target.shard.offer_lost_live(target.id) {
                    self.lossy.remove(&name);
                }
            }
            Offered::Dropped(target) => {
                self.count_batch(&target);
                self.inner.metrics.events.gaps.with_label_values(&[&*target.label, "queue-full"]).inc();
                self.lossy.insert(name);
            }
            Offered::NotItsSpeaker | Offered::NewSpeaker(_) => self.ignored(),
            Offered::Unknown => self.unknown(message.topic, rank),
        }
    }

    /// Room for one message in this connection's share of the queue.
    fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = (1 + bytes / ROOM_UNIT_BYTES).min(SHARE_UNITS) as u32;
        self.room.clone().try_acquire_many_owned(units).ok()
    }

    fn count_batch(&self, target: &EngineTarget) {
        self.inner.metrics.events.batches.with_label_values(&[&*target.label]).inc();
    }

    fn ignored(&self) {
        self.inner.ignored.fetch_add(1, Ordering::Relaxed);
        self.inner.metrics.events.skipped.with_label_values(&["not-its-publisher"]).inc();
    }

    fn unknown(&self, topic: &str, rank: u32) {
        self.inner.metrics.events.skipped.with_label_values(&["unknown-publisher"]).inc();
        let why = why_unknown(topic);
        if self.inner.publishers.count_unknown(topic, rank, why) {
            tracing::warn!(peer = %self.peer, topic, rank, why, "KV events of an engine that isn't known");
        }
    }

    /// Tells the shard that this connection speaks for an engine from now on.
    async fn announce(&self, target: &EngineTarget) {
        let EngineTarget { id, label, state, shard } = target;
        if state.set_connected(true) {
            shard.connection_lost(*id).await;
        } else {
            self.inner.metrics.events.subscribers.inc();
        }
        if state.count_connection() > 1 {
            self.inner.metrics.events.reconnects.with_label_values(&[&**label]).inc();
        }
        shard.speakers_changed(*id).await;
        shard.connected(*id).await;
        if state.is_contested() {
            tracing::warn!(endpoint = %label, peer = %self.peer,
                "more than one connection publishes KV events as this engine: the newest is followed, and doubted");
        } else {
            tracing::info!(endpoint = %label, peer = %self.peer, "an engine publishes KV events here");
        }
    }

    async fn leave(&self) {
        for left in self.inner.publishers.leave(self.id, &self.names) {
            let EngineTarget { id, label, state, shard } = &left.target;
            if left.was_speaker && !state.is_dialled() && state.set_connected(false) {
                self.inner.metrics.events.subscribers.dec();
                shard.connection_lost(*id).await;
                tracing::warn!(endpoint = %label, peer = %self.peer,
                    "no KV events from this engine: its connection has ended");
            }
            shard.speakers_changed(*id).await;
        }
    }
}
