//! Engines that keep evicted blocks in the host's memory: what is there counts less, and is delivered.

use std::net::SocketAddr;

use serde_json::json;
use warmroute::receipt::{CandidateLine, OffloadedLine, Receipt};
use warmroute_demo::harness::Recipe;

use crate::fixture::{BLOCK_TOKENS, Client, MODEL, Stack, StackOptions, Status, clear_cache, run, until};

const COMPLETIONS: &str = "/v1/completions";

/// Blocks of a prompt; one more token is behind them, so that all of them can be reused.
const PROMPT_BLOCKS: u64 = 5;

/// Sends a prompt that is like no other from its first block on. Returns the tokens that came from a cache.
async fn send(to: &Client, id: &str, prompt: u64) -> u64 {
    let first = 100_000 + 1_000 * prompt;
    let ids: Vec<u64> = (first..=first + PROMPT_BLOCKS * BLOCK_TOKENS).collect();
    let body = json!({"model": MODEL, "prompt": ids, "max_tokens": 1});
    let usage = to.post(COMPLETIONS, id, &body).await.json()["usage"].clone();
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

fn line(receipt: &Receipt, address: SocketAddr) -> &CandidateLine {
    receipt.candidates.iter().find(|line| *line.endpoint == *address.to_string()).unwrap()
}

fn prefix_score(line: &CandidateLine) -> f64 {
    line.scores.iter().find(|score| score.scorer.contains("prefix")).unwrap().score
}

#[test]
fn a_prompt_goes_where_it_is_in_gpu_memory_and_else_where_it_can_be_loaded() {
    run(async {
        // GPU memory for three prompts.
        let options =
            StackOptions { gpu_blocks: 19, cpu_blocks: 200, ..StackOptions::simulated(Recipe::Buffered, 3) };
        let stack = Stack::start(options).await;
        let [in_gpu, in_host, elsewhere] = stack.simulated.addresses()[..] else { panic!() };
        let engines = [in_gpu, in_host].map(Client::new);
        for engine in &engines {
            send(engine, "direct", 10).await;
        }
        // The second one computes other prompts, for which the first has to go.
        for prompt in 11..15 {
            send(&engines[1], "direct", prompt).await;
        }
        let copies = |status: &Status| status.kv_events(in_host)["offloaded_blocks"]["cpu"].as_u64();
        stack.picker.until("the copies", |status| copies(status) >= Some(5 * PROMPT_BLOCKS)).await;
        let blocks = |status: &Status| status.blocks(in_gpu);
        stack.picker.until("the prompt", |status| blocks(status) > PROMPT_BLOCKS).await;

        let cached = send(&stack.gateway, "both", 10).await;
        let receipt = stack.picker.receipt("both").await;
        assert_eq!(receipt.pick.as_deref(), Some(&*in_gpu.to_string()), "{receipt:?}");
        let predicted = u64::from(receipt.predicted_cached_tokens);
        assert_eq!((cached, predicted), (PROMPT_BLOCKS * BLOCK_TOKENS, PROMPT_BLOCKS * BLOCK_TOKENS));
        let (best, second) = (line(&receipt, in_gpu), line(&receipt, in_host));
        assert_eq!((best.known_blocks, best.offloaded_blocks), (5, None));
        let offloaded = OffloadedLine { cpu: 5, ..OffloadedLine::default() };
        assert_eq!((second.known_blocks, second.offloaded_blocks), (5, Some(offloaded)));
        assert!((prefix_score(best) - 1.0).abs() < 1e-9, "{best:?}");
        assert!((prefix_score(second) - 0.8).abs() < 1e-9, "{second:?}");
        assert_eq!(line(&receipt, elsewhere).known_blocks, 0);

        // Once the first has lost it, the second is best, and loads it.
        clear_cache(&engines[0]).await;
        send(&engines[0], "direct", 20).await;
        stack.picker.until("the reset", |status| blocks(status) == PROMPT_BLOCKS).await;
        let cached = send(&stack.gateway, "copies", 10).await;
        let receipt = stack.picker.receipt("copies").await;
        assert_eq!(receipt.pick.as_deref(), Some(&*in_host.to_string()), "{receipt:?}");
        assert_eq!((cached, u64::from(receipt.predicted_cached_tokens)), (80, 80));
        // Loaded, it is in GPU memory again.
        let mut sent = 0;
        until("the load", async || {
            sent += 1;
            let id = format!("again-{sent}");
            send(&stack.gateway, &id, 10).await;
            line(&stack.picker.receipt(&id).await, in_host).offloaded_blocks.is_none().then_some(())
        })
        .await;
    });
}
