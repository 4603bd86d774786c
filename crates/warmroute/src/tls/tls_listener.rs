use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{HandshakeFailure, ServingTls};

/// After an error of the listener itself, mostly because no file descriptor is left.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// What strangers may take up before they have said who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Handshakes under way at the same time; one more ends the oldest.
    pub at_once: usize,
    /// Longest time for one.
    pub within: Duration,
}

impl Default for HandshakeLimits {
    /// 512, and 10 s.
    fn default() -> Self {
        Self { at_once: 512, within: Duration::from_secs(10) }
    }
}

/// Accepts TLS connections. Handshakes run beside each other, so none keeps another one waiting, and what they fail
/// with is counted.
#[derive(Debug)]
pub struct TlsListener {
    tcp: TcpListener,
    tls: ServingTls,
    limits: HandshakeLimits,
    handshakes: JoinSet<Handshake>,
    /// Those that were begun, oldest first; some may have finished.
    begun: VecDeque<AbortHandle>,
}

/// How a handshake ended, and with whom.
#[derive(Debug)]
struct Handshake {
    peer: SocketAddr,
    outcome: Result<TlsStream<TcpStream>, (HandshakeFailure, String)>,
}

impl TlsListener {
    /// Over a bound listener, with the default limits.
    pub fn new(tcp: TcpListener, tls: ServingTls) -> Self {
        Self::with_limits(tcp, tls, HandshakeLimits::default())
    }

    /// The same with other limits.
    pub fn with_limits(tcp: TcpListener, tls: ServingTls, limits: HandshakeLimits) -> Self {
        Self { tcp, tls, limits, handshakes: JoinSet::new(), begun: VecDeque::new() }
    }

    /// The next connection whose handshake is done. May be dropped at any time without losing one.
    pub async fn accept(&mut self) -> (TlsStream<TcpStream>, SocketAddr) {
        loop {
            tokio::select! {
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, peer)) => self.begin(stream, peer),
                    Err(error) => self.pause_after(&error).await,
                },
                Some(done) = self.handshakes.join_next() => {
                    // An aborted one has been counted when it was.
                    let Ok(Handshake { peer, outcome }) = done else { continue };
                    match outcome {
                        Ok(stream) => return (stream, peer),
                        Err((failure, error)) => self.tls.failed(failure, &peer.to_string(), &error),
                    }
                }
            }
        }
    }

    /// The connections as tonic takes them.
    pub fn incoming(self) -> impl futures::Stream<Item = io::Result<TlsStream<TcpStream>>> {
        futures::stream::unfold(self, |mut listener| async move {
            let (stream, _) = listener.accept().await;
            Some((Ok(stream), listener))
        })
    }

    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) {
        while self.handshakes.len() >= self.limits.at_once
            && let Some(oldest) = self.begun.pop_front()
        {
            if !oldest.is_finished() {
                oldest.abort();
                let error = format!("over {} handshakes are under way", self.limits.at_once);
                self.tls.failed(HandshakeFailure::CrowdedOut, "the oldest", &error);
                break;
            }
        }
        // Nagle's algorithm would cost about 45 ms per stream.
        let _ = stream.set_nodelay(true);
        let (acceptor, within) = (TlsAcceptor::from(self.tls.config()), self.limits.within);
        let handshake = self.handshakes.spawn(async move {
            let outcome = match tokio::time::timeout(within, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err((HandshakeFailure::of(&error), error.to_string())),
                Err(_) => Err((HandshakeFailure::Timeout, format!("not done within {within:?}"))),
            };
            Handshake { peer, outcome }
        });
        self.begun.push_back(handshake);
        if self.begun.len() > 2 * self.limits.at_once {
            self.begun.retain(|handshake| !handshake.is_finished());
        }
    }

    async fn pause_after(&self, error: &io::Error) {
        self.tls.failed(HandshakeFailure::Other, "the listener", &error.to_string());
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        Self::accept(self).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
