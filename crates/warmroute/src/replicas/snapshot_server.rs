//! What this replica tells a sibling that starts.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use warmroute_kv_index::key_check;

use super::pb;
use super::snapshot_parts::{FORMAT, MOST_ADAPTERS, MOST_ENGINES, PIECE_BYTES, part};
use crate::engine_events::{EngineName, KnownEngines};
use crate::metrics::Metrics;
use crate::prompt::AdapterNames;
use crate::tasks::Tasks;

/// Siblings that are told at the same time. Each takes the memory of one engine's snapshot.
const AT_ONCE: usize = 4;
/// Parts that may wait for a sibling's network.
const WAITING_PARTS: usize = 4;
/// A sibling that takes nothing for so long is left.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Longest request: names of engines.
const LONGEST_REQUEST_BYTES: usize = 1 << 20;

/// Tells siblings what is known of the engines: one engine at a time, which is copied between two of its batches, so
/// that it is as of one of them.
#[derive(Clone)]
pub struct SnapshotServer {
    known: Arc<KnownEngines>,
    adapters: Arc<AdapterNames>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    /// Drawn at the start: who asks with it is this process itself.
    process: u64,
    at_once: Arc<Semaphore>,
}

type Parts = Pin<Box<dyn Stream<Item = Result<pb::Part, Status>> + Send>>;

impl SnapshotServer {
    /// Tells of `known` engines; `process` names this process.
    pub fn new(
        known: Arc<KnownEngines>,
        adapters: Arc<AdapterNames>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
        process: u64,
    ) -> Self {
        Self { known, adapters, metrics, tasks, process, at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Serves in plaintext until `stop`.
    ///
    /// # Errors
    /// The server fails.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let service = pb::snapshots_server::SnapshotsServer::new(self);
        let service = service.max_decoding_message_size(LONGEST_REQUEST_BYTES);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = Server::builder().add_service(service);
        Ok(router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await?)
    }

    /// Refuses what can't be answered, with a code for each reason.
    fn admit(&self, request: &pb::FetchRequest) -> Result<OwnedSemaphorePermit, Status> {
        if request.format != FORMAT || request.key_check != key_check() {
            return Err(Status::failed_precondition(format!(
                "this picker ({}) has snapshots of format {FORMAT}, keys {:x}; asked for are format {}, keys {:x}",
                env!("CARGO_PKG_VERSION"),
                key_check(),
                request.format,
                request.key_check
            )));
        }
        if request.process == self.process {
            return Err(Status::already_exists("this picker has asked itself"));
        }
        if request.engines.len() > MOST_ENGINES {
            return Err(Status::invalid_argument(format!("more than {MOST_ENGINES} engines are asked for")));
        }
        if self.known.is_waiting() {
            return Err(Status::unavailable("this picker is starting itself"));
        }
        let permit = self.at_once.clone().try_acquire_owned();
        permit.map_err(|_| Status::resource_exhausted(format!("{AT_ONCE} siblings are being told already")))
    }

    /// Tells of the engines, one after the other, until the sibling has gone.
    async fn tell(self, engines: Vec<EngineName>, parts: mpsc::Sender<Result<pb::Part, Status>>) {
        let outcome = match self.tell_engines(engines, &parts).await {
            Ok(()) => "complete",
            Err(Gone) => "left",
        };
        self.metrics.replicas.snapshots_served.with_label_values(&[outcome]).inc();
    }

    async fn tell_engines(
        &self,
        engines: Vec<EngineName>,
        parts: &mpsc::Sender<Result<pb::Part, Status>>,
    ) -> Result<(), Gone> {
        let mut adapters = self.adapters.names();
        adapters.truncate(MOST_ADAPTERS);
        send(parts, part(pb::Hello { version: env!("CARGO_PKG_VERSION").to_owned(), adapters })).await?;
        for name in engines {
            let Some(engine) = self.known.get(&name) else { continue };
            let Some(snapshot) = engine.export(PIECE_BYTES).await else { continue };
            let begin = pb::EngineBegin {
                name: Some((&name).into()),
                history: Some(snapshot.history.into()),
                outline: Some((&snapshot.view.outline).into()),
            };
            send(parts, part(begin)).await?;
            let mut names = 0;
            for rows in snapshot.view.rows {
                names += rows.layers.iter().map(|layer| layer.names.len() as u64).sum::<u64>();
                send(parts, part(pb::BlockRows::from(rows))).await?;
            }
            send(parts, part(pb::EngineEnd { names })).await?;
        }
        Ok(())
    }
}

/// The sibling has gone, or takes nothing.
struct Gone;

async fn send(parts: &mpsc::Sender<Result<pb::Part, Status>>, part: pb::Part) -> Result<(), Gone> {
    match tokio::time::timeout(SEND_LIMIT, parts.send(Ok(part))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

#[tonic::async_trait]
impl pb::snapshots_server::Snapshots for SnapshotServer {
    type FetchStream = Parts;

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Parts>, Status> {
        let request = request.into_inner();
        let permit = self.admit(&request).inspect_err(|status| {
            tracing::info!(code = ?status.code(), reason = status.message(), "no snapshot for a sibling");
            self.metrics.replicas.snapshots_served.with_label_values(&["refused"]).inc();
        })?;
        let engines: Result<Vec<EngineName>, _> =
            request.engines.into_iter().map(EngineName::try_from).collect();
        let engines = engines.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (parts, received) = mpsc::channel(WAITING_PARTS);
        let server = self.clone();
        self.tasks.spawn("snapshot for a sibling", async move {
            server.tell(engines, parts).await;
            drop(permit);
        });
        let stream =
            futures::stream::unfold(received, async |mut received| Some((received.recv().await?, received)));
        Ok(Response::new(Box::pin(stream)))
    }
}
