//! Data-parallel ranks behind one port: caches, publishers and metrics of their own.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "each suite uses a part of it")]
#[path = "common/client.rs"]
mod client;

use client::ApiClient;
use serde_json::{Value, json};
use warmroute_engine_sim::{Engine, EngineOptions, KvEventOptions};

#[tokio::test]
async fn a_header_names_the_rank_and_each_has_its_own_cache() {
    let mut options = EngineOptions::new("m");
    options.data_parallel_size = 2;
    options.kv_events = Some(KvEventOptions { replay_port: Some(0), ..KvEventOptions::default() });
    let engine = Engine::start(options).await.unwrap();
    let client = ApiClient::new(engine.http_address());
    let body = json!({ "model": "m", "prompt": (0..64).collect::<Vec<u32>>(), "max_tokens": 1 });
    for (rank, cached) in [("0", 0), ("1", 0), ("1", 48), ("0", 48)] {
        let (status, answer) = client.post_to_rank("/v1/completions", rank, body.clone()).await;
        assert_eq!(
            (status, &answer["usage"]["prompt_tokens_details"]["cached_tokens"]),
            (200, &cached.into())
        );
    }
    for rank in ["2", "-1", "x", ""] {
        let (status, answer) = client.post_to_rank("/v1/completions", rank, body.clone()).await;
        assert_eq!(status, 400, "{answer}");
        assert_eq!(answer["error"]["message"], format!("data_parallel_rank {rank} is out of range [0, 2)."));
    }
    // Without the header the engine chooses; either holds the prompt.
    let (_, answer) = client.post("/v1/completions", body.clone()).await;
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 48);

    let queries = [0, 1].map(|rank| engine.rank_stats(rank).prefix_cache_queries_tokens);
    assert_eq!(queries.iter().sum::<u64>(), 5 * 64);
    for (rank, queries) in (0..).zip(queries) {
        let sample = format!("vllm:prefix_cache_queries_total{{engine=\"{rank}\"");
        assert_eq!(client.metric(&sample).await, queries as f64);
    }
    let (_, sources) = client.get("/kv_event_sources").await;
    let sources: Value = serde_json::from_str(&sources).unwrap();
    assert_ne!(sources["0"]["endpoint"], sources["1"]["endpoint"]);
    assert_ne!(sources["0"]["replay_endpoint"], sources["1"]["replay_endpoint"]);
    assert_eq!(sources["0"]["topic"], sources["1"]["topic"]);
    // Every rank forgets.
    let (_, answer) = client.post("/reset_prefix_cache", json!({})).await;
    assert_eq!(answer["success"], true);
    for rank in ["0", "1"] {
        let (_, answer) = client.post_to_rank("/v1/completions", rank, body.clone()).await;
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
    engine.stop().await;
}
