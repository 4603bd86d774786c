//! A shard: a thread that decodes the events of its engines and alone owns their views of the index.
//!
//! One engine's messages go through one shard, in order; engines of different shards are written side by side.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;
use warmroute_kv_events::{
    DecodeLimits, EventBatch, KvEvent, LiveMessage, SequenceStep, SequenceTracker, decode_batch,
};
use warmroute_kv_index::{Applied, EngineView};
use warmroute_plugin::{Endpoint, EndpointId};

use super::state::EngineState;
use crate::metrics::Metrics;
use crate::prompt::AdapterNames;

/// Messages that may wait for a shard.
const QUEUE_MESSAGES: usize = 16 * 1024;

/// Engines are told apart by their endpoint's incarnation, not by its address: one that left and its successor under the
/// same address may be in the queue at the same time.
enum Work {
    Add(EndpointId, Box<Engine>),
    Remove(EndpointId),
    Reconnected(EndpointId),
    Live(EndpointId, LiveMessage),
}

/// Gives work to one shard.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    queue: mpsc::Sender<Work>,
}

impl ShardHandle {
    /// Starts the thread. It ends when the last handle is gone.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(index: usize, metrics: Arc<Metrics>, adapters: Arc<AdapterNames>) -> anyhow::Result<Self> {
        let (queue, work) = mpsc::channel(QUEUE_MESSAGES);
        let shard = Shard { engines: HashMap::new(), metrics, adapters };
        std::thread::Builder::new()
            .name(format!("kv-events-{index}"))
            .spawn(move || shard.run(work))
            .context("can't start a thread for KV events")?;
        Ok(Self { queue })
    }

    /// Takes an engine on.
    pub async fn add(&self, endpoint: &Endpoint, view: EngineView, state: Arc<EngineState>) {
        let engine =
            Engine { endpoint: endpoint.address.clone(), view, state, sequence: SequenceTracker::new() };
        self.control(Work::Add(endpoint.id, Box::new(engine))).await;
    }

    /// Lets an engine go: every trace of it leaves the index.
    pub async fn remove(&self, endpoint: EndpointId) {
        self.control(Work::Remove(endpoint)).await;
    }

    /// Tells that an engine's connection was lost and made again.
    pub(super) async fn reconnected(&self, endpoint: EndpointId) {
        self.control(Work::Reconnected(endpoint)).await;
    }

    /// Offers a message; false if the queue is full and the message is dropped.
    pub(super) fn offer(&self, endpoint: EndpointId, message: LiveMessage) -> bool {
        self.queue.try_send(Work::Live(endpoint, message)).is_ok()
    }

    /// Messages that wait.
    pub fn depth(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    async fn control(&self, work: Work) {
        if self.queue.send(work).await.is_err() {
            tracing::error!("a thread for KV events has ended: its engines' caches are not seen any more");
        }
    }
}

struct Engine {
    endpoint: Arc<str>,
    view: EngineView,
    state: Arc<EngineState>,
    sequence: SequenceTracker,
}

struct Shard {
    engines: HashMap<EndpointId, Engine>,
    metrics: Arc<Metrics>,
    adapters: Arc<AdapterNames>,
}

impl Shard {
    fn run(mut self, mut work: mpsc::Receiver<Work>) {
        while let Some(work) = work.blocking_recv() {
            match work {
                Work::Add(endpoint, engine) => {
                    self.engines.insert(endpoint, *engine);
                }
                Work::Remove(endpoint) => {
                    self.engines.remove(&endpoint);
                }
                Work::Reconnected(endpoint) => {
                    if let Some(engine) = self.engines.get_mut(&endpoint) {
                        engine.sequence.reconnected();
                    }
                }
                Work::Live(endpoint, message) => self.live(endpoint, &message),
            }
        }
    }

    fn live(&mut self, endpoint: EndpointId, message: &LiveMessage) {
        let Some(engine) = self.engines.get_mut(&endpoint) else { return };
        if !engine.follow_sequence(message.seq, &self.metrics) {
            return;
        }
        match decode_batch(&message.payload, &DecodeLimits::default()) {
            Ok(batch) => engine.apply(message.seq, &batch, &self.metrics, &self.adapters),
            Err(error) => {
                engine.state.count_undecodable();
                self.metrics.events.skipped.with_label_values(&["undecodable-batch"]).inc();
                tracing::warn!(endpoint = %engine.endpoint, seq = message.seq, %error, bytes = message.payload.len(),
                    "KV event batch that can't be decoded: what it said is missing from the index");
            }
        }
    }
}

impl Engine {
    /// Looks at the sequence number; false if the message is to be ignored.
    fn follow_sequence(&mut self, seq: u64, metrics: &Metrics) -> bool {
        let endpoint = &*self.endpoint;
        let joining = self.sequence.last().is_none();
        match self.sequence.observe(seq) {
            SequenceStep::InOrder => {}
            SequenceStep::Duplicate => {
                metrics.events.skipped.with_label_values(&["duplicate-batch"]).inc();
                return false;
            }
            SequenceStep::Gap { missed } if joining => {
                tracing::info!(
                    endpoint,
                    missed,
                    "joined an engine that has published before: what it stored then is unknown"
                );
            }
            SequenceStep::Gap { missed } => {
                self.state.count_missed(missed);
                metrics.events.gaps.with_label_values(&[endpoint, "sequence"]).inc_by(missed);
                tracing::warn!(
                    endpoint,
                    missed,
                    seq,
                    "KV events lost: until this engine clears its cache or restarts, some of its blocks may be unknown, others claimed in vain"
                );
            }
            SequenceStep::Restart { missed } => {
                self.view.clear();
                self.state.count_restart();
                tracing::info!(endpoint, missed, "engine restarted: its cache is empty");
            }
        }
        true
    }

    fn apply(&mut self, seq: u64, batch: &EventBatch, metrics: &Metrics, adapters: &AdapterNames) {
        for event in &batch.events {
            match event {
                KvEvent::Stored(stored) => {
                    if let Some(name) = &stored.lora_name {
                        adapters.add(name);
                    }
                    if stored.block_size_tokens > 0 && !stored.token_ids.is_empty() {
                        self.state.set_block_size_tokens(stored.block_size_tokens);
                    }
                }
                KvEvent::Cleared => self.state.cache_is_cleared(),
                KvEvent::Removed(_) => {}
            }
        }
        let applied = self.view.apply(batch);
        for skipped in &batch.skipped.reasons {
            tracing::warn!(endpoint = %self.endpoint, seq, event = skipped.index, error = %skipped.reason, "KV event not understood");
        }
        let mut not_applied = u64::from(batch.skipped.count);
        metrics.events.skipped.with_label_values(&["not-understood"]).inc_by(not_applied);
        for (reason, count) in skipped_by_reason(&applied) {
            metrics.events.skipped.with_label_values(&[reason]).inc_by(count);
            not_applied += count;
        }
        metrics.index.refused.inc_by(applied.refused_blocks);
        metrics.index.admissions.inc_by(applied.stored_blocks);
        metrics.index.evictions.inc_by(applied.removed_blocks);
        metrics.events.removals_forwarded.inc_by(applied.removed_blocks);
        metrics.events.removals_suppressed.inc_by(applied.removed_copies);
        self.state.count_skipped(not_applied);
        self.state.count_batch(seq);
        self.state.set_blocks(self.view.held_blocks() as u64);
        self.state.set_unsupported(self.view.is_unsupported());
    }
}

/// What was understood and not applied, for the metric's `reason` label. Unknown removals are the other side of a store
/// that was left out or came before we listened, so they aren't counted again.
fn skipped_by_reason(applied: &Applied) -> [(&'static str, u64); 7] {
    [
        ("unknown-parent", applied.unknown_parents),
        ("hashes-and-tokens-uneven", applied.uneven_stores),
        ("no-tokens", applied.stores_without_tokens),
        ("other-block-size", applied.other_block_sizes),
        ("other-medium", applied.other_media),
        ("unsupported-group", applied.unsupported_groups),
        ("key-conflict", applied.key_conflicts),
    ]
}
