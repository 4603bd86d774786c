//! Every form in which SGLang's own classes have published, live and replayed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, DecodeLimits, EngineHash, EventBatch, KvEvent, LiveMessage, Medium, Replay,
    ReplayEnd, ReplayLimits, ReplayStep, batch_rank, decode_batch,
};

/// Of which whole streams are recorded.
const VERSIONS: [&str; 6] = ["0.4.6.post5", "0.5.5", "0.5.6", "0.5.7", "0.5.18", "0.5.23"];

fn lines(file: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/sglang")).join(file);
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

fn parts(message: &Value) -> Vec<Bytes> {
    message.as_array().unwrap().iter().map(unhex).collect()
}

fn decoded(payload: &[u8]) -> EventBatch {
    let batch = decode_batch(payload, &DecodeLimits::default()).unwrap();
    assert_eq!(batch.skipped.count, 0, "{:?}", batch.skipped);
    batch
}

fn hash(value: &Value) -> EngineHash {
    EngineHash::from_u64(value.as_i64().unwrap() as u64)
}

fn hashes(fields: &Value) -> Vec<EngineHash> {
    fields["block_hashes"].as_array().unwrap().iter().map(hash).collect()
}

fn text(value: &Value) -> Option<std::sync::Arc<str>> {
    value.as_str().map(Into::into)
}

/// What was put into a version's structs.
fn expected(shape: &Value) -> KvEvent {
    let fields = &shape["fields"];
    let medium = fields["medium"].as_str().map(Medium::from_name).unwrap_or_default();
    match shape["type"].as_str().unwrap() {
        "AllBlocksCleared" => KvEvent::Cleared,
        "BlockRemoved" => KvEvent::Removed(BlocksRemoved { hashes: hashes(fields), medium, group: None }),
        _ => {
            let first = |token: &Value| token.get(0).unwrap_or(token).as_u64().unwrap() as u32;
            let tokens = fields["token_ids"].as_array().unwrap();
            let next_token = tokens.last().unwrap().get(1).map(|token| token.as_u64().unwrap() as u32);
            KvEvent::Stored(BlocksStored {
                hashes: hashes(fields),
                parent: Some(hash(&fields["parent_block_hash"])),
                token_ids: tokens.iter().map(first).collect(),
                block_size_tokens: 2,
                medium,
                cache_salt: text(&fields["cache_salt"]),
                lora_name: text(&fields["lora_name"]),
                lookahead_tokens: u32::from(next_token.is_some()),
                next_token,
                ..BlocksStored::default()
            })
        }
    }
}

#[test]
fn every_form_of_every_version() {
    let shapes = lines("shapes.jsonl");
    for version in ["0.4.6.post5", "0.4.9", "0.5.5", "0.5.6", "0.5.12", "0.5.18", "0.5.23"] {
        assert!(shapes.iter().any(|shape| shape["version"] == version), "{version}");
    }
    for shape in &shapes {
        let batch = decoded(&unhex(&shape["payload_hex"]));
        assert_eq!(batch.events, [expected(shape)], "{shape}");
        let has_rank = shape["version"] != "0.4.6.post5";
        assert_eq!((batch.ts, batch.data_parallel_rank), (1_795_000_000.5, has_rank.then_some(3)));
    }
    assert_eq!(shapes.len(), 72);
}

/// Pairs that don't overlap, lists of another length, and pairs among tokens are no tokens of any prompt.
#[test]
fn pairs_that_are_no_sequence_cost_one_event() {
    let shape = &lines("shapes.jsonl").into_iter().find(|shape| shape["fields"]["token_ids"][0].is_array());
    let payload = unhex(&shape.as_ref().unwrap()["payload_hex"]).to_vec();
    let place = payload.windows(4).position(|bytes| bytes == [0x94, 0x92, 1, 2]).unwrap();
    for (at, byte) in [(place + 3, 3), (place + 1, 0x93), (place + 1, 1)] {
        let mut bad = payload.clone();
        bad[at] = byte;
        let skipped = match decode_batch(&bad, &DecodeLimits::default()) {
            Ok(batch) => batch.skipped.count == 1 && batch.events.is_empty(),
            Err(_) => true,
        };
        assert!(skipped, "{at}: {byte}");
    }
}

#[test]
fn replays_bring_what_was_heard_live_in_both_layouts() {
    for version in VERSIONS {
        let (mut live, mut name, mut replays) = (Vec::new(), String::new(), 0);
        for line in lines(&format!("v{version}.jsonl")) {
            if let Some(next) = line["name"].as_str() {
                (live, name) = (Vec::new(), next.to_owned());
            }
            for message in line["frames"].as_array().into_iter().flatten() {
                let frames = parts(message);
                let message = LiveMessage::try_new(&frames).unwrap();
                assert_eq!(*message.topic, *format!("kv@10.0.0.7:30000@{name}"));
                let rank = u32::from(name == "page16") * 2;
                let batch = decoded(&message.payload);
                assert_eq!(batch.data_parallel_rank, (version != "0.4.6.post5").then_some(rank));
                assert_eq!(batch_rank(&message.payload), batch.data_parallel_rank);
                live.push((message.seq, message.payload));
            }
            let Some(answers) = line["answers"].as_array() else { continue };
            let mut replay = Replay::new(1, ReplayLimits::default(), 0);
            let (mut replayed, mut end) = (Vec::new(), None);
            for answer in answers.iter().map(parts) {
                assert_eq!(answer.len(), if version == "0.5.23" { 4 } else { 3 });
                match replay.take(&answer, 0) {
                    ReplayStep::Batch { seq, payload } => replayed.push((seq, payload)),
                    ReplayStep::End(how) => end = Some(how),
                    other => panic!("{version} {name}: {other:?}"),
                }
            }
            assert_eq!((end, &replayed[..]), (Some(ReplayEnd::Complete), &live[1..]), "{version} {name}");
            replays += 1;
        }
        assert!(replays >= 2, "{version}");
    }
}
