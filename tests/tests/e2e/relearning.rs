//! A picker that starts beside engines whose events nobody kept learns the prefixes in use again.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use warmroute_demo::harness::{EnvoyProxy, PickerTransport, Recipe};

use crate::fixture::{
    BLOCK_TOKENS, Client, MODEL, Picker, PickerOptions, Policy, SimulatedEngines, log_name, run,
    send_new_prompt, tools, until,
};

const COMPLETIONS: &str = "/v1/completions";

/// Eight blocks that all requests share, and a block of its own.
fn body(at: u64) -> Value {
    let own = 100_000 + 1000 * at;
    let tokens: Vec<u64> = (0..8 * BLOCK_TOKENS).chain(own..own + BLOCK_TOKENS + 1).collect();
    json!({"model": MODEL, "prompt": tokens, "max_tokens": 1})
}

/// The policy's file with the parameter.
fn config(folder: &tempfile::TempDir, relearns: bool) -> PathBuf {
    let policy = std::fs::read_to_string(Policy::Precise.config_file(&tools())).unwrap();
    let producer = "- type: precise-prefix-cache-producer\n";
    let with = format!("{producer}  parameters: {{relearnHotPrefixes: {relearns}}}\n");
    assert!(policy.contains(producer));
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, policy.replacen(producer, &with, 1)).unwrap();
    path
}

/// Waits until a batch of the engine's events is heard. What it held before stays.
async fn until_heard(picker: &Picker, address: SocketAddr) {
    let engine = Client::new(address);
    until("the engine being heard", async || {
        send_new_prompt(&engine).await;
        let status = picker.status().await;
        (status.kv_events(address)["batches"].as_u64() > Some(0)).then_some(())
    })
    .await;
}

/// Tokens predicted of each of six requests that share a prefix which the engine holds since before the picker came.
async fn predicted(recipe: Recipe, relearns: bool) -> Vec<u32> {
    let engines = SimulatedEngines::start(1, false).await;
    let address = engines.addresses()[0];
    let direct = Client::new(address);
    assert_eq!(direct.post(COMPLETIONS, "direct", &body(0)).await.status, 200);
    let folder = tempfile::tempdir().unwrap();
    let options = PickerOptions {
        endpoints: engines.addresses(),
        kv_events_port: Some(engines.kv_events_port),
        config_file: Some(config(&folder, relearns)),
        ..PickerOptions::new(Policy::Precise)
    };
    let picker = Picker::start(&options).await;
    until_heard(&picker, address).await;
    assert_eq!(picker.status().await.kv_events(address)["trust"], "partial");
    let (tools, name, grpc) = (tools(), log_name("envoy"), [picker.grpc]);
    let envoy = EnvoyProxy::start(&tools, &name, recipe, &grpc, PickerTransport::Plaintext, None).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
    let gateway = Client::new(envoy.listener);
    let mut predicted = Vec::new();
    for at in 1..=6 {
        let batches = picker.status().await.kv_events(address)["batches"].as_u64();
        let id = format!("request-{at}");
        let usage = gateway.post(COMPLETIONS, &id, &body(at)).await.json()["usage"].clone();
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 8 * BLOCK_TOKENS);
        let more = |status: &crate::fixture::Status| status.kv_events(address)["batches"].as_u64() > batches;
        picker.until("the request's events", more).await;
        let receipt = picker.receipt(&id).await;
        // The end of each prompt is new, so more of it might be held.
        assert_eq!(receipt.asked_for_report, relearns && at % 4 == 1);
        predicted.push(receipt.predicted_cached_tokens);
    }
    predicted
}

#[test]
fn a_hot_prefix_is_known_after_one_request_that_asks() {
    run(async {
        let shared = 8 * BLOCK_TOKENS as u32;
        for recipe in [Recipe::Buffered, Recipe::FullDuplex] {
            assert_eq!(predicted(recipe, true).await, [0, shared, shared, shared, shared, shared]);
        }
    });
}

#[test]
fn without_asking_it_stays_unknown_for_as_long_as_the_engine_holds_it() {
    run(async {
        assert_eq!(predicted(Recipe::Buffered, false).await, [0; 6]);
    });
}
