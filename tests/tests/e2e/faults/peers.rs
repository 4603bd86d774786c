//! Peers that aren't what they should be: each is left with an error that says what is wrong, and the engine is followed
//! as soon as it is there.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warmroute_demo::harness::FreePorts;
use warmroute_kv_events::{Trust, TrustReason};

use super::followed::Followed;
use super::publisher::Publisher;
use crate::fixture::{Picker, PickerOptions, Policy, run, until};

/// What a peer does before it is expected to be left.
struct Peer {
    sends: Vec<u8>,
    /// As counted by the subscription.
    operation: &'static str,
}

fn greeting(minor: u8, mechanism: &str) -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, minor);
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    greeting
}

/// A greeting, READY of a PUB socket, and more.
fn opened(more: &[u8]) -> Vec<u8> {
    let ready = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    [&greeting(1, "NULL"), &ready[..], more].concat()
}

fn peers() -> Vec<Peer> {
    let peer = |operation, sends: &[u8]| Peer { sends: sends.to_vec(), operation };
    let huge = [&[2][..], &(1_u64 << 46).to_be_bytes()].concat();
    let huge_command = [&[6][..], &(1_u64 << 46).to_be_bytes()].concat();
    let long_parts = [&[1, 0].repeat(100)[..], &[0, 0]].concat();
    vec![
        peer("handshake", b""),
        peer("handshake", &greeting(0, "NULL")[..20]),
        peer("handshake", &greeting(0, "NULL")),
        peer("handshake", &opened(b"")[..80]),
        peer("protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        peer("protocol", &[0; 64]),
        // ZMTP 2.0 and 1.0, as libzmq 3 and 2 greet.
        peer("protocol", b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x01\0\0"),
        peer("protocol", b"\x01\0"),
        peer("protocol", &greeting(1, "GSSAPI")),
        peer("protocol", &[greeting(1, "NULL"), huge.clone()].concat()),
        peer("protocol", &opened(&huge)),
        peer("protocol", &opened(&huge_command)),
        peer("protocol", &opened(&long_parts)),
        peer("protocol", &opened(b"\x80garbage")),
        peer("protocol", &opened(b"\x04\x06\x05ERROR")),
    ]
}

async fn until_closed(mut peer: TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(40), peer.read_to_end(&mut rest)).await;
    // A reset is a close too.
    let _ = read.expect("the subscription must leave such a peer");
}

#[test]
fn hostile_peers_are_left_and_the_engine_is_followed_when_it_comes() {
    run(async {
        let listener = TcpListener::bind(("127.0.0.1", FreePorts::default().on_loopback().unwrap())).await;
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut publisher = Publisher::start(json!({"port": port, "bind": false})).await;
        let followed = Followed::start(port, publisher.replay_port());
        let mut expected = std::collections::BTreeMap::new();
        for Peer { sends, operation } in peers() {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(&sends).await.unwrap();
            until_closed(peer).await;
            *expected.entry(operation).or_insert(0) += 1;
            followed.until("told", |_| followed.errors(operation) >= expected[operation]).await;
            assert_eq!(followed.status().trust, Trust::Blind);
        }
        assert_eq!(followed.errors("connect"), 0);
        drop(listener);
        publisher.bind().await;
        publisher.until_subscribed(1).await;
        publisher.random(20, 1).await;
        followed.until_exact(&mut publisher).await;
    });
}

/// Drips its greeting byte by byte, and is a sound peer all the same.
#[test]
fn a_peer_that_greets_byte_by_byte_is_waited_for() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let followed = Followed::start(listener.local_addr().unwrap().port(), 0);
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.set_nodelay(true).unwrap();
        for byte in opened(b"") {
            peer.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        followed.until_trust(Trust::Blind, TrustReason::NothingHeard).await;
        assert_eq!((followed.errors("handshake"), followed.errors("protocol")), (0, 0));
    });
}

/// libzmq closes the connection before it says what it wants, so the picker can only name what may be.
#[test]
fn an_engine_that_wants_a_login_is_told() {
    run(async {
        for mechanism in ["PLAIN", "CURVE"] {
            let publisher = Publisher::start(json!({"mechanism": mechanism})).await;
            let followed = Followed::publisher(&publisher);
            followed.until("told", |_| followed.errors("handshake") >= 2).await;
            assert_eq!(followed.status().trust_reason, TrustReason::NeverConnected);

            let picker = Picker::start(&PickerOptions {
                endpoints: vec!["127.0.0.1:9".parse().unwrap()],
                kv_events_port: Some(publisher.port()),
                ..PickerOptions::new(Policy::Precise)
            })
            .await;
            let log = picker.process.log();
            until("a line in the log", async || {
                let log = std::fs::read_to_string(log).unwrap();
                log.lines().any(|line| line.contains("handshake") && line.contains(mechanism)).then_some(())
            })
            .await;
        }
    });
}

#[test]
fn the_replay_port_in_place_of_the_live_one_is_told() {
    run(async {
        let publisher = Publisher::start(json!({})).await;
        let followed = Followed::start(publisher.replay_port(), 0);
        followed.until("told", |_| followed.errors("protocol") + followed.errors("handshake") >= 2).await;
        assert_eq!(followed.errors("handshake"), 0);
    });
}
