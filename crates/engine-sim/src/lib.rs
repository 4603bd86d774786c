//! A simulated vLLM engine: OpenAI API, metrics page, paged prefix cache with eviction, KV events over ZMQ and a
//! latency model. It stands in for the GPU alone: the cache model is exact, the tokens it decodes are made up.
//!
//! [`Engine::start`] runs one in the current tokio runtime; the binary `warmroute-engine-sim` runs one or more in a
//! process. [`PrefixCache`] and [`Scheduler`] work without sockets and clocks, for deterministic tests.
//!
//! # What is real and what isn't
//!
//! - Block hashes, hits, evictions, preemptions, steps and events are those of vLLM with full attention and one KV
//!   cache group; the tests compare them with recordings of vLLM 0.32 and 0.23, byte for byte. LoRA adapters,
//!   images, sliding windows, offloading and speculative decoding are not simulated.
//! - Every request decodes exactly `max_tokens` tokens (16 if not given), always the same ones for the same prompt.
//!   With a tokenizer they are words whose text encodes to the same ids again, so that a conversation sent back with
//!   the answer in it hits the decoded blocks.
//! - `/metrics` is a page of vLLM 0.32 in which requests, cache, token counters, and the histograms of time to first
//!   token and of request latency are live; the other samples stay as they were captured.
//! - Data-parallel ranks behind one port have a cache, a queue, a publisher and metrics each, and are chosen by
//!   `X-data-parallel-rank`.
//! - Time passes as [`LatencyModel`] says.
//!
//! # Beyond vLLM's API
//!
//! - The request member `sim_output_token_ids` (a list) gives the tokens to decode, whatever `max_tokens` says. A
//!   recorded scenario is replayed with it.
//! - `POST /sim/lose_event_batches?batches=N`: the next N event batches are numbered but not sent.

mod answer;
mod api;
mod api_error;
mod block_hash;
mod block_pool;
mod counters;
mod engine;
mod engine_loop;
mod generation;
mod histogram;
mod host_cache;
mod kv_events;
mod kv_publisher;
mod latency;
mod metrics_page;
mod options;
mod prefix_cache;
mod prompts;
mod scheduler;
mod words;

pub use block_hash::{BlockHash, HashScheme};
pub use block_pool::{BlockId, BlockPool, CacheEvent};
pub use engine::{Engine, EngineError, RunningEngine};
pub use kv_events::{BatchEncoder, EventEncoding, EventHashForm};
pub use latency::{LatencyModel, StepWork};
pub use options::{DEFAULT_MAX_MODEL_LEN_TOKENS, EngineOptions, KvEventOptions};
pub use prefix_cache::{PrefixCache, Sequence};
pub use scheduler::{NewRequest, Scheduler, SchedulerStats, StepOutput};
