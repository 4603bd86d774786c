//! From the socket to the index: what the subscriptions and shards of a picker take for what several engines publish.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinSet;
use warmroute::engine_events::{EngineEvents, EngineState, EventSettings};
use warmroute::metrics::Metrics;
use warmroute::pool::{EndpointSpec, EndpointState, Pool};
use warmroute::prompt::AdapterNames;
use warmroute_kv_index::{IndexLimits, KvIndex};

use super::events::{BLOCK_SIZE_TOKENS, engine_hash};
use crate::corpus::Numbers;
use crate::cpu::threads_time;
use crate::publisher::{Publishers, put_message};
use crate::report::Report;
use crate::timing::{Effort, Spread};
use crate::wire::{WireEvent, payload};

const ENGINES: usize = 4;
/// Sequences that an engine decodes in turn.
const SEQUENCES: usize = 16;
/// Blocks of a sequence.
const SEQUENCE_BLOCKS: usize = 128;
/// Blocks that each engine stores in a round.
const BLOCKS: usize = 25_600;
/// Blocks that an engine holds before it evicts, where it does.
const CAPACITY_BLOCKS: usize = 8_192;
/// Messages that may be on their way: less than a shard's queue takes, so that none is dropped.
const MESSAGES_ON_THE_WAY: usize = 8_192;
/// Name of the thread of all subscriptions, and of the shard.
const THREADS: [&str; 2] = ["bench-subs", "kv-events-0"];

/// What the engines publish.
struct Shape {
    name: &'static str,
    batch_events: usize,
    event_blocks: usize,
    evicts: bool,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "batches_of_1_event", batch_events: 1, event_blocks: 1, evicts: false },
    Shape { name: "batches_of_8_events", batch_events: 8, event_blocks: 1, evicts: false },
    Shape { name: "batches_of_64_events", batch_events: 64, event_blocks: 1, evicts: false },
    Shape { name: "batches_of_8_events_evicting", batch_events: 8, event_blocks: 1, evicts: true },
    Shape { name: "events_of_128_blocks", batch_events: 1, event_blocks: 128, evicts: false },
];

/// Single-block events per core-second that are wanted, in millions.
const BAR: f64 = 1.0;

pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for shape in SHAPES {
        let engines = (0..ENGINES as u64).map(|seed| Published::new(&shape, seed));
        let engines = engines.collect::<anyhow::Result<Vec<_>>>()?;
        let events: usize = engines.iter().map(|engine| engine.events).sum();
        let mut rates = Vec::new();
        for round in 0..=effort.pairs {
            let time = measure(&engines)?;
            if round > 0 {
                rates.push((events * shape.event_blocks) as f64 / time.as_secs_f64() / 1e6);
            }
        }
        let (name, rate) = (format!("socket/{}", shape.name), Spread::of(&rates));
        if shape.event_blocks == 1 {
            report.with_bar(name, rate, "M events/core-s", BAR);
        } else {
            report.figure(name, rate, "M blocks/core-s");
        }
    }
    Ok(())
}

/// CPU time of all threads that take in what the engines publish, from their connections being there on.
fn measure(engines: &[Published]) -> anyhow::Result<Duration> {
    let mut publishers = Publishers::try_new()?;
    let following = Following::start(publishers.port()?)?;
    publishers.accept(ENGINES)?;
    following.until("connected", |engine| engine.is_connected())?;
    let start = cpu_time()?;
    let most = engines.iter().map(|engine| engine.ends.len()).max().unwrap_or_default();
    let step = MESSAGES_ON_THE_WAY / ENGINES;
    for first in (0..most).step_by(step) {
        for (number, engine) in engines.iter().enumerate() {
            publishers.publish(number, engine.messages(first, first + step))?;
        }
        let sent = |engine: &Published| engine.ends.len().min(first + step) as u64;
        let counts: Vec<u64> = engines.iter().map(sent).collect();
        following.until_applied(&counts)?;
    }
    let time = cpu_time()?.saturating_sub(start);
    following.check(engines)?;
    following.end()?;
    Ok(time)
}

/// Of threads that have fallen asleep, since nothing is left to do.
fn cpu_time() -> anyhow::Result<Duration> {
    std::thread::sleep(Duration::from_millis(2));
    THREADS.iter().map(|name| threads_time(name)).sum()
}

/// What one engine publishes in a round.
struct Published {
    bytes: Vec<u8>,
    /// Where each message ends in them.
    ends: Vec<usize>,
    events: usize,
    held_blocks: usize,
}

impl Published {
    fn new(shape: &Shape, seed: u64) -> anyhow::Result<Self> {
        let mut engine = Engine::new(seed);
        let (mut bytes, mut ends, mut events) = (Vec::new(), Vec::new(), 0);
        while engine.stored_blocks < BLOCKS {
            let mut batch = Vec::with_capacity(shape.batch_events);
            while batch.len() < shape.batch_events {
                if shape.evicts && engine.held_blocks >= CAPACITY_BLOCKS {
                    batch.extend(engine.evict());
                }
                batch.push(engine.store(shape.event_blocks));
            }
            events += batch.len();
            put_message(ends.len() as u64, &payload(batch)?, &mut bytes);
            ends.push(bytes.len());
        }
        Ok(Self { bytes, ends, events, held_blocks: engine.held_blocks })
    }

    fn messages(&self, first: usize, end: usize) -> &[u8] {
        let at = |message: usize| {
            message.checked_sub(1).map_or(0, |last| self.ends[last.min(self.ends.len() - 1)])
        };
        &self.bytes[at(first)..at(end)]
    }
}

/// An engine that decodes several sequences in turn, and evicts the oldest ones from their ends.
struct Engine {
    numbers: Numbers,
    next_block: u64,
    /// Blocks of the sequences that are being decoded.
    running: VecDeque<Vec<u64>>,
    finished: VecDeque<Vec<u64>>,
    stored_blocks: usize,
    held_blocks: usize,
}

impl Engine {
    fn new(seed: u64) -> Self {
        let running = (0..SEQUENCES).map(|_| Vec::new()).collect();
        let (numbers, next_block) = (Numbers(seed), seed << 32);
        Self { numbers, next_block, running, finished: VecDeque::new(), stored_blocks: 0, held_blocks: 0 }
    }

    fn store(&mut self, blocks: usize) -> WireEvent<'static> {
        let mut sequence = self.running.pop_front().unwrap_or_default();
        let parent = sequence.last().copied();
        let hashes: Vec<u64> = (self.next_block..).take(blocks).map(engine_hash).collect();
        self.next_block += blocks as u64;
        sequence.extend(&hashes);
        if sequence.len() >= SEQUENCE_BLOCKS {
            self.finished.push_back(std::mem::take(&mut sequence));
        }
        self.running.push_back(sequence);
        self.stored_blocks += blocks;
        self.held_blocks += blocks;
        WireEvent::stored(hashes, parent, self.numbers.token_ids(blocks * BLOCK_SIZE_TOKENS as usize))
    }

    fn evict(&mut self) -> Option<WireEvent<'static>> {
        let oldest = self.finished.front_mut()?;
        let last = oldest.pop()?;
        if oldest.is_empty() {
            self.finished.pop_front();
        }
        self.held_blocks -= 1;
        Some(WireEvent::removed(vec![last]))
    }
}

/// Subscriptions on one thread, and one shard.
struct Following {
    pool: Arc<Pool>,
    metrics: Arc<Metrics>,
    endpoints: Vec<Arc<EndpointState>>,
    subscriptions: JoinHandle<anyhow::Result<()>>,
}

impl Following {
    fn start(port: u16) -> anyhow::Result<Self> {
        let (metrics, pool) = (Arc::new(Metrics::try_new()?), Arc::new(Pool::new("bench")));
        let index = KvIndex::new(IndexLimits::default());
        let settings =
            EventSettings { port, replay_port: 0, topic_filter: "kv@".to_owned(), shards: 1, listen: None };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index, settings, metrics.clone(), &adapters)?;
        let specs: Vec<EndpointSpec> = (0..ENGINES)
            .map(|engine| EndpointSpec::new(format!("engine-{engine}"), Publishers::host(engine), 8000))
            .collect();
        pool.update(&specs);
        let endpoints = pool.snapshot().states.clone();
        let followed = endpoints.clone();
        let subscriptions = std::thread::Builder::new().name(THREADS[0].to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut following = JoinSet::new();
                followed.into_iter().for_each(|endpoint| {
                    following.spawn(events.clone().follow(endpoint));
                });
                following.join_all().await;
            });
            Ok(())
        })?;
        Ok(Self { pool, metrics, endpoints, subscriptions })
    }

    /// Waits until all engines are as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&EngineState) -> bool) -> anyhow::Result<()> {
        for _ in 0..100_000 {
            if self.endpoints.iter().all(|endpoint| wanted(&endpoint.engine)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        anyhow::bail!("the engines are never {what}")
    }

    /// Waits until so many batches of each engine have been applied.
    fn until_applied(&self, batches: &[u64]) -> anyhow::Result<()> {
        for (endpoint, batches) in self.endpoints.iter().zip(batches) {
            let is_applied = |_: &_| endpoint.engine.status(None).batches >= *batches;
            self.until("up to date", is_applied)?;
        }
        Ok(())
    }

    /// Whether all of it has come to the index, and nothing else.
    fn check(&self, engines: &[Published]) -> anyhow::Result<()> {
        for (endpoint, published) in self.endpoints.iter().zip(engines) {
            let status = endpoint.engine.status(None);
            let (missed, skipped) = (status.missed_batches, status.skipped_events);
            ensure!(missed == 0 && skipped == 0, "{missed} batches missed, {skipped} events skipped");
            ensure!(status.blocks == published.held_blocks as u64, "{} blocks are held", status.blocks);
        }
        let page = self.metrics.page().context("the picker's metrics")?;
        let dropped = page.lines().find(|line| line.starts_with("warmroute_kv_event_batches_missed_total{"));
        ensure!(dropped.is_none(), "batches were dropped: {dropped:?}");
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        self.pool.update::<EndpointSpec>(&[]);
        self.subscriptions.join().map_err(|_| anyhow::anyhow!("the subscriptions panicked"))??;
        // The shard ends by itself; until then its time would count for the next round.
        for _ in 0..10_000 {
            if cpu_time()?.is_zero() {
                return Ok(());
            }
        }
        anyhow::bail!("the shard doesn't end")
    }
}
