//! Usage in responses that a real vLLM gave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "test code may panic and print"
)]

use serde::Deserialize;
use serde_json::value::RawValue;
use warmroute_inference_api::{SseUsage, Usage, usage_of_json};

fn data(path: &str) -> String {
    let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/{}"), path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[derive(Deserialize)]
struct Recorded<'a> {
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    usage: Option<RecordedUsage>,
}

#[derive(Deserialize)]
struct RecordedUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

#[test]
fn responses() {
    let mut compared = 0;
    let mut without_cached = 0;
    for scenario in ["v023-sha256cbor-seed0-bs16", "v032-sha256cbor-seed0", "v032-dup-sha256cbor-seed0"] {
        for line in data(&format!("vllm/{scenario}/requests.jsonl")).lines() {
            let recorded: Recorded<'_> = serde_json::from_str(line).unwrap();
            let (Some(response), Some(usage)) = (recorded.response, recorded.usage) else { continue };
            let expected = Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
            };
            assert_eq!(usage_of_json(response.get().as_bytes()), Some(expected));
            without_cached += u32::from(expected.cached_tokens.is_none());
            compared += 1;
        }
    }
    assert!(
        compared > 40 && without_cached > 0,
        "{compared} compared, {without_cached} without cached tokens"
    );
}

#[test]
fn streams() {
    for (name, expected) in [
        ("chat-stream-no-usage", None),
        (
            "chat-stream-usage",
            Some(Usage { prompt_tokens: 105, completion_tokens: 8, cached_tokens: Some(96) }),
        ),
        (
            "chat-stream-usage-continuous",
            Some(Usage { prompt_tokens: 105, completion_tokens: 8, cached_tokens: Some(96) }),
        ),
    ] {
        let response = data(&format!("http/{name}.response.txt"));
        let (_, body) = response.split_once("\n\n").unwrap();
        for size in [1, 7, 64, 100_000] {
            let mut reader = SseUsage::new();
            body.as_bytes().chunks(size).for_each(|chunk| reader.feed(chunk));
            reader.finish();
            assert_eq!(reader.usage(), expected, "{name} in chunks of {size}");
            let events = body.lines().filter(|line| line.starts_with("data: {")).count();
            assert_eq!(reader.events(), events as u64);
        }
    }
}
