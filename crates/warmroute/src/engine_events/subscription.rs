//! One subscription: a TCP connection to an engine's PUB socket, kept up for as long as the endpoint is in the pool.
//!
//! It only moves bytes: whole messages go to the engine's shard as they came. It never waits for the shard, so a slow
//! picker can't push back on an engine; what the shard's queue can't take is dropped and counted as missed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;
use warmroute_kv_events::LiveMessage;
use warmroute_kv_events::zmtp::{SessionEvent, SocketType};
use warmroute_plugin::EndpointId;

use super::connection::{Connection, ConnectionEnd};
use super::followed_engine::LiveBatches;
use super::shard::ShardHandle;
use super::state::EngineState;
use crate::metrics::Metrics;

/// First and longest pause between attempts; doubled each time, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that held for this long starts the pauses anew when it is lost.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Most messages that are handed over together.
const MOST_TOGETHER: usize = 256;
/// How often a peer that knows heartbeats is asked for one.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Silence after which a peer that has answered a heartbeat before is taken for gone.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(9);

/// Where an engine publishes.
#[derive(Clone, Debug)]
pub struct EventSource {
    /// The endpoint's incarnation.
    pub id: EndpointId,
    /// The endpoint's address, which names the engine in metrics and logs.
    pub endpoint: Arc<str>,
    /// Host of the engine.
    pub host: String,
    /// Port of its PUB socket.
    pub port: u16,
    /// Topics asked for start with this; empty asks for all.
    pub topic_filter: String,
}

/// Keeps one engine's subscription.
pub struct Subscription {
    /// Where it goes.
    pub source: EventSource,
    /// What is told of the engine.
    pub state: Arc<EngineState>,
    /// Where its messages go.
    pub shard: ShardHandle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who is told that a connection ended, or could not be made.
    pub ended: Option<Arc<Notify>>,
}

impl Subscription {
    /// Connects and reads until cancelled. Says once when the connection is lost and once when it is there.
    pub async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        self.shard.followed(self.source.id).await;
        loop {
            let started = Instant::now();
            let end = self.connection().await;
            let was_connected = self.disconnected();
            if was_connected {
                self.shard.connection_lost(self.source.id).await;
            }
            if let Some(ended) = &self.ended {
                ended.notify_one();
            }
            self.metrics.events.errors.with_label_values(&[&*self.source.endpoint, end.operation()]).inc();
            if was_connected || !told {
                tracing::warn!(endpoint = %self.source.endpoint, port = self.source.port, error = %end,
                    "no KV events from this engine: what it holds is not seen until the connection is back");
                told = true;
            }
            if started.elapsed() > STABLE_AFTER {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns whether it had been connected.
    fn disconnected(&self) -> bool {
        // The engine may be connected to the event listener instead.
        let was_connected = self.state.set_dialled(false);
        if was_connected && self.state.set_connected(false) {
            self.metrics.events.subscribers.dec();
        }
        was_connected
    }

    async fn connection(&self) -> ConnectionEnd {
        match self.read_until_it_ends().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn read_until_it_ends(&self) -> Result<std::convert::Infallible, ConnectionEnd> {
        let mut connection = Connection::open(&self.source.host, self.source.port, SocketType::Sub).await?;
        connection.session().subscribe(self.source.topic_filter.as_bytes())?;
        // Sent before the engine counts as connected: who waits for that may rely on it.
        connection.flush().await?;
        self.connected().await;
        let mut heartbeat = Heartbeat::new(connection.session().knows_heartbeats());
        let (mut has_dropped, mut heard_messages) = (false, 0_u64);
        let received = self.metrics.events.batches.with_label_values(&[&*self.source.endpoint]);
        loop {
            let mut batches = LiveBatches::new();
            let told_all = loop {
                match connection.session().next_event() {
                    Ok(Some(SessionEvent::Message(frames))) => {
                        heard_messages += 1;
                        batches.extend(self.live_batch(&frames));
                        if batches.len() == MOST_TOGETHER {
                            self.hand_over(&mut batches, &mut has_dropped, &received);
                        }
                    }
                    Ok(Some(SessionEvent::Pong(_))) => heartbeat.is_answered = true,
                    Ok(Some(SessionEvent::Ready)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            self.hand_over(&mut batches, &mut has_dropped, &received);
            told_all?;
            connection.flush().await?;
            match tokio::time::timeout_at(heartbeat.next_at, connection.read()).await {
                Ok(read) => {
                    read?;
                    heartbeat.heard_at = Instant::now();
                }
                Err(_) => {
                    has_dropped = has_dropped && !self.shard.offer_lost_live(self.source.id);
                    heartbeat.beat(&mut connection)?;
                    if heard_messages == 0 {
                        self.shard.offer_quiet(self.source.id);
                    }
                    heard_messages = 0;
                }
            }
        }
    }

    async fn connected(&self) {
        self.state.set_dialled(true);
        if self.state.set_connected(true) {
            // It has been connected to the event listener, which is not listened to from here on.
            self.shard.connection_lost(self.source.id).await;
        } else {
            self.metrics.events.subscribers.inc();
        }
        if self.state.count_connection() > 1 {
            self.metrics.events.reconnects.with_label_values(&[&*self.source.endpoint]).inc();
        }
        self.shard.connected(self.source.id).await;
        tracing::info!(endpoint = %self.source.endpoint, port = self.source.port, "subscribed to KV events");
    }

    fn live_batch(&self, frames: &[Bytes]) -> Option<(u64, Bytes)> {
        match LiveMessage::try_new(frames) {
            Ok(message) => Some((message.seq, message.payload)),
            Err(error) => {
                self.metrics.events.skipped.with_label_values(&["not-a-live-message"]).inc();
                self.state.count_undecodable();
                tracing::debug!(endpoint = %self.source.endpoint, %error, "message that is no event batch");
                None
            }
        }
    }

    /// Hands messages to the shard, after word of those that were dropped before. Without room for them they are dropped
    /// too.
    fn hand_over(&self, batches: &mut LiveBatches, has_dropped: &mut bool, received: &IntCounter) {
        if batches.is_empty() {
            return;
        }
        let count = batches.len() as u64;
        received.inc_by(count);
        *has_dropped = *has_dropped && !self.shard.offer_lost_live(self.source.id);
        if !self.shard.offer(self.source.id, std::mem::take(batches)) {
            let dropped = self.metrics.events.gaps.with_label_values(&[&*self.source.endpoint, "queue-full"]);
            dropped.inc_by(count);
            *has_dropped = true;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.disconnected();
    }
}

/// Asks a peer that may be half-open for a sign of life.
pub(super) struct Heartbeat {
    is_known: bool,
    /// Only then is silence a sign of anything.
    pub(super) is_answered: bool,
    pub(super) heard_at: Instant,
    pub(super) next_at: Instant,
}

impl Heartbeat {
    pub(super) fn new(is_known: bool) -> Self {
        let now = Instant::now();
        Self { is_known, is_answered: false, heard_at: now, next_at: now }
    }

    pub(super) fn beat(&mut self, connection: &mut Connection) -> Result<(), ConnectionEnd> {
        let now = Instant::now();
        self.next_at = now + HEARTBEAT_INTERVAL;
        if self.is_answered && now.duration_since(self.heard_at) >= HEARTBEAT_LIMIT {
            return Err(ConnectionEnd::Silent(HEARTBEAT_LIMIT.as_secs()));
        }
        if self.is_known {
            let ttl_deciseconds = (HEARTBEAT_LIMIT.as_millis() / 100) as u16;
            connection.session().ping(ttl_deciseconds, b"")?;
        }
        Ok(())
    }
}
