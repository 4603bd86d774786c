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
/// Room made at once for what is read.
const READ_BYTES: usize = 64 * 1024;
/// Less room than that is not worth a read. Messages that come one by one share what was made for them: each of them may
/// be kept for a while, and keeps all of it.
const LEAST_READ_BYTES: usize = 4 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("can't connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no handshake within {} s", HANDSHAKE_LIMIT.as_secs())]
    HandshakeLimit,
    #[error(
        "the engine closed the connection during the handshake; so does libzmq where the socket wants a login \
         (PLAIN, CURVE), which is not supported, or is of a kind that can't be talked to"
    )]
    ClosedInHandshake,
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
            Self::HandshakeLimit | Self::ClosedInHandshake => "handshake",
            Self::Io(_) | Self::Closed => "recv",
            Self::Silent(_) => "heartbeat",
            Self::SendLimit => "send",
            Self::Protocol(_) => "protocol",
        }
    }

    /// The same end, during the handshake.
    fn in_handshake(self) -> Self {
        match self {
            Self::Io(_) | Self::Closed => Self::ClosedInHandshake,
            other => other,
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
            .map_err(|_| ConnectionEnd::HandshakeLimit)?
            .map_err(ConnectionEnd::in_handshake)?;
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
        let input = self.session.input();
        if input.capacity() - input.len() < LEAST_READ_BYTES {
            input.reserve(READ_BYTES);
        }
        match self.stream.read_buf(input).await.map_err(ConnectionEnd::Io)? {
            0 => Err(ConnectionEnd::Closed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn small_messages_that_are_kept_share_their_memory() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let publisher = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = vec![0; 64];
            (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
            greeting[12..16].copy_from_slice(b"NULL");
            greeting.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
            stream.write_all(&greeting).await.unwrap();
            stream
        };
        let (opened, mut publisher) =
            futures::future::join(Connection::open("127.0.0.1", port, SocketType::Sub), publisher).await;
        let mut connection = opened.unwrap();
        let mut kept = Vec::new();
        for _ in 0..200 {
            publisher.write_all(&[&[0, 100][..], &[7; 100]].concat()).await.unwrap();
            connection.read().await.unwrap();
            while let Some(event) = connection.session().next_event().unwrap() {
                let SessionEvent::Message(mut frames) = event else { panic!("{event:?}") };
                kept.append(&mut frames);
            }
        }
        let windows: BTreeSet<usize> =
            kept.iter().map(|frame| frame.as_ptr() as usize / READ_BYTES).collect();
        assert!(kept.len() == 200 && windows.len() <= 3, "{windows:?}");
    }
}
