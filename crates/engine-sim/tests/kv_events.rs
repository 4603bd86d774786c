//! KV events over real sockets, received by an independent ZMQ implementation's SUB and DEALER.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "each suite uses a part of it")]
#[path = "common/client.rs"]
mod client;

use std::time::Duration;

use bytes::Bytes;
use client::ApiClient;
use serde_json::{Value, json};
use warmroute_engine_sim::{Engine, EngineOptions, EventEncoding, KvEventOptions, RunningEngine};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

async fn start(events: KvEventOptions) -> (RunningEngine, ApiClient) {
    let mut options = EngineOptions::new("m");
    options.kv_events = Some(events);
    let engine = Engine::start(options).await.unwrap();
    let client = ApiClient::new(engine.http_address());
    (engine, client)
}

async fn subscribe(engine: &RunningEngine, filter: &str) -> SubSocket {
    let mut socket = SubSocket::new();
    socket.connect(&format!("tcp://{}", engine.kv_events_address().unwrap())).await.unwrap();
    socket.subscribe(filter).await.unwrap();
    socket
}

/// A prompt of two full blocks that no other request of the test shares.
async fn complete(client: &ApiClient, first_token: u32) {
    let prompt: Vec<u32> = (first_token..first_token + 33).collect();
    let (status, _) = client.post("/v1/completions", json!({ "prompt": prompt, "max_tokens": 1 })).await;
    assert_eq!(status, 200);
}

struct Batch {
    topic: String,
    sequence: u64,
    events: Value,
}

fn batch(message: ZmqMessage) -> Batch {
    let frames = message.into_vec();
    assert_eq!(frames.len(), 3);
    let decoded: Value = rmp_serde::from_slice(&frames[2]).unwrap();
    assert_eq!(decoded.as_array().unwrap().len(), 3);
    assert!(decoded[0].as_f64().unwrap() > 1e9);
    assert_eq!(decoded[2], 0);
    Batch {
        topic: String::from_utf8(frames[0].to_vec()).unwrap(),
        sequence: u64::from_be_bytes(frames[1].as_ref().try_into().unwrap()),
        events: decoded[1].clone(),
    }
}

/// A subscription takes effect some time after connecting: sends requests, each good for one batch, until one is
/// heard of. Answers with the batch of the last one.
async fn first_batch(client: &ApiClient, socket: &mut SubSocket, first_token: &mut u32) -> Batch {
    for sent in 1.. {
        complete(client, *first_token).await;
        *first_token += 100;
        let patience = Duration::from_millis(50);
        let Ok(message) = tokio::time::timeout(patience, socket.recv()).await else { continue };
        let mut newest = batch(message.unwrap());
        while newest.sequence + 1 < sent {
            newest = batch(socket.recv().await.unwrap());
        }
        return newest;
    }
    unreachable!("it tries for ever")
}

#[tokio::test]
async fn a_subscriber_hears_every_step_in_order() {
    let (engine, client) = start(KvEventOptions::default()).await;
    let mut socket = subscribe(&engine, "kv@").await;
    let mut token = 1000;
    let first = first_batch(&client, &mut socket, &mut token).await;
    assert_eq!(first.topic, format!("kv@{}@m", engine.http_address()));
    for step in 1..=3 {
        complete(&client, token).await;
        let next = batch(socket.recv().await.unwrap());
        assert_eq!(next.sequence, first.sequence + step);
        let stored = &next.events[0];
        assert_eq!(stored["type"], "BlockStored");
        assert_eq!(stored["block_hashes"].as_array().unwrap().len(), 2);
        assert_eq!(stored["token_ids"].as_array().unwrap().len(), 32);
        assert_eq!(stored["token_ids"][0], token);
        assert_eq!(stored["block_size"], 16);
        token += 100;
    }
}

#[tokio::test]
async fn a_reset_is_announced_with_the_next_request() {
    let (engine, client) = start(KvEventOptions::default()).await;
    let mut socket = subscribe(&engine, "").await;
    let mut token = 1000;
    let first = first_batch(&client, &mut socket, &mut token).await;
    assert_eq!(client.post("/reset_prefix_cache", json!({})).await.1, json!({ "success": true }));
    complete(&client, token).await;
    let next = batch(socket.recv().await.unwrap());
    assert_eq!(next.sequence, first.sequence + 1);
    assert_eq!(next.events[0], json!({ "type": "AllBlocksCleared" }));
    assert_eq!(next.events[1]["type"], "BlockStored");
}

#[tokio::test]
async fn the_old_encoding_and_a_given_topic() {
    let events = KvEventOptions {
        encoding: EventEncoding::Array,
        topic: Some("mine".to_owned()),
        ..KvEventOptions::default()
    };
    let (engine, client) = start(events).await;
    let mut socket = subscribe(&engine, "mi").await;
    let mut token = 1000;
    let first = first_batch(&client, &mut socket, &mut token).await;
    assert_eq!(first.topic, "mine");
    assert_eq!(first.events[0][0], "BlockStored");
    assert_eq!(first.events[0].as_array().unwrap().len(), 12);
}

async fn replayed(engine: &RunningEngine, start: u64) -> Vec<Vec<Bytes>> {
    let mut socket = DealerSocket::new();
    socket.connect(&format!("tcp://{}", engine.kv_replay_address().unwrap())).await.unwrap();
    let request = vec![Bytes::new(), Bytes::copy_from_slice(&start.to_be_bytes())];
    socket.send(ZmqMessage::try_from(request).unwrap()).await.unwrap();
    let mut answers = Vec::new();
    loop {
        answers.push(socket.recv().await.unwrap().into_vec());
        if answers.last().unwrap().last().unwrap().is_empty() {
            return answers;
        }
    }
}

#[tokio::test]
async fn lost_batches_leave_a_gap_that_replay_fills() {
    for (encoding, frames) in [(EventEncoding::Map, 4), (EventEncoding::Array, 3)] {
        let events = KvEventOptions { replay_port: Some(0), encoding, ..KvEventOptions::default() };
        let (engine, client) = start(events).await;
        let mut socket = subscribe(&engine, "").await;
        let mut token = 1000;
        let first = first_batch(&client, &mut socket, &mut token).await;
        engine.lose_event_batches(2);
        for _ in 0..3 {
            complete(&client, token).await;
            token += 100;
        }
        let next = batch(socket.recv().await.unwrap());
        assert_eq!(next.sequence, first.sequence + 3);
        let answers = replayed(&engine, first.sequence + 1).await;
        assert!(answers.iter().all(|answer| answer.len() == frames && answer[0].is_empty()));
        let sequences: Vec<u64> = answers
            .iter()
            .map(|answer| u64::from_be_bytes(answer[frames - 2].as_ref().try_into().unwrap()))
            .collect();
        let lost = first.sequence + 1;
        assert_eq!(sequences, [lost, lost + 1, lost + 2, u64::MAX]);
        engine.stop().await;
    }
}

#[tokio::test]
async fn the_buffer_for_replay_is_bounded() {
    let events = KvEventOptions { replay_port: Some(0), buffer_steps: 2, ..KvEventOptions::default() };
    let (engine, client) = start(events).await;
    for token in [1000, 2000, 3000] {
        complete(&client, token).await;
    }
    // Two batches, the oldest gone without a word, and the end marker.
    let answers = replayed(&engine, 0).await;
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0][2].as_ref(), 1_u64.to_be_bytes());
}

#[tokio::test]
async fn a_peer_that_never_speaks_disturbs_nobody() {
    let (engine, client) = start(KvEventOptions::default()).await;
    let mute = tokio::net::TcpStream::connect(engine.kv_events_address().unwrap()).await.unwrap();
    let mut socket = subscribe(&engine, "").await;
    let mut token = 1000;
    first_batch(&client, &mut socket, &mut token).await;
    drop(mute);
    engine.stop().await;
}
