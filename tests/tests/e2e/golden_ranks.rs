//! What the two data-parallel ranks of a recorded vLLM server published is published again, each on its own socket, and
//! the server's own list of its publishers is answered: a picker that is told nothing but the address predicts for every
//! recorded prompt what the rank reported as cached, and pins the request to the rank that it picks.

use std::iter::Peekable;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Json;
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use warmroute_demo::harness::FreePorts;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::fixture::{ExtProcClient, Picker, PickerOptions, Policy, Status, run, until};

/// Ports of the recorded server's first publisher.
const RECORDED_PORT: u16 = 5657;

fn recorded(file: &str) -> String {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data/vllm/v032-dp2")).join(file);
    std::fs::read_to_string(path).unwrap()
}

fn lines(file: &str) -> Vec<Value> {
    recorded(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

/// The recorded answer to `GET /kv_event_sources`, with other ports and no replays, which nobody would answer here.
fn sources(port: u16) -> Value {
    let meta: Value = serde_json::from_str(&recorded("meta.json")).unwrap();
    let mut sources = meta["kv_event_sources"][1].clone();
    for (rank, at) in [("0", 0), ("1", 1)] {
        let endpoint = sources[rank]["endpoint"].as_str().unwrap();
        assert_eq!(endpoint, format!("tcp://*:{}", RECORDED_PORT + at));
        sources[rank]["endpoint"] = format!("tcp://*:{}", port + at).into();
        sources[rank]["replay_endpoint"] = Value::Null;
    }
    sources
}

/// The recorded server: two publishers and an API server that lists them.
struct RecordedRanks {
    address: SocketAddr,
    sockets: [PubSocket; 2],
    frames: Peekable<std::vec::IntoIter<Value>>,
    /// Batches by rank.
    published: [u64; 2],
    _server: JoinSet<()>,
}

impl RecordedRanks {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let port = two_ports();
        let mut sockets = [PubSocket::new(), PubSocket::new()];
        for (rank, socket) in (0..).zip(&mut sockets) {
            socket.bind(&format!("tcp://127.0.0.1:{}", port + rank)).await.unwrap();
        }
        let answer = sources(port);
        let router =
            axum::Router::new().route("/kv_event_sources", axum::routing::get(async || Json(answer)));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let frames = lines("frames.jsonl").into_iter().peekable();
        Self { address, sockets, frames, published: [0; 2], _server: server }
    }

    /// Publishes something that is no batch until the picker has heard it of both ranks.
    async fn until_heard_by(&mut self, picker: &Picker) {
        let address = self.address;
        for (rank, socket) in (0..).zip(&mut self.sockets) {
            until("the subscription", async || {
                socket.send(ZmqMessage::from("kv@nothing")).await.unwrap();
                let status = picker.status().await;
                let heard = status.rank(address, rank)?["kv_events"]["undecodable_messages"].as_u64();
                heard.filter(|messages| *messages > 0)
            })
            .await;
        }
    }

    /// Publishes what came before a request, and waits until the picker has applied it.
    async fn publish_before(&mut self, request: u64, picker: &Picker) {
        while let Some(frame) =
            self.frames.next_if(|frame| frame["during_request"].as_u64().unwrap() < request)
        {
            let rank = frame["rank_socket"].as_u64().unwrap() as usize;
            let mut message = ZmqMessage::from(frame["topic"].as_str().unwrap());
            message.push_back(unhex(&frame["seq_hex"]));
            message.push_back(unhex(&frame["payload_hex"]));
            self.sockets[rank].send(message).await.unwrap();
            self.published[rank] += 1;
        }
        let is_applied = |status: &Status| {
            (0..).zip(self.published).all(|(rank, batches)| {
                status.rank(self.address, rank).is_some_and(|row| row["kv_events"]["batches"] == batches)
            })
        };
        picker.until("the recorded events", is_applied).await;
    }

    /// Sends a recorded request, and returns what is predicted of its rank.
    async fn predicted(
        &self,
        request: &Value,
        rank: usize,
        client: &mut ExtProcClient,
        picker: &Picker,
    ) -> u64 {
        let id = format!("recorded-{}", request["idx"]);
        let answer =
            client.pick("/v1/completions", &id, &[], request["request_body"].to_string().into()).await;
        let receipt = picker.receipt(&id).await;
        let tokens = request["usage"]["prompt_tokens"].as_u64().unwrap();
        let block = request["block_size"].as_u64().unwrap();
        let of = |label: &str| {
            let line = receipt.candidates.iter().find(|line| &*line.endpoint == label).unwrap();
            u64::from(line.known_blocks).min((tokens - 1) / block) * block
        };
        // Where it goes it is pinned, and the prediction is that rank's.
        let set = answer.header_mutation.unwrap().set_headers.into_iter().map(|set| set.header.unwrap());
        let pinned = set.into_iter().find(|header| header.key == "x-data-parallel-rank").unwrap();
        let pinned = String::from_utf8(pinned.raw_value).unwrap();
        let pick = receipt.pick.as_deref().unwrap();
        assert_eq!(pick, format!("{}-rank-{pinned}", self.address));
        assert_eq!(u64::from(receipt.predicted_cached_tokens), of(pick), "{receipt:?}");
        of(&format!("{}-rank-{rank}", self.address))
    }
}

#[test]
fn predicts_what_each_rank_of_vllm_reported() {
    run(async {
        let mut engine = RecordedRanks::start().await;
        let picker = Picker::start(&PickerOptions {
            endpoints: vec![engine.address],
            kv_events_port: None,
            ..PickerOptions::new(Policy::Precise)
        })
        .await;
        let mut client = ExtProcClient::connect(&picker).await;
        engine.until_heard_by(&picker).await;
        let (mut compared, mut after_reset) = (Vec::new(), [false; 2]);
        for request in lines("requests.jsonl") {
            engine.publish_before(request["idx"].as_u64().unwrap(), &picker).await;
            if request["kind"] == "reset" {
                after_reset = [true; 2];
                continue;
            }
            let rank: usize = request["headers"]["X-data-parallel-rank"].as_str().unwrap().parse().unwrap();
            // The reset is announced with the events of the first request to the rank after it.
            if std::mem::take(&mut after_reset[rank]) {
                continue;
            }
            let predicted = engine.predicted(&request, rank, &mut client, &picker).await;
            assert_eq!(Some(predicted), request["cached_tokens_reported"].as_u64(), "{request}");
            compared.push(predicted);
        }
        assert_eq!(compared, [0, 0, 0, 128]);
    });
}

/// The first of two free ports.
fn two_ports() -> u16 {
    let mut ports = FreePorts::default();
    let mut port = || ports.on_loopback().unwrap();
    let next_is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok();
    std::iter::repeat_with(&mut port).find(next_is_free).unwrap()
}
