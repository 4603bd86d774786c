//! Prefix matches by what was sent: picks, what survives a reload, what leaves with an endpoint.

use std::time::Instant;

use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest};
use warmroute_kv_events::{Trust, TrustState};
use warmroute_plugin::EndpointMetrics;

use crate::fixture::{ACTIVE_REQUESTS, BLOCK_TOKENS, Fixture, completion, options, post, registry};
use warmroute::policy::Policy;
use warmroute::pool::DiscoveredEndpoint;
use warmroute::profile::read_config;

/// A profile of nothing but a prefix scorer, with these producers.
fn config(producers: &str) -> String {
    format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: prefix-cache-scorer\n\
         - type: max-score-picker\n{producers}\
         schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: prefix-cache-scorer\n  - pluginRef: max-score-picker\n"
    )
}

const APPROXIMATE: &str = "- type: approx-prefix-cache-producer\n";

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| seed * 100_000 + at).collect()
}

async fn pick(fixture: &Fixture, tokens: &[u32]) -> String {
    let mut picked = fixture.picker.pick(completion(tokens)).await.unwrap();
    picked.destinations.remove(0)
}

fn blocks(fixture: &Fixture) -> usize {
    fixture.decider.approximate_status().iter().map(|status| status.blocks).sum()
}

#[tokio::test]
async fn a_prompt_goes_where_its_beginning_was_sent() {
    let fixture = Fixture::new(&config(APPROXIMATE), 6);
    let (document, other) = (prompt(1, 100), prompt(2, 100));
    let first = pick(&fixture, &document).await;
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!(
        (receipt.prompt_blocks, receipt.candidates[0].known_blocks),
        (7, 0),
        "it was sent nowhere yet"
    );
    // No engine is followed or scraped: neither is a fallback of a guess.
    let kinds: Vec<&str> = receipt.fallbacks.iter().map(|note| note.kind.as_str()).collect();
    assert_eq!(kinds, ["metrics-not-fresh"]);

    let question = [&document[..90], &[7; 60]].concat();
    let second = pick(&fixture, &question).await;
    assert_eq!(second, first);
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!(receipt.prefix_producer.as_deref(), Some("approx-prefix-cache-producer"));
    assert_eq!((receipt.prompt_blocks, receipt.predicted_cached_tokens), (10, 80));
    let best = &receipt.candidates[0];
    assert_eq!((best.known_blocks, best.expected_blocks, best.blocks_are_approximate), (5, 5, true));
    // The whole prompt again: its last token is always computed, and the half block at its end counts.
    pick(&fixture, &question).await;
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.candidates[0].known_blocks, receipt.predicted_cached_tokens), (10, 144));
    assert_eq!(blocks(&fixture), 7 + 5);
    assert_eq!(fixture.decider.approximate_status()[0].endpoints, 1);

    // Another model's prompt of the same tokens is another prompt.
    let headers = HeaderList::from_pairs([(":method", "POST"), (":path", "/v1/completions")]);
    let body = format!("{{\"model\":\"n\",\"prompt\":{document:?}}}");
    fixture.picker.pick(HttpRequest::new(headers, body)).await.unwrap();
    assert_eq!(fixture.receipts.find("last").unwrap().predicted_cached_tokens, 0);
    pick(&fixture, &other).await;
    fixture.assert_nothing_in_flight();
}

#[tokio::test]
async fn what_an_endpoint_computes_is_charged_and_the_rest_is_not() {
    let fixture = Fixture::new(&config(APPROXIMATE), 3);
    let document = prompt(1, 100);
    let first = fixture.picker.pick(completion(&document)).await.unwrap();
    let second = fixture.picker.pick(completion(&document)).await.unwrap();
    assert_eq!(second.destinations, first.destinations, "a burst sees its own picks");
    let state = fixture
        .pool
        .snapshot()
        .states
        .iter()
        .find(|state| *state.endpoint.address == *first.destinations[0])
        .cloned()
        .unwrap();
    assert_eq!(state.load.in_flight().prompt_tokens, 100 + 4);
}

#[tokio::test]
async fn block_size_and_room_are_the_engines_own() {
    let fixture = Fixture::new(&config(APPROXIMATE), 1);
    let state = fixture.pool.snapshot().states[0].clone();
    state.scraped(EndpointMetrics::default().with_cache(32, 4), Instant::now());
    pick(&fixture, &prompt(1, 1000)).await;
    assert_eq!(blocks(&fixture), 4);
    pick(&fixture, &prompt(1, 1000)).await;
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.prompt_blocks, receipt.predicted_cached_tokens), (32, 128), "its beginning stayed");

    let parameters =
        "  parameters: {minBlockSizeTokens: 64, lruCapacityPerServer: 7, maxPrefixTokensToMatch: 200}\n";
    let fixture = Fixture::new(&config(&format!("{APPROXIMATE}{parameters}")), 1);
    pick(&fixture, &prompt(1, 1000)).await;
    assert_eq!(blocks(&fixture), 4, "200 tokens in blocks of 64");
    let state = fixture.pool.snapshot().states[0].clone();
    // 100 blocks of 16 tokens have room for 25 of 64.
    state.scraped(EndpointMetrics::default().with_cache(16, 100), Instant::now());
    for seed in 2..9 {
        pick(&fixture, &prompt(seed, 1000)).await;
    }
    assert_eq!(blocks(&fixture), 25);
}

#[tokio::test]
async fn where_events_are_seen_they_count_and_elsewhere_what_was_sent() {
    // Nothing declared: the producer is added.
    let fixture = Fixture::new(&config(""), 3);
    let document = prompt(1, 96);
    let first = pick(&fixture, &document).await;
    let receipt = fixture.receipts.find("last").unwrap();
    assert!(receipt.fallbacks.iter().any(|note| note.kind.as_str() == "no-events"));
    assert_eq!(pick(&fixture, &document).await, first, "no events are seen, so what was sent counts");
    assert!(fixture.receipts.find("last").unwrap().candidates[0].blocks_are_approximate);

    // Now every engine's events are seen, and another one than it was sent to has announced the document.
    let holder = (0..3).find(|at| fixture.address(*at) != first).unwrap();
    fixture.announce(holder, &document[..64]);
    for state in &fixture.pool.snapshot().states {
        state.engine.set_block_size_tokens(BLOCK_TOKENS);
        state.engine.count_batch(1);
    }
    assert_eq!(pick(&fixture, &document).await, fixture.address(holder));
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.predicted_cached_tokens, receipt.candidates[0].known_blocks), (64, 4));
    assert!(receipt.candidates.iter().all(|candidate| !candidate.blocks_are_approximate));
    assert_eq!(receipt.fallbacks, []);
    assert_eq!(blocks(&fixture), 6, "what events tell isn't counted again");

    // One engine's events stop: of that one, what was sent counts again.
    let sent_to = (0..3).find(|at| fixture.address(*at) == first).unwrap();
    fixture.pool.snapshot().states[sent_to].engine.set_trust(TrustState::default());
    // Any may be picked: the one that told of 4 blocks is expected to hold the others soon.
    pick(&fixture, &document).await;
    let receipt = fixture.receipts.find("last").unwrap();
    for (at, expected) in [(sent_to, (6, true)), (holder, (4, false))] {
        let line = receipt.candidates.iter().find(|line| *line.endpoint == *fixture.address(at)).unwrap();
        assert_eq!((line.known_blocks, line.blocks_are_approximate), expected);
    }
    assert!(receipt.fallbacks.iter().any(|note| note.kind.as_str() == "no-events"));
}

#[tokio::test]
async fn behind_an_image_what_was_sent_is_expected_and_nothing_is_known() {
    let fixture = Fixture::new(&config(""), 3);
    let tokens = prompt(1, 96);
    fixture.announce(0, &tokens);
    for state in &fixture.pool.snapshot().states {
        state.engine.set_block_size_tokens(BLOCK_TOKENS);
        state.engine.count_batch(1);
        state.engine.set_trust(TrustState { trust: Trust::Exact, ..TrustState::default() });
    }
    let ask = async |offset: usize| {
        let features = format!(r#"{{"mm_placeholders":{{"image":[{{"offset":{offset},"length":4}}]}}}}"#);
        let body = format!(r#"{{"model":"m","token_ids":{tokens:?},"features":{features}}}"#);
        let picked = fixture.picker.pick(post("/inference/v1/generate", &body)).await.unwrap();
        (picked.destinations[0].clone(), fixture.receipts.find("last").unwrap())
    };
    // The image comes first: no engine is known to hold anything, wherever it is sent.
    let (first, receipt) = ask(0).await;
    assert_eq!((receipt.predicted_cached_tokens, receipt.prompt_blocks), (0, 6));
    let (again, receipt) = ask(0).await;
    assert_eq!(again, first, "its conversation stays together");
    let line = &receipt.candidates[0];
    assert_eq!((line.known_blocks, line.expected_blocks, line.blocks_are_approximate), (0, 6, false));
    assert_eq!((receipt.predicted_cached_tokens, receipt.expected_cached_tokens), (0, 80));
    // What comes before an image is known by events.
    let (_, receipt) = ask(40).await;
    let holder = receipt.candidates.iter().find(|line| *line.endpoint == *fixture.address(0)).unwrap();
    assert_eq!(holder.known_blocks, 2);
}

#[tokio::test]
async fn an_endpoint_that_leaves_takes_what_it_was_sent_with_it() {
    let mut fixture = Fixture::new(&config(APPROXIMATE), 2);
    let document = prompt(1, 160);
    let first = pick(&fixture, &document).await;
    assert_eq!(blocks(&fixture), 10);
    let at = (0..2).find(|at| fixture.address(*at) == first).unwrap();
    fixture.remove(at);
    fixture.decider.forget_gone();
    assert_eq!((blocks(&fixture), fixture.decider.approximate_status()[0].endpoints), (0, 0));
    assert_ne!(pick(&fixture, &document).await, first);
    assert_eq!(blocks(&fixture), 10);
}

#[tokio::test]
async fn what_was_sent_survives_a_reload_that_leaves_the_producer_as_it_is() {
    let fixture = Fixture::new(&config(APPROXIMATE), 4);
    let document = prompt(1, 160);
    let first = pick(&fixture, &document).await;
    let swap = |text: &str| {
        let registry = std::sync::Arc::new(registry());
        let changed = read_config(&options(text), &registry).unwrap();
        fixture.decider.swap(Policy::try_new(&changed, &registry, &fixture.tasks).unwrap().shared());
    };
    swap(&config(&format!("{APPROXIMATE}- type: queue-scorer\n")));
    assert_eq!((blocks(&fixture), pick(&fixture, &document).await), (10, first));
    swap(&config(&format!("{APPROXIMATE}  parameters: {{lruCapacityPerServer: 5}}\n")));
    assert_eq!(blocks(&fixture), 0, "another producer begins empty");
    swap(ACTIVE_REQUESTS);
    assert_eq!(fixture.decider.approximate_status(), []);
}

#[tokio::test]
async fn producers_of_two_tiers_count_apart() {
    let fixture = Fixture::new(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- {type: approx-prefix-cache-producer, name: gpu}\n\
         - {type: approx-prefix-cache-producer, name: cpu, parameters: {autoTune: false, lruCapacityPerServer: 4}}\n\
         - {type: prefix-cache-scorer, name: on-gpu, parameters: {prefixMatchInfoProducerName: gpu}}\n\
         - {type: prefix-cache-scorer, name: on-cpu, parameters: {prefixMatchInfoProducerName: cpu}}\n",
        2,
    );
    let document = prompt(1, 160);
    pick(&fixture, &document).await;
    pick(&fixture, &document).await;
    let status = fixture.decider.approximate_status();
    let told: Vec<(&str, usize)> = status.iter().map(|status| (&*status.name, status.blocks)).collect();
    assert_eq!(told, [("gpu", 10), ("cpu", 4)]);
    let receipt = fixture.receipts.find("last").unwrap();
    let scores: Vec<f64> = receipt.candidates[0].scores.iter().map(|line| line.score).collect();
    assert_eq!((scores, receipt.prefix_producer.as_deref()), (vec![1.0, 0.4], Some("gpu")));
}

#[tokio::test]
async fn without_a_tokenizer_texts_are_matched_by_a_guess() {
    for producers in [APPROXIMATE, ""] {
        let fixture = Fixture::new(&config(producers), 5);
        let ask = async |question: &str| {
            let headers = HeaderList::from_pairs([(":method", "POST"), (":path", "/v1/chat/completions")]);
            let system = "The workshop closes on Sundays and on public holidays. ".repeat(20);
            let body = format!(
                r#"{{"model":"m","messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{question}"}}]}}"#
            );
            let picked = fixture.picker.pick(HttpRequest::new(headers, body)).await.unwrap();
            (picked.destinations[0].clone(), fixture.receipts.find("last").unwrap())
        };
        let (first, _) = ask("When is it open?").await;
        let (second, receipt) = ask("Who has the key?").await;
        assert_eq!(second, first);
        assert!(receipt.prompt_tokens_estimated && receipt.predicted_cached_tokens > 200, "{receipt:?}");
        assert!(receipt.candidates[0].blocks_are_approximate);
    }
}

#[tokio::test]
async fn the_endpoint_that_prefills_was_sent_the_prompt_too() {
    let handler = "- {type: prefill-filter}\n- {type: decode-filter}\n- {type: prefix-cache-scorer}\n\
                   - {type: approx-prefix-cache-producer}\n- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}\n\
                   - {type: always-disagg-pd-decider}\n";
    let profile = |name: &str| {
        format!(
            "- name: {name}\n  plugins:\n  - pluginRef: {name}-filter\n  - pluginRef: prefix-cache-scorer\n"
        )
    };
    let text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n{handler}schedulingProfiles:\n{}{}",
        profile("prefill"),
        profile("decode")
    );
    let fixture = Fixture::new(&text, 6);
    let snapshot = fixture.pool.snapshot();
    let labelled = snapshot.states.iter().enumerate().map(|(at, state)| {
        let role = if at % 2 == 0 { "prefill" } else { "decode" };
        let labels = [("llm-d.ai/role".to_owned(), role.to_owned())].into();
        DiscoveredEndpoint { labels, ..state.spec.clone().into() }
    });
    let labelled: Vec<_> = labelled.collect();
    fixture.pool.update(&labelled);
    let document = prompt(1, 160);
    let picks = async || {
        let picked = fixture.picker.pick(completion(&document)).await.unwrap();
        (picked.destinations.clone(), picked.set_headers.clone())
    };
    let first = picks().await;
    assert_eq!((blocks(&fixture), fixture.decider.approximate_status()[0].endpoints), (20, 2));
    assert_eq!(picks().await, first, "both stages go where the prompt is");
}
