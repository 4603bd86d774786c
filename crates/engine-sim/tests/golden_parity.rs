//! The cache model against recordings of a real vLLM: the same requests in the same order must be told the same
//! cached tokens and cause the same events.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use warmroute_engine_sim::{
    BatchEncoder, EventEncoding, EventHashForm, HashScheme, NewRequest, PrefixCache, Scheduler, StepOutput,
};

struct Recorded {
    meta: Value,
    requests: Vec<Value>,
    frames: Vec<Value>,
}

fn read_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn recorded(scenario: &str) -> Recorded {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm")).join(scenario);
    let meta = std::fs::read_to_string(dir.join("meta.json")).unwrap();
    Recorded {
        meta: serde_json::from_str(&meta).unwrap(),
        requests: read_lines(&dir.join("requests.jsonl")),
        frames: read_lines(&dir.join("frames.jsonl")),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// The requests that were in flight together, as the recorder tells by the frames; the others alone.
fn groups(recorded: &Recorded) -> Vec<Vec<usize>> {
    let together: BTreeSet<Vec<usize>> = recorded
        .frames
        .iter()
        .filter_map(|frame| frame["during_request"].as_array())
        .map(|group| group.iter().map(|index| index.as_u64().unwrap() as usize).collect())
        .collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for index in 0..recorded.requests.len() {
        match together.iter().find(|group| group.contains(&index)) {
            Some(group) if group[0] == index => groups.push(group.clone()),
            Some(_) => {}
            None => groups.push(vec![index]),
        }
    }
    groups
}

/// One scenario replayed: cached tokens per request, and the event payloads per group with timestamp 0.
struct Replay {
    cached_tokens: Vec<Option<u32>>,
    /// After each group: its last request, and the tokens looked up and hit so far.
    counters: Vec<(usize, u64, u64)>,
    payloads: Vec<(Vec<usize>, Vec<Vec<u8>>)>,
}

/// A recording, and what it doesn't say: requests "in flight together" were sent over separate connections at the
/// same time, so which of them reached the scheduler first, and in which step, was decided by a race in the recorded
/// server. The two groups where it shows (in the events, or in which of two equal prompts was told a hit) are
/// replayed in the order that the recorded frames prove. All other groups are submitted together.
struct Scenario {
    name: &'static str,
    /// For groups recorded as concurrent: request → the step (from 0) before which it reached the scheduler.
    late: &'static [(usize, u32)],
    /// Pairs of equal prompts whose order of arrival was the other way round than their order in the file.
    swapped: &'static [(usize, usize)],
}

fn replay(scenario: &Scenario, recorded: &Recorded) -> Replay {
    let number = |key: &str| u32::try_from(recorded.meta[key].as_u64().unwrap()).unwrap();
    let is_old = scenario.name.starts_with("v023");
    let env = &recorded.meta["env"];
    let scheme =
        HashScheme { seed: env["PYTHONHASHSEED"].as_str().map(str::to_owned), untagged_extra_keys: is_old };
    let encoder = BatchEncoder {
        encoding: if is_old { EventEncoding::Array } else { EventEncoding::Map },
        rank: 0,
        hash_form: match env["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"].as_str() {
            Some("0") => EventHashForm::Bytes,
            _ => EventHashForm::Int,
        },
        block_size_tokens: number("block_size"),
    };
    let cache = PrefixCache::new(number("num_gpu_blocks"), number("block_size"), scheme, true);
    let mut scheduler = Scheduler::new(cache, 4, 8192);
    let mut result = Replay {
        cached_tokens: vec![None; recorded.requests.len()],
        counters: Vec::new(),
        payloads: Vec::new(),
    };
    for group in groups(recorded) {
        if recorded.requests[group[0]]["kind"] == "reset" {
            assert!(scheduler.reset_prefix_cache());
            continue;
        }
        let payloads = replay_group(scenario, recorded, &group, &mut scheduler, &encoder, &mut result);
        let stats = scheduler.stats();
        let last = group[group.len() - 1];
        result.counters.push((last, stats.prefix_cache_queries_tokens, stats.prefix_cache_hits_tokens));
        assert_eq!(stats.kv_cache_usage, 0.0);
        result.payloads.push((group, payloads));
    }
    result
}

fn replay_group(
    scenario: &Scenario,
    recorded: &Recorded,
    group: &[usize],
    scheduler: &mut Scheduler,
    encoder: &BatchEncoder,
    result: &mut Replay,
) -> Vec<Vec<u8>> {
    let mut order: Vec<usize> = group.to_vec();
    for &(first, second) in scenario.swapped {
        if let (Some(a), Some(b)) =
            (order.iter().position(|index| *index == first), order.iter().position(|index| *index == second))
        {
            order.swap(a, b);
        }
    }
    let arrival = |index: usize| scenario.late.iter().find(|late| late.0 == index).map_or(0, |late| late.1);
    let mut payloads = Vec::new();
    let mut outputs: Vec<StepOutput> = Vec::new();
    for step in 0.. {
        for &index in order.iter().filter(|index| arrival(**index) == step) {
            let request = &recorded.requests[index];
            let accepted = scheduler.submit(NewRequest {
                id: index as u64,
                prompt_token_ids: ids(&request["prompt_token_ids"]),
                output_token_ids: ids(&request["output_token_ids"]),
                cache_salt: None,
                reports_hits: false,
            });
            assert!(accepted, "request {index}");
        }
        scheduler.schedule();
        outputs.clear();
        scheduler.complete(&mut outputs);
        for output in &outputs {
            result.cached_tokens[output.id as usize] = Some(output.cached_tokens);
        }
        let events = scheduler.take_events();
        if !events.is_empty() {
            payloads.push(encoder.encode(0.0, &events));
        }
        if scheduler.is_idle() && order.iter().all(|index| arrival(*index) <= step) {
            return payloads;
        }
    }
    unreachable!("the loop ends when the requests do")
}

/// Payloads as recorded for one group, their timestamp (9 bytes after the array head) set to 0.
fn recorded_payloads(recorded: &Recorded, group: &[usize]) -> Vec<Vec<u8>> {
    let during = |frame: &Value| match &frame["during_request"] {
        Value::Array(indices) => indices.iter().map(|index| index.as_u64().unwrap() as usize).collect(),
        Value::Number(index) => vec![index.as_u64().unwrap() as usize],
        _ => Vec::new(),
    };
    recorded
        .frames
        .iter()
        .filter(|frame| during(frame) == group)
        .map(|frame| {
            let hex = frame["payload_hex"].as_str().unwrap();
            let mut payload: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            assert_eq!(payload[..2], [0x93, 0xcb]);
            payload[2..10].fill(0);
            payload
        })
        .collect()
}

fn check(scenario: &Scenario, with_payloads: bool) -> (usize, usize) {
    let recorded = recorded(scenario.name);
    let replay = replay(scenario, &recorded);
    let mut requests = 0;
    for (index, request) in recorded.requests.iter().enumerate() {
        if request["kind"] == "reset" {
            assert_eq!(replay.cached_tokens[index], None);
            continue;
        }
        // vLLM 0.23 leaves the field out when nothing was cached.
        let reported = request["cached_tokens_reported"].as_u64().unwrap_or(0);
        assert_eq!(replay.cached_tokens[index].map(u64::from), Some(reported), "{} #{index}", scenario.name);
        requests += 1;
    }
    for (last, queries, hits) in &replay.counters {
        let after = recorded.requests[*last]["metrics_after"].as_object().unwrap();
        let metric =
            |name: &str| after.iter().find(|(key, _)| key.starts_with(name)).unwrap().1.as_f64().unwrap();
        assert_eq!(*queries as f64, metric("vllm:prefix_cache_queries_total"), "{} #{last}", scenario.name);
        assert_eq!(*hits as f64, metric("vllm:prefix_cache_hits_total"), "{} #{last}", scenario.name);
    }
    let mut batches = 0;
    for (group, payloads) in replay.payloads.iter().filter(|_| with_payloads) {
        let expected = recorded_payloads(&recorded, group);
        assert_eq!(payloads.len(), expected.len(), "{} {group:?}: batches", scenario.name);
        for (at, (ours, theirs)) in payloads.iter().zip(&expected).enumerate() {
            let decoded = |payload: &[u8]| rmp_serde::from_slice::<Value>(payload);
            assert!(
                ours == theirs,
                "{} {group:?} batch {at}: {:?} recorded {:?}",
                scenario.name,
                decoded(ours),
                decoded(theirs)
            );
        }
        batches += payloads.len();
    }
    (requests, batches)
}

#[test]
fn base_workload_seed_0() {
    let scenario = Scenario { name: "v032-sha256cbor-seed0", late: &[], swapped: &[] };
    assert_eq!(check(&scenario, true), (14, 11));
}

#[test]
fn base_workload_seed_42() {
    let scenario = Scenario { name: "v032-sha256cbor-seed42", late: &[], swapped: &[] };
    assert_eq!(check(&scenario, true), (14, 11));
}

#[test]
fn base_workload_without_a_seed_and_with_whole_digests() {
    let scenario = Scenario { name: "v032-sha256cbor-noseed-bytes", late: &[], swapped: &[] };
    assert_eq!(check(&scenario, true), (14, 11));
}

/// That engine hashes pickles, which the simulation doesn't, so only the numbers are compared.
#[test]
fn base_workload_with_pickled_hashes() {
    let scenario = Scenario { name: "v032-sha256-seed0-bytes", late: &[], swapped: &[] };
    assert_eq!(check(&scenario, false), (14, 0));
}

#[test]
fn base_workload_of_vllm_0_23() {
    let scenario = Scenario { name: "v023-sha256cbor-seed0-bs16", late: &[], swapped: &[(10, 11)] };
    assert_eq!(check(&scenario, true), (14, 12));
}

#[test]
fn duplicates_and_evictions() {
    let scenario = Scenario { name: "v032-dup-sha256cbor-seed0", late: &[(1, 1)], swapped: &[] };
    assert_eq!(check(&scenario, true), (22, 25));
}
