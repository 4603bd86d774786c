//! A running engine: its sockets and tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::serve::ListenerExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::api::{self, ApiState, RankApi};
use crate::counters::EngineCounters;
use crate::engine_loop::EngineLoop;
use crate::kv_publisher::{KvPublisher, KvReplay};
use crate::metrics_page::MetricsPage;
use crate::options::{EngineOptions, KvEventOptions};
use crate::prefix_cache::PrefixCache;
use crate::prompts::PromptReader;
use crate::scheduler::{Scheduler, SchedulerStats};
use crate::words::Words;

/// Requests on their way from the API to the engine's loop, which takes them all between two steps.
const COMMAND_CHANNEL: usize = 1024;

/// Why an engine can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// An option is out of range.
    #[error("{option} {value} can't be used: {reason}")]
    Option {
        /// The command line name.
        option: &'static str,
        /// What was given.
        value: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No name for the model.
    #[error("--served-model-name is missing")]
    NoModelName,
    /// A port can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address wanted.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The socket for KV events or for replay can't be bound.
    #[error("can't bind the event socket {endpoint}: {source}")]
    EventSocket {
        /// The ZMQ endpoint wanted.
        endpoint: String,
        /// The cause.
        source: zeromq::ZmqError,
    },
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Starts an engine in the current tokio runtime. When it returns, the API and the event socket listen.
    ///
    /// # Errors
    ///
    /// Options out of range, and addresses that can't be bound.
    pub async fn start(options: EngineOptions) -> Result<RunningEngine, EngineError> {
        check(&options)?;
        let wanted = SocketAddr::new(options.host, options.port);
        let listen = |source| EngineError::Listen { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(listen)?;
        let http_address = listener.local_addr().map_err(listen)?;
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (mut ranks, mut api_ranks, mut sources) = (Vec::new(), Vec::new(), serde_json::Map::new());
        for rank in 0..options.data_parallel_size {
            let sockets = match &options.kv_events {
                Some(events) => Some(EventSockets::bind(&options, events, http_address, rank).await?),
                None => None,
            };
            let started = RankParts::start(&options, sockets, &tasks, &cancel);
            sources.extend(started.source.map(|source| (rank.to_string(), source)));
            ranks.push(started.running);
            api_ranks.push(started.api);
        }
        let router = api::router(api_state(options, api_ranks, sources.into()));
        let stopped = cancel.clone().cancelled_owned();
        tasks.spawn(async move {
            // Nagle's algorithm would hold back the first token of an answer by about 40 ms.
            let listener = listener.tap_io(|connection| {
                let _ = connection.set_nodelay(true);
            });
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                tracing::error!(%error, "the API ended");
            }
        });
        tasks.close();
        let cancel = cancel.drop_guard();
        Ok(RunningEngine { http_address, ranks, tasks, cancel })
    }
}

/// What one rank consists of.
struct RankParts {
    running: RunningRank,
    api: RankApi,
    /// What `GET /kv_event_sources` says of it.
    source: Option<Value>,
}

impl RankParts {
    fn start(
        options: &EngineOptions,
        sockets: Option<EventSockets>,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        let (publisher, replay, source) = match sockets {
            Some(EventSockets { publisher, replay, source }) => (Some(publisher), replay, Some(source)),
            None => (None, None, None),
        };
        let counters = Arc::new(MetricsPage::counters());
        let running = RunningRank {
            kv_events_address: publisher.as_ref().map(KvPublisher::address),
            kv_replay_address: replay.as_ref().map(KvReplay::address),
            counters: counters.clone(),
        };
        let (commands, receiver) = mpsc::channel(COMMAND_CHANNEL);
        let scheduler = scheduler_of(options);
        let engine = EngineLoop::new(scheduler, options.latency, publisher, counters.clone(), receiver);
        tasks.spawn(engine.run(cancel.clone()));
        if let Some(replay) = replay {
            tasks.spawn(replay.run(cancel.clone()));
        }
        Self { running, api: RankApi { commands, counters }, source }
    }
}

/// One rank of a running engine.
struct RunningRank {
    kv_events_address: Option<SocketAddr>,
    kv_replay_address: Option<SocketAddr>,
    counters: Arc<EngineCounters>,
}

/// A running engine. Dropping it stops it without waiting.
pub struct RunningEngine {
    http_address: SocketAddr,
    /// At least one.
    ranks: Vec<RunningRank>,
    tasks: TaskTracker,
    cancel: DropGuard,
}

impl RunningEngine {
    /// Where the API listens.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where the PUB socket for KV events of rank 0 listens.
    #[must_use]
    pub fn kv_events_address(&self) -> Option<SocketAddr> {
        self.ranks.first()?.kv_events_address
    }

    /// Where the ROUTER socket for replay of rank 0 listens.
    #[must_use]
    pub fn kv_replay_address(&self) -> Option<SocketAddr> {
        self.ranks.first()?.kv_replay_address
    }

    /// Totals and state of rank 0 as of its last step.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        self.rank_stats(0)
    }

    /// The same of any rank; of one that isn't there, of an idle one.
    #[must_use]
    pub fn rank_stats(&self, rank: u16) -> SchedulerStats {
        self.ranks.get(usize::from(rank)).map(|rank| *rank.counters.scheduler.lock()).unwrap_or_default()
    }

    /// The next `batches` event batches of every rank are numbered but not sent, as if the network had lost them.
    pub fn lose_event_batches(&self, batches: u32) {
        for rank in &self.ranks {
            rank.counters.batches_to_lose.store(batches, Ordering::Relaxed);
        }
    }

    /// Stops: running requests end without (the rest of) an answer, sockets close, tasks are joined. When it
    /// returns, the ports are free for a successor.
    pub async fn stop(self) {
        drop(self.cancel);
        self.tasks.wait().await;
    }
}

struct EventSockets {
    publisher: KvPublisher,
    replay: Option<KvReplay>,
    /// What `GET /kv_event_sources` says of it.
    source: Value,
}

impl EventSockets {
    async fn bind(
        options: &EngineOptions,
        events: &KvEventOptions,
        http_address: SocketAddr,
        rank: u16,
    ) -> Result<Self, EngineError> {
        let topic =
            events.topic.clone().unwrap_or_else(|| format!("kv@{http_address}@{}", options.model_name()));
        let (publisher, replay) =
            KvPublisher::bind(options.host, events, topic.clone(), options.block_size_tokens, rank).await?;
        let source = json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": events
                .connect
                .map_or_else(|| format!("tcp://*:{}", publisher.address().port()), |picker| format!("tcp://{picker}")),
            "replay_endpoint": replay.as_ref().map(|replay| format!("tcp://*:{}", replay.address().port())),
            "buffer_steps": events.buffer_steps,
            "hwm": 100_000,
            "max_queue_size": 100_000,
            "topic": topic,
        });
        Ok(Self { publisher, replay, source })
    }
}

fn check(options: &EngineOptions) -> Result<(), EngineError> {
    let refuse =
        |option, value: u32, reason| Err(EngineError::Option { option, value: u64::from(value), reason });
    if options.served_model_names.is_empty() {
        return Err(EngineError::NoModelName);
    }
    if options.block_size_tokens == 0 {
        return refuse("--block-size", 0, "a block holds at least one token");
    }
    if options.num_gpu_blocks < 2 {
        let reason = "block 0 is the null block, so at least two are needed";
        return refuse("--num-gpu-blocks-override", options.num_gpu_blocks, reason);
    }
    if options.data_parallel_size == 0 {
        return refuse("--data-parallel-size", 0, "an engine has at least one rank");
    }
    if options.max_num_seqs == 0 {
        return refuse("--max-num-seqs", 0, "nothing could ever run");
    }
    if options.max_num_batched_tokens == 0 {
        return refuse("--max-num-batched-tokens", 0, "no step could compute anything");
    }
    if options.context_tokens() > options.capacity_tokens() {
        let reason =
            "a request of that length doesn't fit into the cache; use more blocks or a shorter context";
        return refuse("--max-model-len", options.context_tokens(), reason);
    }
    Ok(())
}

fn scheduler_of(options: &EngineOptions) -> Scheduler {
    let cache = PrefixCache::new(
        options.num_gpu_blocks,
        options.block_size_tokens,
        options.hash_scheme.clone(),
        options.enable_prefix_caching,
    )
    .with_host_blocks(options.num_cpu_blocks);
    Scheduler::new(cache, options.max_num_seqs, options.max_num_batched_tokens)
}

fn api_state(options: EngineOptions, ranks: Vec<RankApi>, kv_event_sources: Value) -> Arc<ApiState> {
    let words = Arc::new(Words::new(options.tokenizer.as_deref()));
    Arc::new(ApiState {
        metrics_page: MetricsPage::new(
            options.model_name(),
            options.block_size_tokens,
            options.num_gpu_blocks,
            options.data_parallel_size,
        ),
        reader: PromptReader {
            words: words.clone(),
            context_tokens: options.context_tokens(),
            served_model_names: options.served_model_names,
            tokenizer: options.tokenizer,
        },
        words,
        ranks,
        with_details: options.enable_prompt_tokens_details,
        kv_event_sources,
        next_id: AtomicU64::new(0),
        started_at_seconds: api::unix_seconds(),
    })
}
