//! How fast request bodies are scanned: a list of token ids, and a conversation.
//!
//! `cargo run --profile quick -p warmroute-inference-api --example scan_speed`
#![allow(clippy::print_stdout, reason = "prints its result")]

use std::hint::black_box;
use std::time::Instant;

use warmroute_inference_api::{Api, parse_request};

const ROUNDS: u32 = 20;

fn measure(name: &str, api: Api, body: &str) -> Result<(), warmroute_inference_api::Rejection> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        black_box(parse_request(api, black_box(body.as_bytes()))?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:22} {:8} bytes {:6.2} GB/s", body.len(), body.len() as f64 / 1e9 / best);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ids: Vec<String> =
        (0..500_000u64).map(|n| ((n * 7_919 + 13) * 104_729 % 151_643).to_string()).collect();
    for (name, separator) in [("ids, \", \" between", ", "), ("ids, \",\" between", ",")] {
        let body = format!(r#"{{"model":"m","prompt":[{}],"max_tokens":1}}"#, ids.join(separator));
        measure(name, Api::Completions, &body)?;
    }
    let text = "A conversation of \\\"ordinary\\\" length, with a line feed here and there.\\n".repeat(20);
    let messages = vec![format!(r#"{{"role":"user","content":"{text}"}}"#); 2_000].join(",");
    measure("chat", Api::ChatCompletions, &format!(r#"{{"model":"m","messages":[{messages}]}}"#))?;
    let plain = "a conversation without escapes in it ".repeat(40);
    let messages = vec![format!(r#"{{"role":"user","content":"{plain}"}}"#); 2_000].join(",");
    measure(
        "chat without escapes",
        Api::ChatCompletions,
        &format!(r#"{{"model":"m","messages":[{messages}]}}"#),
    )?;
    Ok(())
}
