//! Siblings on real sockets: good ones, and such as end, lie, are silent or of another version.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use warmroute_kv_events::{FeedSettings, Trust, TrustReason};
use warmroute_kv_index::{IndexLimits, KvIndex};
use warmroute_plugin::EndpointId;

use super::snapshot_client::{FetchError, Fetched, SnapshotClient};
use super::snapshot_parts::{FORMAT, part};
use super::snapshot_server::SnapshotServer;
use super::{SnapshotStatus, WarmStart, pb};
use crate::engine_events::{EngineName, EngineState, KnownEngine, KnownEngines, ShardHandle};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::prompt::AdapterNames;
use crate::readiness::Readiness;
use crate::tasks::Tasks;

const LIMIT: Duration = Duration::from_secs(60);

/// A replica without subscriptions: batches are given to it by hand.
struct Replica {
    index: Arc<KvIndex>,
    known: Arc<KnownEngines>,
    adapters: Arc<AdapterNames>,
    metrics: Arc<Metrics>,
    shard: ShardHandle,
    engines: Vec<(EngineName, EndpointId, Arc<EngineState>)>,
    tasks: Tasks,
}

impl Replica {
    async fn start(engines: u32, awaits: bool, limits: IndexLimits) -> Self {
        let (metrics, adapters) = (Arc::new(Metrics::try_new().unwrap()), Arc::<AdapterNames>::default());
        let shard = ShardHandle::spawn(0, metrics.clone(), adapters.clone()).unwrap();
        let (index, known) = (KvIndex::new(limits), Arc::<KnownEngines>::default());
        if awaits {
            known.wait_for_snapshots();
        }
        let mut replica =
            Self { index, known, adapters, metrics, shard, engines: Vec::new(), tasks: Tasks::new().0 };
        for number in 0..engines {
            let (id, state) = (EndpointId(number), Arc::<EngineState>::default());
            let name = EngineName { address: format!("10.0.0.{number}:8000").into(), rank: 0 };
            let view = replica.index.add_engine().unwrap();
            let settings = FeedSettings::default();
            replica.shard.add(id, name.address.clone(), view, state.clone(), settings, awaits).await;
            replica.shard.followed(id).await;
            replica.shard.connected(id).await;
            state.set_connected(true);
            let known = KnownEngine::new(id, replica.shard.clone(), state.clone());
            replica.known.add(name.clone(), known, awaits).await;
            replica.engines.push((name, id, state));
        }
        replica
    }

    /// Batch `seq` of an engine: a prompt of so many blocks.
    fn hear(&self, engine: usize, seq: u64, blocks: u64) {
        let (_, id, _) = &self.engines[engine];
        let first = seq * 1000;
        let hashes: Vec<u64> = (first..first + blocks).collect();
        let tokens: Vec<u64> = (0..blocks * 2).map(|token| first * 2 + token).collect();
        let event = ("BlockStored", hashes, (), tokens, 2, (), "GPU", "adapter");
        let payload = rmp_serde::to_vec(&(seq as f64 + 0.5, [event], 0)).unwrap();
        assert!(self.shard.offer(*id, std::iter::once((seq, payload.into())).collect()));
    }

    /// Waits until the shard has done all that was given to it.
    async fn settle(&self) {
        // It answers in turn.
        for (name, _, _) in &self.engines {
            self.known.get(name).unwrap().export(1).await;
        }
    }

    async fn state(&self, engine: usize) -> (Trust, TrustReason, u64) {
        self.settle().await;
        let state = &self.engines[engine].2;
        let trust = state.trust_state();
        (trust.trust, trust.reason, state.blocks())
    }

    async fn serve(&self, process: u64) -> SocketAddr {
        let (known, adapters) = (self.known.clone(), self.adapters.clone());
        let server = SnapshotServer::new(known, adapters, self.metrics.clone(), self.tasks.clone(), process);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.tasks.spawn_vital("server", server.serve(listener, self.tasks.stop_token()));
        address
    }

    fn client(&self) -> SnapshotClient {
        SnapshotClient {
            known: self.known.clone(),
            adapters: self.adapters.clone(),
            metrics: self.metrics.replicas.clone(),
            process: 1,
        }
    }

    async fn fetch(&self, sibling: SocketAddr) -> (Fetched, Result<(), FetchError>) {
        let names: Vec<EngineName> = self.engines.iter().map(|(name, _, _)| name.clone()).collect();
        let mut fetched = Fetched::default();
        let outcome = self.client().fetch(sibling, &names, &mut fetched).await;
        (fetched, outcome)
    }

    fn assert_empty(&self) {
        let stats = self.index.stats();
        assert_eq!((stats.entries, stats.keys), (0, 0));
    }
}

/// A sibling that says what it is told to.
#[derive(Clone)]
struct Script {
    parts: Vec<pb::Part>,
    then: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Ends,
    Fails,
    Hangs,
}

#[tonic::async_trait]
impl pb::snapshots_server::Snapshots for Script {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<pb::Part, Status>> + Send>>;

    async fn fetch(&self, _: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        use futures::StreamExt;
        let parts = futures::stream::iter(self.parts.clone().into_iter().map(Ok));
        Ok(Response::new(match self.then {
            End::Ends => parts.boxed(),
            End::Fails => parts.chain(futures::stream::iter([Err(Status::internal("gone"))])).boxed(),
            End::Hangs => parts.chain(futures::stream::pending()).boxed(),
        }))
    }
}

async fn scripted(tasks: &Tasks, parts: Vec<pb::Part>, then: End) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = pb::snapshots_server::SnapshotsServer::new(Script { parts, then });
    let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
    tasks.spawn("scripted sibling", async move { drop(serving.await) });
    address
}

/// All parts that a good sibling sends.
async fn parts_of(replica: &Replica) -> Vec<pb::Part> {
    let address = replica.serve(77).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = pb::snapshots_client::SnapshotsClient::new(channel.connect().await.unwrap());
    let request = pb::FetchRequest {
        format: FORMAT,
        key_check: warmroute_kv_index::key_check(),
        process: 1,
        engines: replica.engines.iter().map(|(name, _, _)| name.into()).collect(),
    };
    let mut stream = client.fetch(request).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part);
    }
    parts
}

async fn good_sibling() -> Replica {
    let sibling = Replica::start(2, false, IndexLimits::default()).await;
    for seq in 0..3 {
        sibling.hear(0, seq, 40);
        sibling.hear(1, seq, 5);
    }
    sibling
}

#[tokio::test]
async fn what_a_sibling_knows_is_taken_over_and_proven_by_what_waited() {
    let sibling = good_sibling().await;
    assert_eq!(sibling.state(0).await, (Trust::Exact, TrustReason::FollowedFromStart, 120));
    let late = Replica::start(2, true, IndexLimits::default()).await;
    // The first engine's last batch was heard here too.
    late.hear(0, 2, 40);
    assert_eq!(late.state(0).await, (Trust::Blind, TrustReason::NothingHeard, 0), "it waits");
    let (fetched, outcome) = late.fetch(sibling.serve(2).await).await;
    outcome.unwrap();
    assert_eq!((fetched.engines.len(), fetched.entries), (2, 135));
    assert_eq!(late.state(0).await, (Trust::Exact, TrustReason::FollowedFromStart, 120));
    // Of the other one nothing has come, and it answers no replays.
    assert_eq!(late.state(1).await, (Trust::Doubtful, TrustReason::Reconnected, 15));
    assert_eq!(late.index.stats().entries, sibling.index.stats().entries);
    assert!(late.adapters.contains("adapter"), "adapters come along");
    late.hear(0, 3, 7);
    assert_eq!(late.state(0).await, (Trust::Exact, TrustReason::FollowedFromStart, 127));
    assert!(late.metrics.page().unwrap().contains("snapshot_engines_total{outcome=\"taken\"} 2"));
}

#[tokio::test]
async fn whoever_cannot_tell_says_why() {
    let sibling = good_sibling().await;
    let late = Replica::start(2, true, IndexLimits::default()).await;
    // It is this process itself, by another address.
    let (_, outcome) = late.fetch(sibling.serve(1).await).await;
    assert!(matches!(outcome, Err(FetchError::Itself)), "{outcome:?}");
    // It starts too.
    let cold = Replica::start(2, true, IndexLimits::default()).await;
    let (_, outcome) = late.fetch(cold.serve(3).await).await;
    assert!(matches!(outcome, Err(FetchError::NotNow(_))), "{outcome:?}");
    // Nobody is there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_, outcome) = late.fetch(nobody).await;
    assert!(matches!(outcome, Err(FetchError::Unreachable(_))), "{outcome:?}");
    // Another version, of the format or of the keys.
    let address = sibling.serve(2).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = pb::snapshots_client::SnapshotsClient::new(channel.connect().await.unwrap());
    for (format, key_check) in [(FORMAT + 1, warmroute_kv_index::key_check()), (FORMAT, 5)] {
        let request = pb::FetchRequest { format, key_check, process: 9, engines: Vec::new() };
        let refused = client.fetch(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("format 1, keys"), "{refused}");
    }
    late.assert_empty();
}

#[tokio::test]
async fn a_stream_that_ends_halfway_leaves_whole_engines_and_nothing_else() {
    let parts = parts_of(&good_sibling().await).await;
    assert_eq!(parts.len(), 7, "hello, and for each engine begin, rows, end");
    for (kept, then, expected) in [
        (3, End::Fails, 0),
        (3, End::Ends, 0),
        (5, End::Fails, 120),
        (6, End::Ends, 120),
        (7, End::Ends, 135),
    ] {
        let late = Replica::start(2, true, IndexLimits::default()).await;
        let sibling = scripted(&late.tasks, parts[..kept].to_vec(), then).await;
        let (fetched, outcome) = late.fetch(sibling).await;
        assert_eq!(outcome.is_ok(), kept == 7, "{kept}: {outcome:?}");
        late.settle().await;
        assert_eq!((fetched.entries, late.index.stats().entries as u64), (expected, expected), "{kept}");
        // Who has nothing begins as ever.
        late.known.stop_waiting().await;
        late.hear(1, 7, 2);
        let blocks = if kept == 7 { 0 } else { 2 };
        // Without replay the seventh batch after the second is another process's.
        assert_eq!(late.state(1).await.2, blocks.max(2), "{kept}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_not_taken() {
    let parts = parts_of(&good_sibling().await).await;
    let spoil = |change: &dyn Fn(&mut pb::part::Part)| {
        let mut parts = parts.clone();
        parts.iter_mut().filter_map(|part| part.part.as_mut()).for_each(change);
        parts
    };
    let rows = |change: fn(&mut pb::BlockRows)| {
        spoil(&move |part| {
            if let pb::part::Part::BlockRows(rows) = part {
                change(rows);
            }
        })
    };
    let spoiled = [
        rows(|rows| rows.parents[0] = 9),
        rows(|rows| rows.keys.truncate(3)),
        rows(|rows| rows.layers[0].names[1] = rows.layers[0].names[0]),
        rows(|rows| rows.layers[0].layer = 4),
        // A part is missing: not as many names as announced.
        rows(|rows| rows.layers.clear()),
        spoil(&|part| {
            if let pb::part::Part::EngineBegin(begin) = part {
                begin.outline.as_mut().unwrap().main_group = Some(3);
            }
        }),
    ];
    for parts in spoiled {
        let late = Replica::start(2, true, IndexLimits::default()).await;
        let (fetched, outcome) = late.fetch(scripted(&late.tasks, parts, End::Ends).await).await;
        outcome.unwrap();
        assert_eq!(fetched.entries, 0);
        assert!(late.metrics.page().unwrap().contains("snapshot_engines_total{outcome=\"malformed\"} 2"));
        late.settle().await;
        late.assert_empty();
    }
    // What can't be understood at all ends the stream.
    let nonsense = [
        vec![pb::Part { part: None }],
        vec![part(pb::EngineBegin::default())],
        spoil(&|part| {
            if let pb::part::Part::EngineBegin(begin) = part {
                begin.history.as_mut().unwrap().doubt = "a-reason-of-later".to_owned();
            }
        }),
        [&parts[..2], &parts[1..2]].concat(),
    ];
    for parts in nonsense {
        let late = Replica::start(2, true, IndexLimits::default()).await;
        let (_, outcome) = late.fetch(scripted(&late.tasks, parts, End::Ends).await).await;
        assert!(matches!(outcome, Err(FetchError::BadPart(_))), "{outcome:?}");
        late.settle().await;
        late.assert_empty();
    }
}

#[tokio::test]
async fn an_index_without_room_takes_what_fits() {
    let sibling = good_sibling().await;
    let late = Replica::start(2, true, IndexLimits { max_entries: 50, ..IndexLimits::default() }).await;
    let (fetched, outcome) = late.fetch(sibling.serve(2).await).await;
    outcome.unwrap();
    assert_eq!((fetched.engines.len(), fetched.entries), (1, 15));
    assert!(late.metrics.page().unwrap().contains("snapshot_engines_total{outcome=\"index-full\"} 1"));
}

/// Readiness waits, but not for ever; and what came whole by then stays.
#[tokio::test]
async fn a_silent_sibling_is_not_waited_for_longer_than_asked() {
    let parts = parts_of(&good_sibling().await).await;
    let late = Replica::start(2, false, IndexLimits::default()).await;
    let sibling = scripted(&late.tasks, parts[..5].to_vec(), End::Hangs).await;
    let readiness = Readiness::default();
    let status = SnapshotStatus::default();
    let start = WarmStart {
        client: late.client(),
        peers: vec![sibling.to_string()],
        timeout: Duration::from_millis(300),
        pool: Arc::new(Pool::new("p")),
        readiness: readiness.clone(),
        status: status.clone(),
    };
    start.announce();
    let (_, id, state) = &late.engines[0];
    // Engines that come from now on wait.
    late.shard.remove(*id).await;
    let view = late.index.add_engine().unwrap();
    let settings = FeedSettings::default();
    late.shard.add(*id, "first".into(), view, state.clone(), settings, late.known.is_waiting()).await;
    late.shard.followed(*id).await;
    late.shard.connected(*id).await;
    readiness.is_listening();
    readiness.pool_is_synced();
    assert!(!readiness.is_ready());
    assert_eq!(status.report().state, "waiting");
    tokio::time::timeout(LIMIT, start.run()).await.unwrap();
    assert!(readiness.is_ready());
    let report = status.report();
    assert_eq!((report.state, report.from[0].engines, report.from[0].entries), ("partly", 1, 120));
    assert!(
        report.problems.iter().any(|problem| problem.contains("--replica-snapshot-timeout")),
        "{report:?}"
    );
    assert!(late.metrics.page().unwrap().contains("replica_snapshots_total{outcome=\"timed-out\"} 1"));
    assert!(!late.known.is_waiting());
    late.settle().await;
    assert_eq!(late.state(0).await.2, 120);
}

/// However slow a sibling reads, no more than a few parts wait for it.
#[tokio::test]
async fn parts_are_small_and_few_wait() {
    let sibling = Replica::start(1, false, IndexLimits::default()).await;
    for seq in 0..60 {
        sibling.hear(0, seq, 900);
    }
    let parts = parts_of(&sibling).await;
    assert!(parts.len() > 5);
    for part in &parts {
        let bytes = prost::Message::encoded_len(part);
        assert!(bytes <= 256 * 1024, "{bytes}");
    }
    let late = Replica::start(1, true, IndexLimits::default()).await;
    let (fetched, outcome) = late.fetch(sibling.serve(2).await).await;
    outcome.unwrap();
    assert_eq!(fetched.entries, 60 * 900);
    let bytes_per_block = fetched.bytes as f64 / fetched.entries as f64;
    assert!(bytes_per_block < 17.0, "{bytes_per_block}");
}
