//! Predicted against delivered: each way in which the two can differ, made again, leaves its finding and no other.

use std::sync::Arc;
use std::time::Instant;

use warmroute::delivered::{Cause, Diagnosis, Finding};
use warmroute::prompt::AdapterNames;
use warmroute::receipt::Fallback;
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, StreamEnd, StreamLease};
use warmroute_kv_events::{Trust, TrustReason, TrustState};
use warmroute_plugin::EndpointMetrics;

use crate::fixture::{BLOCK_TOKENS, Fixture, PREFIX_ONLY, completion};

/// Matches by what was sent alone.
const SENT: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: approx-prefix-cache-producer
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: approx-prefix-cache-producer}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
";

/// Requests after which the finding must be there.
const REQUESTS: u32 = 100;

fn diagnosis(fixture: &Fixture, adapters: &Arc<AdapterNames>) -> Diagnosis {
    Diagnosis::new(fixture.pool.clone(), fixture.decider.clone(), adapters.clone(), fixture.metrics.clone())
}

fn findings(fixture: &Fixture) -> Vec<Finding> {
    diagnosis(fixture, &Arc::default()).refresh()
}

fn causes(found: &[Finding]) -> Vec<Cause> {
    found.iter().map(|finding| finding.cause).collect()
}

/// One request through to its end; the engine's answer tells `usage`.
async fn ask(fixture: &Fixture, request: HttpRequest, usage: &str) {
    let mut picked = fixture.picker.pick(request).await.unwrap();
    picked.lease.response_headers(Some(200), &HeaderList::from_pairs([("content-type", "application/json")]));
    picked.lease.response_chunk(format!("{{\"usage\":{usage}}}").as_bytes());
    picked.lease.ended(StreamEnd::ResponseComplete);
}

fn usage(prompt_tokens: usize, cached_tokens: u32) -> String {
    let details = format!("{{\"cached_tokens\":{cached_tokens}}}");
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":1,\"prompt_tokens_details\":{details}}}"
    )
}

/// Eight blocks and one token, so that all blocks can be reused.
fn prompt() -> Vec<u32> {
    (0..8 * BLOCK_TOKENS + 1).collect()
}

/// A pool of which engine 1 holds [`prompt`].
fn pool() -> Fixture {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    fixture.announce(1, &prompt()[..8 * BLOCK_TOKENS as usize]);
    fixture
}

#[tokio::test]
async fn a_healthy_pool_has_no_findings_and_its_receipts_say_what_was_delivered() {
    let fixture = pool();
    fixture.metrics.show_pool(&fixture.pool).unwrap();
    for at in 0..REQUESTS {
        // Every fourth prompt is new.
        let (prompt, cached) = match at % 4 {
            0 => ((1000 * at + 5000..1000 * at + 5100).collect(), 0),
            _ => (prompt(), 128),
        };
        ask(&fixture, completion(&prompt), &usage(prompt.len(), cached)).await;
    }
    assert_eq!(findings(&fixture), []);
    let last = fixture.receipts.find("last").unwrap();
    assert_eq!((last.predicted_cached_tokens, last.delivered_cached_tokens.get()), (128, Some(128)));
    let page = fixture.metrics.page().unwrap();
    let labels = "{endpoint_name=\"engine-1\",model_name=\"m\",namespace=\"\"}";
    for line in [
        format!("warmroute_compared_predicted_tokens_total{labels} 9600"),
        format!("warmroute_compared_delivered_tokens_total{labels} 9600"),
        format!("warmroute_overpredicted_tokens_total{labels} 0"),
        format!("warmroute_prediction_bias{labels} 0"),
        "warmroute_findings{cause=\"tokens-differ\"} 0".to_owned(),
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} is not in:\n{page}");
    }
}

#[tokio::test]
async fn predicted_hits_that_are_not_delivered_are_other_tokens_and_spoil_the_promise() {
    let fixture = pool();
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 0)).await;
    }
    let found = findings(&fixture);
    assert_eq!(causes(&found), [Cause::TokensDiffer]);
    assert_eq!(found[0].endpoints, [fixture.address(1)]);
    assert_eq!(found[0].seen, "0 cached tokens delivered and 12800 predicted in 100 requests");
    assert!(fixture.metrics.page().unwrap().contains("warmroute_findings{cause=\"tokens-differ\"} 1"));
    let states = fixture.pool.snapshot().states.clone();
    assert!(states[1].deliveries.breaks_promises() && !states[0].deliveries.breaks_promises());

    // What was wrong is put right.
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 128)).await;
    }
    assert_eq!(findings(&fixture), []);
    assert!(!states[1].deliveries.breaks_promises());
}

#[tokio::test]
async fn an_engine_that_lastingly_delivers_less_is_doubtful_until_its_promises_are_kept() {
    let fixture = pool();
    let diagnosis = diagnosis(&fixture, &Arc::default());
    let engine = fixture.pool.snapshot().states[1].engine.clone();
    let shown = |trust: &str| {
        let page = fixture.metrics.page().unwrap();
        let labels = format!("{{pod_identifier=\"{}\",trust=\"{trust}\"}}", fixture.address(1));
        page.contains(&format!("warmroute_engine_trust{labels} 1"))
    };
    let note = || {
        let receipt = fixture.receipts.find("last").unwrap();
        let line = receipt.candidates.iter().find(|line| *line.endpoint == *fixture.address(1)).unwrap();
        let is_told = receipt.fallbacks.iter().any(|note| note.kind == Fallback::DeliversLess);
        (line.trust.map(|note| note.reason), is_told)
    };
    diagnosis.refresh();
    assert!(shown("exact") && engine.trust() == Trust::Exact);
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 0)).await;
    }
    // Requests for the model see it at once, the engine's view as a whole with the next diagnosis.
    assert_eq!(note(), (Some(TrustReason::DeliversLess), true));
    let found = diagnosis.refresh();
    assert_eq!(causes(&found), [Cause::TokensDiffer], "the doubt is no cause of what caused it");
    let state = engine.trust_state();
    assert_eq!((state.trust, state.reason), (Trust::Doubtful, TrustReason::DeliversLess));
    assert!(shown("doubtful") && !shown("exact"));
    // Half of what is matched counts.
    let last = fixture.receipts.find("last").unwrap();
    let line = last.candidates.iter().find(|line| *line.endpoint == *fixture.address(1)).unwrap();
    assert_eq!((line.known_blocks, line.scores[0].score), (8, 0.5));

    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 128)).await;
    }
    assert_eq!(
        note(),
        (Some(TrustReason::DeliversLess), true),
        "told by the engine's state, until it is looked at"
    );
    assert_eq!(diagnosis.refresh(), []);
    assert_eq!(engine.trust_state().reason, TrustReason::FollowedFromStart);
    ask(&fixture, completion(&prompt()), &usage(129, 128)).await;
    assert_eq!(note(), (None, false));
    assert!(shown("exact") && !shown("doubtful"));
}

#[tokio::test]
async fn hits_that_nobody_predicted_are_other_tokens() {
    let fixture = Fixture::new(PREFIX_ONLY, 1);
    // What the engine says it stores isn't what the picker makes of the prompts.
    fixture.announce(0, &(7000..7128).collect::<Vec<_>>());
    for at in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, if at == 0 { 0 } else { 128 })).await;
    }
    let found = findings(&fixture);
    assert_eq!(causes(&found), [Cause::TokensDiffer]);
    assert_eq!(found[0].seen, "12672 cached tokens delivered and 0 predicted in 99 requests");
}

#[tokio::test]
async fn what_a_burst_finds_in_the_cache_was_expected() {
    let fixture = Fixture::new(PREFIX_ONLY, 1);
    fixture.announce(0, &(7000..7128).collect::<Vec<_>>());
    let mut burst = Vec::new();
    for _ in 0..REQUESTS {
        burst.push(fixture.picker.pick(completion(&prompt())).await.unwrap());
    }
    for (at, mut picked) in burst.into_iter().enumerate() {
        picked.lease.response_headers(Some(200), &HeaderList::default());
        let cached = if at == 0 { 0 } else { 128 };
        picked.lease.response_chunk(format!("{{\"usage\":{}}}", usage(129, cached)).as_bytes());
        picked.lease.ended(StreamEnd::ResponseComplete);
    }
    let totals = fixture.pool.snapshot().states[0].deliveries.models()["m"].totals;
    assert_eq!((totals.requests, totals.delivered_tokens, totals.under_tokens), (100, 99 * 128, 0));
    assert_eq!(findings(&fixture), []);
}

#[tokio::test]
async fn another_count_of_the_prompt_is_other_tokens() {
    let fixture = pool();
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(136, 128)).await;
    }
    let found = findings(&fixture);
    assert_eq!(causes(&found), [Cause::TokensDiffer]);
    assert!(found[0].seen.contains("136 tokens instead of 129"), "{}", found[0].seen);
}

#[tokio::test]
async fn an_adapter_alone_that_is_off_is_named() {
    let fixture = pool();
    let adapter = |prompt: &[u32]| {
        let path = [(":method", "POST"), (":path", "/v1/completions")];
        let body = format!("{{\"model\":\"tuned\",\"prompt\":{prompt:?}}}");
        HttpRequest::new(HeaderList::from_pairs(path), body)
    };
    for _ in 0..REQUESTS / 2 {
        ask(&fixture, completion(&prompt()), &usage(129, 128)).await;
        // The base model's blocks are taken for the adapter's.
        ask(&fixture, adapter(&prompt()), &usage(129, 0)).await;
    }
    let found = findings(&fixture);
    assert_eq!((causes(&found), found[0].model.as_str()), (vec![Cause::Adapter], "tuned"));
    // Its matches are doubted, the view isn't.
    let trust_of_last = || fixture.receipts.find("last").unwrap().candidates[0].trust.map(|note| note.reason);
    assert_eq!(trust_of_last(), Some(TrustReason::DeliversLess));
    ask(&fixture, completion(&prompt()), &usage(129, 128)).await;
    assert_eq!(trust_of_last(), None);
    assert_eq!(fixture.pool.snapshot().states[1].engine.trust(), Trust::Exact);
}

#[tokio::test]
async fn two_block_sizes_of_one_engine_are_named() {
    let fixture = pool();
    let metrics = EndpointMetrics::default().with_cache(4 * BLOCK_TOKENS, 1000);
    fixture.pool.snapshot().states[1].scraped(metrics, Instant::now());
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 64)).await;
    }
    let found = findings(&fixture);
    assert_eq!(causes(&found), [Cause::BlockSize]);
    assert!(found[0].seen.starts_with("blocks of 16 tokens by events, 64 by metrics; "), "{}", found[0].seen);
}

#[tokio::test]
async fn more_than_events_tell_comes_from_another_tier() {
    let fixture = pool();
    let evicted: Vec<u32> = prompt()[..64].iter().copied().chain(9000..9065).collect();
    for at in 0..REQUESTS {
        // The first blocks are in GPU memory, of the others no events tell.
        let request = if at % 3 == 0 { completion(&prompt()) } else { completion(&evicted) };
        ask(&fixture, request, &usage(129, 128)).await;
    }
    assert_eq!(causes(&findings(&fixture)), [Cause::OtherTiers]);
}

#[tokio::test]
async fn an_engine_without_events_is_named_unless_nobody_reads_them() {
    use warmroute_kv_events::TrustReason::{NeverConnected, NotFollowed};
    for (config, reason, expected) in [
        (PREFIX_ONLY, NeverConnected, vec![Cause::EventsNotSeen]),
        // Its events are turned off, so nobody misses them.
        (PREFIX_ONLY, NotFollowed, vec![]),
        (SENT, NeverConnected, vec![]),
    ] {
        let fixture = Fixture::new(config, 1);
        let trust = TrustState { trust: Trust::Blind, reason, since_ms: 0 };
        fixture.pool.snapshot().states[0].engine.set_trust(trust);
        for at in 0..REQUESTS {
            ask(&fixture, completion(&prompt()), &usage(129, if at == 0 { 0 } else { 128 })).await;
        }
        assert_eq!(causes(&findings(&fixture)), expected, "{reason:?}");
    }
}

#[tokio::test]
async fn what_was_sent_and_is_not_served_from_the_cache_is_named() {
    let fixture = Fixture::new(SENT, 1);
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), &usage(129, 0)).await;
    }
    assert_eq!(causes(&findings(&fixture)), [Cause::SentNotDelivered]);
}

#[tokio::test]
async fn prompts_without_exact_tokens_are_named_with_the_reason() {
    let fixture = pool();
    for _ in 0..REQUESTS {
        let path = [(":method", "POST"), (":path", "/v1/completions")];
        let body = "{\"model\":\"m\",\"prompt\":\"some text that nobody here can turn into tokens\"}";
        ask(&fixture, HttpRequest::new(HeaderList::from_pairs(path), body), &usage(129, 128)).await;
    }
    let found = findings(&fixture);
    assert!(!found.is_empty());
    assert!(found.iter().all(|finding| finding.cause == Cause::NoExactTokens), "{found:?}");
    assert!(found[0].seen.ends_with("mostly no-tokenizer"), "{}", found[0].seen);
}

#[tokio::test]
async fn answers_that_fail_break_off_or_tell_nothing_are_no_evidence() {
    let fixture = pool();
    for _ in 0..REQUESTS {
        ask(&fixture, completion(&prompt()), "null").await;
        let several = format!("{{\"model\":\"m\",\"prompt\":[{:?},[1,2]]}}", prompt());
        let path = HeaderList::from_pairs([(":method", "POST"), (":path", "/v1/completions")]);
        ask(&fixture, HttpRequest::new(path, several), &usage(131, 0)).await;
        let mut hidden = fixture.picker.pick(completion(&prompt())).await.unwrap();
        hidden.lease.ended(StreamEnd::GatewayClosed);
        let mut failed = fixture.picker.pick(completion(&prompt())).await.unwrap();
        failed.lease.response_headers(Some(500), &HeaderList::default());
        failed.lease.response_chunk(b"{}");
        failed.lease.ended(StreamEnd::ResponseComplete);
    }
    assert_eq!(findings(&fixture), []);
    let totals = fixture.pool.snapshot().states[1].deliveries.models()["m"].totals;
    assert_eq!((totals.requests, totals.unreported), (0, u64::from(REQUESTS)));
}
