//! What SGLang's own radix cache published is published again, to a running picker, which then predicts for every
//! recorded prompt what that cache matched: for SGLang's own API and for OpenAI's.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::{Value, json};
use warmroute_demo::harness::FreePorts;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::fixture::{ExtProcClient, Picker, PickerOptions, Policy, log_name, run, tools, until};

const CONFIG: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: openai-parser
- type: sglanghttp-parser
- type: precise-prefix-cache-producer
  parameters: {kvEventsConfig: {engineType: sglang}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}]
requestHandler:
  parsers: [{pluginRef: openai-parser}, {pluginRef: sglanghttp-parser}]
";

/// The steps of one recorded cache.
fn steps(version: &str, scenario: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data/sglang"));
    let lines = std::fs::read_to_string(path.join(format!("v{version}.jsonl"))).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_head = |line: &Value| line["name"].is_string();
    let first = lines.iter().position(|line| line["name"] == scenario).unwrap() + 1;
    lines[first..].iter().take_while(|line| !is_head(line)).cloned().collect()
}

fn frame(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

fn message(frames: &Value) -> ZmqMessage {
    let frames: Vec<Bytes> = frames.as_array().unwrap().iter().map(frame).collect();
    ZmqMessage::try_from(frames).unwrap()
}

/// Where a recorded prompt is sent to, and how.
fn request(step: &Value, at: usize) -> (&'static str, Value) {
    if let Some(salt) = step["cache_salt"].as_str() {
        return ("/v1/completions", json!({"model": "m", "prompt": step["prompt"], "cache_salt": salt}));
    }
    if at.is_multiple_of(2) {
        return ("/v1/completions", json!({"model": "m", "prompt": step["prompt"]}));
    }
    ("/generate", json!({"input_ids": step["prompt"], "sampling_params": {"max_new_tokens": 1}}))
}

/// Replays a scenario; returns predicted and matched tokens of each request.
async fn replay(version: &str, scenario: &str) -> Vec<(u64, u64)> {
    let mut ports = FreePorts::default();
    let (serving_port, kv_events_port) = (ports.on_loopback().unwrap(), ports.on_loopback().unwrap());
    let mut socket = PubSocket::new();
    socket.bind(&format!("tcp://127.0.0.1:{kv_events_port}")).await.unwrap();
    let config_file = tools().logs.join(format!("{}.yaml", log_name(&format!("{version}-{scenario}"))));
    std::fs::create_dir_all(&tools().logs).unwrap();
    std::fs::write(&config_file, CONFIG).unwrap();
    let picker = Picker::start(&PickerOptions {
        config_file: Some(config_file),
        // Nobody serves there: no request is sent on.
        endpoints: vec![([127, 0, 0, 1], serving_port).into()],
        kv_events_port: Some(kv_events_port),
        ..PickerOptions::new(Policy::Precise)
    })
    .await;
    until("the subscription", async || {
        socket.send(ZmqMessage::from("kv@nothing")).await.unwrap();
        let status = picker.status().await;
        let heard = status.endpoints().next().unwrap()["kv_events"]["undecodable_messages"].as_u64();
        heard.filter(|messages| *messages > 0)
    })
    .await;
    let mut client = ExtProcClient::connect(&picker).await;
    let (mut answers, mut published) = (Vec::new(), 0_u64);
    for (at, step) in steps(version, scenario).iter().enumerate() {
        if let Some(cached) = step["cached_tokens"].as_u64() {
            let (id, (path, body)) = (format!("{scenario}-{at}"), request(step, at));
            client.pick(path, &id, &[], body.to_string().into()).await;
            let receipt = picker.receipt(&id).await;
            assert_eq!(receipt.prompt_tokens.unwrap() as usize, step["prompt"].as_array().unwrap().len());
            answers.push((u64::from(receipt.predicted_cached_tokens), cached));
        }
        for frames in step["frames"].as_array().into_iter().flatten() {
            socket.send(message(frames)).await.unwrap();
            published += 1;
        }
        let applied = |endpoint: &Value| endpoint["kv_events"]["batches"].as_u64() == Some(published);
        picker.until("the recorded events", |status| status.endpoints().all(applied)).await;
    }
    let status = picker.status().await;
    let events = &status.endpoints().next().unwrap()["kv_events"];
    assert_eq!((&events["trust"], &events["trust_reason"]), (&json!("exact"), &json!("cleared")));
    answers
}

async fn assert_exact(version: &str, scenario: &str, requests: usize) {
    let answers = replay(version, scenario).await;
    assert_eq!(answers.len(), requests);
    assert!(answers.iter().filter(|(_, cached)| *cached > 0).count() > requests / 2);
    for (at, (predicted, cached)) in answers.iter().enumerate() {
        assert_eq!(predicted, cached, "{version} {scenario} request {at}");
    }
}

#[test]
fn predicts_what_sglang_matched() {
    run(async {
        assert_exact("0.5.7", "page16", 12).await;
        assert_exact("0.5.23", "page1", 12).await;
        assert_exact("0.5.23", "page16", 12).await;
    });
}

#[test]
fn predicts_what_sglang_matched_for_each_salt() {
    run(async {
        assert_exact("0.5.18", "salted", 32).await;
        assert_exact("0.5.23", "salted", 32).await;
    });
}

#[test]
fn predicts_no_more_than_sglang_matched_with_eagle() {
    run(async {
        let answers = replay("0.5.23", "eagle16").await;
        assert!(answers.iter().any(|(predicted, _)| *predicted > 0));
        assert!(answers.iter().all(|(predicted, cached)| predicted <= cached && cached - predicted <= 16));
    });
}
