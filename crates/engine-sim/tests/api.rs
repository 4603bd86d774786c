//! The HTTP API: shapes as recorded from a real vLLM, streaming, errors, queueing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "each suite uses a part of it")]
#[path = "common/client.rs"]
mod client;

use client::ApiClient;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use warmroute_engine_sim::{Engine, EngineOptions, LatencyModel, RunningEngine};
use warmroute_tokenize::ModelTokenizer;

const MODEL: &str = "tiny-qwen2";

async fn start(change: impl FnOnce(&mut EngineOptions)) -> (RunningEngine, ApiClient) {
    let mut options = EngineOptions::new(MODEL);
    change(&mut options);
    let engine = Engine::start(options).await.unwrap();
    let client = ApiClient::new(engine.http_address());
    (engine, client)
}

fn prompt(tokens: u32) -> Vec<u32> {
    (1000..1000 + tokens).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The `data:` payloads of a stream, the last one left out after checking that it is the end marker.
fn events(stream: &str) -> Vec<Value> {
    let mut payloads: Vec<&str> = stream
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|e| e.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(payloads.pop(), Some("[DONE]"));
    payloads.iter().map(|payload| serde_json::from_str(payload).unwrap()).collect()
}

#[tokio::test]
async fn a_completion_reports_usage_and_cached_tokens() {
    let (engine, client) = start(|_| {}).await;
    for cached in [0, 96] {
        let body = json!({ "model": MODEL, "prompt": prompt(100), "max_tokens": 4 });
        let (status, answer) = client.post("/v1/completions", body).await;
        assert_eq!(status, 200);
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["model"], MODEL);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["choices"][0]["token_ids"], Value::Null);
        assert_eq!(
            answer["usage"],
            json!({ "prompt_tokens": 100, "total_tokens": 104, "completion_tokens": 4,
                    "prompt_tokens_details": { "cached_tokens": cached } })
        );
    }
    assert_eq!(client.metric("vllm:prefix_cache_queries_total{").await, 200.0);
    assert_eq!(client.metric("vllm:prefix_cache_hits_total{").await, 96.0);
    assert_eq!(client.metric("vllm:generation_tokens_total{").await, 8.0);
    assert_eq!(client.metric("vllm:time_to_first_token_seconds_count{").await, 2.0);
    assert_eq!(engine.stats().prompt_tokens, 200);
    engine.stop().await;
}

#[tokio::test]
async fn given_output_tokens_are_decoded_and_returned() {
    let (_engine, client) = start(|_| {}).await;
    let body = json!({ "prompt": prompt(20), "return_token_ids": true, "sim_output_token_ids": [7, 8, 9] });
    let (_, answer) = client.post("/v1/completions", body).await;
    assert_eq!(answer["choices"][0]["token_ids"], json!([7, 8, 9]));
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(prompt(20)));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn several_prompts_are_several_choices() {
    let (_engine, client) = start(|_| {}).await;
    let body = json!({ "prompt": [prompt(20), prompt(30)], "max_tokens": 2 });
    let (_, answer) = client.post("/v1/completions", body.clone()).await;
    assert_eq!(answer["choices"][1]["index"], 1);
    assert_eq!(answer["usage"]["prompt_tokens"], 50);
    // The second prompt starts with the first block of the first one.
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
    let mut body = body;
    body["stream"] = json!(true);
    let (_, stream) = client.text("POST", "/v1/completions", body.to_string()).await;
    let events = events(&stream);
    assert_eq!(events.len(), 4);
    let finished = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length");
    assert_eq!(
        finished.map(|event| event["choices"][0]["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1]
    );
}

#[tokio::test]
async fn a_stream_is_one_event_per_token_then_usage_if_asked_for() {
    let (_engine, client) = start(|_| {}).await;
    let body = |with_usage: bool| {
        json!({ "prompt": prompt(20), "max_tokens": 4, "stream": true,
                "stream_options": { "include_usage": with_usage } })
        .to_string()
    };
    let response = client.send("POST", "/v1/completions", body(true)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let stream = response.into_body().collect().await.unwrap().to_bytes();
    let with_usage = events(std::str::from_utf8(&stream).unwrap());
    assert_eq!(with_usage.len(), 5);
    let reasons: Vec<&Value> =
        with_usage[..4].iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &Value::Null, &json!("length")]);
    assert_eq!(with_usage[4]["choices"], json!([]));
    assert_eq!(with_usage[4]["usage"]["completion_tokens"], 4);
    assert_eq!(with_usage[4]["usage"]["prompt_tokens_details"], json!({ "cached_tokens": 0 }));
    assert_eq!(
        keys(&with_usage[0]["choices"][0]),
        ["finish_reason", "index", "logprobs", "prompt_token_ids", "stop_reason", "text", "token_ids"]
    );
    let (_, stream) = client.text("POST", "/v1/completions", body(false)).await;
    let without = events(&stream);
    assert_eq!(without.len(), 4);
    assert!(without.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn errors_have_the_recorded_shape() {
    let (_engine, client) = start(|options| options.num_gpu_blocks = 33).await;
    let (status, answer) = client.post("/v1/completions", json!({ "model": "nope", "prompt": [1] })).await;
    assert_eq!(status, 404);
    assert_eq!(
        answer,
        json!({ "error": { "message": "The model `nope` does not exist. Valid aliases: tiny-qwen2.",
                           "type": "NotFoundError", "param": "model", "code": 404 } })
    );
    let (status, answer) = client.post("/v1/completions", json!({ "prompt": prompt(600) })).await;
    assert_eq!(status, 400);
    assert_eq!(
        answer,
        json!({ "error": { "message": "This model's maximum context length is 512 tokens. However, your prompt \
            contains 600 input tokens, which exceeds this limit even without any output tokens. Please reduce the \
            length of the input prompt. (parameter=input_tokens, value=600)",
            "type": "BadRequestError", "param": "input_tokens", "code": 400 } })
    );
    for body in [
        "{",
        "[]",
        "{}",
        "{\"prompt\":[]}",
        "{\"prompt\":[1],\"n\":2}",
        "{\"prompt\":[1],\"max_tokens\":600}",
    ] {
        let (status, text) = client.text("POST", "/v1/completions", body.to_owned()).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, answer["error"]["code"].as_u64()), (400, Some(400)), "{body}: {text}");
    }
    let (status, answer) = client.post("/v1/completions", json!({ "prompt": "some text" })).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("--tokenizer"), "{answer}");
    let (status, _) = client.post("/v1/chat/completions", json!({ "model": MODEL })).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn small_routes_answer() {
    let (engine, client) = start(|_| {}).await;
    assert_eq!(client.get("/health").await.0, 200);
    assert!(client.get("/version").await.1.contains("0.32.0"));
    let models: Value = serde_json::from_str(&client.get("/v1/models").await.1).unwrap();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(models["data"][0]["max_model_len"], 1023 * 16);
    let sources: Value = serde_json::from_str(&client.get("/kv_event_sources").await.1).unwrap();
    let port = engine.kv_events_address().unwrap().port();
    assert_eq!(sources["0"]["endpoint"], format!("tcp://*:{port}"));
    assert_eq!(sources["0"]["topic"], format!("kv@{}@{MODEL}", engine.http_address()));
}

/// A request that decodes for as long as the test lets it.
async fn endless(client: &ApiClient) -> hyper::body::Incoming {
    let body = json!({ "prompt": prompt(20), "max_tokens": 2000, "stream": true });
    let mut stream = client.send("POST", "/v1/completions", body.to_string()).await.into_body();
    assert!(stream.frame().await.unwrap().is_ok());
    stream
}

fn slow(options: &mut EngineOptions) {
    options.latency = LatencyModel { decode_ms_per_token: 1.0, ..LatencyModel::default() };
}

#[tokio::test]
async fn a_full_engine_makes_requests_wait_and_says_so() {
    let (_engine, client) = start(|options| {
        slow(options);
        options.max_num_seqs = 1;
    })
    .await;
    let running = endless(&client).await;
    let waiting = TaskTracker::new().spawn({
        let client = client.clone();
        async move { client.post("/v1/completions", json!({ "prompt": prompt(20), "max_tokens": 1 })).await }
    });
    while client.metric("vllm:num_requests_waiting{").await < 1.0 {}
    assert_eq!(client.metric("vllm:num_requests_running{").await, 1.0);
    assert!(client.metric("vllm:kv_cache_usage_perc{").await > 0.0);
    assert_eq!(client.metric("vllm:cache_config_info{").await, 1.0);
    assert!(!waiting.is_finished());
    // The client of the running request goes away, so its place is free.
    drop(running);
    assert_eq!(waiting.await.unwrap().0, 200);
    assert_eq!(client.metric("vllm:num_requests_waiting{").await, 0.0);
    assert_eq!(client.metric("vllm:request_success_total{engine=\"0\",finished_reason=\"abort\"").await, 1.0);
}

#[tokio::test]
async fn the_cache_is_reset_only_when_nothing_runs() {
    let (_engine, client) = start(slow).await;
    let running = endless(&client).await;
    assert_eq!(client.post("/reset_prefix_cache", json!({})).await, (200, json!({ "success": false })));
    drop(running);
    while client.metric("vllm:num_requests_running{").await > 0.0 {}
    assert_eq!(client.post("/reset_prefix_cache", json!({})).await, (200, json!({ "success": true })));
    let (_, answer) = client.post("/v1/completions", json!({ "prompt": prompt(100) })).await;
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn stopping_ends_running_answers_and_frees_the_ports() {
    let (engine, client) = start(slow).await;
    let mut stream = endless(&client).await;
    let (http, events) = (engine.http_address(), engine.kv_events_address().unwrap());
    engine.stop().await;
    while let Some(Ok(frame)) = stream.frame().await {
        let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
        assert!(!text.contains("[DONE]"));
    }
    let (again, client) = start(|options| {
        options.port = http.port();
        options.kv_events.as_mut().unwrap().port = events.port();
    })
    .await;
    assert_eq!(again.http_address(), http);
    assert_eq!(client.get("/health").await.0, 200);
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let refused = async |change: fn(&mut EngineOptions)| {
        let mut options = EngineOptions::new(MODEL);
        change(&mut options);
        Engine::start(options).await.err().unwrap().to_string()
    };
    assert!(refused(|options| options.block_size_tokens = 0).await.contains("--block-size"));
    assert!(refused(|options| options.num_gpu_blocks = 1).await.contains("--num-gpu-blocks-override"));
    assert!(refused(|options| options.max_num_seqs = 0).await.contains("--max-num-seqs"));
    assert!(
        refused(|options| options.max_model_len_tokens = Some(1 << 20)).await.contains("--max-model-len")
    );
    assert!(refused(|options| options.served_model_names.clear()).await.contains("--served-model-name"));
}

/// A byte-level tokenizer with three merges, so that " the" is one token, and a chat template.
fn tokenizer() -> std::sync::Arc<ModelTokenizer> {
    let merges = [("\u{120}", "t"), ("\u{120}t", "h"), ("\u{120}th", "e")];
    // Byte-level vocabularies write bytes that aren't printable as the characters from U+0100 on.
    let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let (printable, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(is_printable);
    let shifted = (0x100..0x100 + others.len() as u32).filter_map(char::from_u32);
    let symbols = printable.into_iter().map(char::from).chain(shifted).map(String::from);
    let tokens = symbols.chain(merges.map(|(left, right)| format!("{left}{right}")));
    let vocabulary: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "vocab": vocabulary, "merges": merges }
    });
    let template = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}\
        {% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}<assistant>";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({ "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast" });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::sync::Arc::new(ModelTokenizer::load(dir.path()).unwrap())
}

#[tokio::test]
async fn a_conversation_sent_back_hits_its_decoded_blocks() {
    let (_engine, client) = start(|options| options.tokenizer = Some(tokenizer())).await;
    let tools = json!([{ "type": "function", "function": { "name": "tides", "parameters": {} } }]);
    let ask = |messages: Value| json!({ "model": MODEL, "messages": messages, "tools": tools, "max_tokens": 40, "return_token_ids": true });
    let question = json!({ "role": "user", "content": "Which berth for the Marigold?" });
    let (status, first) = client.post("/v1/chat/completions", ask(json!([question]))).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["object"], "chat.completion");
    let message = &first["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["content"], " the".repeat(40));
    let prompt_tokens = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(first["prompt_token_ids"].as_array().unwrap().len() as u64, prompt_tokens);

    let (_, second) = client.post("/v1/chat/completions", ask(json!([question, message, question]))).await;
    // The last decoded token was never computed, the others were.
    let computed = prompt_tokens + 39;
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], computed / 16 * 16);

    let body = json!({ "prompt": "a the", "model": MODEL });
    let (_, tokenized) = client.post("/tokenize", body).await;
    assert_eq!(tokenized["count"], 2);
}

#[tokio::test]
async fn a_streamed_chat_starts_with_the_role() {
    let (_engine, client) = start(|options| options.tokenizer = Some(tokenizer())).await;
    let body = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2, "stream": true,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true },
    });
    let (_, stream) = client.text("POST", "/v1/chat/completions", body.to_string()).await;
    let events = events(&stream);
    assert_eq!(events.len(), 4);
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(events[1]["choices"][0]["delta"], json!({ "content": " the" }));
    assert_eq!(events[1]["usage"]["completion_tokens"], 1);
    assert_eq!(events[2]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[3]["usage"]["completion_tokens"], 2);
}
