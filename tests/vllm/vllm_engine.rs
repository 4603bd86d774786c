//! [`VllmEngine`]: one real vLLM server on the CPU as a group of processes.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use warmroute_demo::harness::{HttpClient, Process};

/// The name under which the engines serve the model, whichever it is.
pub(crate) const MODEL: &str = "toy";

/// The name under which they serve the adapter.
pub(crate) const ADAPTER: &str = "adapter";

/// Tokens per KV block: the smallest size that vLLM's attention on the CPU takes.
pub(crate) const BLOCK_TOKENS: u64 = 32;

/// Tokens of prompt and answer together, at most.
pub(crate) const MAX_MODEL_TOKENS: u64 = 1024;

/// How long a start may take. It takes about a minute on two idle cores, and several on busy ones.
const START_LIMIT: Duration = Duration::from_secs(900);

/// How long an engine may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(30);

const PROBE_EVERY: Duration = Duration::from_millis(200);

/// What the engines serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ModelKind {
    /// A model with one kind of attention, and an adapter for it.
    Plain,
    /// A model of which every other layer sees a window only: a matched prefix may be gone in a part of the layers.
    Hybrid,
    /// The plain model, twice behind each address: data-parallel ranks.
    Ranks,
}

impl ModelKind {
    /// Data-parallel ranks of one server.
    pub(crate) fn ranks(self) -> usize {
        if self == Self::Ranks { 2 } else { 1 }
    }
}

/// How an engine is started.
#[derive(Debug, Clone)]
pub(crate) struct VllmOptions {
    /// Begins the name of its log.
    pub(crate) name: String,
    pub(crate) kind: ModelKind,
    /// What `deploy/setup/vllm.sh` made.
    pub(crate) home: PathBuf,
    /// The loopback address of its own.
    pub(crate) host: IpAddr,
    /// Port of its API.
    pub(crate) port: u16,
    /// Port of its KV events.
    pub(crate) kv_events_port: u16,
    /// Port of its replays.
    pub(crate) kv_replay_port: u16,
    /// KV blocks; so few that the engine has to evict.
    pub(crate) blocks: u32,
    /// Batches of events that it keeps for replay.
    pub(crate) buffer_steps: u32,
}

/// A started engine. Dropping it kills all its processes.
#[derive(Debug)]
pub(crate) struct VllmEngine {
    pub(crate) options: VllmOptions,
    process: Process,
    logs: PathBuf,
    starts: u32,
}

impl VllmOptions {
    /// Where it serves its API.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    fn command(&self) -> Command {
        let models = self.home.join("models");
        // vLLM binds an endpoint that has `*` or `::` in it, and connects to any other. An IPv4 address written as an
        // IPv6 one is bound, and nothing beyond this machine can reach it.
        let endpoint = |port: u16| format!("tcp://[::ffff:{}]:{port}", self.host);
        let events = json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": endpoint(self.kv_events_port),
            "replay_endpoint": endpoint(self.kv_replay_port),
            "buffer_steps": self.buffer_steps,
            "topic": format!("kv@{}@{MODEL}", self.address()),
        });
        let flag = |name: &str, value: &dyn ToString| [format!("--{name}"), value.to_string()];
        let mut command = Command::new(self.home.join("bin/vllm"));
        command.arg("serve");
        match self.kind {
            ModelKind::Plain => command
                .arg(models.join("tiny-qwen2"))
                .arg("--enable-lora")
                .args(flag("max-lora-rank", &8))
                .args(flag("max-loras", &1))
                .args(flag("lora-modules", &format!("{ADAPTER}={}", models.join("adapter").display()))),
            ModelKind::Ranks => {
                command.arg(models.join("tiny-qwen2")).args(flag("data-parallel-size", &self.kind.ranks()))
            }
            ModelKind::Hybrid => {
                command.arg(models.join("tiny-gemma3")).arg("--no-disable-hybrid-kv-cache-manager")
            }
        };
        command
            .args(["--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"])
            .args(flag("served-model-name", &MODEL))
            .args(flag("load-format", &"dummy"))
            .args(flag("host", &self.host))
            .args(flag("port", &self.port))
            .args(flag("block-size", &BLOCK_TOKENS))
            .args(flag("num-gpu-blocks-override", &self.blocks))
            .args(flag("max-model-len", &MAX_MODEL_TOKENS))
            .args(flag("max-num-seqs", &8))
            .args(flag("kv-events-config", &events))
            .env_remove("PYTHONHASHSEED")
            // Without Python's .pyc files a start takes twice as long.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .envs([
                ("HF_HUB_OFFLINE", "1"),
                ("VLLM_NO_USAGE_STATS", "1"),
                ("DO_NOT_TRACK", "1"),
                ("VLLM_CPU_KVCACHE_SPACE", "1"),
                ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
                ("VLLM_HOST_IP", "127.0.0.1"),
                // For `POST /reset_prefix_cache`.
                ("VLLM_SERVER_DEV_MODE", "1"),
            ]);
        command
    }
}

impl VllmEngine {
    /// Starts one; it takes a while until it is ready.
    ///
    /// # Errors
    /// It isn't installed, or can't be started.
    pub(crate) fn spawn(options: VllmOptions, logs: &Path) -> anyhow::Result<Self> {
        let program = options.home.join("bin/vllm");
        if !program.is_file() {
            bail!(
                "there is no vLLM at {}: run deploy/setup/vllm.sh (`make test-vllm` does)",
                program.display()
            );
        }
        let process = Process::spawn(&options.name, options.command(), logs)?;
        Ok(Self { options, process, logs: logs.to_owned(), starts: 1 })
    }

    /// Whether it answers its health page now.
    ///
    /// # Errors
    /// It has ended; with the end of its log.
    pub(crate) async fn is_ready(&mut self, http: &HttpClient) -> anyhow::Result<bool> {
        self.process.check()?;
        Ok(http.get_ok(self.options.address(), "/health").await.is_ok())
    }

    /// Waits until it is ready, and tells `progress` now and then of the last line of its log.
    ///
    /// # Errors
    /// It ends, or takes too long; with the end of its log.
    pub(crate) async fn wait_until_ready(
        &mut self,
        http: &HttpClient,
        mut progress: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        let (started, mut told) = (Instant::now(), Instant::now());
        while !self.is_ready(http).await? {
            if started.elapsed() > START_LIMIT {
                bail!(
                    "{} is not ready after {START_LIMIT:?}; the end of its log:\n{}",
                    self.name(),
                    self.process.log_tail()
                );
            }
            if told.elapsed() > Duration::from_secs(15) {
                told = Instant::now();
                let tail = self.process.log_tail();
                let last: String = tail.lines().last().unwrap_or_default().chars().take(110).collect();
                progress(&format!("{} is starting: {last}", self.name()));
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(())
    }

    /// Asks all its processes to end, and kills those that don't.
    ///
    /// # Errors
    /// It can't be asked.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM).with_context(|| format!("cannot stop {}", self.name()))?;
        let started = Instant::now();
        while self.process.check().is_ok() && started.elapsed() < STOP_LIMIT {
            tokio::time::sleep(PROBE_EVERY).await;
        }
        self.kill();
        Ok(())
    }

    /// Starts it again after [`VllmEngine::stop`], at the same ports, with a log of its own.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<()> {
        self.starts += 1;
        let name = format!("{}-start-{}", self.options.name, self.starts);
        self.process = Process::spawn(&name, self.options.command(), &self.logs)?;
        Ok(())
    }

    /// The name of its log.
    pub(crate) fn name(&self) -> &str {
        self.process.name()
    }

    fn signal(&self, signal: Signal) -> Result<(), rustix::io::Errno> {
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw);
        pid.map_or(Ok(()), |group| kill_process_group(group, signal))
    }

    /// Kills what is left of it. Its processes are a group, named after the first of them.
    fn kill(&mut self) {
        // All of them may have ended, which is as good.
        let _ = self.signal(Signal::KILL);
        self.process.kill();
    }
}

impl Drop for VllmEngine {
    fn drop(&mut self) {
        self.kill();
    }
}
