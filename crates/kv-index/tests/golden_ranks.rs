//! Two data-parallel ranks of a recorded vLLM server are two engines: the events of each predict what it reported.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use serde_json::Value;
use warmroute_kv_events::{DecodeLimits, decode_batch};
use warmroute_kv_index::{
    EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys, predicted_cached_tokens,
};

fn lines(file: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm/v032-dp2/");
    let text = std::fs::read_to_string(format!("{path}{file}")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

fn rank_of(request: &Value) -> usize {
    request["headers"]["X-data-parallel-rank"].as_str().unwrap().parse().unwrap()
}

#[test]
fn each_rank_predicts_what_it_reported() {
    let index = KvIndex::new(IndexLimits::default());
    let mut ranks: Vec<EngineView> = (0..2).map(|_| index.add_engine().unwrap()).collect();
    let slots = [ranks[0].slot(), ranks[1].slot()];
    let mut frames = lines("frames.jsonl").into_iter().peekable();
    let (mut after_reset, mut compared) = ([false; 2], Vec::new());
    for request in lines("requests.jsonl") {
        let number = request["idx"].as_u64().unwrap();
        while let Some(frame) = frames.next_if(|frame| frame["during_request"].as_u64().unwrap() < number) {
            let payload = unhex(frame["payload_hex"].as_str().unwrap());
            let batch = decode_batch(&payload, &DecodeLimits::default()).unwrap();
            // The same topic for both: the socket and the batch's own rank tell them apart.
            let rank = frame["rank_socket"].as_u64().unwrap();
            assert_eq!(batch.data_parallel_rank.map(u64::from), Some(rank));
            ranks[rank as usize].apply(&batch);
        }
        if request["kind"] == "reset" {
            after_reset = [true; 2];
            continue;
        }
        let rank = rank_of(&request);
        // The reset is announced with the events of the first request to the rank after it.
        if std::mem::take(&mut after_reset[rank]) {
            continue;
        }
        let tokens = request["prompt_token_ids"].as_array().unwrap().iter();
        let tokens: Vec<u32> = tokens.map(|token| token.as_u64().unwrap() as u32).collect();
        let block_size = request["block_size"].as_u64().unwrap() as u32;
        let (mut keys, mut matches) = (Vec::new(), [Match::default(); 2]);
        block_keys(&tokens, block_size, &KeyExtras::default(), &mut keys);
        index.lookup(&keys, &slots, &mut LookupScratch::default(), &mut matches);
        let predicted = predicted_cached_tokens(matches[rank].known_blocks, tokens.len() as u32, block_size);
        assert_eq!(
            Some(u64::from(predicted)),
            request["cached_tokens_reported"].as_u64(),
            "request {number}"
        );
        compared.push(predicted);
    }
    assert_eq!(compared, [0, 0, 0, 128], "the prompt of the second is cached at the other rank");
}
