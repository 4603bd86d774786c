//! Pickers are replaced one after the other behind Envoy, under load: no request fails, and the new ones know what the
//! old ones knew.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::future::join_all;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::task::JoinSet;
use tonic_health::pb::health_check_response::ServingStatus;
use warmroute_demo::harness::{
    EnvoyConfig, FreePorts, HttpClient, PickerTransport, Process, READY_WITHIN, Recipe, wait_until_ready,
};

use crate::fixture::{
    BLOCK_TOKENS, Client, MODEL, Picker, PickerOptions, Policy, Script, ScriptedEngine, SimulatedEngines,
    Stack, StackOptions, log_name, run, sse_response, tools, until,
};

const COMPLETIONS: &str = "/v1/completions";
/// Requests at a time.
const CLIENTS: u64 = 6;
/// Requests between two steps of the roll, at least.
const REQUESTS_PER_STEP: u64 = 60;

in_both_recipes!(no_request_fails_while_pickers_are_replaced);

/// Envoy in front of pickers of which some don't run yet, with a recipe whose health checks are quick.
struct Gateway {
    _process: Process,
    listener: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    async fn start(recipe: Recipe, pickers: &[SocketAddr]) -> Self {
        let (tools, mut ports) = (tools(), FreePorts::default());
        let mut free = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback().unwrap()));
        let (listener, admin) = (free(), free());
        let transport = PickerTransport::Plaintext;
        let config =
            EnvoyConfig { recipe, listener, admin_port: admin.port(), pickers: pickers.to_vec(), transport };
        let text = config.render(&tools.root).unwrap();
        let quick = text.replace("interval: 3s", "interval: 0.1s");
        assert_ne!(quick, text, "the recipe's health checks have another interval");
        // Half of the pickers don't run at any time, which no cluster would list: no reason to ask them all.
        let policy = "lb_policy: LEAST_REQUEST";
        let quick = quick.replace(
            policy,
            &format!("{policy}\n    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}"),
        );
        let file = tools.logs.join(format!("{}.yaml", log_name("envoy")));
        std::fs::create_dir_all(&tools.logs).unwrap();
        std::fs::write(&file, quick).unwrap();
        let mut command = Command::new(&tools.envoy);
        command
            .args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning", "-c"])
            .arg(&file);
        let mut process = Process::spawn(&log_name("envoy"), command, &tools.logs).unwrap();
        let client = HttpClient::default();
        wait_until_ready(&mut process, READY_WITHIN, || async {
            client.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string())
        })
        .await
        .unwrap();
        Self { _process: process, listener, admin }
    }

    /// What Envoy has of each picker: flags and failures.
    async fn picker_stats(&self) -> String {
        let page = HttpClient::default().get_ok(self.admin, "/clusters").await.unwrap().text();
        let tells = |line: &&str| {
            line.starts_with("picker::127")
                && ["health_flags", "cx_connect_fail", "rq_error", "rq_total"]
                    .iter()
                    .any(|what| line.contains(what))
        };
        page.lines().filter(tells).collect::<Vec<_>>().join("\n")
    }

    /// Waits until Envoy sends requests to a picker, or doesn't any more.
    async fn until_healthy(&self, picker: SocketAddr, healthy: bool) {
        let line = format!("picker::{picker}::health_flags::healthy");
        until(&line, async || {
            let page = HttpClient::default().get_ok(self.admin, "/clusters").await.unwrap().text();
            (page.contains(&line) == healthy).then_some(())
        })
        .await;
    }
}

/// Clients that send one request after the other, each a generation of some tokens.
struct Load {
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    fn start(gateway: SocketAddr) -> Self {
        let (done, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (done, is_over) = (done.clone(), is_over.clone());
            clients.spawn(async move {
                let (gateway, mut failures) = (Client::new(gateway), Vec::new());
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("load-{client}-{number}");
                    // Some prompts come again, some are new.
                    let first = 1_000_000 * (client + 1) + (number / 3) * 1_000;
                    let prompt: Vec<u64> = (first..first + 4 * BLOCK_TOKENS).collect();
                    let body = json!({"model": MODEL, "prompt": prompt, "stream": true, "max_tokens": 8});
                    let response = gateway.open_post(COMPLETIONS, &id, &body).await;
                    let status = response.status();
                    match response.into_body().collect().await.map(http_body_util::Collected::to_bytes) {
                        Ok(body) if status == 200 && body.ends_with(b"data: [DONE]\n\n") => {}
                        other => failures.push(format!("{id}: {status} {other:?}")),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                failures
            });
        }
        Self { done, is_over, clients }
    }

    /// Waits until some more requests have been answered.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        until("more answers", async || {
            (self.done.load(Ordering::Relaxed) >= before + REQUESTS_PER_STEP).then_some(())
        })
        .await;
    }

    async fn end(self) -> (u64, Vec<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        let failures = self.clients.join_all().await.concat();
        (self.done.load(Ordering::Relaxed), failures)
    }
}

/// Four places for pickers, of which two run at a time.
struct Replicas {
    engines: SimulatedEngines,
    grpc: Vec<SocketAddr>,
    replica: Vec<u16>,
}

impl Replicas {
    async fn new() -> Self {
        let engines = SimulatedEngines::start(2, false).await;
        let mut ports = FreePorts::default();
        let mut free = || ports.on_loopback().unwrap();
        let grpc = (0..4).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, free()))).collect();
        let replica = (0..4).map(|_| free()).collect();
        Self { engines, grpc, replica }
    }

    async fn start(&self, at: usize) -> Picker {
        let mut options = PickerOptions {
            endpoints: self.engines.addresses(),
            kv_events_port: Some(self.engines.kv_events_port),
            grpc_port: Some(self.grpc[at].port()),
            ..PickerOptions::new(Policy::Precise)
        };
        let peers: Vec<String> = self.replica.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        options.extra_args = vec![
            // The test ends the wait itself.
            "--drain-timeout=100s".to_owned(),
            format!("--kv-replay-port={}", self.engines.kv_replay_port),
            format!("--replica-port={}", self.replica[at]),
            format!("--replica-peers={}", peers.join(",")),
        ];
        Picker::start(&options).await
    }
}

/// Ends a picker as a roll does.
async fn retire(mut old: Picker, gateway: &Gateway, load: &Load) {
    old.terminate();
    gateway.until_healthy(old.grpc, false).await;
    assert_eq!(old.check_health(old.health, "readiness").await, ServingStatus::NotServing);
    // Envoy's threads hear of it up to a second later (update_merge_window). Until then it serves.
    until("no new request at the old picker", async || {
        let before = old.status().await.decisions();
        load.goes_on().await;
        (old.status().await.decisions() == before).then_some(())
    })
    .await;
    old.terminate();
    assert_eq!(old.ended().await, "exit status: 0");
    load.goes_on().await;
}

async fn no_request_fails_while_pickers_are_replaced(recipe: Recipe) {
    let replicas = Replicas::new().await;
    let mut running = vec![replicas.start(0).await, replicas.start(1).await];
    let gateway = Gateway::start(recipe, &replicas.grpc).await;
    for picker in &running {
        gateway.until_healthy(picker.grpc, true).await;
    }
    let load = Load::start(gateway.listener);
    load.goes_on().await;
    for at in [2, 3] {
        let new = replicas.start(at).await;
        let report = new.status().await.sibling_snapshot().clone();
        assert_eq!(report["state"], json!("taken"), "{report}");
        gateway.until_healthy(new.grpc, true).await;
        running.push(new);
        load.goes_on().await;
        retire(running.remove(0), &gateway, &load).await;
    }
    let (answered, failures) = load.end().await;
    let stats = gateway.picker_stats().await;
    assert!(failures.is_empty(), "{} of {answered} requests: {failures:?}\n{stats}", failures.len());
    // Both new ones have the same view, which is the engines'.
    for engine in replicas.engines.addresses() {
        until("the same exact views", async || {
            let statuses = join_all(running.iter().map(Picker::status)).await;
            let view = |at: usize| {
                let events = statuses[at].kv_events(engine);
                (events["trust"] == "exact").then(|| (events["blocks"].clone(), events["last_seq"].clone()))
            };
            (view(0).is_some() && view(0) == view(1)).then_some(())
        })
        .await;
    }
    for picker in &running {
        picker.until_idle().await;
    }
}

/// What can't be had with full-duplex responses: every byte passes through the picker, so when it ends, so do they.
#[test]
fn a_full_duplex_generation_that_is_longer_than_the_grace_period_is_cut() {
    run(async {
        let engine = ScriptedEngine::start(Script::HeldStream).await;
        let options = StackOptions {
            picker_args: vec!["--drain-timeout=200ms".to_owned()],
            ..StackOptions::least_loaded(Recipe::FullDuplex, &[engine.address])
        };
        let mut stack = Stack::start(options).await;
        let body = json!({"model": MODEL, "prompt": "once upon", "stream": true});
        let running = stack.gateway.open_post(COMPLETIONS, "running", &body).await;
        assert_eq!(running.status(), 200);
        stack.picker.terminate();
        assert_eq!(stack.picker.ended().await, "exit status: 0");
        engine.release(1);
        let cut = running.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        // Never passed off as whole.
        assert!(!cut.as_ref().is_ok_and(|body| *body == sse_response()), "{cut:?}");
        assert!(cut.is_err(), "{cut:?}");
    });
}
