//! What the engines tell: subscriptions to their KV events, and the shards that write the index.

mod connection;
mod engine_snapshot;
mod event_listener;
mod event_sources;
mod event_target;
mod expectation;
mod followed_engine;
mod followed_rank;
mod known_engines;
mod known_ranks;
mod publishers;
mod relearning;
mod replayer;
mod shard;
mod source_finder;
mod state;
mod subscription;
mod trust_change;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use warmroute_kv_index::KvIndex;
use warmroute_plugin::EndpointId;

pub use engine_snapshot::{EngineSnapshot, SnapshotRefused};
pub use event_listener::{EventListener, ListenerStatus};
pub use event_sources::{EventSources, NoSources};
pub use event_target::{GivenPorts, SourceProblem, SourceStatus};
pub use expectation::{Expectation, Expectations, WITHDRAW_INTERVAL};
pub use known_engines::{EngineName, KnownEngine, KnownEngines};
pub use known_ranks::KnownRanks;
pub use publishers::UnknownPublisher;
pub use relearning::Relearning;
pub use shard::ShardHandle;
pub use source_finder::{SourceFinder, SourceQuestion, SourceWatch};
pub use state::{EngineState, EngineStatus, OffloadedStatus};
pub use subscription::{EventSource, Subscription};
pub use trust_change::TrustChange;

use followed_rank::FollowedRank;
use publishers::Publishers;

use crate::metrics::Metrics;
use crate::pool::EndpointState;
use crate::prompt::AdapterNames;

/// Replays that may run at once, of all engines.
const REPLAYS_AT_ONCE: usize = 8;

/// Settings of the subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// Where engines may connect their PUB sockets to; None if they can't.
    pub listen: Option<SocketAddr>,
    /// Port of every engine's PUB socket; 0 for no subscriptions.
    pub port: u16,
    /// Port of every engine's ROUTER socket for replays; 0 for no replays.
    pub replay_port: u16,
    /// Topics asked for start with this; empty asks for all.
    pub topic_filter: String,
    /// Number of shards.
    pub shards: usize,
}

/// Starts and ends the following of engines.
#[derive(Clone)]
pub struct EngineEvents {
    index: Arc<KvIndex>,
    shards: Arc<[ShardHandle]>,
    settings: EventSettings,
    replays_at_once: Arc<Semaphore>,
    publishers: Arc<Publishers>,
    known: Arc<KnownEngines>,
    adapters: Arc<AdapterNames>,
    metrics: Arc<Metrics>,
}

impl EngineEvents {
    /// Starts the shards.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn try_new(
        index: Arc<KvIndex>,
        settings: EventSettings,
        metrics: Arc<Metrics>,
        adapters: &Arc<AdapterNames>,
    ) -> anyhow::Result<Self> {
        let shards: anyhow::Result<Vec<ShardHandle>> = (0..settings.shards.max(1))
            .map(|at| ShardHandle::spawn(at, metrics.clone(), adapters.clone()))
            .collect();
        let replays_at_once = Arc::new(Semaphore::new(REPLAYS_AT_ONCE));
        Ok(Self {
            index,
            shards: shards?.into(),
            settings,
            replays_at_once,
            publishers: Arc::default(),
            known: Arc::default(),
            adapters: adapters.clone(),
            metrics,
        })
    }

    /// Follows an endpoint's engine, at the configured ports, until the endpoint leaves the pool; then every trace of it
    /// leaves the index.
    pub async fn follow(self, endpoint: Arc<EndpointState>) {
        self.follow_as_told(endpoint, None).await;
    }

    /// The same, where the engine says that it publishes.
    pub async fn follow_as_told(self, endpoint: Arc<EndpointState>, sources: Option<SourceWatch>) {
        let (EndpointId(id), ranks) = (endpoint.endpoint.id, endpoint.spec.ranks);
        let states = std::iter::once(&endpoint.engine).chain(endpoint.engine.further_ranks());
        let following = (0_u16..).zip(states).map(|(at, state)| {
            let rank = ranks.first().saturating_add(at);
            let label = match ranks.count() {
                1 => endpoint.label.clone(),
                _ => format!("{}-rank-{rank}", endpoint.label).into(),
            };
            FollowedRank {
                events: self.clone(),
                id: EndpointId(id + u32::from(at)),
                label,
                address: endpoint.endpoint.address.clone(),
                host: endpoint.spec.host.clone(),
                rank,
                state: state.clone(),
                gone: endpoint.gone.clone(),
                sources: sources.clone(),
            }
            .run()
        });
        futures::future::join_all(following).await;
    }

    /// What takes the connections of engines, if they may connect here. To be asked for once.
    pub fn listener(&self) -> Option<EventListener> {
        let address = self.settings.listen?;
        let (filter, metrics) = (self.settings.topic_filter.clone(), self.metrics.clone());
        Some(EventListener::new(address, filter, self.publishers.clone(), metrics))
    }

    /// The engines that are followed.
    pub fn known(&self) -> &Arc<KnownEngines> {
        &self.known
    }

    /// The adapters that they have named.
    pub fn adapters(&self) -> &Arc<AdapterNames> {
        &self.adapters
    }

    /// Whether engines are followed at all.
    pub fn is_on(&self) -> bool {
        self.settings.port != 0 || self.settings.listen.is_some()
    }

    /// Threads that apply events.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Messages that wait in all shards.
    pub fn queue_depth(&self) -> usize {
        self.shards.iter().map(ShardHandle::depth).sum()
    }
}
