//! How far the view of an engine is trusted, and how it is repaired, over real sockets: publishers that restart, wires
//! that lose, double and swap, replays that are late, have holes or never end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use warmroute::engine_events::EngineStatus;
use warmroute_kv_events::{Trust, TrustReason};
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::subscription::{Followed, assert_closed, bind_pub, message, store};

/// How an engine answers replay requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Well,
    /// The first answer has holes.
    HolesOnce,
    /// The first answer comes after the asker has lost patience.
    LateOnce,
    WithoutEnd,
    Never,
}

/// A publisher with a buffer for replay, by another implementation of ZMTP.
struct Publisher {
    socket: PubSocket,
    port: u16,
    replay_port: u16,
    router: JoinHandle<()>,
    answers: Answers,
    kept: usize,
    buffer: Arc<Mutex<Vec<(u64, Bytes)>>>,
    seq: u64,
}

impl Publisher {
    async fn start(answers: Answers, kept: usize) -> Self {
        Self::bind(0, 0, answers, kept).await
    }

    #[allow(clippy::disallowed_methods, reason = "the test ends it itself")]
    async fn bind(port: u16, replay_port: u16, answers: Answers, kept: usize) -> Self {
        let (socket, port) = bind_pub(port).await;
        let mut router = RouterSocket::new();
        // The port of one that was just aborted may take a moment to be free.
        let bound = loop {
            match router.bind(&format!("tcp://127.0.0.1:{replay_port}")).await {
                Ok(bound) => break bound,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let zeromq::Endpoint::Tcp(_, replay_port) = bound else { panic!("not TCP") };
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let router = tokio::spawn(answer(router, answers, buffer.clone()));
        Self { socket, port, replay_port, router, answers, kept, buffer, seq: 0 }
    }

    /// Another process under the same address.
    async fn restart(self) -> Self {
        let Self { socket, port, replay_port, router, answers, kept, .. } = self;
        socket.close().await;
        router.abort();
        let _ = router.await;
        Self::bind(port, replay_port, answers, kept).await
    }

    /// Makes a batch that stores the blocks of `prompt(number)`, keeps it for replay and doesn't send it.
    fn lose(&mut self, number: u32) -> (u64, Vec<u8>) {
        let (seq, payload) = (self.seq, store(u64::from(number) * 100, &prompt(number)));
        self.seq += 1;
        let mut buffer = self.buffer.lock();
        buffer.push((seq, payload.clone().into()));
        if buffer.len() > self.kept {
            buffer.remove(0);
        }
        (seq, payload)
    }

    async fn send(&mut self, batch: (u64, Vec<u8>)) {
        self.socket.send(message(batch.0, batch.1)).await.unwrap();
    }

    async fn publish(&mut self, number: u32) {
        let batch = self.lose(number);
        self.send(batch).await;
    }

    fn follow(&self) -> Followed {
        Followed::with_replay(self.port, self.replay_port)
    }

    /// A publisher's first messages are lost until it has read the subscription: publishes until it is heard live.
    async fn until_heard(&mut self, followed: &Followed) -> EngineStatus {
        let live = followed.metrics.events.batches.with_label_values(&["127.0.0.1:8000"]);
        let before = live.get();
        for number in 900.. {
            self.publish(number).await;
            let last = self.seq - 1;
            let heard =
                followed.until("heard", |status| status.last_seq == Some(last) && live.get() > before);
            if let Ok(status) = tokio::time::timeout(Duration::from_millis(300), heard).await {
                return status;
            }
        }
        unreachable!("it tries for ever")
    }
}

async fn answer(mut router: RouterSocket, answers: Answers, buffer: Arc<Mutex<Vec<(u64, Bytes)>>>) {
    let mut is_first_gap = true;
    while let Ok(request) = router.recv().await {
        let frames = request.into_vec();
        let start = u64::from_be_bytes(frames[2].as_ref().try_into().unwrap());
        let batches: Vec<(u64, Bytes)> =
            buffer.lock().iter().filter(|(seq, _)| *seq >= start).cloned().collect();
        // Faults begin with what is asked for after the engine has been heard.
        let is_faulty = start > 0;
        match answers {
            Answers::Never if is_faulty => continue,
            Answers::LateOnce if is_faulty && is_first_gap => {
                tokio::time::sleep(Duration::from_millis(2500)).await
            }
            _ => {}
        }
        let has_holes = answers == Answers::HolesOnce && is_faulty && is_first_gap;
        is_first_gap &= !is_faulty;
        let end = (u64::MAX, Bytes::new());
        for (seq, payload) in batches.into_iter().chain([end]) {
            let is_end = seq == u64::MAX;
            if (has_holes && !is_end && (seq - start) % 3 == 2)
                || (is_end && is_faulty && answers == Answers::WithoutEnd)
            {
                continue;
            }
            let seq = Bytes::copy_from_slice(&seq.to_be_bytes());
            let answer = vec![frames[0].clone(), Bytes::new(), Bytes::from("kv@e@m"), seq, payload];
            router.send(ZmqMessage::try_from(answer).unwrap()).await.unwrap();
        }
    }
}

/// Two blocks that no other number has.
fn prompt(number: u32) -> Vec<u32> {
    (number * 1000..number * 1000 + 32).collect()
}

fn is(status: &EngineStatus, trust: Trust, reason: TrustReason) -> bool {
    (status.trust, status.trust_reason) == (trust, reason)
}

fn assert_known(followed: &Followed, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        assert_eq!(followed.known_blocks(&prompt(number)), 2, "prompt {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_batches_are_replayed() {
    for answers in [Answers::Well, Answers::HolesOnce, Answers::LateOnce, Answers::WithoutEnd] {
        let mut engine = Publisher::start(answers, 1000).await;
        engine.lose(1);
        let followed = engine.follow();
        followed.until("caught up", |status| status.trust == Trust::Exact).await;
        assert_known(&followed, [1]);
        engine.until_heard(&followed).await;
        followed.until("exact", |status| status.trust == Trust::Exact).await;

        for number in 2..10 {
            engine.lose(number);
        }
        engine.publish(10).await;
        let last = engine.seq - 1;
        let status = followed
            .until("repaired", |status| status.trust == Trust::Exact && status.last_seq == Some(last))
            .await;
        assert_eq!((status.missed_batches, status.restarts), (0, 0));
        assert_known(&followed, 1..=10);
        let page = followed.page();
        for trust in ["exact\"} 1", "doubtful\"} 0"] {
            let line = format!("warmroute_engine_trust{{pod_identifier=\"127.0.0.1:8000\",trust=\"{trust}");
            assert!(page.contains(&line), "{line}\n{page}");
        }
        assert!(page.contains("cause=\"sequence\",pod_identifier=\"127.0.0.1:8000\"} 8"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tail_is_found_when_it_gets_quiet() {
    let mut engine = Publisher::start(Answers::Well, 1000).await;
    let followed = engine.follow();
    engine.until_heard(&followed).await;
    engine.lose(1);
    followed.until("found", |_| followed.known_blocks(&prompt(1)) == 2).await;
    assert_eq!(followed.endpoint().engine.trust(), Trust::Exact);
}

#[tokio::test(flavor = "multi_thread")]
async fn doubled_and_swapped_batches_do_no_harm() {
    let mut engine = Publisher::start(Answers::Well, 1000).await;
    let followed = engine.follow();
    engine.until_heard(&followed).await;
    let batches: Vec<_> = (1..6).map(|number| engine.lose(number)).collect();
    for at in [0, 0, 2, 1, 2, 1, 4, 3, 0, 4] {
        engine.send(batches[at].clone()).await;
    }
    engine.publish(6).await;
    let last = engine.seq - 1;
    let status =
        followed.until("exact", |status| status.trust == Trust::Exact && status.last_seq == Some(last)).await;
    assert_eq!((status.restarts, status.blocks % 2), (0, 0));
    assert_known(&followed, 1..=6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_is_exact_again_even_if_it_is_already_ahead() {
    let mut engine = Publisher::start(Answers::Well, 1000).await;
    engine.lose(1);
    let followed = engine.follow();
    engine.until_heard(&followed).await;
    let before = engine.seq;
    for already_published in [0, before + 20] {
        engine = engine.restart().await;
        for number in 0..already_published {
            engine.lose(100 + number as u32);
        }
        followed.until("gone", |_| followed.known_blocks(&prompt(1)) == 0).await;
        let status = engine.until_heard(&followed).await;
        assert!(status.restarts >= 1);
        followed.until("exact", |status| status.trust == Trust::Exact).await;
        assert_known(&followed, (0..already_published).map(|number| 100 + number as u32));
        assert!(!followed.page().contains("cause=\"sequence\""), "a restart is no gap");
        engine.publish(1).await;
        followed.until("there", |_| followed.known_blocks(&prompt(1)) == 2).await;
    }
    assert!(followed.page().contains("warmroute_engine_restarts_total{pod_identifier=\"127.0.0.1:8000\"} 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replay_a_restarted_engine_is_relearnt() {
    let mut engine = Publisher::start(Answers::Never, 0).await;
    let followed = Followed::with_replay(engine.port, 0);
    engine.until_heard(&followed).await;
    engine.publish(1).await;
    followed.until("there", |_| followed.known_blocks(&prompt(1)) == 2).await;
    let before = engine.seq;
    engine = engine.restart().await;
    for number in 0..before + 5 {
        engine.lose(100 + number as u32);
    }
    followed.until("lost", |status| status.trust_reason == TrustReason::ConnectionLost).await;
    let status = engine.until_heard(&followed).await;
    assert!(is(&status, Trust::Partial, TrustReason::RestartSeenLate), "{status:?}");
    assert_eq!(followed.known_blocks(&prompt(1)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_an_engine_whose_buffer_has_overflowed_a_picker_joins_as_partial() {
    let mut engine = Publisher::start(Answers::Well, 5).await;
    for number in 0..20 {
        engine.lose(number);
    }
    let followed = engine.follow();
    let status = followed.until("joined", |status| status.trust == Trust::Partial).await;
    assert!(is(&status, Trust::Partial, TrustReason::BufferOverflowed), "{status:?}");
    assert_known(&followed, 15..20);
    assert_eq!(followed.known_blocks(&prompt(14)), 0);
    engine.until_heard(&followed).await;
    assert_eq!(followed.endpoint().engine.trust(), Trust::Partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_replay_comes_the_engine_is_learnt_anew() {
    let mut engine = Publisher::start(Answers::Never, 1000).await;
    engine.lose(1);
    let followed = engine.follow();
    engine.until_heard(&followed).await;
    engine.lose(2);
    engine.publish(3).await;
    followed.until("doubtful", |status| status.trust == Trust::Doubtful).await;
    engine.publish(4).await;
    let status = followed.until("given up", |status| status.trust == Trust::Partial).await;
    assert!(is(&status, Trust::Partial, TrustReason::ReplayFailed), "{status:?}");
    assert_known(&followed, [3, 4]);
    assert_eq!(followed.known_blocks(&prompt(1)), 0);
    assert!(followed.page().contains("warmroute_kv_event_replays_total{outcome=\"silent\"} 1"));
}

/// Greets as a ROUTER of a given minor version and reads the peer's READY.
async fn greet(peer: &mut TcpStream, minor: u8, socket_type: &str) {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, minor);
    greeting[12..16].copy_from_slice(b"NULL");
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.push(socket_type.len() as u8);
    ready.extend_from_slice(socket_type.as_bytes());
    greeting.extend_from_slice(&[4, ready.len() as u8]);
    greeting.extend_from_slice(&ready);
    peer.write_all(&greeting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_sockets_that_mean_no_good_are_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut engine = Publisher::start(Answers::Never, 0).await;
    let followed = Followed::with_replay(engine.port, listener.local_addr().unwrap().port());
    // Never greets: left, and live batches count from then on.
    let (mut peer, _) = listener.accept().await.unwrap();
    assert_closed(&mut peer).await;
    let status = engine.until_heard(&followed).await;
    assert!(status.trust <= Trust::Partial, "{status:?}");
    // The next one claims a frame of 2^46 bytes. It is asked when the rest after the failure is over.
    let peer = loop {
        engine.lose(1);
        engine.publish(2).await;
        let accepted = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        if let Ok(accepted) = accepted {
            break accepted.unwrap().0;
        }
    };
    let mut peer = peer;
    greet(&mut peer, 0, "ROUTER").await;
    let mut huge = vec![2];
    huge.extend_from_slice(&(1u64 << 46).to_be_bytes());
    peer.write_all(&huge).await.unwrap();
    assert_closed(&mut peer).await;
    followed.until("given up", |status| status.trust == Trust::Partial).await;
    assert!(followed.page().contains("outcome=\"unreachable\"} 2"), "{}", followed.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_falls_silent_is_left_and_an_old_one_is_not_pinged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _followed = Followed::with_replay(listener.local_addr().unwrap().port(), 0);
    let (mut peer, _) = listener.accept().await.unwrap();
    greet(&mut peer, 1, "PUB").await;
    // Answers one heartbeat, and is half-open from then on.
    let mut received = Vec::new();
    while !received.windows(5).any(|bytes| bytes == b"\x04PING") {
        assert!(peer.read_buf(&mut received).await.unwrap() > 0);
    }
    peer.write_all(b"\x04\x05\x04PONG").await.unwrap();
    assert_closed(&mut peer).await;

    let (mut peer, _) = listener.accept().await.unwrap();
    greet(&mut peer, 0, "PUB").await;
    let mut received = Vec::new();
    let silent = tokio::time::timeout(Duration::from_secs(4), peer.read_to_end(&mut received)).await;
    assert!(silent.is_err(), "the connection stays");
    assert!(!received.windows(5).any(|bytes| bytes == b"\x04PING"), "it would not understand");
}
