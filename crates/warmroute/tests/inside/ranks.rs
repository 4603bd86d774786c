//! Data-parallel ranks over real sockets: each is an engine, behind one address or several, wherever it says that it
//! publishes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use warmroute::discovery::{Discovery, EndpointList, EndpointPublisher, Followers};
use warmroute::engine_events::{EngineEvents, EngineStatus, EventSettings, GivenPorts, SourceFinder};
use warmroute::lease::Lease;
use warmroute::metrics::Metrics;
use warmroute::pool::{DataParallel, EndpointSpec, EndpointState, Pool, Ranks};
use warmroute::prompt::AdapterNames;
use warmroute::readiness::Readiness;
use warmroute::tasks::{Tasks, VitalEnd};
use warmroute_ext_proc::{EndpointPicker as _, HeaderList, HttpRequest, Picked};
use warmroute_kv_events::Trust;
use warmroute_kv_index::{IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys};
use zeromq::{PubSocket, Socket, SocketSend};

use crate::fixture::{ACTIVE_REQUESTS, Fixture, completion};
use crate::subscription::{bind_pub, message, store};

/// Discovery with everything that follows engines.
struct Followed {
    pool: Arc<Pool>,
    index: Arc<KvIndex>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    _ends: mpsc::Receiver<VitalEnd>,
}

/// What is configured of ports.
#[derive(Clone, Copy)]
enum Ports {
    /// Nothing: engines are asked, and this is the default.
    Default(u16),
    /// A user has given it, and engines aren't asked.
    Given(u16),
}

impl Followed {
    fn start(entries: &[String], ranks: DataParallel, ports: Ports) -> Self {
        let (tasks, ends) = Tasks::new();
        let (index, metrics) = (KvIndex::new(IndexLimits::default()), Arc::new(Metrics::try_new().unwrap()));
        let (port, asks) = match ports {
            Ports::Default(port) => (port, true),
            Ports::Given(port) => (port, false),
        };
        let settings =
            EventSettings { listen: None, port, replay_port: 0, topic_filter: "kv@".to_owned(), shards: 2 };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index.clone(), settings, metrics.clone(), &adapters).unwrap();
        let finder = || SourceFinder::try_new(None, GivenPorts::default(), metrics.clone()).unwrap();
        let sources = asks.then(finder);
        let followers = Followers { scraper: None, models: None, events, sources, tasks: tasks.clone() };
        let pool = Arc::new(Pool::new("p"));
        let list = EndpointList::load_ranked(entries, ranks, None).unwrap();
        let readiness = Readiness::default();
        let publisher = EndpointPublisher::new(pool.clone(), followers);
        Discovery::new(list, publisher, readiness, metrics.clone()).start(&tasks);
        Self { pool, index, metrics, tasks, _ends: ends }
    }

    fn labels(&self) -> Vec<String> {
        self.pool.snapshot().states.iter().map(|state| state.label.to_string()).collect()
    }

    fn row(&self, at: usize) -> Arc<EndpointState> {
        self.pool.snapshot().states[at].clone()
    }

    fn status(&self, at: usize) -> EngineStatus {
        self.row(at).engine.status(None)
    }

    async fn until(&self, what: &str, wanted: impl Fn() -> bool) {
        let waiting = async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err() {
            let statuses: Vec<_> = (0..self.labels().len()).map(|at| self.status(at)).collect();
            panic!("never {what}: {:?} {statuses:?}", self.labels());
        }
    }

    async fn until_labels(&self, labels: &[String]) {
        self.until(&format!("the endpoints {labels:?}"), || self.labels() == labels).await;
    }

    fn known_blocks(&self, at: usize, tokens: &[u32]) -> u32 {
        let mut keys = Vec::new();
        block_keys(tokens, 16, &KeyExtras::default(), &mut keys);
        let Some(slot) = self.row(at).engine.slot() else { return 0 };
        let mut found = [Match::default()];
        self.index.lookup(&keys, &[slot], &mut LookupScratch::default(), &mut found);
        found[0].known_blocks
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.tasks.stop_token().cancel();
    }
}

/// One rank's publisher.
struct Publisher {
    socket: PubSocket,
    port: u16,
    seq: u64,
}

impl Publisher {
    async fn bind(port: u16) -> Self {
        let (socket, port) = bind_pub(port).await;
        Self { socket, port, seq: 0 }
    }

    async fn publish(&mut self, first_hash: u64, tokens: &[u32]) {
        self.socket.send(message(self.seq, store(first_hash, tokens))).await.unwrap();
        self.seq += 1;
    }

    /// Publishes until a row has applied it: messages before the subscription was read are lost.
    async fn until_heard(&mut self, followed: &Followed, at: usize) {
        followed.until("connected", || followed.status(at).connected).await;
        loop {
            self.publish(1, &[9; 16]).await;
            let last = self.seq - 1;
            let heard = followed.until("heard", || followed.status(at).last_seq == Some(last));
            if tokio::time::timeout(Duration::from_millis(300), heard).await.is_ok() {
                return;
            }
        }
    }
}

/// Two publishers on neighbouring ports.
async fn two_publishers() -> [Publisher; 2] {
    loop {
        let first = Publisher::bind(0).await;
        let mut socket = PubSocket::new();
        if let Some(port) = first.port.checked_add(1)
            && socket.bind(&format!("tcp://127.0.0.1:{port}")).await.is_ok()
        {
            return [first, Publisher { socket, port, seq: 0 }];
        }
    }
}

/// An API server that says where its engine publishes.
struct Api {
    address: SocketAddr,
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<Mutex<u32>>,
}

impl Api {
    async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new((StatusCode::NOT_FOUND, String::new())));
        let asked = Arc::new(Mutex::new(0));
        let (answers, count) = (answer.clone(), asked.clone());
        let route = get(async move || {
            *count.lock() += 1;
            answers.lock().clone()
        });
        let router = Router::new().route("/kv_event_sources", route);
        let stop = tasks.stop_token().cancelled_owned();
        tasks.spawn("api", async move {
            axum::serve(listener, router).with_graceful_shutdown(stop).await.unwrap();
        });
        Self { address, answer, asked }
    }

    fn says(&self, ranks: &[(u16, u16)]) {
        let source = |port: u16| {
            json!({"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": format!("tcp://*:{port}"),
            "replay_endpoint": null, "topic": "kv@e@m"})
        };
        let sources: serde_json::Map<String, Value> =
            ranks.iter().map(|(rank, port)| (rank.to_string(), source(*port))).collect();
        *self.answer.lock() = (StatusCode::OK, Value::from(sources).to_string());
    }

    fn entry(&self) -> [String; 1] {
        [self.address.to_string()]
    }

    fn labels(&self, ranks: &[u16]) -> Vec<String> {
        ranks.iter().map(|rank| format!("{}-rank-{rank}", self.address)).collect()
    }
}

fn prompt(number: u32) -> Vec<u32> {
    (number * 64..(number + 1) * 64).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_of_one_address_publish_under_one_topic_and_one_restarts_alone() {
    let [mut first, mut second] = two_publishers().await;
    let ranks = DataParallel { size: Some(2), ..DataParallel::default() };
    let followed = Followed::start(&["127.0.0.1:8000".to_owned()], ranks, Ports::Given(first.port));
    assert_eq!(followed.labels(), ["127.0.0.1:8000-rank-0", "127.0.0.1:8000-rank-1"]);
    first.until_heard(&followed, 0).await;
    second.until_heard(&followed, 1).await;
    first.publish(100, &prompt(1)).await;
    second.publish(100, &prompt(2)).await;
    followed.until("stored", || followed.known_blocks(0, &prompt(1)) == 4).await;
    followed.until("stored", || followed.known_blocks(1, &prompt(2)) == 4).await;
    assert_eq!((followed.known_blocks(0, &prompt(2)), followed.known_blocks(1, &prompt(1))), (0, 0));

    // The second rank's process ends; the first one's view is as good as before.
    let port = second.port;
    second.socket.close().await;
    followed.until("lost", || followed.status(1).trust == Trust::Blind).await;
    assert!(followed.status(0).connected && followed.status(0).trust != Trust::Blind);
    assert_eq!(followed.known_blocks(0, &prompt(1)), 4);
    let mut second = Publisher::bind(port).await;
    second.until_heard(&followed, 1).await;
    assert_eq!(followed.known_blocks(1, &prompt(2)), 0, "its new process holds nothing of the old one's");
    assert_eq!((followed.known_blocks(0, &prompt(1)), followed.status(0).restarts), (4, 0));
    let page = followed.metrics.page().unwrap();
    assert!(page.contains("pod_identifier=\"127.0.0.1:8000-rank-1\",trust="), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_with_an_address_of_its_own_publishes_at_the_port_plus_its_number() {
    let [mut first, mut second] = two_publishers().await;
    let entries = ["127.0.0.1:8000", "127.0.0.1:8001#1"].map(str::to_owned);
    let followed = Followed::start(&entries, DataParallel::default(), Ports::Given(first.port));
    assert_eq!(followed.labels(), ["127.0.0.1:8000", "127.0.0.1:8001"]);
    first.until_heard(&followed, 0).await;
    second.until_heard(&followed, 1).await;
    second.publish(100, &prompt(2)).await;
    followed.until("stored", || followed.known_blocks(1, &prompt(2)) == 4).await;
    assert_eq!(followed.known_blocks(0, &prompt(2)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_back_with_other_ranks_has_other_endpoints() {
    let (tasks, _ends) = Tasks::new();
    let api = Api::start(&tasks).await;
    let [mut first, mut second] = two_publishers().await;
    api.says(&[(0, first.port), (1, second.port)]);
    // Nobody listens on the default port.
    let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(1));
    followed.until_labels(&api.labels(&[0, 1])).await;
    first.until_heard(&followed, 0).await;
    second.until_heard(&followed, 1).await;
    first.publish(100, &prompt(1)).await;
    followed.until("stored", || followed.known_blocks(0, &prompt(1)) == 4).await;
    let old = followed.row(0);

    // Another process under the same address, with other ports: noticed when the connections end.
    let third = Publisher::bind(0).await;
    api.says(&[(0, third.port)]);
    first.socket.close().await;
    second.socket.close().await;
    followed.until_labels(&[api.address.to_string()]).await;
    assert!(old.gone.is_cancelled());
    let mut third = third;
    third.until_heard(&followed, 0).await;
    assert_eq!(followed.known_blocks(0, &prompt(1)), 0);
    tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_publishes_elsewhere_after_a_restart_is_followed_there() {
    let (tasks, _ends) = Tasks::new();
    let api = Api::start(&tasks).await;
    let mut first = Publisher::bind(0).await;
    api.says(&[(0, first.port)]);
    let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(1));
    first.until_heard(&followed, 0).await;
    first.publish(100, &prompt(1)).await;
    followed.until("stored", || followed.known_blocks(0, &prompt(1)) == 4).await;
    let id = followed.row(0).endpoint.id;
    let mut second = Publisher::bind(0).await;
    api.says(&[(0, second.port)]);
    first.socket.close().await;
    let at = format!("127.0.0.1:{}", second.port);
    followed.until("moved", || followed.status(0).source.events_at.as_ref() == Some(&at)).await;
    second.until_heard(&followed, 0).await;
    assert_eq!(followed.known_blocks(0, &prompt(1)), 0, "another publisher's numbers go on from nothing");
    assert_eq!(followed.row(0).endpoint.id, id, "the endpoint is the same");
    tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_default_port_is_followed_and_the_reason_is_counted() {
    let answers = [
        (StatusCode::NOT_FOUND, "", "absent"),
        (StatusCode::OK, "{\"ok\":true}", "not-understood"),
        (StatusCode::INTERNAL_SERVER_ERROR, "", "refused"),
    ];
    for (status, text, outcome) in answers {
        let (tasks, _ends) = Tasks::new();
        let api = Api::start(&tasks).await;
        *api.answer.lock() = (status, text.to_owned());
        let mut publisher = Publisher::bind(0).await;
        let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(publisher.port));
        publisher.until_heard(&followed, 0).await;
        assert_eq!(followed.labels(), api.entry());
        let counter = followed.metrics.events.source_questions.with_label_values(&[outcome]);
        assert!(counter.get() > 0, "{outcome}");
        tasks.stop_token().cancel();
    }
    // An engine that isn't up yet is asked until it is.
    let (tasks, _ends) = Tasks::new();
    let api = Api::start(&tasks).await;
    *api.answer.lock() = (StatusCode::SERVICE_UNAVAILABLE, String::new());
    let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(1));
    followed.until("asked", || *api.asked.lock() > 0).await;
    let mut publisher = Publisher::bind(0).await;
    api.says(&[(0, publisher.port)]);
    publisher.until_heard(&followed, 0).await;
    tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_publishes_nothing_says_so() {
    let (tasks, _ends) = Tasks::new();
    let api = Api::start(&tasks).await;
    let off =
        json!({"0": {"enable_kv_cache_events": false, "publisher": "null", "endpoint": "tcp://*:5557"}});
    *api.answer.lock() = (StatusCode::OK, off.to_string());
    let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(1));
    followed.until("told", || followed.status(0).source.problem.is_some()).await;
    let status = followed.status(0);
    let problem = status.source.problem.unwrap();
    assert!(
        problem.starts_with("this engine publishes no KV events: start it with --kv-events-config"),
        "{problem}"
    );
    assert_eq!((status.source.events_at, status.trust), (None, Trust::Blind));
    // Nobody keeps trying a port on which nobody listens.
    let page = followed.metrics.page().unwrap();
    assert!(!page.contains("zmq_errors_total{"), "{page}");
    tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_engines_are_followed_at_once() {
    const ENGINES: u16 = 300;
    let (tasks, _ends) = Tasks::new();
    let api = Api::start(&tasks).await;
    let mut publishers = Vec::new();
    for _ in 0..ENGINES {
        publishers.push(Publisher::bind(0).await);
    }
    // Behind one address; a rank is an engine like any other.
    let ports: Vec<(u16, u16)> = (0..).zip(publishers.iter().map(|publisher| publisher.port)).collect();
    api.says(&ports);
    let followed = Followed::start(&api.entry(), DataParallel::default(), Ports::Default(1));
    followed.until("all connected", || followed.metrics.events.subscribers.get() == i64::from(ENGINES)).await;
    for (at, publisher) in publishers.iter_mut().enumerate() {
        publisher.until_heard(&followed, at).await;
        publisher.publish(100, &prompt(at as u32)).await;
    }
    followed
        .until("all stored", || {
            (0..publishers.len()).all(|at| followed.known_blocks(at, &prompt(at as u32)) == 4)
        })
        .await;
    // Once for the address, once for its ranks, and again where a connection could not be made at once.
    assert!(*api.asked.lock() < u32::from(ENGINES) / 4, "{}", *api.asked.lock());
    let statuses = (0..publishers.len()).map(|at| followed.status(at));
    assert!(statuses.into_iter().all(|status| status.missed_batches == 0));
    tasks.stop_token().cancel();
}

#[test]
fn ranks_of_one_address_are_endpoints_of_their_own_that_a_subset_allows_together() {
    let pool = Pool::new("p");
    let ranks = DataParallel { size: Some(2), ..DataParallel::default() }.ranks(&[]);
    let specs: Vec<EndpointSpec> = ranks
        .iter()
        .map(|ranks| EndpointSpec { ranks: *ranks, ..EndpointSpec::new("e", "10.0.0.1", 8000) })
        .collect();
    pool.update(&specs);
    let snapshot = pool.snapshot();
    assert_eq!(snapshot.subset_rows(&["10.0.0.1:8000".to_owned()]), [0, 1]);
    assert_ne!(snapshot.endpoints[0].id, snapshot.endpoints[1].id);
    assert_eq!(snapshot.endpoints[0].address, snapshot.endpoints[1].address);
    let _charge = snapshot.states[0].load.charge(7);
    assert_eq!(snapshot.states[1].load.in_flight().requests, 0);
    // One rank more is another engine altogether.
    let change = pool.update(&[EndpointSpec::new("e", "10.0.0.1", 8000)]);
    assert_eq!((change.added.len(), change.removed.len()), (1, 2));
}

/// The rank that an answer pins the request to.
fn pinned<L>(picked: &Picked<L>) -> Option<&str> {
    let header = picked.set_headers.iter().find(|(name, _)| name == "x-data-parallel-rank");
    header.map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn a_pick_of_a_rank_that_shares_its_address_pins_the_request_to_it() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 1);
    let rank = |name: &str, host: &str, ranks| EndpointSpec { ranks, ..EndpointSpec::new(name, host, 8000) };
    let shared = |rank: u16, header: u16| Ranks::Pinned { rank, header, of: 2 };
    fixture
        .pool
        .update(&[rank("e-rank-4", "10.0.0.1", shared(4, 0)), rank("e-rank-5", "10.0.0.1", shared(5, 1))]);
    // A burst sees its own charges, so it goes to both.
    let picks = [fixture.pick().await, fixture.pick().await];
    let mut ranks: Vec<_> = picks.iter().map(|picked| pinned(picked).unwrap()).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, ["0", "1"], "what the header counts is the ranks of this address");
    assert!(picks.iter().all(|picked| picked.destinations == ["10.0.0.1:8000"]));
    let mut labels: Vec<_> =
        fixture.receipts.newest(2).iter().map(|receipt| receipt.pick.clone().unwrap()).collect();
    labels.sort_unstable();
    assert_eq!(
        labels.iter().map(|label| &**label).collect::<Vec<_>>(),
        ["10.0.0.1:8000-rank-4", "10.0.0.1:8000-rank-5"]
    );
    drop(picks);
    fixture.assert_nothing_in_flight();

    // One picked without a body, by load alone, is pinned too.
    let get = HttpRequest::new(HeaderList::from_pairs([(":method", "GET"), (":path", "/v1/models")]), "");
    assert!(pinned(&fixture.picker.pick(get).await.unwrap()).is_some());

    // Ranks with a port each, and ranks that the engine chooses among, need no header.
    for ranks in [Ranks::Own { rank: 3 }, Ranks::Unpinned { first: 0, of: 2 }] {
        fixture.pool.update(&[rank("e", "10.0.0.1", ranks)]);
        assert_eq!(pinned(&fixture.pick().await), None);
    }
}

#[tokio::test]
async fn of_several_destinations_only_those_count_that_take_the_first_ones_header() {
    let config = ACTIVE_REQUESTS.replace(
        "- type: max-score-picker",
        "- type: max-score-picker\n  parameters: {maxNumOfEndpoints: 9}",
    );
    let fixture = Fixture::new(&config, 1);
    let spec = |host: &str, rank: u16| {
        let ranks = Ranks::Pinned { rank, header: rank, of: 2 };
        EndpointSpec { ranks, ..EndpointSpec::new(format!("{host}-rank-{rank}"), host, 8000) }
    };
    let single = EndpointSpec::new("single", "10.0.0.3", 8000);
    fixture.pool.update(&[
        spec("10.0.0.1", 0),
        spec("10.0.0.1", 1),
        spec("10.0.0.2", 0),
        spec("10.0.0.2", 1),
        single,
    ]);
    for _ in 0..8 {
        let picked = fixture.pick().await;
        let mut destinations = picked.destinations.clone();
        destinations.sort_unstable();
        match pinned(&picked) {
            Some(_) => assert_eq!(destinations, ["10.0.0.1:8000", "10.0.0.2:8000"]),
            None => assert_eq!(destinations, ["10.0.0.3:8000"]),
        }
    }
}

impl Fixture {
    async fn pick(&self) -> Picked<Lease> {
        self.picker.pick(completion(&[1; 20])).await.unwrap()
    }
}
