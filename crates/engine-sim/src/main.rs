//! Simulated vLLM engines as a process. Where vLLM has a flag for the same thing, it has the same name here.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use warmroute_engine_sim::{
    Engine, EngineOptions, EventEncoding, EventHashForm, HashScheme, KvEventOptions, LatencyModel,
};
use warmroute_tokenize::ModelTokenizer;

/// A simulated vLLM engine: OpenAI API, /metrics, prefix cache with eviction, KV events over ZMQ, latency model.
#[derive(Parser)]
#[command(name = "warmroute-engine-sim", version)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Several addresses, one engine on each, with the same ports; in place of --host.
    #[arg(long, value_delimiter = ',', conflicts_with = "host")]
    hosts: Vec<IpAddr>,
    /// Port of the API; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name of the model.
    #[arg(long, default_value = "sim")]
    model: String,
    /// Names that requests may use for the model, in place of --model; answers carry the first.
    #[arg(long, num_args = 1..)]
    served_model_name: Vec<String>,
    /// Directory with tokenizer.json, tokenizer_config.json and chat_template.jinja. Without it only prompts of
    /// token ids are served.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Tokens per KV block.
    #[arg(long, default_value_t = 16)]
    block_size: u32,
    /// KV blocks; one of them is the null block.
    #[arg(long, visible_alias = "num-gpu-blocks", default_value_t = 8192)]
    num_gpu_blocks_override: u32,
    /// Blocks of which the host's memory has room for copies; without it there is no such tier.
    #[arg(long, default_value_t = 0)]
    num_cpu_blocks: u32,
    /// Requests that run at once.
    #[arg(long, default_value_t = 256)]
    max_num_seqs: u32,
    /// Tokens computed in one step.
    #[arg(long, default_value_t = 8192)]
    max_num_batched_tokens: u32,
    /// Longest prompt plus output in tokens; what fits into the cache if not given.
    #[arg(long)]
    max_model_len: Option<u32>,
    /// Never reuse blocks.
    #[arg(long)]
    no_enable_prefix_caching: bool,
    /// Leave usage.prompt_tokens_details out of the answers.
    #[arg(long)]
    no_enable_prompt_tokens_details: bool,
    /// Seed of the block hashes; without it vLLM's fixed start text.
    #[arg(long, env = "PYTHONHASHSEED")]
    hash_seed: Option<String>,
    /// Ranks behind the API's port, each with a cache of its own and event ports of its own: the given ones and its
    /// number.
    #[arg(long, default_value_t = 1)]
    data_parallel_size: u16,
    #[command(flatten)]
    events: EventArguments,
    #[command(flatten)]
    latency: LatencyArguments,
}

#[derive(clap::Args)]
struct EventArguments {
    /// Publish no KV events.
    #[arg(long)]
    no_kv_events: bool,
    /// Port of the PUB socket for KV events; 0 takes a free one.
    #[arg(long, default_value_t = 5557)]
    kv_events_port: u16,
    /// Connect the PUB socket to a picker that listens there (its zmqEndpoint), instead of binding it.
    #[arg(long, value_name = "ADDRESS")]
    kv_events_connect: Option<SocketAddr>,
    /// Port of the ROUTER socket that replays batches; none if not given.
    #[arg(long)]
    kv_events_replay_port: Option<u16>,
    /// Batches kept for replay.
    #[arg(long, default_value_t = 10_000)]
    kv_events_buffer_steps: usize,
    /// Form of the events.
    #[arg(long, value_enum, default_value_t = Encoding::Map)]
    kv_events_encoding: Encoding,
    /// Form of the hashes in them.
    #[arg(long, value_enum, default_value_t = HashForm::Int)]
    kv_events_hash: HashForm,
    /// Topic of the events; kv@HOST:PORT@MODEL if not given.
    #[arg(long)]
    topic: Option<String>,
}

#[derive(clap::Args)]
struct LatencyArguments {
    /// Microseconds per prompt token that isn't cached.
    #[arg(long, default_value_t = 100.0)]
    prefill_us_per_token: f64,
    /// Microseconds per prompt token that is loaded from the host's memory.
    #[arg(long, default_value_t = 10.0)]
    load_us_per_token: f64,
    /// Milliseconds of a step that decodes, one token for every running request.
    #[arg(long, default_value_t = 10.0)]
    decode_ms_per_token: f64,
    /// Milliseconds more for a step that admits a request.
    #[arg(long, default_value_t = 0.0)]
    prefill_overhead_ms: f64,
    /// Factor on all these times.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Encoding {
    /// Maps, as vLLM 0.24 and later.
    Map,
    /// Arrays, as vLLM 0.23.
    Array,
}

#[derive(Clone, Copy, ValueEnum)]
enum HashForm {
    /// The low 64 bits as an integer.
    Int,
    /// The whole digest.
    Bytes,
}

impl EventArguments {
    fn options(self) -> Option<KvEventOptions> {
        (!self.no_kv_events).then_some(KvEventOptions {
            port: self.kv_events_port,
            connect: self.kv_events_connect,
            replay_port: self.kv_events_replay_port,
            buffer_steps: self.kv_events_buffer_steps,
            encoding: match self.kv_events_encoding {
                Encoding::Map => EventEncoding::Map,
                Encoding::Array => EventEncoding::Array,
            },
            hash_form: match self.kv_events_hash {
                HashForm::Int => EventHashForm::Int,
                HashForm::Bytes => EventHashForm::Bytes,
            },
            topic: self.topic,
        })
    }
}

impl Arguments {
    /// The options of all engines, and the addresses to start one on each.
    fn options(self) -> anyhow::Result<(EngineOptions, Vec<IpAddr>)> {
        let mut options = EngineOptions::new(self.model);
        if !self.served_model_name.is_empty() {
            options.served_model_names = self.served_model_name;
        }
        let load = |dir: PathBuf| {
            ModelTokenizer::load(&dir).with_context(|| format!("tokenizer in {}", dir.display()))
        };
        options.tokenizer = self.tokenizer.map(load).transpose()?.map(Arc::new);
        options.port = self.port;
        options.block_size_tokens = self.block_size;
        options.num_gpu_blocks = self.num_gpu_blocks_override;
        options.num_cpu_blocks = self.num_cpu_blocks;
        options.max_num_seqs = self.max_num_seqs;
        options.max_num_batched_tokens = self.max_num_batched_tokens;
        options.max_model_len_tokens = self.max_model_len;
        options.enable_prefix_caching = !self.no_enable_prefix_caching;
        options.enable_prompt_tokens_details = !self.no_enable_prompt_tokens_details;
        options.hash_scheme = HashScheme { seed: self.hash_seed, ..HashScheme::default() };
        options.data_parallel_size = self.data_parallel_size;
        options.kv_events = self.events.options();
        options.latency = LatencyModel {
            prefill_us_per_token: self.latency.prefill_us_per_token,
            load_us_per_token: self.latency.load_us_per_token,
            decode_ms_per_token: self.latency.decode_ms_per_token,
            prefill_overhead_ms: self.latency.prefill_overhead_ms,
            time_scale: self.latency.time_scale,
        };
        let hosts = if self.hosts.is_empty() { vec![self.host] } else { self.hosts };
        Ok((options, hosts))
    }
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .init();
    let (options, hosts) = Arguments::parse().options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options, hosts))
}

async fn serve(options: EngineOptions, hosts: Vec<IpAddr>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut engines = Vec::with_capacity(hosts.len());
    for host in hosts {
        let engine = Engine::start(EngineOptions { host, ..options.clone() }).await?;
        let events = engine.kv_events_address().map(tracing::field::display);
        tracing::info!(api = %engine.http_address(), kv_events = events, "engine started");
        engines.push(engine);
    }
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    for engine in engines {
        engine.stop().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Arguments;
    use clap::Parser;

    #[test]
    fn vllm_flags_and_hosts_are_understood() {
        let line = "sim --hosts 127.0.0.2,127.0.0.3 --port 8000 --served-model-name a b --block-size 32 \
                    --num-gpu-blocks-override 64 --max-num-seqs 4 --kv-events-encoding array --kv-events-hash bytes \
                    --prefill-us-per-token 250 --hash-seed 0";
        let (options, hosts) = Arguments::try_parse_from(line.split_whitespace()).unwrap().options().unwrap();
        assert_eq!(hosts.len(), 2);
        assert_eq!(options.served_model_names, ["a", "b"]);
        assert_eq!((options.block_size_tokens, options.num_gpu_blocks, options.max_num_seqs), (32, 64, 4));
        assert_eq!(options.hash_scheme.seed.as_deref(), Some("0"));
        assert!((options.latency.prefill_us_per_token - 250.0).abs() < 1e-9);
        assert!(Arguments::try_parse_from(["sim", "--host", "::1", "--hosts", "127.0.0.1"]).is_err());
    }
}
