//! Predicted against delivered: what `warmroute doctor` says of healthy engines, of engines that see other tokens, and
//! of one whose events got lost.

use std::net::SocketAddr;
use std::path::Path;

use futures::future::join_all;
use serde_json::{Value, json};
use warmroute_demo::harness::{EnvoyProxy, PickerTransport, Recipe};

use crate::fixture::{
    BLOCK_TOKENS, Client, MODEL, Picker, PickerOptions, Policy, SimulatedEngines, Stack, StackOptions,
    Status, log_name, run, send_new_prompt, tools, until,
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Requests within which a finding must be there.
const REQUESTS: u32 = 100;

/// A prompt of eight blocks and one token that is like no other from its first token on.
fn prompt(at: u32) -> Value {
    let first = 100_000 + 1000 * u64::from(at);
    json!({"model": MODEL, "prompt": (first..first + 8 * BLOCK_TOKENS + 1).collect::<Vec<_>>(), "max_tokens": 1})
}

fn causes(status: &Value) -> Vec<&str> {
    status["findings"].as_array().unwrap().iter().map(|found| found["cause"].as_str().unwrap()).collect()
}

#[test]
fn healthy_engines_deliver_what_was_predicted() {
    run(async {
        let stack = Stack::start(StackOptions::simulated(Recipe::FullDuplex, 2)).await;
        for round in 0..4 {
            for at in 0..REQUESTS / 4 {
                let id = format!("round-{round}-{at}");
                assert_eq!(stack.gateway.post(COMPLETIONS, &id, &prompt(at)).await.status, 200);
            }
        }
        let last = format!("round-3-{}", REQUESTS / 4 - 1);
        // Each prompt of these is new, and comes several times before the engine could tell of it.
        let burst: Vec<Value> = (0..REQUESTS).map(|at| prompt(500 + at / 8)).collect();
        let answers = join_all(burst.iter().map(|body| stack.gateway.post(COMPLETIONS, "burst", body))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        stack.picker.until_idle().await;
        let receipt = stack.picker.receipt(&last).await;
        assert_eq!(receipt.delivered_cached_tokens.get(), Some(8 * BLOCK_TOKENS as u32));
        assert_eq!(receipt.delivered_cached_tokens.get(), Some(receipt.predicted_cached_tokens));
        let words = stack.picker.explain(&last).await;
        assert!(words.contains("  delivered: 128 tokens from the cache, as predicted\n"), "{words}");
        let (code, text) = stack.picker.doctor(&[]).await;
        assert!(code == Some(0) && text.ends_with("no findings\n"), "{code:?} {text}");
        assert!(text.contains("KV events connected") && text.contains("trust "), "{text}");
        assert_eq!(stack.picker.metric("warmroute_findings").await, Some(0.0));
    });
}

/// The tokenizer with another sentence in its chat template.
fn with_another_template(folder: &Path) {
    let ours = tools().tokenizer;
    std::fs::copy(ours.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let config = std::fs::read_to_string(ours.join("tokenizer_config.json")).unwrap();
    let other = config.replace("You are a helpful assistant.", "You are a patient assistant.");
    assert_ne!(config, other);
    std::fs::write(folder.join("tokenizer_config.json"), other).unwrap();
}

#[test]
fn another_chat_template_is_found_out() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        with_another_template(folder.path());
        let engines = SimulatedEngines::start(1, true).await;
        let options = PickerOptions {
            endpoints: engines.addresses(),
            kv_events_port: Some(engines.kv_events_port),
            extra_args: vec!["--tokenizer".to_owned(), folder.path().to_str().unwrap().to_owned()],
            ..PickerOptions::new(Policy::Precise)
        };
        let picker = Picker::start(&options).await;
        engines.until_heard_by(&picker).await;
        let (tools, name, grpc) = (tools(), log_name("envoy"), [picker.grpc]);
        let transport = PickerTransport::Plaintext;
        let envoy = EnvoyProxy::start(&tools, &name, Recipe::FullDuplex, &grpc, transport, None).await;
        let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
        let gateway = Client::new(envoy.listener);
        let text =
            "Count the ships in the harbour and write their names into the book of the day. ".repeat(6);
        for at in 0..REQUESTS {
            let messages = json!([{"role": "user", "content": format!("{text} Page {at}.")}]);
            let body = json!({"model": MODEL, "messages": messages, "max_tokens": 1});
            assert_eq!(gateway.post(CHAT, &format!("page-{at}"), &body).await.status, 200);
        }
        picker.until_idle().await;
        let (code, status) = picker.doctor(&["--json"]).await;
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!((code, causes(&status)), (Some(1), vec!["tokens-differ"]), "{status:#}");
        let (_, words) = picker.doctor(&[]).await;
        assert!(words.contains("1 finding\n\ntokens-differ: model \"qwen2.5\" at 127.0.0."), "{words}");
    });
}

#[test]
fn lost_events_are_found_out() {
    run(lost_events(Recipe::FullDuplex));
}

/// What was delivered is then known from the engine's own counters.
#[test]
fn lost_events_are_found_out_where_answers_are_hidden() {
    run(lost_events(Recipe::Buffered));
}

/// Waits until metrics that are surely newer than this call have been read.
async fn until_scraped_twice(picker: &Picker, address: SocketAddr) {
    let (mut last_age, mut scrapes) = (0, 0);
    until("two scrapes", async || {
        let age = picker.status().await.endpoint(address)["metrics_age_ms"].as_u64().unwrap();
        scrapes += u32::from(age < last_age);
        last_age = age;
        (scrapes >= 2).then_some(())
    })
    .await;
}

async fn lost_events(recipe: Recipe) {
    let stack = Stack::start(StackOptions::simulated(recipe, 1)).await;
    let engine = &stack.simulated.engines[0];
    let (address, direct) = (engine.http_address(), Client::new(engine.http_address()));
    let prompts: u32 = REQUESTS / 4;
    engine.lose_event_batches(prompts);
    for at in 0..prompts {
        assert_eq!(direct.post(COMPLETIONS, "direct", &prompt(at)).await.status, 200);
    }
    send_new_prompt(&direct).await;
    let lost =
        |status: &Status| status.kv_events(address)["missed_batches"].as_u64() == Some(u64::from(prompts));
    stack.picker.until("the gap", lost).await;
    // What went past the picker is over and counted before anything that it sends.
    until_scraped_twice(&stack.picker, address).await;
    for at in 0..prompts {
        assert_eq!(stack.gateway.post(COMPLETIONS, &format!("{at}"), &prompt(at)).await.status, 200);
    }
    stack.picker.until_idle().await;
    let compared = |status: &Status| {
        let models = status.endpoint(address)["deliveries"].as_array().unwrap();
        models.iter().map(|model| model["requests"].as_u64().unwrap()).sum::<u64>() >= 20
    };
    stack.picker.until("what was delivered", compared).await;
    let (code, status) = stack.picker.doctor(&["--json"]).await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((code, causes(&status)), (Some(1), vec!["events-lost"]), "{status:#}");
    let (_, words) = stack.picker.doctor(&[]).await;
    assert!(words.contains("where cached tokens are lost: 25 requests, 3225 prompt tokens"), "{words}");
    assert!(words.contains("  held by an engine  "), "{words}");
}
