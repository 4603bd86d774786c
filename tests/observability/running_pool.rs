//! [`RunningPool`]: pickers, engines and Envoy under load, and the trouble that they are put to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::time::Instant;
use warmroute_demo::harness::{
    EngineOptions, FreePorts, HttpClient, PickerOptions, Recipe, Stack, StackOptions, Tools,
};
use warmroute_demo::load::{Failure, LoadGenerator, Pace, PlannedRequest};
use warmroute_demo::scenario::{EngineSpec, Plan, Scenario, SharedPrefixSpec, Workload};

use crate::say;

const MODEL: &str = "qwen2.5-sim";
/// The objective of negative priority that the pickers know.
const BATCH: &str = "batch";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a picker may take to notice something.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// Requests at once that fill the pool for ten seconds and more.
const BURST: usize = 90;
/// Requests that wait in each engine then, at least: more than what makes the pool count as full.
const FULL_QUEUE: f64 = 8.0;
/// The lines that tell how many wait in each engine.
const QUEUES: &str = "llm_d_epp_per_endpoint_queue_size{";

/// What runs.
pub(crate) struct RunningPool {
    pub(crate) stack: Stack,
    tools: Tools,
    config: PathBuf,
    http: HttpClient,
}

impl RunningPool {
    /// Three engines with a tier beside GPU memory and replay ports, two pickers, Envoy with full duplex.
    pub(crate) async fn start(tools: Tools, work: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(work)?;
        let config = work.join("picker.yaml");
        std::fs::copy(tools.root.join("deploy/demo/policies/precise.yaml"), &config)?;
        let hosts = [2, 3, 4].map(|last| std::net::IpAddr::from([127, 0, 0, last]));
        let replay_port = FreePorts::default().on_all(&hosts)?;
        let spec = engines();
        let options = StackOptions {
            label: "observability".to_owned(),
            engines: EngineOptions {
                one_process: false,
                extra_args: vec![
                    format!("--kv-events-replay-port={replay_port}"),
                    "--num-cpu-blocks=400".to_owned(),
                ],
                ..spec.options(MODEL)
            },
            picker: PickerOptions {
                config_file: config.clone(),
                secure_serving: true,
                reads_kv_events: true,
                metrics_port: None,
                extra_args: vec![
                    format!("--kv-replay-port={replay_port}"),
                    format!("--inference-objective={BATCH}=-1"),
                    // The machine may be busy, and time limits aren't what is tested.
                    "--tokenize-deadline=30s".to_owned(),
                    "--metrics-staleness-threshold=10s".to_owned(),
                ],
            },
            picker_replicas: 2,
            recipe: Recipe::FullDuplex,
            gateway_port: None,
        };
        let stack = Stack::start(&tools, &options).await?;
        Ok(Self { stack, tools, config, http: HttpClient::default() })
    }

    /// Where Prometheus finds the pickers.
    pub(crate) fn pickers(&self) -> Vec<std::net::SocketAddr> {
        self.stack.pickers.iter().map(|picker| picker.metrics).collect()
    }

    /// Sends a plan of requests that share prefixes; all must succeed.
    pub(crate) async fn load(&self, seed: u64) -> anyhow::Result<()> {
        let plan = plan(seed);
        let load = LoadGenerator::new(self.stack.gateway(), REQUEST_TIMEOUT);
        for (requests, pace) in [(&plan.warm_up, plan.warm_up_pace), (&plan.requests, plan.pace)] {
            let outcomes = load.run(requests, pace, |_| {}).await;
            let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref()).collect();
            if !failed.is_empty() {
                bail!("{} of {} requests failed, as {:?}", failed.len(), outcomes.len(), failed[0]);
            }
        }
        Ok(())
    }

    /// One after the other: a full pool that refuses, mistakes of clients, a configuration that is refused and one that
    /// is taken, an engine that dies.
    pub(crate) async fn make_trouble(&mut self) -> anyhow::Result<()> {
        say("trouble: more requests than the engines take, and one of negative priority");
        self.fill_the_pool().await?;
        say("trouble: mistakes of clients");
        self.mistakes().await?;
        say("trouble: connections that speak no TLS");
        for picker in &self.stack.pickers {
            // The answer is no HTTP, or there is none.
            let _ = self.http.get(picker.grpc, "/").await;
        }
        self.wait_for("a failed TLS connection", "warmroute_tls_handshake_failures_total{").await?;
        say("trouble: a configuration with a mistake, then one without");
        self.change_the_configuration().await?;
        say("trouble: an engine dies");
        let engine = self.stack.fleet.processes.last_mut().context("there is no engine")?;
        engine.process.kill();
        self.wait_for("a failed scrape", "llm_d_epp_datalayer_poll_errors_total{").await?;
        self.wait_for("a failed connection", "llm_d_epp_kv_cache_events_zmq_errors_total{").await
    }

    /// The engine that died comes back, with an empty cache.
    pub(crate) async fn end_trouble(&mut self) -> anyhow::Result<()> {
        let engine = self.stack.fleet.processes.last_mut().context("there is no engine")?;
        engine.restart(&self.tools).await?;
        self.wait_for("a connection", "llm_d_epp_kv_cache_events_subscriber_reconnections_total{").await
    }

    /// Sends many long requests at once, and one of negative priority when they wait in every engine.
    async fn fill_the_pool(&self) -> anyhow::Result<()> {
        let request = |number: usize| PlannedRequest {
            due: Duration::ZERO,
            path: "/v1/chat/completions",
            body: chat(&format!("Request {number} of many that come at once."), 400).into(),
            headers: Vec::new(),
        };
        let burst: Vec<PlannedRequest> = (0..BURST).map(request).collect();
        let load = LoadGenerator::new(self.stack.gateway(), REQUEST_TIMEOUT);
        let refused = async {
            self.wait_until("full queues", |page| {
                let queues = page.lines().filter(|line| line.starts_with(QUEUES));
                let lengths = queues.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
                lengths.filter(|length| *length >= FULL_QUEUE).count() == usize::from(engines().count)
            })
            .await?;
            match self.send_batch_request().await? {
                429 => Ok(()),
                status => bail!("a request of negative priority was answered with {status} by a full pool"),
            }
        };
        let (_, refused) = tokio::join!(load.run(&burst, Pace::Scheduled, |_| {}), refused);
        refused
    }

    /// The status of a request of negative priority.
    async fn send_batch_request(&self) -> anyhow::Result<u16> {
        let request = PlannedRequest {
            due: Duration::ZERO,
            path: "/v1/chat/completions",
            body: chat("A request that can wait.", 1).into(),
            headers: vec![("x-llm-d-inference-objective", BATCH.to_owned())],
        };
        let load = LoadGenerator::new(self.stack.gateway(), REQUEST_TIMEOUT);
        let outcomes = load.run(&[request], Pace::OneByOne(Duration::ZERO), |_| {}).await;
        Ok(match outcomes.first().and_then(|outcome| outcome.failure.as_ref()) {
            None => 200,
            Some(Failure::Status(status)) => *status,
            Some(failure) => bail!("a request of negative priority failed: {failure:?}"),
        })
    }

    async fn mistakes(&self) -> anyhow::Result<()> {
        // Often enough that each picker gets some.
        for _ in 0..10 {
            let answer = self
                .http
                .post(self.stack.gateway(), "/v1/chat/completions", "no JSON".to_owned().into())
                .await?;
            if answer.status != 400 {
                bail!("a malformed body was answered with {}", answer.status);
            }
            self.http.get(self.stack.gateway(), "/v1/models").await?;
        }
        self.wait_for("a refusal", "llm_d_epp_request_error_total{").await?;
        self.wait_for("a fallback", "warmroute_fallbacks_total{").await
    }

    async fn change_the_configuration(&self) -> anyhow::Result<()> {
        let good = std::fs::read_to_string(&self.config)?;
        std::fs::write(&self.config, good.replace("queue-scorer", "cue-scorer"))?;
        self.wait_for("a refusal", "warmroute_config_reloads_total{outcome=\"refused\"}").await?;
        std::fs::write(&self.config, good.replace("weight: 3", "weight: 4"))?;
        self.wait_for("a change", "warmroute_config_reloads_total{outcome=\"taken\"}").await
    }

    /// Waits until every picker's page has a line that begins so.
    async fn wait_for(&self, what: &str, start: &str) -> anyhow::Result<()> {
        self.wait_until(what, |page| page.lines().any(|line| line.starts_with(start))).await
    }

    /// Waits until every picker's page of metrics is as it shall be.
    async fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        for picker in self.pickers() {
            while !is_so(&self.http.get_ok(picker, "/metrics").await?.text()) {
                if started.elapsed() > NOTICED_WITHIN {
                    bail!("{picker} doesn't show {what} within {NOTICED_WITHIN:?}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

fn engines() -> EngineSpec {
    EngineSpec {
        count: 3,
        block_size_tokens: 16,
        num_gpu_blocks: 160,
        max_num_seqs: 4,
        prefill_us_per_token: 50.0,
        decode_ms_per_token: 5.0,
    }
}

/// Two hundred questions on eight texts: so few that every picker can judge every engine.
fn plan(seed: u64) -> Plan {
    let workload = Workload::SharedPrefix(SharedPrefixSpec {
        seed,
        groups: 8,
        questions_per_group: 25,
        prefix_words: 300,
        question_words: 20,
        max_tokens: 6,
        warm_up_rate_per_s: 10.0,
        rate_per_s: 12.0,
    });
    let scenario = Scenario {
        name: "observability".to_owned(),
        description: String::new(),
        pickers: 2,
        policies: Vec::new(),
        expect: Vec::new(),
        engines: engines(),
        workload,
    };
    Plan::new(&scenario, MODEL)
}

fn chat(content: &str, max_tokens: u32) -> String {
    json!({
        "model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "stream": true,
        "stream_options": {"include_usage": true},
    })
    .to_string()
}
