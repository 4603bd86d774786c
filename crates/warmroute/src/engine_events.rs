//! What the engines tell: subscriptions to their KV events, and the shards that write the index.

mod connection;
mod event_listener;
mod expectation;
mod followed_engine;
mod publishers;
mod relearning;
mod replayer;
mod shard;
mod state;
mod subscription;
mod trust_change;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use warmroute_kv_events::FeedSettings;
use warmroute_kv_index::KvIndex;

pub use event_listener::{EventListener, ListenerStatus};
pub use expectation::{Expectation, Expectations, WITHDRAW_INTERVAL};
pub use publishers::UnknownPublisher;
pub use relearning::Relearning;
pub use shard::ShardHandle;
pub use state::{EngineState, EngineStatus, OffloadedStatus};
pub use subscription::{EventSource, Subscription};
pub use trust_change::TrustChange;

use publishers::{EngineTarget, Publishers};
use replayer::Replayer;

use crate::metrics::Metrics;
use crate::pool::EndpointState;
use crate::prompt::AdapterNames;

/// Replays that may run at once, of all engines.
const REPLAYS_AT_ONCE: usize = 8;

/// The rank of an endpoint's engine.
const FIRST_RANK: u32 = 0;

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
        let publishers = Arc::default();
        Ok(Self { index, shards: shards?.into(), settings, replays_at_once, publishers, metrics })
    }

    /// Follows one endpoint's engine until the endpoint leaves the pool; then every trace of it leaves the index.
    pub async fn follow(self, endpoint: Arc<EndpointState>) {
        let id = endpoint.endpoint.id;
        let shard = self.shards[id.0 as usize % self.shards.len()].clone();
        let view = match self.index.add_engine() {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(endpoint = %endpoint.endpoint.address, %error, "this engine's cache is not followed");
                return;
            }
        };
        endpoint.engine.set_slot(view.slot());
        let feed = FeedSettings { can_replay: self.settings.replay_port != 0, ..FeedSettings::default() };
        let orders = shard.add(&endpoint.endpoint, view, endpoint.engine.clone(), feed).await;
        let replayer = Replayer {
            id,
            endpoint: endpoint.endpoint.address.clone(),
            host: endpoint.spec.host.clone(),
            port: self.settings.replay_port,
            orders,
            shard: shard.clone(),
            at_once: self.replays_at_once.clone(),
            metrics: self.metrics.clone(),
        };
        if self.settings.listen.is_some() {
            shard.followed(id).await;
            self.publishers.add(&endpoint.endpoint.address, FIRST_RANK, self.target(&endpoint, &shard));
        }
        let gone = endpoint.gone.clone();
        if self.settings.port == 0 {
            gone.run_until_cancelled(replayer.run()).await;
            gone.cancelled().await;
        } else {
            let subscription = self.subscription(&endpoint, &shard);
            gone.run_until_cancelled(futures::future::join(subscription.run(), replayer.run())).await;
        }
        self.publishers.remove(&endpoint.endpoint.address, FIRST_RANK, id);
        if endpoint.engine.set_connected(false) {
            self.metrics.events.subscribers.dec();
        }
        shard.remove(id).await;
    }

    fn target(&self, endpoint: &EndpointState, shard: &ShardHandle) -> EngineTarget {
        EngineTarget {
            id: endpoint.endpoint.id,
            label: endpoint.endpoint.address.clone(),
            state: endpoint.engine.clone(),
            shard: shard.clone(),
        }
    }

    fn subscription(&self, endpoint: &EndpointState, shard: &ShardHandle) -> Subscription {
        let source = EventSource {
            id: endpoint.endpoint.id,
            endpoint: endpoint.endpoint.address.clone(),
            host: endpoint.spec.host.clone(),
            port: self.settings.port,
            topic_filter: self.settings.topic_filter.clone(),
        };
        let (state, metrics) = (endpoint.engine.clone(), self.metrics.clone());
        Subscription { source, state, shard: shard.clone(), metrics }
    }

    /// What takes the connections of engines, if they may connect here. To be asked for once.
    pub fn listener(&self) -> Option<EventListener> {
        let address = self.settings.listen?;
        let (filter, metrics) = (self.settings.topic_filter.clone(), self.metrics.clone());
        Some(EventListener::new(address, filter, self.publishers.clone(), metrics))
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
