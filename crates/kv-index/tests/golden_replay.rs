//! The index fed with the events of recorded vLLM servers predicts the number of cached tokens that the server itself
//! reported, for every request that was sent alone; and its view of them is exact throughout.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;
use warmroute_kv_events::{
    ApplyFacts, DecodeLimits, EngineFeed, FeedBatch, FeedEvent, FeedSettings, FeedSink, KvEvent, Trust,
    batch_time, decode_batch,
};
use warmroute_kv_index::{
    EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys, predicted_cached_tokens,
};

/// Qwen2-VL's `<|vision_start|>`, which stands before every image.
const VISION_START: u32 = 151_652;

fn lines(scenario: &str, file: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm"))
        .join(scenario)
        .join(file);
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

/// The requests during which a frame came; empty for frames after the last recorded request.
fn requests_of(frame: &Value) -> Vec<u64> {
    match &frame["during_request"] {
        Value::Array(group) => group.iter().map(|request| request.as_u64().unwrap()).collect(),
        Value::Number(request) => vec![request.as_u64().unwrap()],
        _ => Vec::new(),
    }
}

struct Sink(EngineView);

impl FeedSink<Vec<u8>> for Sink {
    fn apply(&mut self, _seq: u64, payload: Vec<u8>) -> ApplyFacts {
        let applied = self.0.apply(&decode_batch(&payload, &DecodeLimits::default()).unwrap());
        assert_eq!(applied.unknown_parents + applied.unknown_removed_blocks + applied.malformed, 0);
        applied.facts()
    }

    fn start_generation(&mut self) {
        panic!("it is one process");
    }

    fn note(&mut self, event: FeedEvent) {
        panic!("nothing was lost: {event:?}");
    }
}

/// The adapters that a scenario's requests name as models.
fn adapters(frames: &[Value]) -> HashSet<String> {
    let batches = frames.iter().map(|frame| unhex(frame["payload_hex"].as_str().unwrap()));
    let stored = batches.flat_map(|payload| {
        decode_batch(&payload, &DecodeLimits::default()).unwrap().events.into_iter().filter_map(|event| {
            let KvEvent::Stored(stored) = event else { return None };
            stored.lora_name.as_deref().map(str::to_owned)
        })
    });
    stored.collect()
}

/// What is known of a prompt before it is sent: all of its tokens, or those before its first image.
fn known_tokens(tokens: &[u32]) -> &[u32] {
    let image = tokens.iter().position(|token| *token == VISION_START);
    &tokens[..image.unwrap_or(tokens.len())]
}

/// Feeds frames in order, asks before every sequential request, and returns what was predicted and what the server
/// reported for each.
fn predictions(scenario: &str) -> Vec<(u32, u32)> {
    let frames = lines(scenario, "frames.jsonl");
    let concurrent: Vec<u64> =
        frames.iter().map(requests_of).filter(|group| group.len() > 1).flatten().collect();
    let index = KvIndex::new(IndexLimits::default());
    let mut sink = Sink(index.add_engine().unwrap());
    let mut feed = EngineFeed::new(FeedSettings::default(), 0);
    feed.connected(0);
    let (mut next_frame, mut after_reset, mut compared) = (0, false, Vec::new());
    let adapters = adapters(&frames);
    for request in lines(scenario, "requests.jsonl") {
        let number = request["idx"].as_u64().unwrap();
        while let Some(frame) = frames.get(next_frame)
            && requests_of(frame).first().is_some_and(|first| *first < number)
        {
            let payload = unhex(frame["payload_hex"].as_str().unwrap());
            let (seq, ts) = (frame["seq"].as_u64().unwrap(), batch_time(&payload).unwrap());
            feed.live(0, FeedBatch { seq, ts, bytes: payload.len(), payload }, &mut sink);
            assert_eq!(feed.trust().trust, Trust::Exact, "{:?}", feed.trust());
            next_frame += 1;
        }
        if request["kind"] == "reset" {
            after_reset = true;
            continue;
        }
        // The reset is announced with the events of the first request after it.
        if std::mem::take(&mut after_reset) || concurrent.contains(&number) {
            continue;
        }
        let tokens: Vec<u32> = request["prompt_token_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_u64().unwrap() as u32)
            .collect();
        let block_size = request["block_size"].as_u64().unwrap() as u32;
        let body = &request["request_body"];
        let model = body["model"].as_str().unwrap();
        let extras = KeyExtras {
            lora: adapters.contains(model).then_some(model),
            cache_salt: body["cache_salt"].as_str(),
        };
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        block_keys(known_tokens(&tokens), block_size, &extras, &mut keys);
        let reusable_blocks = (tokens.len() as u32 - 1) / block_size;
        let mut scratch = LookupScratch::default();
        index.lookup_reusable(&keys, reusable_blocks, &[sink.0.slot()], &mut scratch, &mut matches);
        let predicted = predicted_cached_tokens(matches[0].known_blocks, tokens.len() as u32, block_size);
        let reported = request["cached_tokens_reported"].as_u64().unwrap_or(0) as u32;
        let note = format!("{scenario} request {number}: {}", request["note"]);
        assert!(predicted <= reported, "{note}: {predicted} of {reported}");
        assert_eq!(matches[0].known_blocks, matches[0].expected_blocks);
        compared.push((predicted, reported));
    }
    compared
}

/// How many predictions are all exactly what was reported, and the most tokens.
fn replay(scenario: &str) -> (usize, u32) {
    let compared = predictions(scenario);
    assert!(compared.iter().all(|(predicted, reported)| predicted == reported), "{scenario}: {compared:?}");
    (compared.len(), compared.iter().map(|(predicted, _)| *predicted).max().unwrap_or(0))
}

#[test]
fn predicts_what_vllm_reported() {
    assert_eq!(replay("v032-sha256cbor-seed0"), (11, 128));
    assert_eq!(replay("v032-sha256cbor-seed42"), (11, 128));
    assert_eq!(replay("v032-sha256cbor-noseed-bytes"), (11, 128));
    assert_eq!(replay("v032-sha256-seed0-bytes"), (11, 128));
    assert_eq!(replay("v023-sha256cbor-seed0-bs16"), (11, 128));
    assert_eq!(replay("v032-dup-sha256cbor-seed0"), (17, 128));
}

#[test]
fn salted_prompts_match_under_their_salt_alone() {
    assert_eq!(replay("v032-salt"), (8, 128));
}

#[test]
fn adapters_match_under_their_name_alone() {
    assert_eq!(replay("v032-lora"), (8, 128));
    assert_eq!(replay("v023-lora-bs16"), (8, 128));
}

#[test]
fn prompts_with_images_match_up_to_the_first_one() {
    let compared = predictions("v032-mm");
    // The second request has the same image as the first one, whose block is cached too. The last one begins with its
    // images.
    assert_eq!(compared, [(0, 0), (96, 128), (96, 96), (96, 96), (0, 0)]);
    assert_eq!(compared.iter().filter(|(predicted, reported)| predicted == reported).count(), 4);
    assert_eq!(compared.iter().filter(|(predicted, _)| *predicted > 0).count(), 3);
}

/// Sliding-window and full attention: all 11 sequential requests before the reset are predicted as reported, also the
/// one that shares 96 tokens which only the full-attention group still has (0 cached).
#[test]
fn predicts_what_vllm_reported_of_a_hybrid_model() {
    assert_eq!(replay("v032-hybrid-swa"), (11, 192));
}
