//! An endpoint that nobody can reach costs nothing: it scores below those whose metrics are known.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use warmroute::receipt::Fallback;
use warmroute_demo::harness::{FreePorts, Recipe};

use crate::fixture::{MODEL, Stack, StackOptions};

in_both_recipes!(requests_avoid_an_endpoint_that_was_never_scraped);

async fn requests_avoid_an_endpoint_that_was_never_scraped(recipe: Recipe) {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, FreePorts::default().on_loopback().unwrap()));
    let options = StackOptions { other_endpoints: vec![nobody], ..StackOptions::simulated(recipe, 2) };
    let stack = Stack::start(options).await;
    for at in 0..10_u32 {
        let id = format!("new-{at}");
        let prompt: Vec<u32> = (at * 100..at * 100 + 50).collect();
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1});
        let answer = stack.gateway.post("/v1/completions", &id, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let receipt = stack.picker.receipt(&id).await;
        assert!(receipt.fallbacks.iter().any(|note| note.kind == Fallback::MetricsNotFresh));
        let [reachable @ .., last] = receipt.candidates.as_slice() else { panic!("{receipt:?}") };
        assert_eq!((&*last.endpoint, last.metrics.as_str()), (&*nobody.to_string(), "never-scraped"));
        assert_eq!(reachable.len(), 2);
        assert!(reachable.iter().all(|candidate| candidate.total > last.total), "{receipt:?}");
    }
}
