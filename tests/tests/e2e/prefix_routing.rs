//! The main job: a prompt goes to the engine that holds its prefix, and the picker knows how much of it.

use serde_json::{Value, json};
use warmroute::receipt::Receipt;
use warmroute_demo::harness::Recipe;

use crate::fixture::{Answer, BLOCK_TOKENS, Client, MODEL, Stack, StackOptions};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

in_both_recipes!(a_repeated_prompt_hits_what_the_first_one_left, a_prompt_goes_to_the_engine_that_holds_it);

/// Text that fills some blocks and is like no other text from its first word on.
fn text(subject: &str) -> String {
    let sentence = "counts the ships in the harbour and writes their names into the book of the day. ";
    format!("{subject} {}", sentence.repeat(8))
}

fn prompt_tokens(usage: &Value) -> u64 {
    usage["prompt_tokens"].as_u64().unwrap()
}

/// Prompt tokens that the engine served from its cache, as it says.
fn cached_tokens(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

fn usage(answer: &Answer) -> Value {
    answer.json()["usage"].clone()
}

async fn a_repeated_prompt_hits_what_the_first_one_left(recipe: Recipe) {
    let options = StackOptions { with_tokenizer: true, ..StackOptions::simulated(recipe, 3) };
    let stack = Stack::start(options).await;
    // As many tokens as fill eight blocks exactly, of which the last one is computed all the same.
    let ids: Vec<u64> = (2000..2000 + 8 * BLOCK_TOKENS).collect();
    let messages = json!([
        {"role": "system", "content": text("The keeper")},
        {"role": "user", "content": "How many?"},
    ]);
    repeat(&stack, "text", COMPLETIONS, json!({"prompt": text("The pilot")})).await;
    repeat(&stack, "ids", COMPLETIONS, json!({"prompt": ids})).await;
    repeat(&stack, "chat", CHAT, json!({"messages": messages})).await;
}

/// Sends a request twice and looks at both answers, receipts and the explanation.
async fn repeat(stack: &Stack, name: &str, path: &str, mut body: Value) {
    body["model"] = json!(MODEL);
    body["max_tokens"] = json!(1);
    let before = stack.picker.status().await;
    let (first_id, second_id) = (format!("{name}-first"), format!("{name}-second"));
    let first = usage(&stack.gateway.post(path, &first_id, &body).await);
    let receipt = stack.picker.receipt(&first_id).await;
    let tokens = prompt_tokens(&first);
    assert!(tokens > 3 * BLOCK_TOKENS, "{name}: {first}");
    assert_eq!((cached_tokens(&first), receipt.predicted_cached_tokens), (0, 0), "{name}");

    let pick = receipt.pick.unwrap();
    let address = stack.simulated.at(&pick).http_address();
    let full_blocks = before.blocks(address) + tokens / BLOCK_TOKENS;
    stack.picker.until("the prompt's blocks", |status| status.blocks(address) >= full_blocks).await;
    let second = usage(&stack.gateway.post(path, &second_id, &body).await);
    let receipt = stack.picker.receipt(&second_id).await;
    let cached = (tokens - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    assert_eq!(cached_tokens(&second), cached, "{name}: what the engine says");
    assert_eq!(u64::from(receipt.predicted_cached_tokens), cached, "{name}: what the picker said before");
    check_receipt(&receipt, &pick, tokens);

    let words = stack.picker.explain(&second_id).await;
    assert!(words.contains(&format!("(request {second_id}): sent to {pick}")), "{words}");
    assert!(words.contains(&format!("predicted to be served from its KV cache: {cached} tokens")), "{words}");
    assert!(words.contains("prefix-cache-scorer") && words.contains(&format!("→ {pick}")), "{words}");
}

/// The second request's receipt: everything known, nothing fallen back from, the pick best by its prefix.
fn check_receipt(receipt: &Receipt, pick: &str, tokens: u64) {
    assert_eq!(receipt.pick.as_deref(), Some(pick));
    assert_eq!(receipt.prompt_tokens.map(u64::from), Some(tokens));
    assert_eq!(u64::from(receipt.prompt_blocks), tokens / BLOCK_TOKENS);
    assert_eq!(receipt.fallbacks, []);
    assert_eq!(receipt.candidates.len(), 3);
    let [best, others @ ..] = receipt.candidates.as_slice() else { panic!("{receipt:?}") };
    assert_eq!(&*best.endpoint, pick);
    assert_eq!(u64::from(best.known_blocks), tokens / BLOCK_TOKENS);
    let prefix = best.scores.iter().find(|line| &*line.scorer == "prefix-cache-scorer").unwrap();
    assert_eq!((prefix.score, prefix.weighted), (1.0, 3.0));
    for other in others {
        assert!(other.known_blocks == 0 && other.total < best.total, "{receipt:?}");
    }
}

async fn a_prompt_goes_to_the_engine_that_holds_it(recipe: Recipe) {
    let stack = Stack::start(StackOptions::simulated(recipe, 3)).await;
    let addresses = stack.simulated.addresses();
    let body = |at: usize| {
        let first = 3000 + 500 * at as u64;
        json!({"model": MODEL, "prompt": (first..first + 100).collect::<Vec<_>>(), "max_tokens": 1})
    };
    // Each engine gets a prompt of its own, past the picker, which learns of it from the engine's events alone.
    for (at, address) in addresses.iter().enumerate() {
        let blocks = stack.picker.status().await.blocks(*address) + 100 / BLOCK_TOKENS;
        assert_eq!(Client::new(*address).post(COMPLETIONS, "direct", &body(at)).await.status, 200);
        stack.picker.until("the prompt's blocks", |status| status.blocks(*address) >= blocks).await;
    }
    for round in 0..2 {
        for (at, address) in addresses.iter().enumerate().rev() {
            let id = format!("round-{round}-prompt-{at}");
            let usage = usage(&stack.gateway.post(COMPLETIONS, &id, &body(at)).await);
            let receipt = stack.picker.receipt(&id).await;
            assert_eq!(receipt.pick.as_deref(), Some(address.to_string().as_str()), "{id}");
            assert_eq!((cached_tokens(&usage), receipt.predicted_cached_tokens), (96, 96), "{id}");
        }
    }
}
