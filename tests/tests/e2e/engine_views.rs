//! What becomes of the picker's view of an engine whose events get lost, or which starts anew.

use serde_json::json;
use warmroute::receipt::Fallback;
use warmroute_demo::harness::Recipe;

use crate::fixture::{
    BLOCK_TOKENS, Client, MODEL, Stack, StackOptions, Status, clear_cache, run, send_new_prompt, until,
};

const COMPLETIONS: &str = "/v1/completions";

/// Connections to engines' event sockets after the first one.
const RECONNECTIONS: &str = "llm_d_epp_kv_cache_events_subscriber_reconnections_total";

#[test]
fn lost_events_are_told_until_the_cache_is_cleared() {
    run(async {
        let stack = Stack::start(StackOptions::simulated(Recipe::Buffered, 2)).await;
        let engine = &stack.simulated.engines[0];
        let (address, direct) = (engine.http_address(), Client::new(engine.http_address()));
        let has_gap = async |id: &str| {
            let body = json!({"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1});
            assert_eq!(stack.gateway.post(COMPLETIONS, id, &body).await.status, 200);
            let receipt = stack.picker.receipt(id).await;
            receipt.fallbacks.iter().any(|note| note.kind == Fallback::EventGaps)
        };
        assert!(!has_gap("before").await);

        engine.lose_event_batches(1);
        send_new_prompt(&direct).await;
        // The gap shows with the next batch that arrives.
        send_new_prompt(&direct).await;
        stack.picker.until("the gap", |status| status.kv_events(address)["missed_batches"] == 1).await;
        assert!(has_gap("amid").await);
        let receipt = stack.picker.receipt("amid").await;
        let trust =
            receipt.candidates.iter().find(|line| *line.endpoint == *address.to_string()).unwrap().trust;
        assert_eq!(trust.unwrap().reason.as_str(), "gap");

        clear_cache(&direct).await;
        send_new_prompt(&direct).await;
        stack.picker.until("the repair", |status| status.kv_events(address)["missed_batches"] == 0).await;
        assert!(!has_gap("after").await);
    });
}

#[test]
fn what_was_lost_and_what_a_restarted_engine_has_done_already_is_replayed() {
    run(async {
        let options = StackOptions { with_replay: true, ..StackOptions::simulated(Recipe::Buffered, 2) };
        let mut stack = Stack::start(options).await;
        let address = stack.simulated.addresses()[0];
        let direct = Client::new(address);
        let is_exact = |status: &Status| status.kv_events(address)["trust"] == "exact";
        let before = stack.picker.until("exact", is_exact).await.blocks(address);
        stack.simulated.engines[0].lose_event_batches(2);
        for _ in 0..3 {
            send_new_prompt(&direct).await;
        }
        stack
            .picker
            .until("the lost batches", |status| is_exact(status) && status.blocks(address) == before + 3)
            .await;

        // Restarted, and busy before the picker is back.
        stack.simulated.restart(0).await;
        for _ in 0..5 {
            send_new_prompt(&direct).await;
        }
        stack
            .picker
            .until("the restart", |status| {
                status.kv_events(address)["restarts"] == 1 && is_exact(status) && status.blocks(address) == 5
            })
            .await;
        let body = json!({"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1});
        assert_eq!(stack.gateway.post(COMPLETIONS, "after", &body).await.status, 200);
        let receipt = stack.picker.receipt("after").await;
        assert!(receipt.candidates.iter().all(|candidate| candidate.trust.is_none()), "{receipt:?}");
    });
}

#[test]
fn a_restarted_engine_holds_nothing_of_before() {
    run(async {
        let mut stack = Stack::start(StackOptions::simulated(Recipe::Buffered, 1)).await;
        let address = stack.simulated.addresses()[0];
        let prompt: Vec<u64> = (4000..4000 + 6 * BLOCK_TOKENS).collect();
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1});
        // Sends the prompt, and returns what the engine says was cached and what the picker had predicted.
        let ask = async |stack: &Stack, id: &str| {
            let before = stack.picker.status().await.blocks(address);
            let usage = stack.gateway.post(COMPLETIONS, id, &body).await.json()["usage"].clone();
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
            if cached == 0 {
                stack
                    .picker
                    .until("the prompt's blocks", |status| status.blocks(address) >= before + 6)
                    .await;
            }
            (cached, u64::from(stack.picker.receipt(id).await.predicted_cached_tokens))
        };
        let all_but_the_last_block = 5 * BLOCK_TOKENS;
        assert_eq!(ask(&stack, "new").await, (0, 0));
        assert_eq!(ask(&stack, "held").await, (all_but_the_last_block, all_but_the_last_block));

        stack.simulated.restart(0).await;
        until("a new connection", async || {
            (stack.picker.metric(RECONNECTIONS).await == Some(1.0)).then_some(())
        })
        .await;
        let direct = Client::new(address);
        // What it says first may come before the new subscription has been read.
        until("the restart being noticed", async || {
            send_new_prompt(&direct).await;
            let status = stack.picker.status().await;
            (status.kv_events(address)["restarts"] == 1).then_some(())
        })
        .await;
        assert_eq!(ask(&stack, "new-again").await, (0, 0));
        assert_eq!(ask(&stack, "held-again").await, (all_but_the_last_block, all_but_the_last_block));
    });
}
