//! What an engine is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use warmroute_tokenize::ModelTokenizer;

use crate::block_hash::HashScheme;
use crate::kv_events::{EventEncoding, EventHashForm};
use crate::latency::LatencyModel;

/// The context length offered when neither the options nor the cache size ask for less, in tokens.
pub const DEFAULT_MAX_MODEL_LEN_TOKENS: u32 = 131_072;

/// Everything that decides how one simulated engine behaves. [`EngineOptions::new`] gives defaults that suit
/// tests: loopback, free ports, KV events on, no modelled latency.
#[derive(Clone)]
pub struct EngineOptions {
    /// The address that the API and the event socket listen on.
    pub host: IpAddr,
    /// The API's port; 0 takes a free one.
    pub port: u16,
    /// The names that requests may use for the model. The first one is reported in answers and metrics.
    pub served_model_names: Vec<String>,
    /// Tokenizer and chat template. Without one only token-id prompts are served.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
    /// Tokens per KV block.
    pub block_size_tokens: u32,
    /// Physical KV blocks. One of them is the null block, so one fewer can be used.
    pub num_gpu_blocks: u32,
    /// Blocks of which the host's memory has room for copies; 0 for no such tier.
    pub num_cpu_blocks: u32,
    /// Requests that may run at once; the others wait in order of arrival.
    pub max_num_seqs: u32,
    /// Token budget of one step. A longer prompt is computed in several steps (chunked prefill).
    pub max_num_batched_tokens: u32,
    /// Longest prompt plus output, in tokens. `None`: what fits into the cache, at most
    /// [`DEFAULT_MAX_MODEL_LEN_TOKENS`].
    pub max_model_len_tokens: Option<u32>,
    /// Whether blocks are reused between requests.
    pub enable_prefix_caching: bool,
    /// Whether `usage.prompt_tokens_details` is filled (vLLM's `--enable-prompt-tokens-details`).
    pub enable_prompt_tokens_details: bool,
    /// How block hashes are made.
    pub hash_scheme: HashScheme,
    /// Data-parallel ranks behind the API's port. Each has caches, a queue and a publisher of its own; a request comes to
    /// the one that its header `X-data-parallel-rank` names, else to the least busy.
    pub data_parallel_size: u16,
    /// The KV event publisher of every rank, if any.
    pub kv_events: Option<KvEventOptions>,
    /// How long the simulated GPU takes.
    pub latency: LatencyModel,
}

/// The KV event publisher of one engine.
#[derive(Clone, Debug)]
pub struct KvEventOptions {
    /// Port of the PUB socket of rank 0, bound on the engine's host; other ranks' numbers are added. 0 takes free ones.
    pub port: u16,
    /// Where a picker listens that the PUB socket connects to, instead of being bound: vLLM does so when its endpoint has
    /// no wildcard. The picker has to be there when the engine starts.
    pub connect: Option<SocketAddr>,
    /// Port of the ROUTER socket that answers replay requests, with ranks as above: `None` for no replay, 0 takes free
    /// ones.
    pub replay_port: Option<u16>,
    /// Batches kept for replay.
    pub buffer_steps: usize,
    /// The wire form of events.
    pub encoding: EventEncoding,
    /// The wire form of block hashes.
    pub hash_form: EventHashForm,
    /// First frame of every message. `None`: `kv@HOST:PORT@MODEL`, the form that llm-d's subscriber expects.
    pub topic: Option<String>,
}

impl Default for KvEventOptions {
    fn default() -> Self {
        Self {
            port: 0,
            connect: None,
            replay_port: None,
            buffer_steps: 10_000,
            encoding: EventEncoding::Map,
            hash_form: EventHashForm::Int,
            topic: None,
        }
    }
}

impl EngineOptions {
    /// Defaults for one model: 127.0.0.1, free ports, 16-token blocks, 1,024 blocks, 256 running requests,
    /// vLLM's budget of 8,192 tokens per step, KV events as maps with integer hashes, no modelled latency.
    #[must_use]
    pub fn new(served_model_name: impl Into<String>) -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            served_model_names: vec![served_model_name.into()],
            tokenizer: None,
            block_size_tokens: 16,
            num_gpu_blocks: 1024,
            num_cpu_blocks: 0,
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            max_model_len_tokens: None,
            enable_prefix_caching: true,
            enable_prompt_tokens_details: true,
            hash_scheme: HashScheme::default(),
            data_parallel_size: 1,
            kv_events: Some(KvEventOptions::default()),
            latency: LatencyModel::default(),
        }
    }

    /// Tokens that the usable blocks hold together.
    #[must_use]
    pub fn capacity_tokens(&self) -> u32 {
        self.num_gpu_blocks.saturating_sub(1).saturating_mul(self.block_size_tokens)
    }

    /// The context length in force, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> u32 {
        self.max_model_len_tokens.unwrap_or_else(|| self.capacity_tokens().min(DEFAULT_MAX_MODEL_LEN_TOKENS))
    }

    /// The name reported for the model.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.served_model_names.first().map_or("", String::as_str)
    }
}
