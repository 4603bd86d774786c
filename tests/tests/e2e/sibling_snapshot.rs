//! A picker that starts beside another one: it knows what that one knows, also what no engine tells again.

use std::net::SocketAddr;

use serde_json::{Value, json};
use warmroute_demo::harness::FreePorts;

use crate::fixture::{
    BLOCK_TOKENS, Client, ExtProcClient, MODEL, Picker, PickerOptions, Policy, SimulatedEngines, run,
};

const COMPLETIONS: &str = "/v1/completions";
/// Batches that an engine keeps for replays.
const BUFFER_BATCHES: usize = 4;
const PROMPTS: u64 = 12;

/// Prompts of three to eight blocks, of which each two have the first two in common.
fn prompt(number: u64) -> Vec<u64> {
    let first = 1_000_000 * (number / 2 + 1);
    let shared = first..first + 2 * BLOCK_TOKENS;
    let own = first + 100_000 * (number + 1);
    shared.chain(own..own + (1 + number % 6) * BLOCK_TOKENS).collect()
}

fn body(number: u64) -> Value {
    json!({"model": MODEL, "prompt": prompt(number), "max_tokens": 1})
}

/// What a picker says of each prompt: at each engine, the blocks that it is known to hold.
async fn matches_at(picker: &Picker) -> Vec<Vec<(String, u32)>> {
    let mut client = ExtProcClient::connect(picker).await;
    let mut all = Vec::new();
    for number in 0..PROMPTS {
        let id = format!("ask-{number}");
        client.pick(COMPLETIONS, &id, &[], body(number).to_string().into_bytes()).await;
        let receipt = picker.receipt(&id).await;
        let mut matches: Vec<(String, u32)> =
            receipt.candidates.iter().map(|line| (line.endpoint.to_string(), line.known_blocks)).collect();
        matches.sort_unstable();
        all.push(matches);
    }
    all
}

/// Where the engines are and what else a picker is told.
fn options(engines: &SimulatedEngines, more: &[String]) -> PickerOptions {
    let mut options = PickerOptions {
        endpoints: engines.addresses(),
        kv_events_port: Some(engines.kv_events_port),
        ..PickerOptions::new(Policy::Precise)
    };
    options.extra_args = more.to_vec();
    options.extra_args.push(format!("--kv-replay-port={}", engines.kv_replay_port));
    options
}

async fn until_all_are(picker: &Picker, trust: &str, engines: &[SocketAddr]) {
    picker
        .until(trust, |status| engines.iter().all(|engine| status.kv_events(*engine)["trust"] == trust))
        .await;
}

/// The picker hears all that the engines publish from now on: their buffers are too small to make good what a
/// subscription that comes late misses.
async fn empty_and_heard(engines: &SimulatedEngines, picker: &Picker) {
    engines.until_heard_by(picker).await;
    for address in engines.addresses() {
        crate::fixture::clear_cache(&Client::new(address)).await;
    }
}

#[test]
fn a_replica_that_starts_late_predicts_what_its_sibling_does() {
    run(async {
        let engines = SimulatedEngines::start_adapted(2, false, |options| {
            options.kv_events.as_mut().unwrap().buffer_steps = BUFFER_BATCHES;
        })
        .await;
        let addresses = engines.addresses();
        let port = FreePorts::default().on_loopback().unwrap();
        let first = Picker::start(&options(&engines, &[format!("--replica-port={port}")])).await;
        empty_and_heard(&engines, &first).await;
        for (number, address) in (0..PROMPTS).zip(addresses.iter().cycle()) {
            let answer = Client::new(*address).post(COMPLETIONS, "direct", &body(number)).await;
            assert_eq!(answer.status, 200);
        }
        until_all_are(&first, "exact", &addresses).await;
        let blocks = |numbers: &dyn Fn(u64) -> bool| {
            (0..PROMPTS)
                .filter(|number| numbers(*number))
                .map(|number| prompt(number).len() as u64 / BLOCK_TOKENS)
                .sum::<u64>()
        };
        // Each two of the shared beginnings are at one engine each, since prompts go to the engines in turn.
        let expected = [blocks(&|number| number % 2 == 0), blocks(&|number| number % 2 == 1)];
        first
            .until("all blocks", |status| {
                addresses.iter().zip(expected).all(|(engine, blocks)| status.blocks(*engine) == blocks)
            })
            .await;

        // Alone, a replica that comes now knows what the engines keep.
        let alone = Picker::start(&options(&engines, &[])).await;
        until_all_are(&alone, "partial", &addresses).await;
        let status = alone.status().await;
        assert!(addresses.iter().zip(expected).all(|(engine, blocks)| status.blocks(*engine) < blocks));

        // Beside its sibling (and a port where nobody is) it knows all.
        let nobody = FreePorts::default().on_loopback().unwrap();
        let own = FreePorts::default().on_loopback().unwrap();
        let peers = format!("--replica-peers=127.0.0.1:{port},127.0.0.1:{nobody},localhost:{own}");
        let second = Picker::start(&options(&engines, &[peers, format!("--replica-port={own}")])).await;
        let report = &second.status().await.sibling_snapshot().clone();
        assert_eq!((&report["state"], &report["engines"]), (&json!("taken"), &json!(2)), "{report}");
        assert_eq!(report["from"][0]["entries"], json!(expected[0] + expected[1]), "{report}");
        until_all_are(&second, "exact", &addresses).await;
        assert_eq!(matches_at(&second).await, matches_at(&first).await);
        assert_eq!(
            second.metric("warmroute_replica_snapshot_entries").await,
            Some((expected[0] + expected[1]) as f64)
        );

        // And goes on by itself: with what comes new, and with an engine's reset.
        let number = PROMPTS + 1;
        assert_eq!(Client::new(addresses[0]).post(COMPLETIONS, "later", &body(number)).await.status, 200);
        crate::fixture::clear_cache(&Client::new(addresses[1])).await;
        assert_eq!(Client::new(addresses[1]).post(COMPLETIONS, "later", &body(number)).await.status, 200);
        let more = prompt(number).len() as u64 / BLOCK_TOKENS;
        for picker in [&first, &second] {
            picker
                .until("what came later", |status| {
                    status.blocks(addresses[0]) == expected[0] + more && status.blocks(addresses[1]) == more
                })
                .await;
        }
        until_all_are(&second, "exact", &addresses).await;
        assert_eq!(matches_at(&second).await, matches_at(&first).await);
    });
}

/// A replica that finds nobody starts all the same, and says so.
#[test]
fn a_replica_without_siblings_is_ready_soon_and_replays() {
    run(async {
        let engines = SimulatedEngines::start(1, false).await;
        let address = engines.addresses()[0];
        assert_eq!(Client::new(address).post(COMPLETIONS, "direct", &body(0)).await.status, 200);
        let nobody = FreePorts::default().on_loopback().unwrap();
        let peers = format!("--replica-peers=127.0.0.1:{nobody},no-such-name.invalid:9004");
        let picker = Picker::start(&options(&engines, &[peers])).await;
        until_all_are(&picker, "exact", &[address]).await;
        let status = picker.status().await;
        assert_eq!(status.sibling_snapshot()["state"], json!("none"));
        assert_eq!(status.sibling_snapshot()["problems"].as_array().unwrap().len(), 2);
        assert_eq!(status.blocks(address), prompt(0).len() as u64 / BLOCK_TOKENS);
    });
}
