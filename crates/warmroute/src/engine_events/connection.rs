//! A ZMTP connection to one of an engine's sockets.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmroute_kv_events::zmtp::{Limits, Session, SessionEvent, SocketType, ZmtpError};

use crate::pool::host_port;

/// Longest time for a connection and for the handshake on it, each.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);
/// Longest time for a peer to take what we send, which is a few bytes.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Room made for each read.
const READ_BYTES: usize = 64 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("can't connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no handshake within {} s", HANDSHAKE_LIMIT.as_secs())]
    HandshakeLimit,
    #[error("connection lost: {0}")]
    Io(#[source] std::io::Error),
    #[error("the engine closed the connection")]
    Closed,
    #[error("nothing heard from the engine for {0} s, not even an answer to a heartbeat")]
    Silent(u64),
    #[error("the engine took nothing for {} s", SEND_LIMIT.as_secs())]
    SendLimit,
    #[error(transparent)]
    Protocol(#[from] ZmtpError),
}

impl ConnectionEnd {
    /// The `operation` label of the error metric.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::HandshakeLimit => "handshake",
            Self::Io(_) | Self::Closed => "recv",
            Self::Silent(_) => "heartbeat",
            Self::SendLimit => "send",
            Self::Protocol(_) => "protocol",
        }
    }
}

/// An open connection, its handshake over.
pub(super) struct Connection {
    stream: TcpStream,
    session: Session,
}

impl Connection {
    /// Connects to `host:port` and shakes hands.
    pub(super) async fn open(host: &str, port: u16, socket: SocketType) -> Result<Self, ConnectionEnd> {
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, TcpStream::connect(host_port(host, port)))
            .await
            .map_err(|_| ConnectionEnd::Connect(std::io::ErrorKind::TimedOut.into()))?
            .map_err(ConnectionEnd::Connect)?;
        Self::shake_hands(stream, socket, Limits::default()).await
    }

    /// Shakes hands with a peer that has connected to us.
    pub(super) async fn accept(
        stream: TcpStream,
        socket: SocketType,
        limits: Limits,
    ) -> Result<Self, ConnectionEnd> {
        Self::shake_hands(stream, socket, limits).await
    }

    async fn shake_hands(
        stream: TcpStream,
        socket: SocketType,
        limits: Limits,
    ) -> Result<Self, ConnectionEnd> {
        // A peer that vanished without a word is noticed by the kernel; failing to ask for that is no reason to stop.
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "no TCP keepalive on a connection to an engine");
        }
        let mut connection = Self { stream, session: Session::client(socket, limits) };
        let handshake = async {
            loop {
                if let Some(SessionEvent::Ready) = connection.session.next_event()? {
                    return Ok::<(), ConnectionEnd>(());
                }
                connection.flush().await?;
                connection.read().await?;
            }
        };
        tokio::time::timeout(HANDSHAKE_LIMIT, handshake)
            .await
            .map_err(|_| ConnectionEnd::HandshakeLimit)??;
        Ok(connection)
    }

    /// What is sent goes here, and waits for [`Connection::flush`].
    pub(super) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) -> Result<(), ConnectionEnd> {
        if self.session.has_output() {
            let output = self.session.take_output();
            tokio::time::timeout(SEND_LIMIT, self.stream.write_all(&output))
                .await
                .map_err(|_| ConnectionEnd::SendLimit)?
                .map_err(ConnectionEnd::Io)?;
        }
        Ok(())
    }

    /// Waits for some bytes. Nothing is lost if the wait is given up.
    pub(super) async fn read(&mut self) -> Result<(), ConnectionEnd> {
        self.session.input().reserve(READ_BYTES);
        match self.stream.read_buf(self.session.input()).await.map_err(ConnectionEnd::Io)? {
            0 => Err(ConnectionEnd::Closed),
            _ => Ok(()),
        }
    }
}
