//! What a recorded vLLM server published is published again, to a running picker, which then predicts for every recorded
//! prompt what that server reported as cached.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use warmroute::receipt::{Fallback, Receipt};
use warmroute_demo::harness::FreePorts;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::fixture::{ExtProcClient, Picker, PickerOptions, Policy, run, tools, until};

fn lines(scenario: &str, file: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data/vllm")).join(scenario).join(file);
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

/// The requests during which a frame came; empty for frames after the last recorded request.
fn requests_of(frame: &Value) -> Vec<u64> {
    match &frame["during_request"] {
        Value::Array(group) => group.iter().filter_map(Value::as_u64).collect(),
        single => single.as_u64().into_iter().collect(),
    }
}

/// A recorded engine: a PUB socket that says what a real one said.
struct RecordedEngine {
    socket: PubSocket,
    frames: std::vec::IntoIter<Value>,
    published: u64,
}

impl RecordedEngine {
    async fn start(scenario: &str, port: u16) -> Self {
        let mut socket = PubSocket::new();
        socket.bind(&format!("tcp://127.0.0.1:{port}")).await.unwrap();
        Self { socket, frames: lines(scenario, "frames.jsonl").into_iter(), published: 0 }
    }

    /// Publishes something that is no batch until the picker has heard it.
    async fn until_heard_by(&mut self, picker: &Picker) {
        until("the subscription", async || {
            self.socket.send(ZmqMessage::from("kv@nothing")).await.unwrap();
            let status = picker.status().await;
            let heard = status.endpoints().next().unwrap()["kv_events"]["undecodable_messages"].as_u64();
            heard.filter(|messages| *messages > 0)
        })
        .await;
    }

    /// Publishes what came before a request, and waits until the picker has applied it.
    async fn publish_before(&mut self, request: u64, picker: &Picker) {
        while let Some(frame) = self.frames.as_slice().first()
            && requests_of(frame).first().is_some_and(|first| *first < request)
        {
            let frame = self.frames.next().unwrap();
            let mut message = ZmqMessage::from(frame["topic"].as_str().unwrap());
            message.push_back(unhex(&frame["seq_hex"]));
            message.push_back(unhex(&frame["payload_hex"]));
            self.socket.send(message).await.unwrap();
            self.published += 1;
        }
        let applied = |endpoint: &Value| endpoint["kv_events"]["batches"].as_u64() == Some(self.published);
        picker.until("the recorded events", |status| status.endpoints().all(applied)).await;
    }
}

/// What the endpoint of a recorded server says of itself, as far as a picker asks: which models it serves. It does so until
/// the task is dropped.
async fn serve_models(models: Value) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/v1/models", get(async move || models.to_string()))
        .fallback(async || http::StatusCode::NOT_FOUND);
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, server)
}

/// The list of models of a server with two adapters, as vLLM answers.
fn models_with_adapters() -> Value {
    json!({"object": "list", "data": [
        {"id": "tiny-qwen2", "object": "model", "parent": null},
        {"id": "ada-one", "object": "model", "parent": "tiny-qwen2"},
        {"id": "ada-two", "object": "model", "parent": "tiny-qwen2"},
    ]})
}

/// The policy that weighs cached prefixes, which also asks engines for their models.
fn config_that_lists_models(dir: &Path) -> PathBuf {
    let tools = tools();
    let policy = std::fs::read_to_string(Policy::Precise.config_file(&tools)).unwrap();
    let plugins =
        "plugins:\n- {type: models-data-source, parameters: {interval: 1s}}\n- type: models-data-extractor";
    let sources = "dataLayer:\n  sources:\n  - pluginRef: models-data-source\n    extractors: [{pluginRef: models-data-extractor}]\n";
    let path = dir.join("config.yaml");
    std::fs::write(&path, policy.replacen("plugins:", plugins, 1) + sources).unwrap();
    path
}

/// The tokenizer with the template of a model of pictures.
fn tokenizer_of_pictures(dir: &Path) -> PathBuf {
    let from = tools().tokenizer;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/data/templates/qwen2-vl.jinja");
    std::fs::copy(template, dir.join("chat_template.jinja")).unwrap();
    dir.to_owned()
}

/// What was predicted of a recorded request.
struct Predicted {
    /// Which request it is, for a failure.
    note: String,
    receipt: Receipt,
    cached_tokens: u64,
    /// As the server reported.
    reported_tokens: u64,
    prompt_tokens: Option<u64>,
}

/// Replays a scenario through a picker; `options` are its own beside those of the scenario.
async fn predictions(scenario: &str, options: PickerOptions) -> Vec<Predicted> {
    let mut ports = FreePorts::default();
    let (serving_port, kv_events_port) = (ports.on_loopback().unwrap(), ports.on_loopback().unwrap());
    let mut engine = RecordedEngine::start(scenario, kv_events_port).await;
    let lists_models = !options.endpoints.is_empty();
    let endpoints = match lists_models {
        true => options.endpoints.clone(),
        // Nobody serves there: no request is sent on, and the block size is known from the events.
        false => vec![([127, 0, 0, 1], serving_port).into()],
    };
    let picker =
        Picker::start(&PickerOptions { endpoints, kv_events_port: Some(kv_events_port), ..options }).await;
    engine.until_heard_by(&picker).await;
    if lists_models {
        let is_listed = |endpoint: &Value| endpoint["models"].as_array().is_some();
        picker.until("the list of models", |status| status.endpoints().all(is_listed)).await;
    }
    let mut client = ExtProcClient::connect(&picker).await;
    let concurrent: Vec<u64> =
        engine.frames.as_slice().iter().map(requests_of).filter(|group| group.len() > 1).flatten().collect();
    let (mut after_reset, mut compared) = (false, Vec::new());
    for request in lines(scenario, "requests.jsonl") {
        let number = request["idx"].as_u64().unwrap();
        engine.publish_before(number, &picker).await;
        if request["kind"] == "reset" {
            after_reset = true;
            continue;
        }
        // The reset is announced with the events of the first request after it.
        if std::mem::take(&mut after_reset) || concurrent.contains(&number) {
            continue;
        }
        let id = format!("recorded-{number}");
        let (path, body) = (request["path"].as_str().unwrap(), request["request_body"].to_string());
        client.pick(path, &id, &[], body.into()).await;
        let receipt = picker.receipt(&id).await;
        compared.push(Predicted {
            note: format!("{scenario} request {number}: {} {receipt:?}", request["note"]),
            cached_tokens: receipt.predicted_cached_tokens.into(),
            receipt,
            reported_tokens: request["cached_tokens_reported"].as_u64().unwrap_or(0),
            prompt_tokens: request["usage"]["prompt_tokens"].as_u64(),
        });
    }
    compared
}

fn with_tokenizer() -> PickerOptions {
    PickerOptions { with_tokenizer: true, ..PickerOptions::new(Policy::Precise) }
}

/// Replays a scenario whose prompts are known whole; returns how many predictions were compared and the most tokens
/// predicted.
async fn replay(scenario: &str, options: PickerOptions) -> (usize, u64) {
    let compared = predictions(scenario, options).await;
    for Predicted { note, receipt, cached_tokens, reported_tokens, prompt_tokens } in &compared {
        assert_eq!(cached_tokens, reported_tokens, "{note}");
        assert_eq!(receipt.prompt_tokens.map(u64::from), *prompt_tokens, "{note}");
    }
    (compared.len(), compared.iter().map(|predicted| predicted.cached_tokens).max().unwrap_or(0))
}

#[test]
fn predicts_what_vllm_0_32_reported() {
    run(async { assert_eq!(replay("v032-sha256cbor-seed0", with_tokenizer()).await, (11, 128)) });
}

#[test]
fn predicts_what_vllm_0_23_reported() {
    run(async { assert_eq!(replay("v023-sha256cbor-seed0-bs16", with_tokenizer()).await, (11, 128)) });
}

#[test]
fn predicts_what_vllm_reported_of_salted_prompts() {
    run(async { assert_eq!(replay("v032-salt", with_tokenizer()).await, (8, 128)) });
}

/// The base model's blocks have the same tokens as each adapter's, from the first request on.
async fn predict_adapters(scenario: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (address, _server) = serve_models(models_with_adapters()).await;
    let config_file = Some(config_that_lists_models(dir.path()));
    let options = PickerOptions { endpoints: vec![address], config_file, ..with_tokenizer() };
    assert_eq!(replay(scenario, options).await, (8, 128));
}

#[test]
fn predicts_what_vllm_0_32_reported_of_adapters() {
    run(predict_adapters("v032-lora"));
}

#[test]
fn predicts_what_vllm_0_23_reported_of_adapters() {
    run(predict_adapters("v023-lora-bs16"));
}

#[test]
fn predicts_no_more_than_vllm_reported_of_pictures() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer_of_pictures(dir.path());
        let options = PickerOptions {
            extra_args: vec!["--tokenizer".to_owned(), tokenizer.display().to_string()],
            ..PickerOptions::new(Policy::Precise)
        };
        let compared = predictions("v032-mm", options).await;
        // Of the same picture again the server had its block too; the last prompt begins with its pictures.
        let tokens: Vec<_> = compared.iter().map(|p| (p.cached_tokens, p.reported_tokens)).collect();
        assert_eq!(tokens, [(0, 0), (96, 128), (96, 96), (96, 96), (0, 0)]);
        for Predicted { note, receipt, .. } in &compared[1..] {
            let kinds: Vec<_> = receipt.fallbacks.iter().map(|note| note.kind).collect();
            assert!(kinds.contains(&Fallback::MatchedUpToMedia), "{note}");
            assert!(receipt.prompt_tokens_estimated, "{note}");
        }
    });
}
