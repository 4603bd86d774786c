use std::sync::Arc;
use std::time::Duration;

use warmroute::engine_events::{EngineEvents, EngineStatus, EventSettings};
use warmroute::metrics::Metrics;
use warmroute::pool::{EndpointSpec, EndpointState, Pool};
use warmroute::prompt::AdapterNames;
use warmroute::tasks::Tasks;
use warmroute_kv_events::{Trust, TrustReason};
use warmroute_kv_index::{IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys};

use super::publisher::{Held, Publisher, prompt_tokens};
use crate::fixture::until;

/// The picker's side of KV events: subscriptions, shards and index, without anything that picks.
pub(super) struct Followed {
    pool: Pool,
    index: Arc<KvIndex>,
    metrics: Arc<Metrics>,
    _tasks: Tasks,
}

impl Followed {
    /// Follows the engine at 127.0.0.1; a replay port of 0 is none.
    pub(super) fn start(port: u16, replay_port: u16) -> Self {
        Self::hosts(["127.0.0.1".to_owned()], port, replay_port)
    }

    /// Follows a publisher.
    pub(super) fn publisher(publisher: &Publisher) -> Self {
        Self::start(publisher.port(), publisher.replay_port())
    }

    /// Follows an engine on every host.
    pub(super) fn hosts(hosts: impl IntoIterator<Item = String>, port: u16, replay_port: u16) -> Self {
        let index = KvIndex::new(IndexLimits::default());
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let topic_filter = "kv@".to_owned();
        let settings = EventSettings { port, replay_port, topic_filter, shards: 2, listen: None };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index.clone(), settings, metrics.clone(), &adapters).unwrap();
        let (tasks, _ends) = Tasks::new();
        let pool = Pool::new("p");
        let specs: Vec<EndpointSpec> =
            hosts.into_iter().map(|host| EndpointSpec::new(host.clone(), host, 8000)).collect();
        for added in pool.update(&specs).added {
            tasks.spawn("subscription", events.clone().follow(added));
        }
        Self { pool, index, metrics, _tasks: tasks }
    }

    pub(super) fn endpoints(&self) -> Vec<Arc<EndpointState>> {
        self.pool.snapshot().states.to_vec()
    }

    pub(super) fn status(&self) -> EngineStatus {
        self.pool.snapshot().states[0].engine.status(None)
    }

    /// Waits until the engine's status is as wanted.
    pub(super) async fn until(&self, what: &str, wanted: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        let waited = until(what, async || Some(self.status()).filter(&wanted));
        tokio::time::timeout(Duration::from_secs(50), waited)
            .await
            .unwrap_or_else(|_| panic!("never {what}: {:?}\n{}", self.status(), self.counted()))
    }

    pub(super) async fn until_trust(&self, trust: Trust, reason: TrustReason) -> EngineStatus {
        self.until(reason.as_str(), |status| (status.trust, status.trust_reason) == (trust, reason)).await
    }

    /// Waits until the view is exact as of the last batch, and checks it against what the engine holds: nothing more,
    /// nothing less.
    pub(super) async fn until_exact(&self, publisher: &mut Publisher) -> EngineStatus {
        let held = publisher.held().await;
        let last = u64::try_from(held.last_seq).ok();
        let status =
            self.until("exact", |status| status.trust == Trust::Exact && status.last_seq == last).await;
        assert_eq!((status.blocks, status.missed_batches), (held.blocks, 0), "{status:?}");
        self.compare(&held, |claimed, held| claimed == held);
        status
    }

    /// Waits until the view is partial as of the last batch, and checks that it claims nothing more than the engine
    /// holds.
    pub(super) async fn until_partial(&self, publisher: &mut Publisher) -> EngineStatus {
        let held = publisher.held().await;
        let last = u64::try_from(held.last_seq).ok();
        let status =
            self.until("partial", |status| status.trust == Trust::Partial && status.last_seq == last).await;
        assert!(status.blocks <= held.blocks && status.missed_batches == 0, "{status:?}");
        self.compare(&held, |claimed, held| claimed <= held);
        status
    }

    fn compare(&self, held: &Held, is_right: impl Fn(u32, u32) -> bool) {
        for (at, endpoint) in self.endpoints().iter().enumerate() {
            for (prompt, blocks) in &held.prompts {
                let claimed = self.claimed(endpoint, *prompt, blocks + 2);
                assert!(
                    is_right(claimed, *blocks),
                    "engine {at}, prompt {prompt}: {claimed} blocks claimed, {blocks} held"
                );
            }
        }
    }

    /// How many of the prompt's leading blocks an engine is claimed to hold, of so many at most.
    pub(super) fn claimed(&self, endpoint: &EndpointState, prompt: u32, blocks: u32) -> u32 {
        let mut keys = Vec::new();
        block_keys(&prompt_tokens(prompt, blocks), 16, &KeyExtras::default(), &mut keys);
        let Some(slot) = endpoint.engine.slot() else { return 0 };
        let mut found = [Match::default()];
        self.index.lookup(&keys, &[slot], &mut LookupScratch::default(), &mut found);
        found[0].known_blocks
    }

    /// What was counted of events, for the words of a failure.
    fn counted(&self) -> String {
        let page = self.metrics.page().unwrap();
        let lines = page.lines().filter(|line| line.contains("kv_event") && !line.starts_with('#'));
        lines.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
    }

    /// The sum of the metric lines that start so.
    fn metric(&self, start: &str) -> u64 {
        let page = self.metrics.page().unwrap();
        let lines = page.lines().filter(|line| line.starts_with(start));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Batches counted as lost, for a cause.
    pub(super) fn gaps(&self, cause: &str) -> u64 {
        self.metric(&format!("warmroute_kv_event_batches_missed_total{{cause={cause:?}"))
    }

    /// Failures of the subscription.
    pub(super) fn errors(&self, operation: &str) -> u64 {
        self.metric(&format!("llm_d_epp_kv_cache_events_zmq_errors_total{{operation={operation:?}"))
    }

    /// Replays by how they ended.
    pub(super) fn replays(&self, outcome: &str) -> u64 {
        self.metric(&format!("warmroute_kv_event_replays_total{{outcome={outcome:?}"))
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.metric("llm_d_epp_kv_cache_events_subscriber_reconnections_total{")
    }
}
