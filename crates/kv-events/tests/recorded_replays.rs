//! What real vLLM servers answered to a replay request of number 0, in both layouts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use warmroute_kv_events::{Replay, ReplayEnd, ReplayLimits, ReplayStep};

fn lines(scenario: &str, file: &str) -> Vec<Value> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm"))
        .join(scenario)
        .join(file);
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

#[test]
fn a_replay_brings_what_was_heard_live() {
    for (scenario, parts) in [("v032-sha256cbor-seed0", 4), ("v023-sha256cbor-seed0-bs16", 3)] {
        let live: Vec<(u64, Bytes)> = lines(scenario, "frames.jsonl")
            .iter()
            .map(|frame| (frame["seq"].as_u64().unwrap(), unhex(&frame["payload_hex"])))
            .collect();
        let mut replay = Replay::new(0, ReplayLimits::default(), 0);
        let (mut replayed, mut end) = (Vec::new(), None);
        // A REQ socket, which was recorded too, hides the first frame from its user.
        for answer in lines(scenario, "replay.jsonl").iter().filter(|answer| answer["socket"] == "DEALER") {
            let frames: Vec<Bytes> = answer["parts_hex"].as_array().unwrap().iter().map(unhex).collect();
            assert_eq!(frames.len(), parts, "{scenario}");
            match replay.take(&frames, 0) {
                ReplayStep::Batch { seq, payload } => replayed.push((seq, payload)),
                ReplayStep::End(how) => end = Some(how),
                other => panic!("{scenario}: {other:?}"),
            }
        }
        assert_eq!(end, Some(ReplayEnd::Complete));
        // One of them was asked while the recording went on.
        assert!(replayed.len() > 8 && live.starts_with(&replayed), "{scenario}: {} replayed", replayed.len());
    }
}
