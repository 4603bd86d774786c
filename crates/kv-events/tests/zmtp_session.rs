//! The ZMTP state machine against bytes written by hand from the specification.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};
use warmroute_kv_events::zmtp::{Limits, Session, SessionEvent, SocketType, ZmtpError};

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    greeting
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = match u8::try_from(body.len()) {
        Ok(len) => vec![flags, len],
        Err(_) => [&[flags | 2][..], &(body.len() as u64).to_be_bytes()].concat(),
    };
    frame.extend(body);
    frame
}

fn command(name: &str, data: &[u8]) -> Vec<u8> {
    frame(4, &[&[name.len() as u8][..], name.as_bytes(), data].concat())
}

fn property(name: &str, value: &[u8]) -> Vec<u8> {
    [&[name.len() as u8][..], name.as_bytes(), &(value.len() as u32).to_be_bytes(), value].concat()
}

fn ready(socket: &str) -> Vec<u8> {
    command("READY", &[property("Socket-Type", socket.as_bytes()), property("Identity", b"")].concat())
}

fn message(parts: &[&[u8]]) -> Vec<u8> {
    parts
        .iter()
        .enumerate()
        .flat_map(|(index, part)| frame(u8::from(index + 1 < parts.len()), part))
        .collect()
}

fn events(session: &mut Session) -> Result<Vec<SessionEvent>, ZmtpError> {
    let mut events = Vec::new();
    while let Some(event) = session.next_event()? {
        events.push(event);
    }
    Ok(events)
}

fn open(socket: SocketType, limits: Limits) -> Session {
    let mut session = Session::client(socket, limits);
    let peer = if socket == SocketType::Sub { "PUB" } else { "ROUTER" };
    session.feed(&[greeting(), ready(peer)].concat());
    assert_eq!(events(&mut session), Ok(vec![SessionEvent::Ready]));
    session.take_output();
    session
}

fn failure(limits: Limits, bytes: &[u8]) -> ZmtpError {
    let mut session = open(SocketType::Sub, limits);
    session.feed(bytes);
    let error = events(&mut session).unwrap_err();
    assert_eq!(session.next_event(), Err(ZmtpError::Failed));
    error
}

#[test]
fn greets_and_shakes_hands() {
    let mut session = Session::client(SocketType::Sub, Limits::default());
    let sent = session.take_output();
    assert_eq!(sent.len(), 64);
    assert_eq!((sent[0], sent[9], sent[10], &sent[12..17]), (0xff, 0x7f, 3, &b"NULL\0"[..]));
    session.feed(&greeting());
    assert_eq!(session.next_event(), Ok(None));
    assert_eq!(session.take_output(), command("READY", &property("Socket-Type", b"SUB")));
    session.feed(&ready("XPUB"));
    assert!(!session.is_ready());
    assert_eq!(session.next_event(), Ok(Some(SessionEvent::Ready)));
    assert!(session.is_ready());
    session.subscribe(b"kv@").unwrap();
    assert_eq!(session.take_output(), frame(0, b"\x01kv@"));
    assert!(!session.has_output());
}

#[test]
fn whatever_the_split_the_events_are_the_same() {
    let long = vec![7; 300];
    let stream = [
        greeting(),
        ready("PUB"),
        message(&[b"topic", &[0; 8], &long]),
        command("PING", b"\0\x05ctx"),
        command("NOVEL", b"whatever"),
        command("PONG", b"mine"),
        message(&[b""]),
        frame(2, b"")[..1].iter().copied().chain(3_u64.to_be_bytes()).chain(*b"abc").collect(),
    ]
    .concat();
    let expected = vec![
        SessionEvent::Ready,
        SessionEvent::Message(vec!["topic".into(), vec![0; 8].into(), long.into()]),
        SessionEvent::Pong("mine".into()),
        SessionEvent::Message(vec![Bytes::new()]),
        SessionEvent::Message(vec!["abc".into()]),
    ];
    let mut outputs = Vec::new();
    for split in 0..=stream.len() {
        let mut session = Session::client(SocketType::Sub, Limits::default());
        let mut seen = Vec::new();
        for piece in [&stream[..split], &stream[split..]] {
            session.feed(piece);
            seen.extend(events(&mut session).unwrap());
        }
        assert_eq!(seen, expected, "split at {split}");
        outputs.push(session.take_output());
    }
    let mut bytewise = Session::client(SocketType::Sub, Limits::default());
    let mut seen = Vec::new();
    for byte in &stream {
        bytewise.input().extend_from_slice(&[*byte]);
        seen.extend(events(&mut bytewise).unwrap());
    }
    assert_eq!(seen, expected);
    outputs.push(bytewise.take_output());
    assert!(outputs.iter().all(|output| output.ends_with(&command("PONG", b"ctx")) && *output == outputs[0]));
}

#[test]
fn a_dealer_sends_messages() {
    let mut session = open(SocketType::Dealer, Limits::default());
    let long = [9; 256];
    session.send(&[b"", &long]).unwrap();
    assert_eq!(session.take_output(), message(&[b"", &long]));
    session.ping(30, b"a context that is far too long").unwrap();
    assert_eq!(session.take_output(), command("PING", b"\0\x1ea context that i"));
}

#[test]
fn frames_beyond_the_limits_are_refused_by_their_head() {
    let limits = Limits { max_frame_bytes: 50, max_message_bytes: 75, max_parts: 3, max_output_bytes: 300 };
    let mut claim = vec![2];
    claim.extend((1_u64 << 46).to_be_bytes());
    assert_eq!(failure(limits, &claim), ZmtpError::FrameTooLong { claimed: 1 << 46, limit: 50 });
    claim[0] = 6;
    assert_eq!(failure(limits, &claim), ZmtpError::FrameTooLong { claimed: 1 << 46, limit: 50 });
    let mut longest = vec![2];
    longest.extend(u64::MAX.to_be_bytes());
    assert!(matches!(failure(limits, &longest), ZmtpError::FrameTooLong { .. }));
    assert_eq!(
        failure(limits, &message(&[&[0; 50], &[0; 26]])),
        ZmtpError::MessageTooLong { claimed: 76, limit: 75 }
    );
    assert_eq!(failure(limits, &message(&[b"", b"", b"", b""])), ZmtpError::TooManyParts { limit: 3 });
    let mut session = open(SocketType::Sub, limits);
    session.feed(&[message(&[&[0; 50], &[0; 25], b""]), message(&[&[1; 50], &[1; 25]])].concat());
    assert_eq!(events(&mut session).unwrap().len(), 2);
}

#[test]
fn a_huge_frame_before_the_handshake_is_refused_too() {
    let mut session = Session::client(SocketType::Sub, Limits::default());
    session.feed(&greeting());
    session.feed(&[4 | 2]);
    session.feed(&(1_u64 << 46).to_be_bytes());
    assert!(matches!(session.next_event(), Err(ZmtpError::FrameTooLong { .. })));
}

#[test]
fn a_peer_that_pings_and_never_reads_is_given_up() {
    let limits = Limits { max_output_bytes: 100, ..Limits::default() };
    let pings = command("PING", b"\0\0ctx").repeat(100);
    assert!(matches!(failure(limits, &pings), ZmtpError::OutputFull { limit: 100, .. }));
}

#[test]
fn malformed_commands_are_errors() {
    let limits = Limits::default();
    assert_eq!(failure(limits, &frame(4, b"")), ZmtpError::MalformedCommand { command: "unnamed", len: 0 });
    assert!(matches!(failure(limits, &frame(4, b"\x09PING")), ZmtpError::MalformedCommand { .. }));
    assert!(matches!(
        failure(limits, &command("PING", b"\0")),
        ZmtpError::MalformedCommand { command: "PING", .. }
    ));
    assert!(matches!(failure(limits, &frame(5, b"\x04PONG")), ZmtpError::UnexpectedFrame { .. }));
    assert!(matches!(failure(limits, &frame(0x80, b"x")), ZmtpError::UnexpectedFrame { .. }));
    assert_eq!(
        failure(limits, &command("ERROR", b"\x0anot for us")),
        ZmtpError::Refused { reason: "not for us".to_owned() }
    );
}

fn handshake_failure(socket: SocketType, bytes: &[u8]) -> ZmtpError {
    let mut session = Session::client(socket, Limits::default());
    session.feed(bytes);
    events(&mut session).unwrap_err()
}

#[test]
fn peers_of_another_kind_are_told_apart_early() {
    let sub = SocketType::Sub;
    assert_eq!(handshake_failure(sub, b"HTTP/1.1"), ZmtpError::NotZmtp { offset: 0, found: b'H' });
    assert_eq!(
        handshake_failure(sub, &[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 1]),
        ZmtpError::OldVersion { major: 1 }
    );
    let mut curve = greeting();
    curve[12..17].copy_from_slice(b"CURVE");
    assert_eq!(handshake_failure(sub, &curve), ZmtpError::Mechanism { mechanism: "CURVE".to_owned() });
    let mismatch = handshake_failure(sub, &[greeting(), ready("REP")].concat());
    assert_eq!(mismatch, ZmtpError::SocketMismatch { ours: "SUB", peer: "REP".to_owned() });
    let mismatch = handshake_failure(SocketType::Dealer, &[greeting(), ready("PUB")].concat());
    assert_eq!(mismatch, ZmtpError::SocketMismatch { ours: "DEALER", peer: "PUB".to_owned() });
    let silent = handshake_failure(sub, &[greeting(), command("READY", b"")].concat());
    assert_eq!(silent, ZmtpError::SocketMismatch { ours: "SUB", peer: String::new() });
    let malformed = handshake_failure(sub, &[greeting(), command("READY", b"\x05Sock")].concat());
    assert!(matches!(malformed, ZmtpError::MalformedCommand { command: "READY", .. }));
    let early = handshake_failure(sub, &[greeting(), message(&[b"x"])].concat());
    assert!(matches!(early, ZmtpError::UnexpectedFrame { .. }));
    let early = handshake_failure(sub, &[greeting(), command("PING", b"\0\0")].concat());
    assert!(matches!(early, ZmtpError::UnexpectedFrame { .. }));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(after_greeting in any::<bool>(), pieces in vec(vec(any::<u8>(), 0..100), 0..20)) {
        let limits = Limits { max_frame_bytes: 1 << 16, ..Limits::default() };
        let mut session = Session::client(SocketType::Sub, limits);
        if after_greeting {
            session.feed(&[greeting(), ready("PUB")].concat());
        }
        for piece in pieces {
            session.feed(&piece);
            if events(&mut session).is_err() {
                break;
            }
        }
    }

    #[test]
    fn two_sessions_understand_each_other(parts in vec(vec(any::<u8>(), 0..600), 1..6)) {
        let (mut ours, mut theirs) =
            (Session::client(SocketType::Dealer, Limits::default()), Session::client(SocketType::Dealer, Limits::default()));
        for _ in 0..3 {
            theirs.feed(&ours.take_output());
            ours.feed(&theirs.take_output());
            events(&mut ours).unwrap();
            events(&mut theirs).unwrap();
        }
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        ours.send(&slices).unwrap();
        theirs.feed(&ours.take_output());
        let expected: Vec<Bytes> = parts.into_iter().map(Bytes::from).collect();
        prop_assert_eq!(events(&mut theirs), Ok(vec![SessionEvent::Message(expected)]));
    }
}
