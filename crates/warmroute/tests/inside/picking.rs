//! The whole decision without a gateway: from a request to a lease, with real charges and a real index.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fixture::{ACTIVE_REQUESTS, Fixture, PREFIX_ONLY, completion, post};
use warmroute::explain;
use warmroute::receipt::{Fallback, Receipt, TrustNote};
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest};
use warmroute_kv_events::{Trust, TrustReason, TrustState};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_at_once_over_eight_idle_endpoints_spread_evenly() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 8);
    let start = Arc::new(tokio::sync::Barrier::new(200));
    let mut picks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (picker, start) = (fixture.picker.clone(), start.clone());
        picks.spawn(async move {
            start.wait().await;
            picker.pick(completion(&[1; 40])).await.unwrap()
        });
    }
    let picked = picks.join_all().await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for pick in &picked {
        *counts.entry(pick.destinations[0].clone()).or_default() += 1;
    }
    let busiest = counts.values().max().copied().unwrap();
    assert!(busiest as f64 <= 1.2 * 200.0 / 8.0, "{counts:?}");
    drop(picked);
    fixture.assert_nothing_in_flight();
}

#[tokio::test]
async fn a_burst_of_one_new_prompt_stays_together() {
    let fixture = Fixture::new(PREFIX_ONLY, 4);
    fixture.announce(0, &[7; 16]); // block size known; nothing of the prompt held anywhere
    let prompt: Vec<u32> = (100..400).collect();
    let first = fixture.picker.pick(completion(&prompt)).await.unwrap();
    for _ in 0..20 {
        let next = fixture.picker.pick(completion(&prompt)).await.unwrap();
        assert_eq!(next.destinations, first.destinations);
    }
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!(receipt.predicted_cached_tokens, 0, "expected is not known");
    assert_eq!(receipt.expected_cached_tokens, 288);
}

#[tokio::test]
async fn the_scores_of_all_scored_endpoints_are_told() {
    let fixture = Fixture::new(PREFIX_ONLY, 3);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(2, &prompt[..64]);
    fixture.announce(1, &prompt[..32]);
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    let receipt = fixture.receipts.find("last").unwrap();
    let mut shown: Vec<(String, f64)> =
        receipt.candidates.iter().map(|line| (line.endpoint.to_string(), line.total)).collect();
    shown.sort_by(|one, other| one.1.total_cmp(&other.1));
    let told: Vec<(String, f64)> =
        picked.scores.iter().map(|(endpoint, score)| (endpoint.to_string(), *score)).collect();
    assert_eq!(told, shown);
    assert_eq!(told.last().unwrap().0, fixture.address(2));
    let by_load = fixture.picker.pick_by_load(completion(&prompt)).await.unwrap();
    assert!(by_load.scores.is_empty(), "nothing was scored");
}

#[tokio::test]
async fn the_engine_that_holds_the_prefix_is_picked_and_the_receipt_says_why() {
    let mut fixture = Fixture::new(PREFIX_ONLY, 4);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(2, &prompt[..64]);
    fixture.announce(1, &prompt[..32]);
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(2)]);
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!(receipt.pick.as_deref(), Some(fixture.address(2).as_str()));
    assert_eq!(receipt.runner_up.as_deref(), Some(fixture.address(1).as_str()));
    assert_eq!((receipt.prompt_tokens, receipt.prompt_blocks), (Some(100), 6));
    assert_eq!(receipt.predicted_cached_tokens, 64);
    let in_flight = fixture.pool.snapshot().states[2].load.in_flight();
    assert_eq!((in_flight.requests, in_flight.prompt_tokens), (1, 36), "what is cached is no load");
    assert_eq!(receipt.candidates[0].known_blocks, 4);
    assert_eq!(receipt.candidates.len(), 4);
    // The engine goes: what it held is no reason any more.
    fixture.remove(2);
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1)]);
}

/// The first of three engines holds five blocks of a prompt, the second three. Each is trusted as given.
async fn pick_by_trust(trusts: [(Trust, TrustReason); 2]) -> (usize, Arc<Receipt>) {
    let fixture = Fixture::new(PREFIX_ONLY, 3);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(0, &prompt[..80]);
    fixture.announce(1, &prompt[..48]);
    for (state, (trust, reason)) in fixture.pool.snapshot().states.iter().zip(trusts) {
        state.engine.set_trust(TrustState { trust, reason, since_ms: 0 });
    }
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    let at = (0..3).find(|at| fixture.address(*at) == picked.destinations[0]);
    (at.unwrap(), fixture.receipts.find("last").unwrap())
}

#[tokio::test]
async fn a_match_counts_as_far_as_the_view_can_be_trusted_and_the_receipt_says_so() {
    let kinds = |receipt: &Receipt| receipt.fallbacks.iter().map(|note| note.kind).collect::<Vec<_>>();
    let (gap, late) = ((Trust::Doubtful, TrustReason::Gap), (Trust::Partial, TrustReason::JoinedLate));
    let lost = (Trust::Blind, TrustReason::ConnectionLost);
    // Five blocks by half are less than three.
    let (at, receipt) = pick_by_trust([gap, late]).await;
    assert_eq!(at, 1);
    let mut told: Vec<_> = receipt.candidates.iter().map(|line| (line.known_blocks, line.trust)).collect();
    told.sort_by_key(|(blocks, _)| *blocks);
    let note = |(trust, reason)| Some(TrustNote { trust, reason });
    assert_eq!(told, [(0, None), (3, note(late)), (5, note(gap))]);
    assert_eq!(kinds(&receipt), [Fallback::EventGaps]);
    assert!(explain::describe(&receipt).contains("5 doubtful: gap"));

    let (at, receipt) = pick_by_trust([gap, lost]).await;
    assert_eq!((at, receipt.predicted_cached_tokens), (0, 80));
    assert_eq!(kinds(&receipt), [Fallback::EventGaps, Fallback::NoEvents]);
    assert_eq!(pick_by_trust([late, late]).await.0, 0);
    assert_eq!(pick_by_trust([lost, late]).await.0, 1);
}

#[tokio::test]
async fn a_silent_engine_lacks_events_once_it_has_answered() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    fixture.announce(0, &[7; 16]);
    let silent = TrustState { trust: Trust::Blind, reason: TrustReason::NothingHeard, since_ms: 0 };
    fixture.pool.snapshot().states[1].engine.set_trust(silent);
    let pick = async |subset: usize| {
        let mut request = completion(&[1; 64]);
        request.subset = Some(vec![fixture.address(subset)]);
        let picked = fixture.picker.pick(request).await.unwrap();
        (picked, fixture.receipts.find("last").unwrap())
    };
    // Nothing was sent there yet: there is nothing to tell, and the line of the candidate says what isn't known.
    let (picked, receipt) = pick(1).await;
    assert_eq!(receipt.fallbacks, []);
    assert_eq!(receipt.candidates[0].trust.map(|note| note.reason), Some(TrustReason::NothingHeard));
    let (_other, receipt) = pick(1).await;
    assert_eq!(receipt.fallbacks, [], "the first hasn't been answered");
    drop(picked);
    let (_third, receipt) = pick(1).await;
    assert_eq!(receipt.fallbacks.iter().map(|note| note.kind).collect::<Vec<_>>(), [Fallback::NoEvents]);
    assert_eq!(pick(0).await.1.fallbacks, [], "of the other one everything is known");
}

#[tokio::test]
async fn what_cannot_be_picked_is_refused_with_the_peers_words() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    let refuse = async |path: &str, body: &str| fixture.picker.pick(post(path, body)).await.unwrap_err();
    assert_eq!(refuse("/v1/completions", "not json").await.status, 400);
    assert_eq!(refuse("/v1/completions", "").await.status, 400);
    let refusal = refuse("/v1/chat/completions", "{\"model\":\"m\"}").await;
    assert_eq!(refusal.message, "invalid chat completions request: must have valid messages field");
    let empty = Fixture::new(PREFIX_ONLY, 0);
    let refusal = empty.picker.pick(completion(&[1, 2])).await.unwrap_err();
    assert_eq!((refusal.status, refusal.reason), (503, Some("rejected-no-endpoints")));
    let receipt = empty.receipts.find("last").unwrap();
    assert!(receipt.refusal.as_deref().unwrap().starts_with("503 ServiceUnavailable"));
    let mut request = completion(&[1, 2]);
    request.subset = Some(vec!["192.0.2.9:1".to_owned()]);
    assert_eq!(fixture.picker.pick(request.clone()).await.unwrap_err().status, 503);
    let Some(picker) = Arc::into_inner(fixture.picker) else { panic!("the picker is shared") };
    assert!(picker.ignoring_subsets(true).pick(request).await.is_ok());
}

#[tokio::test]
async fn fallbacks_are_named_and_fail_no_request() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    let fallbacks = async |request: HttpRequest| {
        fixture.picker.pick(request).await.unwrap();
        let receipt = fixture.receipts.find("last").unwrap();
        receipt.fallbacks.iter().map(|note| note.kind.as_str()).collect::<Vec<_>>()
    };
    // Neither has been scraped, nor told its block size, nor is it subscribed to.
    assert_eq!(
        fallbacks(completion(&[1; 64])).await,
        ["block-size-unknown", "metrics-not-fresh", "no-events"]
    );
    fixture.announce(0, &[7; 16]);
    assert_eq!(fallbacks(completion(&[1; 64])).await, [""; 0]);
    assert_eq!(
        fallbacks(post("/v1/completions", "{\"model\":\"m\",\"prompt\":\"some text\"}")).await,
        ["no-tokenizer"]
    );
    assert_eq!(
        fallbacks(post("/v1/embeddings", "{\"model\":\"m\",\"input\":\"x\"}")).await,
        ["no-prompt-api"]
    );
    let get = HttpRequest::new(HeaderList::from_pairs([(":method", "GET"), (":path", "/v1/models")]), "");
    assert_eq!(fallbacks(get).await, ["no-body"]);
    fixture.assert_nothing_in_flight();
}
