//! The sockets that KV events leave by.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::block_pool::CacheEvent;
use crate::engine::EngineError;
use crate::kv_events::{BatchEncoder, EventEncoding};
use crate::options::KvEventOptions;

/// The last batches, for replay.
type Buffer = Arc<Mutex<VecDeque<(u64, Bytes)>>>;

/// A PUB socket: three frames per batch (topic, sequence number as big-endian u64, payload), numbered from 0.
/// Sending never waits: a subscriber that is absent or too slow loses batches, as with vLLM.
pub(crate) struct KvPublisher {
    socket: PubSocket,
    address: SocketAddr,
    topic: Bytes,
    encoder: BatchEncoder,
    sequence: u64,
    replay: Option<(Buffer, usize)>,
}

/// Answers replay requests on a ROUTER socket.
pub(crate) struct KvReplay {
    socket: RouterSocket,
    address: SocketAddr,
    topic: Bytes,
    buffer: Buffer,
    has_topic_frame: bool,
}

impl KvPublisher {
    /// Binds a rank's PUB socket and, if the options ask for it, its replay socket.
    pub(crate) async fn bind(
        host: IpAddr,
        options: &KvEventOptions,
        topic: String,
        block_size_tokens: u32,
        rank: u16,
    ) -> Result<(Self, Option<KvReplay>), EngineError> {
        let topic = Bytes::from(topic);
        let (socket, address) = match options.connect {
            Some(picker) => (connect(picker).await?, picker),
            None => bind::<PubSocket>(host, of_rank(options.port, rank)).await?,
        };
        let mut replay = None;
        if let Some(port) = options.replay_port {
            let (socket, address) = bind::<RouterSocket>(host, of_rank(port, rank)).await?;
            // Replies have had a topic frame since vLLM 0.26; the array form stands for older versions.
            let has_topic_frame = options.encoding == EventEncoding::Map;
            replay = Some(KvReplay {
                socket,
                address,
                topic: topic.clone(),
                buffer: Buffer::default(),
                has_topic_frame,
            });
        }
        let publisher = Self {
            socket,
            address,
            topic,
            encoder: BatchEncoder {
                encoding: options.encoding,
                hash_form: options.hash_form,
                block_size_tokens,
                rank,
            },
            sequence: 0,
            replay: replay.as_ref().map(|replay| (replay.buffer.clone(), options.buffer_steps)),
        };
        Ok((publisher, replay))
    }

    /// Where it is bound, or what it is connected to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Publishes one batch. With `is_lost` it is numbered and kept for replay, but not sent.
    pub(crate) async fn publish(&mut self, events: &[CacheEvent], is_lost: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let payload = Bytes::from(self.encoder.encode(now.as_secs_f64(), events));
        let sequence = self.sequence;
        self.sequence += 1;
        if let Some((buffer, steps)) = &self.replay {
            let mut buffer = buffer.lock();
            buffer.push_back((sequence, payload.clone()));
            while buffer.len() > *steps {
                buffer.pop_front();
            }
        }
        if is_lost {
            return;
        }
        let sequence = Bytes::copy_from_slice(&sequence.to_be_bytes());
        if let Ok(message) = ZmqMessage::try_from(vec![self.topic.clone(), sequence, payload])
            && let Err(error) = self.socket.send(message).await
        {
            tracing::warn!(%error, "a batch of KV events wasn't sent");
        }
    }

    /// Closes the socket; when it returns, the port is free.
    pub(crate) async fn close(self) {
        self.socket.close().await;
    }
}

impl KvReplay {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until cancelled: every kept batch from the one asked for, then an end marker.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let message = tokio::select! {
                () = cancel.cancelled() => break,
                message = self.socket.recv() => message,
            };
            let Ok(message) = message else { break };
            let frames = message.into_vec();
            let [identity, delimiter, start] = frames.as_slice() else { continue };
            let Ok(start) = <[u8; 8]>::try_from(start.as_ref()) else { continue };
            let start = u64::from_be_bytes(start);
            if !delimiter.is_empty() {
                continue;
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                () = Self::answer(&mut self.socket, &self.buffer, self.has_topic_frame.then_some(&self.topic), identity, start) => {}
            }
        }
        self.socket.close().await;
    }

    async fn answer(
        socket: &mut RouterSocket,
        buffer: &Buffer,
        topic: Option<&Bytes>,
        identity: &Bytes,
        start: u64,
    ) {
        let batches: Vec<(u64, Bytes)> =
            buffer.lock().iter().filter(|(sequence, _)| *sequence >= start).cloned().collect();
        // The end marker has the number −1, an empty topic and no payload.
        let end = (u64::MAX, Bytes::new());
        for (sequence, payload) in batches.into_iter().chain([end]) {
            let mut frames = vec![identity.clone(), Bytes::new()];
            if let Some(topic) = topic {
                frames.push(if sequence == u64::MAX { Bytes::new() } else { topic.clone() });
            }
            frames.push(Bytes::copy_from_slice(&sequence.to_be_bytes()));
            frames.push(payload);
            let Ok(message) = ZmqMessage::try_from(frames) else { return };
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }
}

async fn connect(picker: SocketAddr) -> Result<PubSocket, EngineError> {
    let (mut socket, endpoint) = (PubSocket::new(), format!("tcp://{picker}"));
    let connected = socket.connect(&endpoint).await;
    connected.map_err(|source| EngineError::EventSocket { endpoint, source })?;
    Ok(socket)
}

/// As vLLM does it: a free port stays a free port.
fn of_rank(port: u16, rank: u16) -> u16 {
    if port == 0 { 0 } else { port.saturating_add(rank) }
}

async fn bind<S: Socket>(host: IpAddr, port: u16) -> Result<(S, SocketAddr), EngineError> {
    let wanted = SocketAddr::new(host, port);
    let listen = || {
        let listener = TcpListener::bind(wanted)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = listen().map_err(|source| EngineError::Listen { address: wanted, source })?;
    let mut socket = S::new();
    let bound = socket.bind_listener(listener).await;
    bound.map_err(|source| EngineError::EventSocket { endpoint: format!("tcp://{wanted}"), source })?;
    Ok((socket, address))
}
