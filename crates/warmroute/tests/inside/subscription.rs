//! Following engines over real sockets: a PUB socket of another implementation, and peers that mean no good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warmroute::engine_events::{EngineEvents, EngineStatus, EventSettings};
use warmroute::metrics::Metrics;
use warmroute::pool::{EndpointSpec, EndpointState, Pool};
use warmroute::prompt::AdapterNames;
use warmroute::tasks::Tasks;
use warmroute_kv_events::{Trust, TrustReason};
use warmroute_kv_index::{IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys};
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

pub(crate) struct Followed {
    pool: Pool,
    index: Arc<KvIndex>,
    pub(crate) metrics: Arc<Metrics>,
    tasks: Tasks,
    events: EngineEvents,
}

impl Followed {
    fn start(port: u16) -> Self {
        Self::with_replay(port, 0)
    }

    pub(crate) fn with_replay(port: u16, replay_port: u16) -> Self {
        let index = KvIndex::new(IndexLimits::default());
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let settings =
            EventSettings { listen: None, port, replay_port, topic_filter: "kv@".to_owned(), shards: 2 };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index.clone(), settings, metrics.clone(), &adapters).unwrap();
        let (tasks, _ends) = Tasks::new();
        let followed = Self { pool: Pool::new("p"), index, metrics, tasks, events };
        followed.endpoints(&["127.0.0.1"]);
        followed
    }

    fn endpoints(&self, hosts: &[&str]) {
        let spec = |host: &&str| EndpointSpec::new(*host, *host, 8000);
        for added in self.pool.update(&hosts.iter().map(spec).collect::<Vec<_>>()).added {
            self.tasks.spawn("subscription", self.events.clone().follow(added));
        }
    }

    pub(crate) fn endpoint(&self) -> Arc<EndpointState> {
        self.pool.snapshot().states[0].clone()
    }

    /// Waits until the status is as wanted; the outer test timeout bounds it.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        let waiting = async {
            loop {
                let status = self.endpoint().engine.status(None);
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        waited.unwrap_or_else(|_| panic!("never {what}: {:?}", self.endpoint().engine.status(None)))
    }

    pub(crate) fn known_blocks(&self, tokens: &[u32]) -> u32 {
        let mut keys = Vec::new();
        block_keys(tokens, 16, &KeyExtras::default(), &mut keys);
        let Some(slot) = self.endpoint().engine.slot() else { return 0 };
        let mut found = [Match::default()];
        self.index.lookup(&keys, &[slot], &mut LookupScratch::default(), &mut found);
        found[0].known_blocks
    }

    pub(crate) fn page(&self) -> String {
        self.metrics.page().unwrap()
    }
}

/// A batch in the array form: one store of consecutive blocks of 16.
pub(crate) fn store(first_hash: u64, tokens: &[u32]) -> Vec<u8> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // Engines' clocks go forward.
    let ts = 1.0 + f64::from(MADE.fetch_add(1, Ordering::Relaxed)) / 1000.0;
    let hashes: Vec<u64> = (0..tokens.len() as u64 / 16).map(|at| first_hash + at).collect();
    let event = ("BlockStored", hashes, (), tokens, 16, (), "GPU");
    rmp_serde::to_vec(&(ts, (event,), 0)).unwrap()
}

pub(crate) fn message(seq: u64, payload: Vec<u8>) -> ZmqMessage {
    let frames =
        vec![Bytes::from("kv@e@m"), Bytes::copy_from_slice(&seq.to_be_bytes()), Bytes::from(payload)];
    ZmqMessage::try_from(frames).unwrap()
}

pub(crate) async fn bind_pub(port: u16) -> (PubSocket, u16) {
    let mut socket = PubSocket::new();
    let bound = socket.bind(&format!("tcp://127.0.0.1:{port}")).await.unwrap();
    let zeromq::Endpoint::Tcp(_, port) = bound else { panic!("not TCP") };
    (socket, port)
}

/// A publisher's first messages are lost until it has read the subscription: sends until one arrives.
async fn publish_until_seen(socket: &mut PubSocket, followed: &Followed, seq: &mut u64) {
    let before = followed.endpoint().engine.status(None).batches;
    while followed.endpoint().engine.status(None).batches == before {
        socket.send(message(*seq, store(1, &[1; 16]))).await.unwrap();
        *seq += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is still on the way must not be taken for what the test sends next.
    let last = *seq - 1;
    followed.until("settled", |status| status.last_seq == Some(last)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_gaps_garbage_restarts_and_removal_are_followed() {
    let (mut socket, port) = bind_pub(0).await;
    let followed = Followed::start(port);
    let mut seq = 0;
    publish_until_seen(&mut socket, &followed, &mut seq).await;
    let prompt: Vec<u32> = (0..64).collect();
    socket.send(message(seq, store(100, &prompt))).await.unwrap();
    followed.until("stored", |status| status.last_seq == Some(seq)).await;
    assert_eq!(followed.known_blocks(&prompt), 4);
    assert_eq!(followed.endpoint().engine.block_size_tokens(), 16);

    // Two batches are lost, then comes one that is no msgpack, then a message of two frames.
    socket.send(message(seq + 3, store(200, &[9; 32]))).await.unwrap();
    socket.send(message(seq + 4, vec![0xc1, 0xff, 0x00])).await.unwrap();
    let two_frames = ZmqMessage::try_from(vec![Bytes::from("kv@e@m"), Bytes::from("x")]).unwrap();
    socket.send(two_frames).await.unwrap();
    let status = followed.until("garbage counted", |status| status.undecodable_messages == 2).await;
    assert_eq!(status.missed_batches, 2);
    assert_eq!((status.trust, status.trust_reason), (Trust::Doubtful, TrustReason::Gap));
    assert_eq!(followed.known_blocks(&prompt), 4, "garbage loses nothing");
    assert!(
        followed.page().contains("cause=\"sequence\",pod_identifier=\"127.0.0.1:8000\"} 2"),
        "{}",
        followed.page()
    );

    // The numbers go back: another process, whose cache is empty.
    socket.send(message(0, store(1, &[8; 16]))).await.unwrap();
    let status = followed.until("restarted", |status| status.restarts == 1).await;
    assert_eq!((followed.known_blocks(&prompt), status.missed_batches), (0, 0));

    // The endpoint leaves and comes back under the same address: nothing is left of what it held.
    let first = followed.endpoint();
    followed.endpoints(&[]);
    followed.endpoints(&["127.0.0.1"]);
    followed.until("connected again", |status| status.connected).await;
    assert_ne!(first.endpoint.id, followed.endpoint().endpoint.id);
    assert_eq!(followed.known_blocks(&[8; 16]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_goes_away_is_found_again() {
    let (mut socket, port) = bind_pub(0).await;
    let followed = Followed::start(port);
    let mut seq = 0;
    publish_until_seen(&mut socket, &followed, &mut seq).await;
    socket.close().await;
    followed.until("disconnected", |status| !status.connected).await;
    let (mut socket, _) = bind_pub(port).await;
    followed.until("connected again", |status| status.connected).await;
    let mut seq = 0;
    publish_until_seen(&mut socket, &followed, &mut seq).await;
    assert!(followed.endpoint().engine.status(None).restarts <= 1);
    assert!(followed.page().contains("subscriber_reconnections_total{pod_identifier=\"127.0.0.1:8000\"} 1"));
}

/// The `zeromq` crate aborts the process on the first of these, stays deaf after the second and waits for the third.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_peers_are_left_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _followed = Followed::start(port);
    // A frame of 2^46 bytes, before any greeting.
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut bytes = vec![2];
    bytes.extend_from_slice(&(1u64 << 46).to_be_bytes());
    peer.write_all(&bytes).await.unwrap();
    assert_closed(&mut peer).await;
    // A correct greeting, then such a frame.
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    peer.write_all(&greeting).await.unwrap();
    peer.write_all(&bytes).await.unwrap();
    assert_closed(&mut peer).await;
    // A reset right after the connection.
    let (peer, _) = listener.accept().await.unwrap();
    drop(peer);
    // One that never greets: left after the handshake's limit.
    let (mut peer, _) = listener.accept().await.unwrap();
    assert_closed(&mut peer).await;
    // And it is tried again.
    listener.accept().await.unwrap();
}

pub(crate) async fn assert_closed(peer: &mut tokio::net::TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), peer.read_to_end(&mut rest)).await;
    // A reset is a close too.
    let _ = read.expect("the subscription must leave such a peer");
}
