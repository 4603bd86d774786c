//! What a sibling knows, fetched and taken in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use warmroute_kv_index::{BlockRows, ViewOutline, key_check};

use super::pb;
use super::snapshot_parts::{BadPart, FORMAT, LONGEST_PART_BYTES, MOST_ADAPTERS, MOST_ENGINES};
use crate::engine_events::{EngineName, KnownEngine, KnownEngines};
use crate::metrics::ReplicaMetrics;
use crate::prompt::AdapterNames;

/// Longest wait for a connection to a sibling.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for the next part.
const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// Parts that may wait for the engine's shard.
const WAITING_PARTS: usize = 4;
/// Longest name of an adapter that is taken.
const LONGEST_ADAPTER_BYTES: usize = 256;
/// Bytes that may be on their way.
const WINDOW_BYTES: u32 = 1 << 20;

/// Fetches what siblings know.
#[derive(Clone)]
pub struct SnapshotClient {
    /// Where it goes.
    pub known: Arc<KnownEngines>,
    /// Learns the adapters that the sibling knows.
    pub adapters: Arc<AdapterNames>,
    /// Counts what became of each engine.
    pub metrics: Arc<ReplicaMetrics>,
    /// Names this process.
    pub process: u64,
}

/// What a sibling gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Its version, once it has said it.
    pub version: String,
    /// Engines that were taken over.
    pub engines: BTreeSet<EngineName>,
    /// Entries of the index.
    pub entries: u64,
    /// About how many bytes came.
    pub bytes: u64,
}

/// Why a sibling gave nothing, or nothing more.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It can't be reached.
    #[error("can't connect: {0}")]
    Unreachable(String),
    /// It is this process.
    #[error("it is this process itself")]
    Itself,
    /// Its snapshots mean something else.
    #[error("{0}")]
    OtherVersion(String),
    /// It is starting itself, or busy.
    #[error("{0}")]
    NotNow(String),
    /// The stream ended amid it.
    #[error("the stream broke: {0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("nothing came for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
    /// It sent what makes no sense.
    #[error(transparent)]
    BadPart(#[from] BadPart),
}

impl FetchError {
    /// The `outcome` label of the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Itself => "itself",
            Self::OtherVersion(_) => "other-version",
            Self::NotNow(_) => "not-now",
            Self::Broken(_) => "broken",
            Self::Silent => "silent",
            Self::BadPart(_) => "malformed",
        }
    }

    fn of(status: &Status) -> Self {
        let why = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition => Self::OtherVersion(why),
            Code::Unimplemented => Self::OtherVersion("it has no snapshots".to_owned()),
            Code::AlreadyExists => Self::Itself,
            Code::ResourceExhausted => Self::NotNow(why),
            // A server that has gone says so too.
            Code::Unavailable if why.contains("starting") => Self::NotNow(why),
            code => Self::Broken(format!("{code:?}: {why}")),
        }
    }
}

/// The engine whose parts come now.
struct Current {
    name: EngineName,
    engine: KnownEngine,
    /// Whether its snapshot is taken.
    is_taken: bool,
}

impl SnapshotClient {
    /// Asks a sibling for engines. What came before an error is kept and stands in `fetched`.
    ///
    /// # Errors
    /// It can't be asked, or the stream ended amid it.
    pub async fn fetch(
        &self,
        sibling: SocketAddr,
        engines: &[EngineName],
        fetched: &mut Fetched,
    ) -> Result<(), FetchError> {
        let endpoint = Endpoint::from_shared(format!("http://{sibling}"))
            .map_err(|error| FetchError::Unreachable(error.to_string()))?
            .connect_timeout(CONNECT_LIMIT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .tcp_nodelay(true);
        let channel = tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await;
        let channel = channel.map_err(|_| FetchError::Unreachable("no answer".to_owned()))?;
        let channel = channel.map_err(|error| FetchError::Unreachable(chain(&error)))?;
        let mut client =
            pb::snapshots_client::SnapshotsClient::new(channel).max_decoding_message_size(LONGEST_PART_BYTES);
        let request = pb::FetchRequest {
            format: FORMAT,
            key_check: key_check(),
            process: self.process,
            engines: engines.iter().take(MOST_ENGINES).map(pb::EngineName::from).collect(),
        };
        let parts = tokio::time::timeout(SILENCE_LIMIT, client.fetch(request)).await;
        let parts = parts.map_err(|_| FetchError::Silent)?.map_err(|status| FetchError::of(&status))?;
        let mut current = None;
        let outcome = self.take_all(parts.into_inner(), &mut current, fetched).await;
        if let Some(Current { engine, is_taken: true, .. }) = current {
            engine.abandon_import().await;
        }
        outcome
    }

    async fn take_all(
        &self,
        mut parts: Streaming<pb::Part>,
        current: &mut Option<Current>,
        fetched: &mut Fetched,
    ) -> Result<(), FetchError> {
        let room = Arc::new(Semaphore::new(WAITING_PARTS));
        loop {
            let part = tokio::time::timeout(SILENCE_LIMIT, parts.message()).await;
            let part = part.map_err(|_| FetchError::Silent)?.map_err(|status| FetchError::of(&status))?;
            let Some(part) = part else {
                return match current {
                    Some(_) => Err(FetchError::Broken("it ended amid an engine".to_owned())),
                    None => Ok(()),
                };
            };
            match part.part.ok_or(BadPart("a part of no known kind"))? {
                pb::part::Part::Hello(hello) => self.greeted(hello, fetched),
                pb::part::Part::EngineBegin(begin) => {
                    if current.is_some() {
                        return Err(BadPart("an engine begins amid another one").into());
                    }
                    *current = self.begin(begin).await?;
                }
                pb::part::Part::BlockRows(rows) => {
                    let rows = BlockRows::from(rows);
                    fetched.bytes += rows.wire_bytes() as u64;
                    if let Some(Current { engine, is_taken: true, .. }) = current {
                        let permit = room.clone().acquire_owned().await.ok();
                        engine.import(rows, permit).await;
                    }
                }
                pb::part::Part::EngineEnd(end) => {
                    if let Some(current) = current.take() {
                        self.end(current, end.names, fetched).await;
                    }
                }
            }
        }
    }

    fn greeted(&self, hello: pb::Hello, fetched: &mut Fetched) {
        fetched.version = hello.version;
        let fits = |name: &&String| name.len() <= LONGEST_ADAPTER_BYTES;
        for name in hello.adapters.iter().take(MOST_ADAPTERS).filter(fits) {
            self.adapters.add(&name.as_str().into());
        }
    }

    /// None if the engine has left meanwhile.
    async fn begin(&self, begin: pb::EngineBegin) -> Result<Option<Current>, FetchError> {
        let name = EngineName::try_from(begin.name.ok_or(BadPart("an engine without a name"))?)?;
        let history = begin.history.ok_or(BadPart("an engine without a history"))?.try_into()?;
        let outline = ViewOutline::try_from(begin.outline.ok_or(BadPart("an engine without an outline"))?)?;
        let Some(engine) = self.known.get(&name) else { return Ok(None) };
        let begun = engine.begin_import(history, outline).await;
        if let Err(refused) = &begun {
            self.metrics.snapshot_engines.with_label_values(&[refused.as_str()]).inc();
            tracing::debug!(endpoint = %name.address, rank = name.rank, reason = %refused, "a sibling's view isn't taken");
        }
        Ok(Some(Current { name, engine, is_taken: begun.is_ok() }))
    }

    async fn end(&self, current: Current, names: u64, fetched: &mut Fetched) {
        let Current { name, engine, is_taken } = current;
        if !is_taken {
            return;
        }
        let outcome = match engine.end_import(names).await {
            Ok(entries) => {
                fetched.entries += entries;
                fetched.engines.insert(name);
                "taken"
            }
            Err(refused) => {
                tracing::warn!(endpoint = %name.address, rank = name.rank, reason = %refused,
                    "a sibling's view of an engine can't be taken");
                refused.as_str()
            }
        };
        self.metrics.snapshot_engines.with_label_values(&[outcome]).inc();
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
