//! ZMTP 3.0 with the NULL mechanism as a state machine without IO: bytes in, messages out, bytes to send.
//!
//! Enough of the protocol to subscribe to a PUB socket and to talk to a ROUTER. NULL is symmetric, so the same
//! session also serves the accepting side of a SUB socket. Specification: ZeroMQ RFC 23/ZMTP
//! (<https://rfc.zeromq.org/spec/23/>); PING and PONG are of RFC 37/ZMTP 3.1, which libzmq sends to 3.0 peers too.
//!
//! The time a handshake may take is the caller's to limit ([`Session::is_ready`]); so are heartbeats
//! ([`Session::ping`]) and reconnects.

mod frame;
mod session;

pub use session::{Session, SessionEvent, SocketType};

/// What a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest frame body, in bytes. A longer one is refused when its head arrives, before any memory is taken.
    pub max_frame_bytes: usize,
    /// Longest message, all frames together, in bytes.
    pub max_message_bytes: usize,
    /// Most frames in a message.
    pub max_parts: usize,
    /// Most bytes waiting to be sent, so that a peer that sends PINGs and reads nothing can't grow our memory.
    pub max_output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 64 << 20,
            max_message_bytes: 64 << 20,
            max_parts: 16,
            max_output_bytes: 1 << 20,
        }
    }
}

/// Why a session can't go on. After an error the connection is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZmtpError {
    /// The peer's first bytes aren't a ZMTP signature.
    #[error("peer does not speak ZMTP: byte {offset} of its greeting is {found:#04x}")]
    NotZmtp {
        /// Which byte of the greeting.
        offset: usize,
        /// Its value.
        found: u8,
    },
    /// A version before 3.0.
    #[error("peer speaks ZMTP {major}, which is older than 3.0")]
    OldVersion {
        /// The major version, as greeted.
        major: u8,
    },
    /// A security mechanism other than NULL.
    #[error("peer wants the security mechanism {mechanism:?}, only NULL is supported")]
    Mechanism {
        /// Its name.
        mechanism: String,
    },
    /// A socket type that ours can't talk to.
    #[error("peer is a {peer:?} socket, ours is {ours}")]
    SocketMismatch {
        /// Our type's name.
        ours: &'static str,
        /// The peer's, as it named itself; empty if it didn't.
        peer: String,
    },
    /// The peer refused the connection with an ERROR command.
    #[error("peer refused the connection: {reason:?}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// A frame that the protocol doesn't allow where it came.
    #[error("{what} (frame flags {flags:#04x})")]
    UnexpectedFrame {
        /// What is wrong.
        what: &'static str,
        /// The frame's flags.
        flags: u8,
    },
    /// A command whose body is malformed.
    #[error("malformed {command} command of {len} bytes")]
    MalformedCommand {
        /// Which.
        command: &'static str,
        /// Length of its body.
        len: usize,
    },
    /// A frame longer than [`Limits::max_frame_bytes`].
    #[error("frame of {claimed} bytes, the limit is {limit}")]
    FrameTooLong {
        /// The length that its head claims.
        claimed: u64,
        /// The limit.
        limit: usize,
    },
    /// A message longer than [`Limits::max_message_bytes`].
    #[error("message of at least {claimed} bytes, the limit is {limit}")]
    MessageTooLong {
        /// Its frames so far with the one that its head claims.
        claimed: u64,
        /// The limit.
        limit: usize,
    },
    /// More frames than [`Limits::max_parts`].
    #[error("message has more than {limit} frames")]
    TooManyParts {
        /// The limit.
        limit: usize,
    },
    /// The peer doesn't take what it asks for: more than [`Limits::max_output_bytes`] wait to be sent.
    #[error("{pending} bytes wait to be sent, the limit is {limit}")]
    OutputFull {
        /// How many would wait.
        pending: usize,
        /// The limit.
        limit: usize,
    },
    /// The session ended with an error before.
    #[error("session has already failed")]
    Failed,
}
