//! [`Stack`]: two engines, a picker and an Envoy per recipe.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use warmroute_demo::harness::{
    EnvoyProxy, FreePorts, HttpClient, Picker, PickerOptions, PickerTransport, Recipe, Tools,
};

use crate::say;
use crate::trust_history::TrustHistory;
use crate::vllm_engine::{ModelKind, VllmEngine, VllmOptions};

/// KV blocks of an engine: three prompts of the greatest length.
const BLOCKS: u32 = 96;

/// How many batches of events each engine keeps for replay: vLLM's default, and so few that a picker which starts beside
/// the running engine can't be told everything.
const BUFFER_STEPS: [u32; 2] = [10_000, 12];

const GRACE: Duration = Duration::from_secs(3);

/// How long a picker may take to find and hear all engines.
const ENGINES_LIMIT: Duration = Duration::from_secs(60);

/// Everything that runs.
pub(crate) struct Stack {
    pub(crate) http: HttpClient,
    pub(crate) history: TrustHistory,
    pub(crate) engines: Vec<VllmEngine>,
    running: Option<Running>,
    tools: Tools,
    kv_events_port: u16,
    kv_replay_port: u16,
    pickers_started: u32,
}

/// The endpoints of a status page, each with its name in receipts: its address, with its rank if it shares that.
pub(crate) fn endpoints(status: &Value) -> impl Iterator<Item = (String, &Value)> {
    status["endpoints"].as_array().into_iter().flatten().map(|line| {
        let address = line["address"].as_str().unwrap_or_default();
        let rank = line["rank"].as_u64().map_or_else(String::new, |rank| format!("-rank-{rank}"));
        (format!("{address}{rank}"), line)
    })
}

/// A picker and what asks it.
struct Running {
    picker: Picker,
    envoys: Vec<EnvoyProxy>,
}

impl Stack {
    /// Starts the engines, waits until they are ready, then starts picker and Envoys.
    ///
    /// # Errors
    /// Anything that doesn't start.
    pub(crate) async fn start(
        tools: Tools,
        vllm: PathBuf,
        kind: ModelKind,
        history: TrustHistory,
    ) -> anyhow::Result<Self> {
        let hosts: Vec<IpAddr> = (2..4).map(|last| Ipv4Addr::new(127, 0, 0, last).into()).collect();
        let mut ports = FreePorts::default();
        let mut free = || ports.on_all(&hosts);
        let (port, kv_events_port, kv_replay_port) = (free()?, free()?, free()?);
        let mut engines = Vec::new();
        for (at, host) in hosts.iter().enumerate() {
            let options = VllmOptions {
                name: format!("engine-{}", at + 1),
                kind,
                home: vllm.clone(),
                host: *host,
                port,
                kv_events_port,
                kv_replay_port,
                blocks: BLOCKS,
                buffer_steps: BUFFER_STEPS[at],
            };
            engines.push(VllmEngine::spawn(options, &tools.logs)?);
        }
        let http = HttpClient::default();
        for engine in &mut engines {
            engine.wait_until_ready(&http, say).await?;
            say(&format!("{} is ready at {}", engine.name(), engine.options.address()));
        }
        let mut stack = Self {
            http,
            history,
            engines,
            running: None,
            tools,
            kv_events_port,
            kv_replay_port,
            pickers_started: 0,
        };
        stack.start_picker().await?;
        Ok(stack)
    }

    /// Starts a picker that knows nothing, and Envoys that ask it.
    ///
    /// # Errors
    /// One doesn't start.
    pub(crate) async fn start_picker(&mut self) -> anyhow::Result<()> {
        self.pickers_started += 1;
        let number = self.pickers_started;
        let options = PickerOptions {
            config_file: self.tools.root.join("deploy/demo/policies/precise.yaml"),
            secure_serving: false,
            reads_kv_events: true,
            metrics_port: None,
            extra_args: vec![
                format!("--kv-replay-port={}", self.kv_replay_port),
                // The machine may be busy, and time limits aren't what is tested.
                "--tokenize-deadline=60s".to_owned(),
                "--metrics-staleness-threshold=10s".to_owned(),
                "--decisions-kept=100000".to_owned(),
            ],
        };
        let (name, engines) = (format!("picker-{number}"), self.addresses());
        let picker = Picker::start_for(&self.tools, &name, &options, &engines, self.kv_events_port).await?;
        self.wait_for_engines(picker.metrics).await?;
        self.history.watch_picker(Some(picker.metrics));
        let mut envoys = Vec::new();
        for recipe in Recipe::ALL {
            let name = format!("envoy-{}-{number}", recipe.name());
            let transport = PickerTransport::Plaintext;
            envoys
                .push(EnvoyProxy::start(&self.tools, &name, recipe, &[picker.grpc], transport, None).await?);
        }
        self.running = Some(Running { picker, envoys });
        Ok(())
    }

    /// Waits until the picker hears every engine: where several ranks share an address it has to find them first.
    async fn wait_for_engines(&self, admin: SocketAddr) -> anyhow::Result<()> {
        let wanted: usize = self.engines.iter().map(|engine| engine.options.kind.ranks()).sum();
        let started = Instant::now();
        loop {
            let status = serde_json::from_slice(&self.http.get_ok(admin, "/status").await?.body)?;
            let heard = endpoints(&status).filter(|(_, line)| line["kv_events"]["connected"] == true).count();
            if heard >= wanted {
                return Ok(());
            }
            if started.elapsed() > ENGINES_LIMIT {
                bail!(
                    "the picker hears {heard} of {wanted} engines after {ENGINES_LIMIT:?}; its status: {status}"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the Envoys, then kills the picker.
    pub(crate) async fn kill_picker(&mut self) {
        if let Some(mut running) = self.running.take() {
            self.history.watch_picker(None);
            for envoy in running.envoys {
                envoy.process.stop(GRACE).await;
            }
            running.picker.process.kill();
        }
    }

    /// Ends everything.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.kill_picker().await;
        for engine in &mut self.engines {
            engine.stop().await?;
        }
        Ok(())
    }

    /// Where clients of a recipe connect.
    ///
    /// # Errors
    /// There is no picker.
    pub(crate) fn gateway(&self, recipe: Recipe) -> anyhow::Result<SocketAddr> {
        let running = self.running.as_ref().context("there is no picker")?;
        let at = Recipe::ALL.iter().position(|known| *known == recipe).unwrap_or(0);
        Ok(running.envoys.get(at).context("there is no Envoy")?.listener)
    }

    /// The picker's pages.
    ///
    /// # Errors
    /// There is no picker.
    pub(crate) fn admin(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.running.as_ref().context("there is no picker")?.picker.metrics)
    }

    /// Addresses of the engines.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.engines.iter().map(|engine| engine.options.address()).collect()
    }

    /// What `warmroute doctor` says, as JSON.
    ///
    /// # Errors
    /// It says nothing.
    pub(crate) async fn doctor(&self) -> anyhow::Result<Value> {
        let mut command = tokio::process::Command::new(&self.tools.picker);
        command.args(["doctor", "--json", "--address"]).arg(format!("http://{}", self.admin()?));
        let output = command.output().await?;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).with_context(said)
    }
}
