//! Request bodies to typed requests, with `serde_json::Value` beside it for scale.

use std::fmt::Write;
use std::hint::black_box;

use anyhow::{Context, ensure};
use serde_json::json;
use warmroute_inference_api::{Api, Prompt, parse_request};

use crate::corpus::{Corpus, Numbers};
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call};

const CHAT_BYTES: usize = 32 * 1024;
const TOKEN_IDS_BYTES: usize = 400_000;

/// MB/s of both kinds of body.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let chat = chat_body(CHAT_BYTES)?;
    let ids = token_ids_body(TOKEN_IDS_BYTES, 1).into_bytes();
    let parsed = parse_request(Api::ChatCompletions, &chat)?;
    ensure!(matches!(parsed.prompt, Prompt::Chat(_)), "the chat body isn't read as one");
    let parsed = parse_request(Api::Completions, &ids)?;
    ensure!(matches!(parsed.prompt, Prompt::TokenIds(_)), "the token ids aren't read as such");
    for (name, api, body) in
        [("chat_32KB", Api::ChatCompletions, &chat), ("token_ids_400KB", Api::Completions, &ids)]
    {
        let ours = cpu_ns_per_call(effort, || {
            let _ = black_box(parse_request(api, black_box(body)));
        });
        report.figure(format!("parse/{name}"), mb_per_s(body.len(), ours), "MB/s");
        let serde = cpu_ns_per_call(effort, || {
            let _ = black_box(serde_json::from_slice::<serde_json::Value>(black_box(body)));
        });
        report.figure(format!("parse/{name}_serde_json_value"), mb_per_s(body.len(), serde), "MB/s");
    }
    Ok(())
}

/// Rate of a cost in nanoseconds for so many bytes.
pub(super) fn mb_per_s(bytes: usize, ns: Spread) -> Spread {
    let rate = |ns: f64| bytes as f64 * 1000.0 / ns;
    Spread { median: rate(ns.median), low: rate(ns.high), high: rate(ns.low) }
}

/// A conversation of that size about the prose corpus, 2 KB a turn.
pub(super) fn chat_body(bytes: usize) -> anyhow::Result<Vec<u8>> {
    let corpus = Corpus::read("prose")?;
    let mut messages = vec![json!({"role": "system", "content": "You are a helpful assistant."})];
    for (turn, piece) in corpus.pieces(2048).iter().take(bytes / 2048).enumerate() {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        messages.push(json!({"role": role, "content": piece}));
    }
    let body = json!({"model": "qwen2.5", "messages": messages, "max_tokens": 64, "stream": true});
    serde_json::to_vec(&body).context("a chat body")
}

/// A completion request of about that size whose prompt is a list of token ids. The first one has six digits.
pub(super) fn token_ids_body(bytes: usize, seed: u64) -> String {
    let mut numbers = Numbers(seed);
    let end = "],\"max_tokens\":16,\"stream\":true}";
    let mut body = format!("{TOKEN_IDS_START}100000");
    while body.len() + end.len() + 6 < bytes {
        for id in numbers.token_ids(1) {
            // Writing to a string can't fail.
            let _ = write!(body, ",{id}");
        }
    }
    body + end
}

/// What stands before the first token id in [`token_ids_body`].
pub(super) const TOKEN_IDS_START: &str = "{\"model\":\"qwen2.5\",\"prompt\":[";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_id_bodies_are_of_the_size_asked_for_and_parse() {
        for bytes in [1_000, 400_000] {
            let body = token_ids_body(bytes, 3);
            assert!(body.len() <= bytes && body.len() > bytes - 20, "{}", body.len());
            let parsed = parse_request(Api::Completions, body.as_bytes()).unwrap();
            assert!(matches!(parsed.prompt, Prompt::TokenIds(ids) if ids[0] == 100_000));
        }
    }
}
