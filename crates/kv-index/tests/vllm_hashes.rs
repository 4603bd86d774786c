//! The own implementation of vLLM's block hash against vLLM's hash function and against captured events.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use warmroute_kv_events::{DecodeLimits, EngineHash, KvEvent, decode_batch};
use warmroute_kv_index::vllm_hash::{DEFAULT_SEED, Digest, ExtraValue, block_hash, none_hash, wire_int};

fn lines(path: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm")).join(path);
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

fn extra(value: &Value) -> ExtraValue {
    match value {
        Value::String(text) => ExtraValue::Text(text.clone()),
        Value::Number(number) => ExtraValue::Int(number.as_i64().unwrap()),
        Value::Array(values) => ExtraValue::List(values.iter().map(extra).collect()),
        other => ExtraValue::Bytes(unhex(other["$bytes_hex"].as_str().unwrap())),
    }
}

#[test]
fn every_vector_of_vllms_own_hasher() {
    let (mut cases, mut blocks, mut with_extras) = (0, 0, 0);
    for vector in lines("hash-vectors/vectors-0.32.0-seed-0.jsonl") {
        if vector["algo"] != "sha256_cbor" {
            continue;
        }
        let mut parent = none_hash("0");
        cases += 1;
        if vector["case"] == "NONE_HASH" {
            assert_eq!(parent.to_vec(), unhex(vector["none_hash_hex"].as_str().unwrap()));
            continue;
        }
        let tokens: Vec<u64> = vector["effective_token_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_u64().unwrap())
            .collect();
        let block_size = vector["block_size"].as_u64().unwrap() as usize;
        let expected = vector["blocks"].as_array().unwrap();
        assert_eq!(expected.len(), tokens.len() / block_size, "{}", vector["case"]);
        for (block, tokens) in expected.iter().zip(tokens.chunks(block_size)) {
            let extras: Vec<ExtraValue> =
                block["extra_keys"].as_array().into_iter().flatten().map(extra).collect();
            parent = block_hash(&parent, tokens, &extras);
            assert_eq!(parent.to_vec(), unhex(block["hash_hex"].as_str().unwrap()), "{}", vector["case"]);
            assert_eq!(wire_int(&parent), block["hash_u64"].as_u64().unwrap());
            blocks += 1;
            with_extras += usize::from(!extras.is_empty());
        }
    }
    assert_eq!(cases, 21);
    assert!(blocks > 60 && with_extras > 10, "{blocks} {with_extras}");
}

/// Recomputes every stored hash of a scenario from the event's own tokens; returns how many blocks.
fn recompute(scenario: &str, seed: &str) -> usize {
    // Integers are the low half of the digest only; the chain goes on from the whole.
    let mut digests: HashMap<EngineHash, Digest> = HashMap::new();
    let mut blocks = 0;
    for frame in lines(&format!("{scenario}/frames.jsonl")) {
        let payload = unhex(frame["payload_hex"].as_str().unwrap());
        for event in decode_batch(&payload, &DecodeLimits::default()).unwrap().events {
            let KvEvent::Stored(stored) = event else { continue };
            assert!(stored.extra_keys.is_empty());
            let mut parent = stored.parent.map_or_else(|| none_hash(seed), |parent| digests[&parent]);
            let tokens = stored.token_ids.chunks(stored.block_size_tokens as usize);
            assert_eq!(tokens.len(), stored.hashes.len());
            for (hash, tokens) in stored.hashes.iter().zip(tokens) {
                parent = block_hash(&parent, tokens, &[]);
                match hash.as_bytes() {
                    Some(digest) => assert_eq!(digest, parent),
                    None => assert_eq!(hash.as_u64(), Some(wire_int(&parent))),
                }
                digests.insert(*hash, parent);
                blocks += 1;
            }
        }
    }
    blocks
}

#[test]
fn every_block_of_captured_events() {
    assert!(recompute("v032-sha256cbor-seed0", "0") > 100);
    assert!(recompute("v032-sha256cbor-seed42", "42") > 20);
    assert!(recompute("v032-sha256cbor-noseed-bytes", DEFAULT_SEED) > 20);
    assert!(recompute("v032-dup-sha256cbor-seed0", "0") > 50);
    assert!(recompute("v023-sha256cbor-seed0-bs16", "0") > 40);
}
