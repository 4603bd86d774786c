//! A peer's bytes, in any pieces.

use bytes::Bytes;
use warmroute_kv_events::LiveMessage;
use warmroute_kv_events::zmtp::{Limits, Session, SessionEvent, SocketType, ZmtpError};

use crate::bytes_left::BytesLeft;

/// What a peer can make us hold.
const LIMITS: Limits =
    Limits { max_frame_bytes: 300, max_message_bytes: 500, max_parts: 5, max_output_bytes: 400 };

/// What came of a stream.
#[derive(Debug, PartialEq)]
struct Outcome {
    events: Vec<SessionEvent>,
    error: Option<ZmtpError>,
    is_ready: bool,
    sent: Bytes,
}

/// The first byte says which socket and whether the handshake has been made, the second in which pieces the rest comes.
/// Whatever the pieces, the outcome is the same, and nothing is over a limit.
pub(crate) fn run(data: &[u8]) {
    let mut data = BytesLeft(data);
    let (kind, seed) = (data.byte(), data.byte());
    let (socket, peer) =
        if kind & 1 == 0 { (SocketType::Sub, "PUB") } else { (SocketType::Dealer, "ROUTER") };
    let stream = if kind & 2 == 0 { data.0.to_vec() } else { [&handshake(peer)[..], data.0].concat() };
    let whole = outcome(socket, [&stream[..]]);
    check(&whole, &stream);
    assert_eq!(whole, outcome(socket, stream.chunks(1)), "byte by byte");
    assert_eq!(whole, outcome(socket, stream.chunks(usize::from(seed) + 2)), "in pieces");
}

fn outcome<'a>(socket: SocketType, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut session = Session::client(socket, LIMITS);
    let mut events = Vec::new();
    let mut error = None;
    'stream: for piece in pieces {
        session.feed(piece);
        loop {
            match session.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(why) => {
                    error = Some(why);
                    break 'stream;
                }
            }
        }
    }
    let is_ready = session.is_ready();
    if error.is_some() {
        assert_eq!(session.next_event(), Err(ZmtpError::Failed));
    } else if is_ready {
        use_it(&mut session);
    }
    Outcome { events, error, is_ready, sent: session.take_output() }
}

/// What we do with an open session.
fn use_it(session: &mut Session) {
    let _ = session.subscribe(b"kv@");
    let _ = session.ping(90, b"context");
    let _ = session.send(&[b"", &[0; 8]]);
}

fn check(outcome: &Outcome, stream: &[u8]) {
    assert!(outcome.sent.len() <= LIMITS.max_output_bytes);
    let mut bytes = 0;
    for (at, event) in outcome.events.iter().enumerate() {
        assert_eq!(*event == SessionEvent::Ready, at == 0, "READY comes first, and once");
        match event {
            SessionEvent::Ready => {}
            SessionEvent::Pong(context) => bytes += context.len(),
            SessionEvent::Message(frames) => {
                let len: usize = frames.iter().map(Bytes::len).sum();
                assert!(frames.len() <= LIMITS.max_parts && len <= LIMITS.max_message_bytes);
                assert!(frames.iter().all(|frame| frame.len() <= LIMITS.max_frame_bytes));
                bytes += len;
                check_live(frames);
            }
        }
    }
    assert!(bytes <= stream.len(), "nothing is made up");
}

fn check_live(frames: &[Bytes]) {
    let is_live = frames.len() == 3 && frames[1].len() == 8 && std::str::from_utf8(&frames[0]).is_ok();
    match LiveMessage::try_new(frames) {
        Ok(live) => {
            assert!(is_live);
            assert_eq!((live.topic.as_bytes(), &live.payload), (&*frames[0], &frames[2]));
            assert_eq!(&live.seq.to_be_bytes()[..], &*frames[1]);
        }
        Err(_) => assert!(!is_live),
    }
}

fn handshake(peer: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    (bytes[0], bytes[9], bytes[10], bytes[11]) = (0xff, 0x7f, 3, 1);
    bytes[12..16].copy_from_slice(b"NULL");
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.push(peer.len() as u8);
    ready.extend_from_slice(peer.as_bytes());
    bytes.extend_from_slice(&[4, ready.len() as u8]);
    bytes.extend_from_slice(&ready);
    bytes
}
