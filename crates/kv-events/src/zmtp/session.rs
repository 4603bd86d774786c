use bytes::{Bytes, BytesMut};

use super::frame::{self, Frame, Head};
use super::{Limits, ZmtpError};

const GREETING_BYTES: usize = 64;
const MECHANISM: std::ops::Range<usize> = 12..32;
/// Longest context of a PING that is echoed; RFC 37 allows 16 bytes.
const MAX_PING_CONTEXT_BYTES: usize = 16;

/// What our end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketType {
    /// A subscriber; talks to PUB and XPUB.
    Sub,
    /// Talks to ROUTER, DEALER and REP.
    Dealer,
}

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            Self::Sub => "SUB",
            Self::Dealer => "DEALER",
        }
    }

    fn accepts(self, peer: &[u8]) -> bool {
        match self {
            Self::Sub => matches!(peer, b"PUB" | b"XPUB"),
            Self::Dealer => matches!(peer, b"ROUTER" | b"DEALER" | b"REP"),
        }
    }
}

/// What a session has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// The handshake is over; what is sent from now on arrives.
    Ready,
    /// A message, by its frames.
    Message(Vec<Bytes>),
    /// The answer to [`Session::ping`], with its context.
    Pong(Bytes),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Handshake,
    Open,
    Failed,
}

/// One connection to a peer, from its first byte on.
///
/// Feed what was received with [`Session::feed`] (or read straight into [`Session::input`]), take events with
/// [`Session::next_event`] until there is none, and send what [`Session::take_output`] gives. The greeting waits there
/// from the start.
pub struct Session {
    socket: SocketType,
    limits: Limits,
    state: State,
    input: BytesMut,
    output: BytesMut,
    parts: Vec<Bytes>,
    message_bytes: usize,
    peer_version: (u8, u8),
}

impl Session {
    /// A new connection. Which side connected makes no difference with NULL.
    pub fn client(socket: SocketType, limits: Limits) -> Self {
        let mut greeting = [0; GREETING_BYTES];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3; // version 3.0: subscriptions travel as messages
        greeting[MECHANISM.start..MECHANISM.start + 4].copy_from_slice(b"NULL");
        Self {
            socket,
            limits,
            state: State::Greeting,
            input: BytesMut::new(),
            output: BytesMut::from(&greeting[..]),
            parts: Vec::new(),
            message_bytes: 0,
            peer_version: (0, 0),
        }
    }

    /// Whether the handshake is over.
    pub fn is_ready(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the peer knows PING and PONG: from ZMTP 3.1 on. Some older ones close the connection on a PING. To be
    /// asked once the session is ready.
    pub fn knows_heartbeats(&self) -> bool {
        self.peer_version >= (3, 1)
    }

    /// Takes bytes received from the peer.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The buffer of received bytes, to read into (append only) without a copy.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Bytes to send to the peer, which are thereby taken; empty if there are none.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Whether bytes wait to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Asks a publisher for the messages whose first frame starts with `prefix`; the empty prefix asks for all. To be
    /// called once the session is ready.
    ///
    /// # Errors
    /// [`ZmtpError::OutputFull`].
    pub fn subscribe(&mut self, prefix: &[u8]) -> Result<(), ZmtpError> {
        self.reserve_output(frame::wire_bytes(prefix.len() + 1))?;
        frame::put_message_frame(&mut self.output, &[&[1], prefix], false);
        Ok(())
    }

    /// Sends a message. To be called once the session is ready.
    ///
    /// # Errors
    /// [`ZmtpError::OutputFull`].
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), ZmtpError> {
        self.reserve_output(parts.iter().map(|part| frame::wire_bytes(part.len())).sum())?;
        for (index, part) in parts.iter().enumerate() {
            frame::put_message_frame(&mut self.output, &[part], index + 1 < parts.len());
        }
        Ok(())
    }

    /// Sends a PING, which the peer answers with a [`SessionEvent::Pong`] of the same context (at most 16 bytes).
    /// `ttl_deciseconds` tells the peer after how long a silence it may give us up; 0 for never.
    ///
    /// # Errors
    /// [`ZmtpError::OutputFull`].
    pub fn ping(&mut self, ttl_deciseconds: u16, context: &[u8]) -> Result<(), ZmtpError> {
        let context = &context[..context.len().min(MAX_PING_CONTEXT_BYTES)];
        self.reserve_output(frame::wire_bytes(7 + context.len()))?;
        frame::put_command(&mut self.output, &[b"\x04PING", &ttl_deciseconds.to_be_bytes(), context]);
        Ok(())
    }

    /// The next thing that the bytes received so far tell; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the peer breaks the protocol or a limit. The session is then over.
    pub fn next_event(&mut self) -> Result<Option<SessionEvent>, ZmtpError> {
        if self.state == State::Failed {
            return Err(ZmtpError::Failed);
        }
        let event = self.advance();
        if event.is_err() {
            self.state = State::Failed;
            self.input = BytesMut::new();
            self.parts = Vec::new();
        }
        event
    }

    fn advance(&mut self) -> Result<Option<SessionEvent>, ZmtpError> {
        if self.state == State::Greeting && !self.take_greeting()? {
            return Ok(None);
        }
        while let Some(frame) = self.take_frame()? {
            let event = if frame.is_command() { self.take_command(&frame)? } else { self.take_part(frame)? };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Checks the greeting as its bytes arrive, so that a peer of another kind is told from a slow one.
    fn take_greeting(&mut self) -> Result<bool, ZmtpError> {
        for (offset, expected) in [(0, 0xff), (9, 0x7f)] {
            match self.input.get(offset) {
                Some(&found) if found != expected => return Err(ZmtpError::NotZmtp { offset, found }),
                _ => {}
            }
        }
        if let Some(&major) = self.input.get(10)
            && major < 3
        {
            return Err(ZmtpError::OldVersion { major });
        }
        if self.input.len() < GREETING_BYTES {
            return Ok(false);
        }
        let greeting = self.input.split_to(GREETING_BYTES);
        self.peer_version = (greeting[10], greeting[11]);
        let mechanism = &greeting[MECHANISM];
        let name = mechanism.split(|byte| *byte == 0).next().unwrap_or_default();
        if name != b"NULL" {
            return Err(ZmtpError::Mechanism { mechanism: String::from_utf8_lossy(name).into_owned() });
        }
        let socket = self.socket.name();
        let len = (socket.len() as u32).to_be_bytes();
        frame::put_command(&mut self.output, &[b"\x05READY", b"\x0bSocket-Type", &len, socket.as_bytes()]);
        self.state = State::Handshake;
        Ok(true)
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, ZmtpError> {
        let Some(head) = Head::parse(&self.input)? else { return Ok(None) };
        let limit = self.limits.max_frame_bytes;
        if head.body_bytes > limit as u64 {
            return Err(ZmtpError::FrameTooLong { claimed: head.body_bytes, limit });
        }
        if !head.is_command() {
            if self.state != State::Open {
                return Err(ZmtpError::UnexpectedFrame { what: "message before READY", flags: head.flags });
            }
            let claimed = self.message_bytes as u64 + head.body_bytes;
            if claimed > self.limits.max_message_bytes as u64 {
                return Err(ZmtpError::MessageTooLong { claimed, limit: self.limits.max_message_bytes });
            }
            if self.parts.len() >= self.limits.max_parts {
                return Err(ZmtpError::TooManyParts { limit: self.limits.max_parts });
            }
        }
        Ok(head.split_frame(&mut self.input))
    }

    fn take_part(&mut self, frame: Frame) -> Result<Option<SessionEvent>, ZmtpError> {
        let more = frame.has_more();
        self.message_bytes += frame.body.len();
        self.parts.push(frame.body);
        if more {
            return Ok(None);
        }
        self.message_bytes = 0;
        Ok(Some(SessionEvent::Message(std::mem::take(&mut self.parts))))
    }

    fn take_command(&mut self, frame: &Frame) -> Result<Option<SessionEvent>, ZmtpError> {
        let body = &frame.body;
        let malformed = |command| ZmtpError::MalformedCommand { command, len: body.len() };
        let name_end = 1 + usize::from(*body.first().ok_or(malformed("unnamed"))?);
        let name = body.get(1..name_end).ok_or(malformed("unnamed"))?;
        let data = body.slice(name_end..);
        match (name, self.state) {
            (b"READY", State::Handshake) => {
                self.check_peer(&data).map_err(|error| error.unwrap_or(malformed("READY")))?;
                self.state = State::Open;
                Ok(Some(SessionEvent::Ready))
            }
            (b"ERROR", _) => {
                let reason = data.get(1..).unwrap_or_default();
                let reason = &reason[..reason.len().min(255)];
                Err(ZmtpError::Refused { reason: String::from_utf8_lossy(reason).into_owned() })
            }
            (b"PING", State::Open) => {
                let context = data.get(2..).ok_or(malformed("PING"))?;
                let context = &context[..context.len().min(MAX_PING_CONTEXT_BYTES)];
                self.reserve_output(frame::wire_bytes(5 + context.len()))?;
                frame::put_command(&mut self.output, &[b"\x04PONG", context]);
                Ok(None)
            }
            (b"PONG", State::Open) => Ok(Some(SessionEvent::Pong(data))),
            (_, State::Open) => Ok(None),
            _ => Err(ZmtpError::UnexpectedFrame { what: "command before READY", flags: frame.flags }),
        }
    }

    /// Checks the peer's socket type in READY's properties: name length (1 byte), name, value length (4 bytes), value.
    /// `Err(None)` if they are malformed.
    fn check_peer(&self, mut properties: &[u8]) -> Result<(), Option<ZmtpError>> {
        let mut peer: &[u8] = &[];
        while let Some((&name_bytes, rest)) = properties.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(name_bytes)).ok_or(None)?;
            let (value_bytes, rest) = rest.split_first_chunk().ok_or(None)?;
            let (value, rest) =
                rest.split_at_checked(u32::from_be_bytes(*value_bytes) as usize).ok_or(None)?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                peer = value;
            }
            properties = rest;
        }
        if self.socket.accepts(peer) {
            return Ok(());
        }
        let peer = String::from_utf8_lossy(&peer[..peer.len().min(32)]).into_owned();
        Err(Some(ZmtpError::SocketMismatch { ours: self.socket.name(), peer }))
    }

    fn reserve_output(&self, bytes: usize) -> Result<(), ZmtpError> {
        let (pending, limit) = (self.output.len() + bytes, self.limits.max_output_bytes);
        if pending > limit {
            return Err(ZmtpError::OutputFull { pending, limit });
        }
        Ok(())
    }
}
