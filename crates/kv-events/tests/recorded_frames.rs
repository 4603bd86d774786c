//! What real vLLM servers published decodes to what msgspec decoded, for every frame and every version's layout.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, DecodeLimits, EngineHash, EventBatch, ExtraKey, KvEvent, Medium,
    SkippedEvents, SpecKind, decode_batch,
};

fn data(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm")).join(path)
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    Some(unhex(value.get("$bytes_hex")?.as_str().unwrap()))
}

fn hash(value: &Value) -> EngineHash {
    match bytes_of(value) {
        Some(digest) => EngineHash::from_bytes(&digest).unwrap(),
        None => EngineHash::from_u64(value.as_u64().unwrap()),
    }
}

fn extra_key(value: &Value) -> ExtraKey {
    if let Some(bytes) = bytes_of(value) {
        return ExtraKey::Bytes(bytes.into());
    }
    match value {
        Value::String(text) => ExtraKey::Text(text.as_str().into()),
        Value::Array(pair) => {
            ExtraKey::Media { id: pair[0].as_str().unwrap().into(), offset_tokens: pair[1].as_i64().unwrap() }
        }
        other => panic!("{other}"),
    }
}

fn extra_keys(value: &Value) -> Vec<Option<Vec<ExtraKey>>> {
    let blocks: Vec<Option<Vec<ExtraKey>>> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|block| Some(block.as_array()?.iter().map(extra_key).collect()))
        .collect();
    if blocks.iter().all(Option::is_none) { Vec::new() } else { blocks }
}

fn medium(value: &Value) -> Medium {
    value.as_str().map(Medium::from_name).unwrap_or_default()
}

/// The event's fields by name, whichever encoding it came in.
fn field<'v>(event: &'v Value, fields: &[String], name: &str) -> &'v Value {
    match event {
        Value::Object(event) => event.get(name).unwrap_or(&Value::Null),
        event => fields
            .iter()
            .position(|field| field == name)
            .and_then(|position| event.get(position + 1))
            .unwrap_or(&Value::Null),
    }
}

fn expected_event(event: &Value, fields: &[String]) -> KvEvent {
    let get = |name: &str| field(event, fields, name);
    let number = |name: &str| get(name).as_u64().map(|value| value as u32);
    let hashes = || get("block_hashes").as_array().unwrap().iter().map(hash).collect();
    let tag = event.get("type").or(event.get(0)).unwrap().as_str().unwrap();
    match tag {
        "BlockStored" => KvEvent::Stored(BlocksStored {
            hashes: hashes(),
            parent: Some(get("parent_block_hash")).filter(|parent| !parent.is_null()).map(hash),
            token_ids: get("token_ids")
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_u64().unwrap() as u32)
                .collect(),
            block_size_tokens: number("block_size").unwrap(),
            lora_name: get("lora_name").as_str().map(Into::into),
            lora_id: get("lora_id").as_i64(),
            medium: medium(get("medium")),
            group: number("group_idx"),
            spec_kind: get("kv_cache_spec_kind").as_str().map(SpecKind::from_name),
            sliding_window_tokens: number("kv_cache_spec_sliding_window"),
            extra_keys: extra_keys(get("extra_keys")),
            cache_salt: None,
            ..BlocksStored::default()
        }),
        "BlockRemoved" => KvEvent::Removed(BlocksRemoved {
            hashes: hashes(),
            medium: medium(get("medium")),
            group: number("group_idx"),
        }),
        "AllBlocksCleared" => KvEvent::Cleared,
        other => panic!("{other}"),
    }
}

fn expected_batch(decoded: &Value, fields: impl Fn(&Value) -> Vec<String>) -> EventBatch {
    EventBatch {
        ts: decoded[0].as_f64().unwrap(),
        events: decoded[1]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| expected_event(event, &fields(event)))
            .collect(),
        data_parallel_rank: decoded[2].as_u64().map(|rank| rank as u32),
        skipped: SkippedEvents::default(),
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

/// The array layout of vLLM 0.23.
fn fields_023(event: &Value) -> Vec<String> {
    match event[0].as_str() {
        Some("BlockStored") => names(&[
            "block_hashes",
            "parent_block_hash",
            "token_ids",
            "block_size",
            "lora_id",
            "medium",
            "lora_name",
            "extra_keys",
            "group_idx",
            "kv_cache_spec_kind",
            "kv_cache_spec_sliding_window",
        ]),
        _ => names(&["block_hashes", "medium", "group_idx"]),
    }
}

#[test]
fn every_recorded_frame() {
    let scenarios = [
        ("v023-lora-bs16", 9),
        ("v023-sha256cbor-seed0-bs16", 12),
        ("v032-dup-sha256cbor-seed0", 25),
        ("v032-lora", 8),
        ("v032-mm", 4),
        ("v032-salt", 5),
        ("v032-sha256-seed0-bytes", 11),
        ("v032-sha256cbor-noseed-bytes", 11),
        ("v032-sha256cbor-seed0", 84),
        ("v032-sha256cbor-seed42", 11),
    ];
    for (scenario, frames) in scenarios {
        let recorded = lines(&format!("{scenario}/frames.jsonl"));
        assert_eq!(recorded.len(), frames, "{scenario}");
        for frame in recorded {
            let payload = unhex(frame["payload_hex"].as_str().unwrap());
            let batch = decode_batch(&payload, &DecodeLimits::default()).unwrap();
            let mut expected = expected_batch(&frame["decoded"], fields_023);
            // The JSON reader may be off by the last bit of a float.
            assert!((batch.ts - expected.ts).abs() < 1e-6);
            expected.ts = batch.ts;
            assert_eq!(batch, expected, "{scenario} {}", frame["seq"]);
        }
    }
}

#[test]
fn every_layout_of_every_version() {
    let (mut singles, mut mixed) = (BTreeMap::new(), Vec::new());
    for shape in lines("wire-shapes/shapes.jsonl") {
        let version = shape["vllm"].as_str().unwrap().to_owned();
        let event = shape["event"].as_str().unwrap().to_owned();
        let payload = unhex(shape["payload_hex"].as_str().unwrap());
        let batch = decode_batch(&payload, &DecodeLimits::default()).unwrap();
        if event == "mixed_batch" {
            mixed.push((version, batch));
            continue;
        }
        let fields: Vec<String> = shape["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(batch, expected_batch(&shape["decoded"], |_| fields.clone()), "{version} {event}");
        singles.insert((version, event, shape["rank"].as_u64()), batch.events);
    }
    assert_eq!((singles.len(), mixed.len()), (420, 28));
    // The mixed batch holds four of the version's own events.
    for (version, batch) in mixed {
        let event = |name: &str| singles[&(version.clone(), name.to_owned(), None)][0].clone();
        let expected = [KvEvent::Cleared, event("removed"), event("stored_typical"), event("stored_full")];
        assert_eq!((batch.ts, batch.data_parallel_rank), (1.5, Some(0)), "{version}");
        assert_eq!(batch.events, expected, "{version}");
        assert_eq!(batch.skipped, SkippedEvents::default());
    }
}

/// Every proper prefix of a payload is an error that points into it, and none of it panics.
#[test]
fn every_truncation_is_an_error() {
    for shape in lines("wire-shapes/shapes.jsonl") {
        let payload = unhex(shape["payload_hex"].as_str().unwrap());
        for end in 0..payload.len() {
            assert!(decode_batch(&payload[..end], &DecodeLimits::default()).is_err(), "{end} of {shape}");
        }
    }
}
