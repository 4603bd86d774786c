//! [`EngineFleet`]: simulated engines, each on a loopback address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use super::{FreePorts, HttpClient, Process, READY_WITHIN, Tools, wait_until_ready};
use crate::DemoError;

/// What the engines of one fleet have in common.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// How many engines.
    pub count: u8,
    /// All in one process, which saves memory and start-up time, or each in its own, so that one can be killed.
    pub one_process: bool,
    /// The model name that they serve.
    pub model: String,
    /// Tokens per KV block.
    pub block_size_tokens: u32,
    /// KV blocks of each engine.
    pub num_gpu_blocks: u32,
    /// Requests that one engine runs at once; the others wait.
    pub max_num_seqs: u32,
    /// Time for each prompt token that is not cached, in µs.
    pub prefill_us_per_token: f64,
    /// Time for each generated token, in ms.
    pub decode_ms_per_token: f64,
    /// Further command-line arguments, as the engine understands them.
    pub extra_args: Vec<String>,
}

/// A process with one engine or more.
#[derive(Debug)]
pub struct EngineProcess {
    /// The process.
    pub process: Process,
    /// The addresses of its engines' HTTP APIs.
    pub engines: Vec<SocketAddr>,
    name: String,
    args: Vec<String>,
}

/// The engines of one pool. They share a port and a KV-event port, and differ in the address: 127.0.0.2 and following.
#[derive(Debug)]
pub struct EngineFleet {
    /// In the order of their addresses.
    pub processes: Vec<EngineProcess>,
    /// Where each engine publishes its KV events, on its own address.
    pub kv_events_port: u16,
}

impl EngineFleet {
    /// Starts all engines at once and waits until each answers its health page. `label` begins the names of the logs.
    ///
    /// # Errors
    /// No free port, a process that ends early or is not ready in time.
    pub async fn start(tools: &Tools, label: &str, options: &EngineOptions) -> Result<Self, DemoError> {
        let hosts: Vec<IpAddr> =
            (0..options.count).map(|index| Ipv4Addr::new(127, 0, 0, 2 + index).into()).collect();
        let mut ports = FreePorts::default();
        let port = ports.on_all(&hosts)?;
        let kv_events_port = ports.on_all(&hosts)?;
        let groups: Vec<&[IpAddr]> =
            if options.one_process { vec![&hosts] } else { hosts.chunks(1).collect() };
        let mut processes = Vec::with_capacity(groups.len());
        for (index, hosts) in groups.into_iter().enumerate() {
            let name = match hosts {
                [_] => format!("{label}-engine-{}", index + 1),
                _ => format!("{label}-engines"),
            };
            let args = arguments(tools, options, hosts, port, kv_events_port);
            let process = spawn(tools, &name, &args)?;
            let engines = hosts.iter().map(|host| SocketAddr::new(*host, port)).collect();
            processes.push(EngineProcess { process, engines, name, args });
        }
        for process in &mut processes {
            process.wait_until_ready().await?;
        }
        Ok(Self { processes, kv_events_port })
    }

    /// `host:port` of each engine's HTTP API.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.processes.iter().flat_map(|process| process.engines.iter().copied()).collect()
    }
}

impl EngineProcess {
    /// Kills it, starts it again under the same addresses, with empty caches, and waits until it is ready.
    ///
    /// # Errors
    /// As [`EngineFleet::start`].
    pub async fn restart(&mut self, tools: &Tools) -> Result<(), DemoError> {
        self.process.kill();
        self.process = spawn(tools, &self.name, &self.args)?;
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> Result<(), DemoError> {
        let client = HttpClient::default();
        for address in self.engines.clone() {
            wait_until_ready(&mut self.process, READY_WITHIN, || async {
                client.get_ok(address, "/health").await.map(drop).map_err(|error| error.to_string())
            })
            .await?;
        }
        Ok(())
    }
}

fn spawn(tools: &Tools, name: &str, args: &[String]) -> Result<Process, DemoError> {
    let mut command = Command::new(&tools.engine_sim);
    command.args(args);
    Process::spawn(name, command, &tools.logs)
}

fn arguments(
    tools: &Tools,
    options: &EngineOptions,
    hosts: &[IpAddr],
    port: u16,
    kv_events_port: u16,
) -> Vec<String> {
    let flag = |name: &str, value: &dyn ToString| [format!("--{name}"), value.to_string()];
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    [
        flag("hosts", &hosts.join(",")),
        flag("port", &port),
        flag("model", &options.model),
        flag("tokenizer", &tools.tokenizer.display()),
        flag("block-size", &options.block_size_tokens),
        flag("num-gpu-blocks", &options.num_gpu_blocks),
        flag("max-num-seqs", &options.max_num_seqs),
        flag("kv-events-port", &kv_events_port),
        flag("prefill-us-per-token", &options.prefill_us_per_token),
        flag("decode-ms-per-token", &options.decode_ms_per_token),
    ]
    .into_iter()
    .flatten()
    .chain(options.extra_args.iter().cloned())
    .collect()
}
