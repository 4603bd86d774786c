//! What the engines tell: subscriptions to their KV events, and the shards that write the index.

mod expectation;
mod shard;
mod state;
mod subscription;

use std::sync::Arc;

use warmroute_kv_index::KvIndex;

pub use expectation::{Expectation, Expectations, WITHDRAW_INTERVAL};
pub use shard::ShardHandle;
pub use state::{EngineState, EngineStatus};
pub use subscription::{EventSource, Subscription};

use crate::metrics::Metrics;
use crate::pool::EndpointState;
use crate::prompt::AdapterNames;

/// Settings of the subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// Port of every engine's PUB socket; 0 for no subscriptions.
    pub port: u16,
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
        Ok(Self { index, shards: shards?.into(), settings, metrics })
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
        shard.add(&endpoint.endpoint, view, endpoint.engine.clone()).await;
        let gone = endpoint.gone.clone();
        if self.settings.port == 0 {
            gone.cancelled().await;
        } else {
            let source = EventSource {
                id,
                endpoint: endpoint.endpoint.address.clone(),
                host: endpoint.spec.host.clone(),
                port: self.settings.port,
                topic_filter: self.settings.topic_filter.clone(),
            };
            let state = endpoint.engine.clone();
            let subscription = Subscription { source, state, shard: shard.clone(), metrics: self.metrics };
            gone.run_until_cancelled(subscription.run()).await;
        }
        shard.remove(id).await;
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
