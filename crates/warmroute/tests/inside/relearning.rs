//! Engines of which not everything is known are asked, by requests that pass, to announce again what those hit.

use serde_json::Value;
use warmroute_ext_proc::{EndpointPicker, HttpRequest};
use warmroute_kv_events::{Trust, TrustReason, TrustState};

use crate::fixture::{BLOCK_TOKENS, Fixture, PREFIX_ONLY, completion, post};

fn config(relearns: bool) -> String {
    let producer = "- type: precise-prefix-cache-producer\n";
    let parameters = format!("{producer}  parameters: {{relearnHotPrefixes: {relearns}}}\n");
    PREFIX_ONLY.replacen(producer, &parameters, 1)
}

/// A pool of one engine whose view is trusted so far.
fn pool(relearns: bool, trust: Trust, reason: TrustReason) -> Fixture {
    let fixture = Fixture::new(&config(relearns), 1);
    fixture.announce(0, &(70_000..70_000 + BLOCK_TOKENS).collect::<Vec<_>>());
    fixture.pool.snapshot().states[0].engine.set_trust(TrustState { trust, reason, since_ms: 0 });
    fixture
}

fn prompt(at: u32) -> Vec<u32> {
    (1000 * at..1000 * at + 33).collect()
}

/// The body that the engine gets, if it is another one than the client's, and whether the receipt says so.
async fn ask(fixture: &Fixture, request: HttpRequest) -> Option<Value> {
    let picked = fixture.picker.pick(request).await.unwrap();
    let body = picked.body.as_ref().map(|body| serde_json::from_slice(body).unwrap());
    assert_eq!(fixture.receipts.find("last").unwrap().asked_for_report, body.is_some());
    body
}

#[tokio::test]
async fn one_in_four_requests_asks_a_partial_engine_until_it_brings_nothing_new() {
    let fixture = pool(true, Trust::Partial, TrustReason::JoinedLate);
    let mut asked = 0;
    for at in 0..200 {
        if let Some(body) = ask(&fixture, completion(&prompt(at))).await {
            assert_eq!(body["vllm_xargs"]["kv_cache_report_mode"], "full");
            assert_eq!(body["prompt"], Value::from(prompt(at)));
            assert_eq!(at % 4, 0);
            asked += 1;
        }
    }
    assert_eq!(asked, 16);
    let page = fixture.metrics.page().unwrap();
    assert!(
        page.contains("warmroute_kv_reports_asked_total{pod_identifier=\"127.0.0.2:8000\"} 16"),
        "{page}"
    );
    // Blocks after one that isn't known: there is something to be learnt.
    fixture.pool.snapshot().states[0].engine.relearning.is_worthwhile();
    let mut asks = 0;
    for at in 0..4 {
        asks += u32::from(ask(&fixture, completion(&prompt(900 + at))).await.is_some());
    }
    assert_eq!(asks, 1);
}

#[tokio::test]
async fn nobody_is_asked_of_whom_everything_is_known_or_that_would_say_too_much() {
    use TrustReason::{FollowedFromStart, JoinedLate, OtherTiers, UnsupportedGroups};
    for (relearns, trust, reason) in [
        (false, Trust::Partial, JoinedLate),
        (true, Trust::Exact, FollowedFromStart),
        (true, Trust::Partial, OtherTiers),
        (true, Trust::Partial, UnsupportedGroups),
    ] {
        let fixture = pool(relearns, trust, reason);
        assert_eq!(ask(&fixture, completion(&prompt(1))).await, None, "{relearns} {reason:?}");
    }
    let fixture = pool(true, Trust::Partial, JoinedLate);
    fixture.announce(0, &prompt(1)[..32]);
    let late = TrustState { trust: Trust::Partial, reason: JoinedLate, since_ms: 0 };
    fixture.pool.snapshot().states[0].engine.set_trust(late);
    assert_eq!(ask(&fixture, completion(&prompt(1))).await, None, "all that can be hit is known");
    assert!(ask(&fixture, completion(&prompt(2))).await.is_some());
}

#[tokio::test]
async fn what_the_client_says_stays_and_other_apis_are_left_alone() {
    let fixture = pool(true, Trust::Partial, TrustReason::JoinedLate);
    let tokens = prompt(3);
    let own = format!(
        "{{\"model\":\"m\",\"prompt\":{tokens:?},\"vllm_xargs\":{{\"kv_cache_report_mode\":\"incremental\"}}}}"
    );
    assert_eq!(ask(&fixture, post("/v1/completions", &own)).await, None);
    for _ in 0..3 {
        ask(&fixture, completion(&prompt(4))).await;
    }
    let generate = format!("{{\"model\":\"m\",\"token_ids\":{tokens:?},\"sampling_params\":{{}}}}");
    assert_eq!(ask(&fixture, post("/inference/v1/generate", &generate)).await, None);
    let more = format!("{{\"model\":\"m\",\"prompt\":{tokens:?},\"vllm_xargs\":{{\"session_id\":\"s\"}}}}");
    let body = ask(&fixture, post("/v1/completions", &more)).await.unwrap();
    assert_eq!(body["vllm_xargs"], serde_json::json!({"session_id": "s", "kv_cache_report_mode": "full"}));
}
