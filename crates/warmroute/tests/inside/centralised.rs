//! Engines that connect to the picker to publish, over real sockets: PUB sockets of another implementation, and peers
//! that mean no good.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warmroute::engine_events::{EngineEvents, EngineStatus, EventListener, EventSettings};
use warmroute::metrics::Metrics;
use warmroute::pool::{EndpointSpec, Pool};
use warmroute::prompt::AdapterNames;
use warmroute::tasks::Tasks;
use warmroute_kv_events::{Trust, TrustReason};
use warmroute_kv_index::{IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys};
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::subscription::store;

/// A pool of which engines connect to a listener, and nobody is dialled.
struct Central {
    pool: Pool,
    index: Arc<KvIndex>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    events: EngineEvents,
    listener: EventListener,
    address: String,
}

impl Central {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let index = KvIndex::new(IndexLimits::default());
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let topic_filter = "kv@".to_owned();
        let settings =
            EventSettings { listen: Some(address), port: 0, replay_port: 0, topic_filter, shards: 2 };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index.clone(), settings, metrics.clone(), &adapters).unwrap();
        let listener = events.listener().unwrap();
        let (tasks, _ends) = Tasks::new();
        tasks.spawn_vital("listener", listener.clone().run(socket, tasks.clone()));
        let address = address.to_string();
        Self { pool: Pool::new("p"), index, metrics, tasks, events, listener, address }
    }

    /// The pool's endpoints, by the last number of their address.
    fn endpoints(&self, numbers: &[u8]) {
        let spec = |number: &u8| {
            let host = format!("10.0.0.{number}");
            EndpointSpec::new(host.clone(), host, 8000)
        };
        for added in self.pool.update(&numbers.iter().map(spec).collect::<Vec<_>>()).added {
            self.tasks.spawn("engine", self.events.clone().follow(added));
        }
    }

    fn status(&self, at: usize) -> EngineStatus {
        self.pool.snapshot().states[at].engine.status(None)
    }

    async fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = probe() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        waited.unwrap_or_else(|_| panic!("never {what}: {:?}", self.listener.status()))
    }

    async fn until_trust(&self, at: usize, trust: Trust, reason: TrustReason) {
        let wanted = || {
            let status = self.status(at);
            ((status.trust, status.trust_reason) == (trust, reason)).then_some(())
        };
        self.until(&format!("{trust:?} {reason:?} at {at}"), wanted).await;
    }

    fn known_blocks(&self, at: usize, tokens: &[u32]) -> u32 {
        let mut keys = Vec::new();
        block_keys(tokens, 16, &KeyExtras::default(), &mut keys);
        let Some(slot) = self.pool.snapshot().states[at].engine.slot() else { return 0 };
        let mut found = [Match::default()];
        self.index.lookup(&keys, &[slot], &mut LookupScratch::default(), &mut found);
        found[0].known_blocks
    }
}

/// A publisher that connects, as vLLM and SGLang do for an endpoint without a wildcard.
struct Engine {
    socket: PubSocket,
    topic: String,
    seq: u64,
}

impl Engine {
    async fn connect(central: &Central, topic: &str) -> Self {
        let mut socket = PubSocket::new();
        socket.connect(&format!("tcp://{}", central.address)).await.unwrap();
        Self { socket, topic: topic.to_owned(), seq: 0 }
    }

    async fn of(central: &Central, number: u8) -> Self {
        Self::connect(central, &format!("kv@10.0.0.{number}:8000@org/model@fp8")).await
    }

    async fn publish(&mut self, payload: Vec<u8>) {
        let seq = Bytes::copy_from_slice(&self.seq.to_be_bytes());
        let frames = vec![Bytes::from(self.topic.clone()), seq, Bytes::from(payload)];
        self.socket.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
        self.seq += 1;
    }

    /// A publisher's first messages are lost until it has read the subscription: publishes until the engine is heard.
    async fn until_heard(&mut self, central: &Central, at: usize) {
        loop {
            self.publish(store(900 + self.seq, &[9; 16])).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if central.status(at).last_seq == Some(self.seq - 1) {
                return;
            }
        }
    }
}

fn prompt(number: u32) -> Vec<u32> {
    (number * 1000..number * 1000 + 64).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_connect_are_known_by_their_topic() {
    let central = Central::start().await;
    central.endpoints(&[1, 2]);
    central.until_trust(0, Trust::Blind, TrustReason::NeverConnected).await;
    let (mut one, mut two) = (Engine::of(&central, 1).await, Engine::of(&central, 2).await);
    one.until_heard(&central, 0).await;
    two.until_heard(&central, 1).await;
    one.publish(store(100, &prompt(1))).await;
    two.publish(store(100, &prompt(2))).await;
    for at in 0..2 {
        let last = [one.seq, two.seq][at] - 1;
        central.until("stored", || (central.status(at).last_seq == Some(last)).then_some(())).await;
    }
    assert_eq!((central.known_blocks(0, &prompt(1)), central.known_blocks(1, &prompt(1))), (4, 0));
    assert_eq!((central.known_blocks(0, &prompt(2)), central.known_blocks(1, &prompt(2))), (0, 4));
    let status = central.listener.status();
    assert_eq!((status.connections, status.ignored_messages, status.unknown_publishers.len()), (2, 0, 0));
    assert_eq!(central.metrics.events.subscribers.get(), 2);

    // Batches that are lost are missed by number, per engine.
    one.seq += 3;
    one.publish(store(200, &prompt(3))).await;
    central.until_trust(0, Trust::Doubtful, TrustReason::Gap).await;
    assert_eq!((central.status(0).missed_batches, central.status(1).missed_batches), (3, 0));

    // A connection that ends is the loss of the engines that were heard on it.
    two.socket.close().await;
    central.until_trust(1, Trust::Blind, TrustReason::ConnectionLost).await;
    assert_eq!(central.status(0).trust, Trust::Doubtful);
    assert!(!central.status(1).connected && central.status(0).connected);
    assert_eq!(central.metrics.events.subscribers.get(), 1);

    // It comes back as another process, whose cache is another.
    let mut two = Engine::of(&central, 2).await;
    two.until_heard(&central, 1).await;
    central.until("restarted", || (central.status(1).restarts == 1).then_some(())).await;
    assert_eq!(central.known_blocks(1, &prompt(2)), 0);
    assert!(central.status(1).trust <= Trust::Partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_claim_to_be_one_engine_are_doubted_and_the_newest_is_followed() {
    let central = Central::start().await;
    central.endpoints(&[1]);
    let mut one = Engine::of(&central, 1).await;
    one.until_heard(&central, 0).await;
    one.publish(store(100, &prompt(1))).await;
    let last = one.seq - 1;
    central.until("stored", || (central.status(0).last_seq == Some(last)).then_some(())).await;

    let mut other = Engine::of(&central, 1).await;
    other.seq = 5000;
    other.until_heard(&central, 0).await;
    central.until_trust(0, Trust::Doubtful, TrustReason::Contested).await;
    assert_eq!(central.known_blocks(0, &prompt(1)), 0, "the other's cache is another");
    other.publish(store(300, &prompt(2))).await;
    one.publish(store(400, &prompt(3))).await;
    central.until("ignored", || (central.listener.status().ignored_messages == 1).then_some(())).await;
    let last = other.seq - 1;
    central.until("stored", || (central.status(0).last_seq == Some(last)).then_some(())).await;
    assert_eq!((central.known_blocks(0, &prompt(2)), central.known_blocks(0, &prompt(3))), (4, 0));

    // The newest leaves: the older one is followed again, as a new connection.
    other.socket.close().await;
    central.until_trust(0, Trust::Blind, TrustReason::ConnectionLost).await;
    one.publish(store(500, &prompt(4))).await;
    central.until("back", || (central.known_blocks(0, &prompt(4)) == 4).then_some(())).await;
    assert_eq!((central.known_blocks(0, &prompt(2)), central.status(0).trust), (0, Trust::Partial));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_nobody_has_are_told() {
    let central = Central::start().await;
    central.endpoints(&[1]);
    let mut known = Engine::of(&central, 1).await;
    known.until_heard(&central, 0).await;
    for topic in ["kv@pod-7@m", "kv@10.0.0.1@m", "kv@10.0.0.9:8000@m"] {
        let mut engine = Engine::connect(&central, topic).await;
        let heard = || {
            let unknown = central.listener.status().unknown_publishers;
            unknown.iter().any(|unknown| unknown.topic == topic)
        };
        while !heard() {
            engine.publish(store(1, &prompt(1))).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let unknown = central.listener.status().unknown_publishers;
    let why = |topic: &str| unknown.iter().find(|unknown| unknown.topic == topic).unwrap().why;
    assert!(why("kv@pod-7@m").contains("not a pod's name"));
    assert!(why("kv@10.0.0.1@m").contains("without a port"));
    assert!(why("kv@10.0.0.9:8000@m").contains("no endpoint"));
    assert_eq!(central.known_blocks(0, &prompt(1)), 0);
    // An endpoint that comes later is heard from then on.
    let mut late = Engine::of(&central, 2).await;
    late.publish(store(1, &prompt(2))).await;
    central.endpoints(&[1, 2]);
    late.until_heard(&central, 1).await;
    assert!(central.status(1).trust <= Trust::Partial);
    assert!(central.status(0).connected);
}

/// Peers that never greet, that speak something else, that claim a frame of 2⁴⁶ bytes, and that fall silent amid a
/// frame: none of them keeps an engine from being heard.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_peers_cost_nobody_else_anything() {
    let central = Central::start().await;
    central.endpoints(&[1]);
    let silent = TcpStream::connect(&central.address).await.unwrap();
    let mut web = TcpStream::connect(&central.address).await.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let greeting: Vec<u8> = [&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0][..], b"NULL", &[0; 48]].concat();
    let ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB";
    let mut greedy = TcpStream::connect(&central.address).await.unwrap();
    greedy.write_all(&greeting).await.unwrap();
    greedy.write_all(ready).await.unwrap();
    greedy.write_all(&[2, 0, 0, 0x40, 0, 0, 0, 0, 0]).await.unwrap();
    let mut half = TcpStream::connect(&central.address).await.unwrap();
    half.write_all(&greeting).await.unwrap();
    half.write_all(ready).await.unwrap();
    half.write_all(&[2, 0, 0, 0, 0, 0, 1, 0, 0, 7]).await.unwrap();
    let mut engine = Engine::of(&central, 1).await;
    engine.until_heard(&central, 0).await;
    for mut closed in [web, greedy] {
        let mut rest = Vec::new();
        // Closed by the picker, in order or by a reset.
        let _ = closed.read_to_end(&mut rest).await;
    }
    let errors = &central.metrics.events.errors;
    assert_eq!(errors.with_label_values(&["listener", "protocol"]).get(), 2);
    drop(silent);
    drop(half);
    central.until("alone", || (central.listener.status().connections == 1).then_some(())).await;
    assert!(central.status(0).connected);
}
