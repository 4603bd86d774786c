//! Data-parallel ranks behind one address, through real Envoy: each is picked by itself, or not at all told apart.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use warmroute_demo::harness::{EnvoyProxy, PickerTransport, Recipe};
use warmroute_engine_sim::{Engine, EngineOptions, RunningEngine};

use crate::fixture::{
    BLOCK_TOKENS, Client, MODEL, Picker, PickerOptions, Policy, Status, bytes_body, clear_cache, log_name,
    run, tools, until,
};

async fn start_engine() -> RunningEngine {
    let mut options = EngineOptions::new(MODEL);
    (options.block_size_tokens, options.data_parallel_size) = (BLOCK_TOKENS as u32, 2);
    Engine::start(options).await.unwrap()
}

async fn start(engine: SocketAddr, extra_args: &[&str]) -> (Picker, EnvoyProxy, Client) {
    let picker = Picker::start(&PickerOptions {
        endpoints: vec![engine],
        kv_events_port: None,
        extra_args: extra_args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..PickerOptions::new(Policy::Precise)
    })
    .await;
    let (tools, name) = (tools(), log_name("envoy"));
    let (pickers, transport) = ([picker.grpc], PickerTransport::Plaintext);
    let envoy = EnvoyProxy::start(&tools, &name, Recipe::Buffered, &pickers, transport, None).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
    let gateway = Client::new(envoy.listener);
    (picker, envoy, gateway)
}

/// A prompt of eight blocks that nobody else sends.
fn prompt(number: u32) -> Vec<u32> {
    let tokens = 8 * BLOCK_TOKENS as u32;
    (number * tokens..(number + 1) * tokens).collect()
}

async fn complete(client: &Client, id: &str, number: u32, rank: Option<u16>) -> Value {
    let body = json!({"model": MODEL, "prompt": prompt(number), "max_tokens": 1});
    let mut request = http::Request::post("/v1/completions").header("x-request-id", id);
    if let Some(rank) = rank {
        request = request.header("x-data-parallel-rank", rank.to_string());
    }
    let body = bytes_body(body.to_string());
    client.send(request.body(body).unwrap()).await.json()
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

/// Makes a rank publish until the picker has heard it, see `SimulatedEngines::until_heard_by`. `events` finds what the
/// status says of it.
async fn until_heard(
    engine: &Client,
    picker: &Picker,
    rank: u16,
    events: impl for<'a> Fn(&'a Status) -> Option<&'a Value>,
) {
    let batches = |status: &Status| events(status)?["kv_events"]["batches"].as_u64();
    let mut number = 1000 * u32::from(rank + 1);
    until("the rank being heard", async || {
        let before = batches(&picker.status().await)?;
        clear_cache(engine).await;
        number += 1;
        complete(engine, "direct", number, Some(rank)).await;
        let heard = picker.until("a batch of events", |status| batches(status) > Some(before));
        tokio::time::timeout(Duration::from_secs(2), heard).await.ok().map(|_| ())
    })
    .await;
}

#[test]
fn one_address_with_two_ranks_is_two_endpoints_and_each_request_reaches_the_picked_one() {
    run(async {
        let engine = start_engine().await;
        let address = engine.http_address();
        let (picker, _envoy, gateway) = start(address, &[]).await;
        let both = |status: &Status| [0, 1].iter().all(|rank| status.rank(address, *rank).is_some());
        picker.until("the ranks that the engine lists", both).await;
        let direct = Client::new(address);
        for rank in [0, 1] {
            until_heard(&direct, &picker, rank, |status| status.rank(address, rank)).await;
            picker
                .until("its metrics", |status| status.rank(address, rank).unwrap()["metrics"] == "fresh")
                .await;
        }
        let served = || [0, 1].map(|rank| engine.rank_stats(rank).prompt_tokens);
        let (before, mut sent) = (served(), [0; 2]);
        for number in 1..=6 {
            let mut first_pick = None;
            for attempt in 0.. {
                let id = format!("{number}-{attempt}");
                // What a client asks for is the picker's to decide.
                let answer = complete(&gateway, &id, number, Some(7)).await;
                let receipt = picker.receipt(&id).await;
                let pick = receipt.pick.clone().unwrap();
                let rank: usize = pick.strip_prefix(&format!("{address}-rank-")).unwrap().parse().unwrap();
                sent[rank] += 8 * BLOCK_TOKENS;
                assert_eq!(first_pick.get_or_insert_with(|| pick.clone()), &pick, "{receipt:?}");
                if receipt.predicted_cached_tokens > 0 {
                    assert_eq!(cached(&answer), u64::from(receipt.predicted_cached_tokens));
                    assert_eq!(cached(&answer), 7 * BLOCK_TOKENS);
                    break;
                }
            }
            picker.until_idle().await;
        }
        let after = served();
        assert_eq!([after[0] - before[0], after[1] - before[1]], sent);
    });
}

#[test]
fn ranks_that_requests_are_not_pinned_to_predict_what_all_of_them_hold() {
    run(async {
        let engine = start_engine().await;
        let address = engine.http_address();
        let (picker, _envoy, gateway) = start(address, &["--data-parallel-pinning=false"]).await;
        let direct = Client::new(address);
        let is_one = |status: &Status| {
            status.endpoints().count() == 1 && status.kv_events(address)["connected"] == true
        };
        picker.until("one endpoint, connected to both ranks", is_one).await;
        for rank in [0, 1] {
            until_heard(&direct, &picker, rank, |status| Some(status.endpoint(address))).await;
        }
        clear_cache(&direct).await;
        // Each clear comes with the rank's next request.
        complete(&direct, "direct", 1, Some(0)).await;
        complete(&direct, "direct", 2, Some(1)).await;
        let blocks = |status: &Status| status.blocks(address) == 16;
        picker.until("both prompts", blocks).await;
        complete(&gateway, "at-one-rank", 1, None).await;
        assert_eq!(picker.receipt("at-one-rank").await.predicted_cached_tokens, 0);
        for rank in [0, 1] {
            complete(&direct, "direct", 3, Some(rank)).await;
        }
        let mut attempt = 0;
        let answer = until("events of both", async || {
            attempt += 1;
            let id = format!("at-both-{attempt}");
            let answer = complete(&gateway, &id, 3, None).await;
            let receipt = picker.receipt(&id).await;
            (receipt.predicted_cached_tokens > 0)
                .then_some((cached(&answer), receipt.predicted_cached_tokens))
        })
        .await;
        assert_eq!(answer, (7 * BLOCK_TOKENS, 7 * BLOCK_TOKENS as u32));
    });
}
