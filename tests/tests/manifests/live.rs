//! The Envoys of the manifests at work: in front of the picker with the configuration of the manifests, and of simulated
//! engines. Only addresses and ports are others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use warmroute_demo::harness::{
    FreePorts, HttpClient, Picker, PickerOptions, Process, READY_WITHIN, Tools, wait_until_ready,
};
use warmroute_engine_sim::{Engine, EngineOptions, KvEventOptions, RunningEngine};
use warmroute_tokenize::ModelTokenizer;

use crate::envoys::gateway_with;
use crate::objects::Objects;

const MODEL: &str = "qwen2.5";

/// Two engines, a picker that listens to them, and the folder of its configuration.
struct Pool {
    tools: Tools,
    engines: Vec<RunningEngine>,
    picker: Picker,
    _folder: TempDir,
}

impl Pool {
    /// With the configuration and the TLS of a manifest.
    async fn start(name: &str, objects: &Objects) -> Self {
        let tools = Tools {
            root: Tools::root(),
            picker: env!("CARGO_BIN_EXE_warmroute-under-test").into(),
            engine_sim: PathBuf::new(),
            envoy: Tools::locate_envoy().unwrap(),
            tokenizer: Tools::locate_tokenizer().unwrap(),
            logs: concat!(env!("CARGO_TARGET_TMPDIR"), "/manifests").into(),
        };
        let hosts: Vec<IpAddr> = [2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last).into()).to_vec();
        let mut ports = FreePorts::default();
        let (port, kv_events_port) = (ports.on_all(&hosts).unwrap(), ports.on_all(&hosts).unwrap());
        let tokenizer = Arc::new(ModelTokenizer::load(&tools.tokenizer).unwrap());
        let mut engines = Vec::new();
        for host in hosts {
            let mut options = EngineOptions::new(MODEL);
            (options.host, options.port) = (host, port);
            options.tokenizer = Some(tokenizer.clone());
            options.enable_prompt_tokens_details = true;
            options.kv_events = Some(KvEventOptions { port: kv_events_port, ..KvEventOptions::default() });
            engines.push(Engine::start(options).await.unwrap());
        }
        let folder = tempfile::tempdir().unwrap();
        let config_file = folder.path().join("epp.yaml");
        let map = objects.named("ConfigMap", "warmroute-epp").unwrap();
        std::fs::write(&config_file, map["data"]["default-plugins.yaml"].as_str().unwrap()).unwrap();
        let options = PickerOptions {
            config_file,
            secure_serving: objects.picker_flag("secure-serving") == Some("true"),
            reads_kv_events: true,
            metrics_port: None,
            extra_args: Vec::new(),
        };
        let addresses: Vec<SocketAddr> = engines.iter().map(RunningEngine::http_address).collect();
        let picker =
            Picker::start_for(&tools, &format!("{name}-picker"), &options, &addresses, kv_events_port).await;
        Self { tools, engines, picker: picker.unwrap(), _folder: folder }
    }

    /// Starts Envoy; ready when this returns.
    async fn envoy(&self, name: &str, bootstrap: &str, admin: SocketAddr) -> Process {
        let file = self.tools.logs.join(format!("{name}-envoy.json"));
        std::fs::write(&file, bootstrap).unwrap();
        let mut command = Command::new(&self.tools.envoy);
        command
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c"])
            .arg(&file);
        let mut process = Process::spawn(&format!("{name}-envoy"), command, &self.tools.logs).unwrap();
        let client = HttpClient::default();
        let ready =
            || async { client.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string()) };
        wait_until_ready(&mut process, READY_WITHIN, ready).await.unwrap();
        process
    }

    /// The same prompt several times: the engine that has it answers, and the picker knew that it would.
    async fn takes_prompts_to_where_they_are_cached(&self, gateway: SocketAddr) {
        let client = HttpClient::default();
        let prompt = "the same words again and again, ".repeat(40);
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2}).to_string();
        let mut cached = Vec::new();
        for _ in 0..6 {
            let answer = client.post(gateway, "/v1/completions", body.clone().into()).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer: Value = serde_json::from_slice(&answer.body).unwrap();
            cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0));
        }
        assert_eq!(cached[0], 0);
        // Anything but the picked engine, as round robin over two, would find nothing half of the time.
        assert!(cached[1..].iter().all(|tokens| *tokens >= 128), "{cached:?}");
        let receipts = client.get_ok(self.picker.metrics, "/debug/decisions?limit=6").await.unwrap();
        let receipts: Value = serde_json::from_slice(&receipts.body).unwrap();
        let picks: Vec<&Value> =
            receipts.as_array().unwrap().iter().map(|receipt| &receipt["pick"]).collect();
        assert_eq!(picks.len(), 6, "the picker was asked each time");
        assert!(picks.iter().all(|pick| *pick == picks[0]), "{picks:?}");
    }
}

fn manifest(name: &str) -> Objects {
    Objects::read(&Tools::root().join("deploy/kubernetes").join(format!("{name}.yaml")))
}

fn free(ports: &mut FreePorts) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports.on_loopback().unwrap()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_takes_prompts_to_where_they_are_cached() {
    let objects = manifest("standalone-sidecar");
    let pool = Pool::start("sidecar", &objects).await;
    let mut ports = FreePorts::default();
    let (gateway, ready, admin) = (free(&mut ports), free(&mut ports), free(&mut ports));
    let map = objects.named("ConfigMap", "warmroute-epp-proxy").unwrap();
    let bootstrap: Value = serde_saphyr::from_str(map["data"]["envoy.yaml"].as_str().unwrap()).unwrap();
    let mut text = bootstrap.to_string();
    for (was, is) in [(8081, gateway), (19001, ready), (19000, admin), (9002, pool.picker.grpc)] {
        let (was, is) = (format!("\"port_value\":{was}}}"), format!("\"port_value\":{}}}", is.port()));
        assert!(text.contains(&was), "{was}: {text}");
        text = text.replace(&was, &is);
    }
    let _envoy = pool.envoy("sidecar", &text, admin).await;
    pool.takes_prompts_to_where_they_are_cached(gateway).await;
    // The port that everybody in the cluster may reach shows readiness and metrics, and nothing else of the admin page.
    let client = HttpClient::default();
    assert_eq!(client.get(ready, "/ready").await.unwrap().status, 200);
    assert!(client.get_ok(ready, "/stats/prometheus").await.unwrap().text().contains("envoy_"));
    for hidden in ["/config_dump", "/certs", "/stats/prometheus/../../config_dump", "/"] {
        assert_eq!(client.get(ready, hidden).await.unwrap().status, 404, "{hidden}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_the_envoy_filter_takes_prompts_to_where_they_are_cached() {
    let objects = manifest("istio-envoyfilter");
    let mut pool = Pool::start("envoy-filter", &objects).await;
    let mut ports = FreePorts::default();
    let (gateway, admin) = (free(&mut ports), free(&mut ports));
    let endpoint = |address: SocketAddr| {
        json!({"endpoint": {"address": {"socket_address":
            {"address": address.ip(), "port_value": address.port()}}}})
    };
    let engines = pool.engines.iter().map(|engine| endpoint(engine.http_address())).collect();
    let mut bootstrap = gateway_with("istio-envoyfilter", objects.of("EnvoyFilter")[0], gateway, engines);
    bootstrap["admin"] =
        json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin.port()}}});
    let text = bootstrap.to_string();
    let picker = "\"address\":\"warmroute-epp-replicas.inference.svc.cluster.local\",\"port_value\":9002";
    assert!(text.contains(picker), "{text}");
    let text = text
        .replace(picker, &format!("\"address\":\"127.0.0.1\",\"port_value\":{}", pool.picker.grpc.port()));
    let _envoy = pool.envoy("envoy-filter", &text, admin).await;
    pool.takes_prompts_to_where_they_are_cached(gateway).await;
    // Without a picker: to any engine.
    pool.picker.process.kill();
    let body = json!({"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 2}).to_string();
    for _ in 0..4 {
        let answer =
            HttpClient::default().post(gateway, "/v1/completions", body.clone().into()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
