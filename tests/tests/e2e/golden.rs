//! What a recorded vLLM server published is published again, to a running picker, which then predicts for every recorded
//! prompt what that server reported as cached.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use warmroute_demo::harness::FreePorts;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::fixture::{ExtProcClient, Picker, PickerOptions, Policy, run, until};

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

/// Replays a scenario; returns how many predictions were compared and the most tokens predicted.
async fn replay(scenario: &str) -> (usize, u64) {
    let mut ports = FreePorts::default();
    let (serving_port, kv_events_port) = (ports.on_loopback().unwrap(), ports.on_loopback().unwrap());
    let mut engine = RecordedEngine::start(scenario, kv_events_port).await;
    let picker = Picker::start(&PickerOptions {
        // Nobody serves there: no request is sent on, and the block size is known from the events.
        endpoints: vec![([127, 0, 0, 1], serving_port).into()],
        kv_events_port,
        with_tokenizer: true,
        ..PickerOptions::new(Policy::Precise)
    })
    .await;
    engine.until_heard_by(&picker).await;
    let mut client = ExtProcClient::connect(&picker).await;
    let concurrent: Vec<u64> =
        engine.frames.as_slice().iter().map(requests_of).filter(|group| group.len() > 1).flatten().collect();
    let (mut after_reset, mut compared, mut most) = (false, 0, 0);
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
        let reported = request["cached_tokens_reported"].as_u64().unwrap_or(0);
        let note = format!("{scenario} request {number}: {} {receipt:?}", request["note"]);
        assert_eq!(u64::from(receipt.predicted_cached_tokens), reported, "{note}");
        assert_eq!(
            receipt.prompt_tokens.map(u64::from),
            request["usage"]["prompt_tokens"].as_u64(),
            "{note}"
        );
        compared += 1;
        most = most.max(reported);
    }
    (compared, most)
}

#[test]
fn predicts_what_vllm_0_32_reported() {
    run(async { assert_eq!(replay("v032-sha256cbor-seed0").await, (11, 128)) });
}

#[test]
fn predicts_what_vllm_0_23_reported() {
    run(async { assert_eq!(replay("v023-sha256cbor-seed0-bs16").await, (11, 128)) });
}
