//! Replays: what an engine's ROUTER socket still keeps of its batches, asked for when the feed of that engine says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use warmroute_kv_events::zmtp::{SessionEvent, SocketType};
use warmroute_kv_events::{Replay, ReplayEnd, ReplayLimits, ReplayOrder, ReplayStep};
use warmroute_plugin::EndpointId;

use super::connection::{Connection, ConnectionEnd};
use super::shard::ShardHandle;
use crate::metrics::Metrics;

/// Attempts to connect per replay: an engine binds this socket after the other one.
const CONNECT_ATTEMPTS: u32 = 3;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between the starts of two replays of one engine.
const REPLAY_INTERVAL: Duration = Duration::from_secs(1);
/// After a failed replay none is tried for this long, doubled with each further failure.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Batches handed to the shard together.
const CHUNK_BATCHES: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;
/// Such chunks that may wait for the shard, so that a replay doesn't push live batches out of its queue.
const WAITING_CHUNKS: usize = 8;

/// Batches of a replay, by their numbers.
pub(super) type ReplayedBatches = Vec<(u64, Bytes)>;

/// Replays one engine's batches on order.
pub(super) struct Replayer {
    pub(super) id: EndpointId,
    /// The endpoint's address, which names the engine in metrics and logs.
    pub(super) endpoint: Arc<str>,
    pub(super) host: String,
    pub(super) port: u16,
    /// The newest order.
    pub(super) orders: watch::Receiver<Option<ReplayOrder>>,
    pub(super) shard: ShardHandle,
    /// Replays that may run at once, of all engines.
    pub(super) at_once: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
}

/// How replays of this engine have gone.
struct Pace {
    last_start: Option<Instant>,
    failures: u32,
    rest_until: Option<Instant>,
}

impl Pace {
    fn count(&mut self, outcome: &Outcome) {
        if outcome.is_complete() {
            (self.failures, self.rest_until) = (0, None);
            return;
        }
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(6)).min(LONGEST_REST);
        // An engine that ends amid a replay and is back at once can be asked; one that always does so must not be.
        if !matches!(outcome, Outcome::CutOff(_)) || self.failures > 0 {
            self.rest_until = Some(Instant::now() + rest.mul_f64(0.5 + fastrand::f64() / 2.0));
        }
        self.failures += 1;
    }
}

/// Why a replay brought nothing more.
enum Outcome {
    Ended(ReplayEnd),
    Unreachable(ConnectionEnd),
    /// The engine ended amid it.
    CutOff(ConnectionEnd),
    /// It failed a short while ago and wasn't tried.
    Resting,
}

impl Outcome {
    fn is_complete(&self) -> bool {
        matches!(self, Self::Ended(ReplayEnd::Complete))
    }

    /// The `outcome` label of the metric.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Ended(end) => end.as_str(),
            Self::Unreachable(_) => "unreachable",
            Self::CutOff(_) => "cut-off",
            Self::Resting => "resting",
        }
    }
}

impl Replayer {
    /// Carries out orders until cancelled. A newer order ends the replay of an older one.
    pub(super) async fn run(mut self) {
        let mut pace = Pace { last_start: None, failures: 0, rest_until: None };
        loop {
            let order = *self.orders.borrow_and_update();
            let mut orders = self.orders.clone();
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if matches!(order, Some(ReplayOrder::Start { .. })) {
                        self.metrics.events.replays.with_label_values(&["superseded"]).inc();
                    }
                }
                () = self.carry_out(order, &mut pace) => {}
            }
        }
    }

    /// Never returns, so that an order is carried out once: the next one ends it.
    async fn carry_out(&self, order: Option<ReplayOrder>, pace: &mut Pace) {
        if let Some(ReplayOrder::Start { from, epoch }) = order {
            let outcome = self.paced(from, epoch, pace).await;
            self.metrics.events.replays.with_label_values(&[outcome.as_str()]).inc();
            match &outcome {
                Outcome::Ended(ReplayEnd::Complete) | Outcome::Resting => {}
                Outcome::Unreachable(error) => {
                    tracing::warn!(endpoint = %self.endpoint, port = self.port, %error,
                    "no replay of this engine's KV events: check its replay endpoint and replaySocketPort")
                }
                Outcome::CutOff(error) => {
                    tracing::info!(endpoint = %self.endpoint, port = self.port, %error,
                    "a replay of this engine's KV events was cut off")
                }
                other => {
                    tracing::warn!(endpoint = %self.endpoint, port = self.port, outcome = other.as_str(),
                    "a replay of this engine's KV events did not bring what is missing")
                }
            }
            self.shard.replay_ended(self.id, epoch, outcome.is_complete()).await;
        }
        std::future::pending().await
    }

    async fn paced(&self, from: u64, epoch: u64, pace: &mut Pace) -> Outcome {
        if pace.rest_until.is_some_and(|until| until > Instant::now()) {
            return Outcome::Resting;
        }
        if let Some(last) = pace.last_start {
            let wait = (last + REPLAY_INTERVAL).saturating_duration_since(Instant::now());
            tokio::time::sleep(wait.mul_f64(fastrand::f64())).await;
        }
        // Closed never; if it were, replays would run without a limit.
        let _permit = self.at_once.acquire().await.ok();
        pace.last_start = Some(Instant::now());
        let outcome = match self.connect().await {
            Err(error) => Outcome::Unreachable(error),
            Ok(connection) => match self.replay(connection, from, epoch).await {
                Ok(end) => Outcome::Ended(end),
                Err(error @ (ConnectionEnd::Io(_) | ConnectionEnd::Closed)) => Outcome::CutOff(error),
                Err(error) => Outcome::Unreachable(error),
            },
        };
        pace.count(&outcome);
        outcome
    }

    async fn replay(
        &self,
        mut connection: Connection,
        from: u64,
        epoch: u64,
    ) -> Result<ReplayEnd, ConnectionEnd> {
        let started = Instant::now();
        let now_ms = || started.elapsed().as_millis() as u64;
        let mut replay = Replay::new(from, ReplayLimits::default(), 0);
        let waiting = Arc::new(Semaphore::new(WAITING_CHUNKS));
        let mut chunk = Chunk::default();
        ask(&mut connection, &replay).await?;
        loop {
            while let Some(event) = connection.session().next_event()? {
                let SessionEvent::Message(frames) = event else { continue };
                match replay.take(&frames, now_ms()) {
                    ReplayStep::Wait => {}
                    ReplayStep::Batch { seq, payload } => {
                        if chunk.push(seq, payload) {
                            self.hand_over(epoch, &mut chunk, &waiting).await;
                        }
                    }
                    ReplayStep::Ask => ask(&mut connection, &replay).await?,
                    ReplayStep::End(end) => {
                        self.hand_over(epoch, &mut chunk, &waiting).await;
                        return Ok(end);
                    }
                }
            }
            self.hand_over(epoch, &mut chunk, &waiting).await;
            let silence = Duration::from_millis(replay.next_tick_ms().saturating_sub(now_ms()).max(1));
            match tokio::time::timeout(silence, connection.read()).await {
                Ok(read) => read?,
                Err(_) => match replay.tick(now_ms()) {
                    ReplayStep::Ask => ask(&mut connection, &replay).await?,
                    ReplayStep::End(end) => return Ok(end),
                    ReplayStep::Wait | ReplayStep::Batch { .. } => {}
                },
            }
            connection.flush().await?;
        }
    }

    async fn connect(&self) -> Result<Connection, ConnectionEnd> {
        let mut pause = CONNECT_PAUSE;
        for _ in 1..CONNECT_ATTEMPTS {
            match Connection::open(&self.host, self.port, SocketType::Dealer).await {
                Err(ConnectionEnd::Connect(_)) => {}
                opened => return opened,
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause *= 2;
        }
        Connection::open(&self.host, self.port, SocketType::Dealer).await
    }

    async fn hand_over(&self, epoch: u64, chunk: &mut Chunk, waiting: &Arc<Semaphore>) {
        let batches = std::mem::take(chunk).batches;
        if !batches.is_empty() {
            let permit = waiting.clone().acquire_owned().await.ok();
            self.shard.replayed(self.id, epoch, batches, permit).await;
        }
    }
}

async fn ask(connection: &mut Connection, replay: &Replay) -> Result<(), ConnectionEnd> {
    connection.session().send(&[b"", &replay.request()])?;
    connection.flush().await
}

#[derive(Default)]
struct Chunk {
    batches: ReplayedBatches,
    bytes: usize,
}

impl Chunk {
    /// Returns whether it is full.
    fn push(&mut self, seq: u64, payload: Bytes) -> bool {
        self.bytes += payload.len();
        self.batches.push((seq, payload));
        self.batches.len() >= CHUNK_BATCHES || self.bytes >= CHUNK_BYTES
    }
}
