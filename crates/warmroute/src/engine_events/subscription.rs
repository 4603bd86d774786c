//! One subscription: a TCP connection to an engine's PUB socket, kept up for as long as the endpoint is in the pool.
//!
//! It only moves bytes: whole messages go to the engine's shard as they came. It never waits for the shard, so a slow
//! picker can't push back on an engine; what the shard's queue can't take is dropped and counted as missed.

use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmroute_kv_events::zmtp::{Limits, Session, SessionEvent, SocketType, ZmtpError};
use warmroute_kv_events::{LiveMessage, LiveMessageError};
use warmroute_plugin::EndpointId;

use super::shard::ShardHandle;
use super::state::EngineState;
use crate::metrics::Metrics;
use crate::pool::host_port;

/// Longest time for a connection and for the handshake on it, each.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);
/// First and longest pause between attempts; doubled each time, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that held for this long starts the pauses anew when it is lost.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Room made for each read.
const READ_BYTES: usize = 64 * 1024;

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

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error("can't connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no handshake within {} s", HANDSHAKE_LIMIT.as_secs())]
    HandshakeLimit,
    #[error("connection lost: {0}")]
    Io(#[source] std::io::Error),
    #[error("the engine closed the connection")]
    Closed,
    #[error(transparent)]
    Protocol(#[from] ZmtpError),
}

impl ConnectionEnd {
    /// The `operation` label of the error metric.
    fn operation(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::HandshakeLimit => "handshake",
            Self::Io(_) | Self::Closed => "recv",
            Self::Protocol(_) => "protocol",
        }
    }
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
}

impl Subscription {
    /// Connects and reads until cancelled. Says once when the connection is lost and once when it is there.
    pub async fn run(&self) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let started = tokio::time::Instant::now();
            let end = self.connection().await;
            let was_connected = self.disconnected();
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
        let was_connected = self.state.set_connected(false);
        if was_connected {
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
        let mut stream = self.connect().await?;
        let mut session = Session::client(SocketType::Sub, Limits::default());
        let handshake = async {
            loop {
                if let Some(SessionEvent::Ready) = session.next_event()? {
                    return Ok::<(), ConnectionEnd>(());
                }
                exchange(&mut stream, &mut session).await?;
            }
        };
        tokio::time::timeout(HANDSHAKE_LIMIT, handshake)
            .await
            .map_err(|_| ConnectionEnd::HandshakeLimit)??;
        session.subscribe(self.source.topic_filter.as_bytes())?;
        // Sent before the engine counts as connected: who waits for that may rely on it.
        stream.write_all(&session.take_output()).await.map_err(ConnectionEnd::Io)?;
        self.connected().await;
        loop {
            while let Some(event) = session.next_event()? {
                if let SessionEvent::Message(frames) = event {
                    self.hand_over(LiveMessage::try_new(&frames));
                }
            }
            exchange(&mut stream, &mut session).await?;
        }
    }

    async fn connect(&self) -> Result<TcpStream, ConnectionEnd> {
        let address = host_port(&self.source.host, self.source.port);
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectionEnd::Connect(std::io::ErrorKind::TimedOut.into()))?
            .map_err(ConnectionEnd::Connect)?;
        // A peer that vanished without a word is noticed by the kernel; failing to ask for that is no reason to stop.
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "no TCP keepalive on an event subscription");
        }
        Ok(stream)
    }

    async fn connected(&self) {
        self.state.set_connected(true);
        self.metrics.events.subscribers.inc();
        if self.state.count_connection() > 1 {
            self.metrics.events.reconnects.with_label_values(&[&*self.source.endpoint]).inc();
            self.shard.reconnected(self.source.id).await;
        }
        tracing::info!(endpoint = %self.source.endpoint, port = self.source.port, "subscribed to KV events");
    }

    fn hand_over(&self, message: Result<LiveMessage, LiveMessageError>) {
        match message {
            Ok(message) => {
                self.metrics.events.batches.with_label_values(&[&*self.source.endpoint]).inc();
                if !self.shard.offer(self.source.id, message) {
                    self.metrics.events.gaps.with_label_values(&[&*self.source.endpoint, "queue-full"]).inc();
                    self.state.count_missed(1);
                }
            }
            Err(error) => {
                self.metrics.events.skipped.with_label_values(&["not-a-live-message"]).inc();
                self.state.count_undecodable();
                tracing::debug!(endpoint = %self.source.endpoint, %error, "message that is no event batch");
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.disconnected();
    }
}

/// Sends what waits, then reads some bytes.
async fn exchange(stream: &mut TcpStream, session: &mut Session) -> Result<(), ConnectionEnd> {
    if session.has_output() {
        stream.write_all(&session.take_output()).await.map_err(ConnectionEnd::Io)?;
    }
    session.input().reserve(READ_BYTES);
    match stream.read_buf(session.input()).await.map_err(ConnectionEnd::Io)? {
        0 => Err(ConnectionEnd::Closed),
        _ => Ok(()),
    }
}
