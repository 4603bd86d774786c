//! The following of one rank: its subscription and its replays, at the place where it publishes now.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warmroute_kv_events::{FeedSettings, ReplayOrder};
use warmroute_kv_index::EngineView;
use warmroute_plugin::EndpointId;

use super::EngineEvents;
use super::event_target::{EventTarget, Resolved, Told};
use super::known_engines::{EngineName, KnownEngine};
use super::publishers::EngineTarget;
use super::replayer::Replayer;
use super::shard::ShardHandle;
use super::source_finder::SourceWatch;
use super::state::EngineState;
use super::subscription::{EventSource, Subscription};

/// A rank to follow until its endpoint leaves the pool.
pub(super) struct FollowedRank {
    pub(super) events: EngineEvents,
    /// Never given to another engine.
    pub(super) id: EndpointId,
    /// What it is called in metrics and logs.
    pub(super) label: Arc<str>,
    /// Of its endpoint, by which it names itself if it connects to the picker.
    pub(super) address: Arc<str>,
    /// Host of its endpoint.
    pub(super) host: String,
    pub(super) rank: u16,
    pub(super) state: Arc<EngineState>,
    pub(super) gone: CancellationToken,
    /// None: the engine isn't asked.
    pub(super) sources: Option<SourceWatch>,
}

impl FollowedRank {
    /// When it returns, every trace of the engine has left the index, or will as soon as its shard gets there.
    pub(super) async fn run(mut self) {
        let shard = self.events.shards[self.id.0 as usize % self.events.shards.len()].clone();
        let view = match self.events.index.add_engine() {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(endpoint = %self.label, %error, "this engine's cache is not followed");
                return;
            }
        };
        self.state.set_slot(view.slot());
        let gone = self.gone.clone();
        gone.run_until_cancelled(self.follow(&shard, view)).await;
        self.events.known.remove(&self.name(), self.id);
        self.events.publishers.remove(&self.address, self.rank.into(), self.id);
        if self.state.set_connected(false) {
            self.events.metrics.events.subscribers.dec();
        }
        shard.remove(self.id).await;
    }

    async fn follow(&mut self, shard: &ShardHandle, view: EngineView) {
        let told = match &mut self.sources {
            Some(sources) => sources.first().await,
            None => Told::Nothing,
        };
        let mut resolved = self.resolve(&told);
        let (state, awaits) = (self.state.clone(), self.events.known.is_waiting());
        let settings = feed_settings(&resolved);
        let orders = shard.add(self.id, self.label.clone(), view, state.clone(), settings, awaits).await;
        let known = KnownEngine::new(self.id, shard.clone(), state);
        self.events.known.add(self.name(), known, awaits).await;
        self.expect_connections(shard).await;
        loop {
            self.tell(&resolved);
            let subscribed = self.subscribe(resolved.target.clone(), orders.clone(), shard);
            let mut sources = self.sources.clone();
            let next = tokio::select! {
                never = subscribed => never,
                next = self.moved(&mut sources, &resolved) => next,
            };
            // Another publisher's numbers mean something else.
            shard.moved(self.id, feed_settings(&next)).await;
            self.expect_connections(shard).await;
            resolved = next;
            self.sources = sources;
        }
    }

    fn name(&self) -> EngineName {
        EngineName { address: self.address.clone(), rank: self.rank }
    }

    /// Has the event listener take what this rank sends there, if engines may connect.
    async fn expect_connections(&self, shard: &ShardHandle) {
        if self.events.settings.listen.is_some() {
            shard.followed(self.id).await;
            let (id, label) = (self.id, self.label.clone());
            let target = EngineTarget { id, label, state: self.state.clone(), shard: shard.clone() };
            self.events.publishers.add(&self.address, self.rank.into(), target);
        }
    }

    fn resolve(&self, told: &Told) -> Resolved {
        let given = self.sources.as_ref().map(|sources| sources.given).unwrap_or_default();
        Resolved::of(&self.events.settings, given, &self.host, self.rank, told)
    }

    /// Waits until the engine says that it publishes elsewhere.
    async fn moved(&self, sources: &mut Option<SourceWatch>, now: &Resolved) -> Resolved {
        let Some(sources) = sources else { return std::future::pending().await };
        let mut now = now.clone();
        loop {
            let next = self.resolve(&sources.next().await);
            if next.target != now.target {
                return next;
            }
            if next != now {
                self.tell(&next);
                now = next;
            }
        }
    }

    /// Says where events are read, and what is wrong with that.
    fn tell(&self, resolved: &Resolved) {
        let told = self.state.set_source(resolved.status());
        if let Some(problem) = resolved.problem.as_ref().filter(|_| told) {
            tracing::warn!(endpoint = %self.label, "{problem}");
        }
    }

    /// Never returns.
    async fn subscribe(
        &self,
        target: Option<EventTarget>,
        orders: watch::Receiver<Option<ReplayOrder>>,
        shard: &ShardHandle,
    ) -> Resolved {
        if let Some(target) = target {
            let metrics = &self.events.metrics;
            let replayer = Replayer {
                id: self.id,
                endpoint: self.label.clone(),
                host: target.host.clone(),
                port: target.replay_port,
                orders,
                shard: shard.clone(),
                at_once: self.events.replays_at_once.clone(),
                metrics: metrics.clone(),
            };
            let source = EventSource {
                id: self.id,
                endpoint: self.label.clone(),
                host: target.host,
                port: target.port,
                topic_filter: self.events.settings.topic_filter.clone(),
            };
            let subscription = Subscription {
                source,
                state: self.state.clone(),
                shard: shard.clone(),
                metrics: metrics.clone(),
                ended: self.sources.as_ref().map(SourceWatch::ask_again),
            };
            match target.port {
                0 => replayer.run().await,
                _ => {
                    futures::future::join(subscription.run(), replayer.run()).await;
                }
            }
        }
        std::future::pending().await
    }
}

fn feed_settings(resolved: &Resolved) -> FeedSettings {
    FeedSettings { can_replay: resolved.can_replay(), ..FeedSettings::default() }
}
