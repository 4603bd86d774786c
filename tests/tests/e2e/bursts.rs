//! Requests that come at once see each other, before any engine could tell of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures::future::join_all;
use serde_json::json;
use warmroute_demo::harness::Recipe;

use crate::fixture::{MODEL, Script, ScriptedEngine, Stack, StackOptions, Status};

const COMPLETIONS: &str = "/v1/completions";
const BURST: usize = 60;

in_both_recipes!(a_burst_of_one_new_prompt_stays_together, a_burst_is_spread_evenly_by_load);

async fn a_burst_of_one_new_prompt_stays_together(recipe: Recipe) {
    let stack = Stack::start(StackOptions::simulated(recipe, 4)).await;
    // Nothing is heard of what the engines store: what one is expected to hold must do.
    stack.simulated.engines.iter().for_each(|engine| engine.lose_event_batches(u32::MAX));
    let prompt: Vec<u32> = (7000..7200).collect();
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2});
    let ids: Vec<String> = (0..BURST).map(|at| format!("burst-{at}")).collect();
    let answers = join_all(ids.iter().map(|id| stack.gateway.post(COMPLETIONS, id, &body))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let mut picks: BTreeMap<String, usize> = BTreeMap::new();
    for id in &ids {
        *picks.entry(stack.picker.receipt(id).await.pick.unwrap().to_string()).or_default() += 1;
    }
    assert!(*picks.values().max().unwrap() * 10 >= BURST * 9, "{picks:?}");
    stack.picker.until_idle().await;
}

async fn a_burst_is_spread_evenly_by_load(recipe: Recipe) {
    let engines = join_all((0..4).map(|_| ScriptedEngine::start(Script::HeldAnswer))).await;
    let addresses: Vec<SocketAddr> = engines.iter().map(|engine| engine.address).collect();
    let stack = Stack::start(StackOptions::least_loaded(recipe, &addresses)).await;
    let body = json!({"model": MODEL, "prompt": "the same for all"});
    let requests = join_all((0..BURST).map(|_| stack.gateway.post(COMPLETIONS, "burst", &body)));
    // No answer comes before every request has been picked.
    let release = async {
        let in_flight = |status: &Status| -> Vec<u64> {
            addresses.iter().map(|address| status.in_flight(*address)).collect()
        };
        let all = |status: &Status| in_flight(status).iter().sum::<u64>() == BURST as u64;
        let in_flight = in_flight(&stack.picker.until("all requests in flight", all).await);
        engines.iter().for_each(|engine| engine.release(BURST));
        in_flight
    };
    let (answers, in_flight) = futures::future::join(requests, release).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    // The busiest has at most 1.2 times the mean of 15.
    assert!(in_flight.iter().max() <= Some(&18), "{in_flight:?}");
    let received: Vec<usize> = engines.iter().map(|engine| engine.received_so_far().len()).collect();
    assert_eq!(received.iter().sum::<usize>(), BURST);
    assert!(received.iter().max() <= Some(&18), "{received:?}");
    stack.picker.until_idle().await;
}
