//! Which engines are followed, and which of them wait for what a sibling knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use warmroute_kv_events::FeedHistory;
use warmroute_kv_index::{BlockRows, ViewOutline};
use warmroute_plugin::EndpointId;

use super::engine_snapshot::{EngineSnapshot, SnapshotRefused};
use super::shard::ShardHandle;
use super::state::EngineState;

/// What replicas call an engine: the address of its endpoint, and its rank there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineName {
    /// `host:port`.
    pub address: Arc<str>,
    /// Its data-parallel rank.
    pub rank: u16,
}

/// An engine that is followed.
#[derive(Clone)]
pub struct KnownEngine {
    id: EndpointId,
    shard: ShardHandle,
    state: Arc<EngineState>,
}

/// All engines that are followed, by name.
#[derive(Default)]
pub struct KnownEngines {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    engines: BTreeMap<EngineName, KnownEngine>,
    /// Engines that come now wait for a snapshot.
    is_waiting: bool,
}

impl KnownEngines {
    /// Has engines that come from now on wait for a snapshot, until [`Self::stop_waiting`].
    pub fn wait_for_snapshots(&self) {
        self.inner.lock().is_waiting = true;
    }

    /// Whether engines that come now wait for a snapshot.
    pub fn is_waiting(&self) -> bool {
        self.inner.lock().is_waiting
    }

    /// Nobody waits any more: engines without a snapshot are followed as ever.
    pub async fn stop_waiting(&self) {
        let engines: Vec<KnownEngine> = {
            let mut inner = self.inner.lock();
            inner.is_waiting = false;
            inner.engines.values().cloned().collect()
        };
        for engine in engines {
            engine.shard.no_history(engine.id).await;
        }
    }

    /// Notes an engine that has been given to its shard; `awaits` is whether it was told to wait.
    pub(crate) async fn add(&self, name: EngineName, engine: KnownEngine, awaits: bool) {
        let is_waiting = {
            let mut inner = self.inner.lock();
            inner.engines.insert(name, engine.clone());
            inner.is_waiting
        };
        if awaits && !is_waiting {
            engine.shard.no_history(engine.id).await;
        }
    }

    /// Forgets an engine; not one that has taken its name since.
    pub(super) fn remove(&self, name: &EngineName, id: EndpointId) {
        let mut inner = self.inner.lock();
        if inner.engines.get(name).is_some_and(|engine| engine.id == id) {
            inner.engines.remove(name);
        }
    }

    /// An engine by its name.
    pub fn get(&self, name: &EngineName) -> Option<KnownEngine> {
        self.inner.lock().engines.get(name).cloned()
    }

    /// All names, and whether the events of each arrive.
    pub fn names(&self) -> Vec<(EngineName, bool)> {
        let inner = self.inner.lock();
        inner.engines.iter().map(|(name, engine)| (name.clone(), engine.state.is_connected())).collect()
    }
}

impl KnownEngine {
    pub(crate) fn new(id: EndpointId, shard: ShardHandle, state: Arc<EngineState>) -> Self {
        Self { id, shard, state }
    }

    /// What is known of it, in pieces of so many bytes; `None` if that is nothing, or it isn't clear of whom it is.
    pub async fn export(&self, piece_bytes: usize) -> Option<EngineSnapshot> {
        self.shard.export(self.id, piece_bytes).await
    }

    /// Begins to take in a snapshot.
    ///
    /// # Errors
    /// It isn't wanted. Nothing has changed then.
    pub async fn begin_import(
        &self,
        history: FeedHistory,
        outline: ViewOutline,
    ) -> Result<(), SnapshotRefused> {
        self.shard.begin_import(self.id, history, outline).await
    }

    /// Hands over some of its blocks; `room` is given back when they are taken in.
    pub async fn import(&self, rows: BlockRows, room: Option<OwnedSemaphorePermit>) {
        self.shard.import(self.id, rows, room).await;
    }

    /// Ends a snapshot that should have so many names. Returns how many entries of the index it has become.
    ///
    /// # Errors
    /// It can't be taken; nothing of it is left.
    pub async fn end_import(&self, names: u64) -> Result<u64, SnapshotRefused> {
        self.shard.end_import(self.id, names).await
    }

    /// Forgets a snapshot that doesn't go on. Another one may come.
    pub async fn abandon_import(&self) {
        self.shard.abandon_import(self.id).await;
    }
}
