//! Streamed responses pass untouched, and a lease lasts as long as its response: until the end, whoever makes it.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use warmroute_demo::harness::Recipe;

use crate::fixture::{MODEL, Script, ScriptedEngine, Stack, StackOptions, sse_response};

const COMPLETIONS: &str = "/v1/completions";

in_both_recipes!(
    a_stream_passes_untouched_and_its_lease_lasts_as_long,
    a_client_that_goes_away_ends_the_lease,
    an_engine_that_dies_ends_the_lease,
    a_simulated_stream_has_all_its_chunks,
);

fn body() -> Value {
    json!({"model": MODEL, "prompt": "once upon", "stream": true})
}

/// Reads until as many bytes have come.
async fn read(body: &mut Incoming, bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < bytes {
        let frame = body.frame().await.expect("the response ended early").unwrap();
        read.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    read
}

/// A stream that has begun and is held by its engine.
struct HeldStream {
    engine: ScriptedEngine,
    stack: Stack,
    response: Incoming,
    read: Vec<u8>,
}

impl HeldStream {
    async fn start(recipe: Recipe, script: Script) -> Self {
        let engine = ScriptedEngine::start(script).await;
        let stack = Stack::start(StackOptions::least_loaded(recipe, &[engine.address])).await;
        let response = stack.gateway.open_post(COMPLETIONS, "held", &body()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let mut response = response.into_body();
        let read = read(&mut response, sse_response().len() / 3).await;
        assert_eq!(stack.picker.status().await.in_flight(engine.address), 1);
        Self { engine, stack, response, read }
    }
}

async fn a_stream_passes_untouched_and_its_lease_lasts_as_long(recipe: Recipe) {
    let HeldStream { engine, stack, response, mut read } =
        HeldStream::start(recipe, Script::HeldStream).await;
    // A second one beside it is counted too, and each is released for itself.
    let second = stack.gateway.open_post(COMPLETIONS, "second", &body()).await;
    assert_eq!(stack.picker.status().await.in_flight(engine.address), 2);
    engine.release(2);
    read.extend(response.collect().await.unwrap().to_bytes());
    let second = second.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(Bytes::from(read), sse_response());
    assert_eq!(second, sse_response());
    stack.picker.until_idle().await;
}

async fn a_client_that_goes_away_ends_the_lease(recipe: Recipe) {
    let held = HeldStream::start(recipe, Script::HeldStream).await;
    drop(held.response);
    held.stack.picker.until_idle().await;
}

async fn an_engine_that_dies_ends_the_lease(recipe: Recipe) {
    let held = HeldStream::start(recipe, Script::BrokenStream).await;
    held.engine.release(1);
    let rest = held.response.collect().await;
    assert!(rest.is_err(), "the client must be able to tell a broken response from a whole one: {rest:?}");
    held.stack.picker.until_idle().await;
}

async fn a_simulated_stream_has_all_its_chunks(recipe: Recipe) {
    let stack = Stack::start(StackOptions::simulated(recipe, 2)).await;
    let prompt: Vec<u32> = (500..540).collect();
    let options = json!({"include_usage": true});
    let body = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": 20, "stream": true, "stream_options": options,
    });
    let answer = stack.gateway.post(COMPLETIONS, "sse", &body).await;
    let text = answer.text();
    let mut events: Vec<&str> =
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    let events: Vec<Value> = events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (usage, tokens) = events.split_last().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 20);
    assert_eq!(tokens.len(), 20);
    assert!(stack.picker.receipt("sse").await.stream);
    stack.picker.until_idle().await;
    // What the metrics know of it depends on what the gateway shows.
    let figure = async |name: &str| stack.picker.metric(&format!("llm_d_epp_request_{name}")).await;
    assert_eq!(figure("duration_seconds_count").await, Some(1.0));
    assert_eq!(figure("input_tokens_sum").await, Some(40.0));
    let shown = recipe == Recipe::FullDuplex;
    assert_eq!(figure("output_tokens_sum").await, shown.then_some(20.0));
    assert_eq!(figure("ttft_seconds_count").await, shown.then_some(1.0));
    assert_eq!(figure("streaming_tpot_seconds_count").await, shown.then_some(1.0));
}
