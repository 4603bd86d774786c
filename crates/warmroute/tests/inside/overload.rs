//! While the pool is full, what may be refused is refused, and nothing else.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tokio::task::JoinSet;
use warmroute::receipt::{AdmissionLine, Fallback};
use warmroute_ext_proc::{EndpointPicker, HttpRequest, Refusal};
use warmroute_plugin::EndpointMetrics;

use crate::fixture::{ACTIVE_REQUESTS, Fixture, completion_with};

const OBJECTIVE: &str = "x-llm-d-inference-objective";
const ENDPOINTS: usize = 4;

/// With four endpoints, eight requests in flight are full.
fn by_concurrency() -> String {
    let detector =
        "- {type: concurrency-detector, name: ours, parameters: {maxConcurrency: 2}}\nschedulingProfiles:";
    let section = "flowControl: {saturationDetector: {pluginRef: ours}}\n";
    format!("{}{section}", ACTIVE_REQUESTS.replace("schedulingProfiles:", detector))
}

fn by_metrics(parameters: &str) -> String {
    let detector = format!("- {{type: utilization-detector, parameters: {parameters}}}\nschedulingProfiles:");
    ACTIVE_REQUESTS.replace("schedulingProfiles:", &detector)
}

fn of(objective: &str) -> HttpRequest {
    completion_with(&[(OBJECTIVE, objective)], None)
}

fn assert_saturated(refusal: &Refusal) {
    assert_eq!((refusal.status, refusal.code), (429, "ResourceExhausted"), "{refusal:?}");
    assert_eq!(refusal.reason, Some("rejected-saturated"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_negative_priorities_are_refused_and_nothing_is_lost() {
    const EACH: usize = 300;
    let fixture = Fixture::new(&by_concurrency(), ENDPOINTS);
    let fill = join_all((0..2 * ENDPOINTS).map(|_| fixture.picker.pick(completion_with(&[], None)))).await;
    assert!(fill.iter().all(Result::is_ok));

    let mut sent = JoinSet::new();
    for objective in (0..EACH).flat_map(|_| ["batch", "chat", "unheard-of"]) {
        let picker = fixture.picker.clone();
        sent.spawn(async move { (objective, picker.pick(of(objective)).await) });
    }
    let outcomes = sent.join_all().await;
    assert_eq!(outcomes.len(), 3 * EACH);
    for (objective, outcome) in &outcomes {
        match (*objective, outcome) {
            ("batch", Err(refusal)) => assert_saturated(refusal),
            ("batch", Ok(_)) => panic!("let in though the pool is full"),
            (_, outcome) => assert!(outcome.is_ok(), "{objective}: {:?}", outcome.as_ref().err()),
        }
    }
    let in_flight = fixture.pool.snapshot();
    let in_flight: u32 = in_flight.states.iter().map(|state| state.load.in_flight().requests).sum();
    assert_eq!(in_flight as usize, 2 * ENDPOINTS + 2 * EACH);
    assert_eq!(fixture.receipts.decided() as usize, 2 * ENDPOINTS + 3 * EACH);
    assert_eq!(fixture.metrics.admission.refused.with_label_values(&["ours"]).get() as usize, EACH);
    let labels = |priority, code| ["m", "m", "default-flow", priority, code];
    let errors =
        |priority, code| fixture.metrics.requests.errors.with_label_values(&labels(priority, code)).get();
    assert_eq!(errors("-1", "ResourceExhausted") as usize, EACH);
    assert_eq!(errors("3", "ResourceExhausted") + errors("0", "ResourceExhausted"), 0);

    drop((fill, outcomes));
    fixture.assert_nothing_in_flight();
    assert!(fixture.picker.pick(of("batch")).await.is_ok(), "the pool is idle again");
    let admission = fixture.receipts.find("last").unwrap().admission.clone();
    let idle = AdmissionLine {
        detector: "ours".into(),
        saturation: Some(0.0),
        unknown_endpoints: 0,
        admitted: true,
    };
    assert_eq!(admission, Some(idle));
    fixture.assert_nothing_in_flight();
}

#[tokio::test]
async fn a_refusal_is_in_the_receipt_with_all_that_led_to_it() {
    let fixture = Fixture::new(&by_concurrency(), 1);
    let held: Vec<_> = join_all((0..3).map(|_| fixture.picker.pick(of("chat")))).await;
    let headers = [("x-gateway-inference-objective", "batch"), ("x-gateway-inference-fairness-id", "team-a")];
    assert_saturated(&fixture.picker.pick(completion_with(&headers, None)).await.unwrap_err());
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.objective.as_str(), receipt.priority), ("batch", -1));
    assert_eq!((receipt.fairness_id.as_str(), receipt.model.as_str()), ("team-a", "m"));
    let admission = receipt.admission.as_ref().unwrap();
    assert_eq!((&*admission.detector, admission.saturation, admission.admitted), ("ours", Some(1.5), false));
    assert!(receipt.refusal.as_ref().unwrap().contains("saturated"));
    let errors = &fixture.metrics.requests.errors;
    assert_eq!(errors.with_label_values(&["m", "m", "team-a", "-1", "ResourceExhausted"]).get(), 1);

    // What is wrong with a request is told first, as at any other time.
    let mut bad = HttpRequest::new((*of("batch").headers).clone(), "not json");
    assert_eq!(fixture.picker.pick(bad.clone()).await.unwrap_err().status, 400);
    bad.body = of("batch").body;
    assert_saturated(&fixture.picker.pick(bad).await.unwrap_err());
    let rewritten = [(OBJECTIVE, "unheard-of"), ("x-gateway-model-name-rewrite", "n")];
    assert!(fixture.picker.pick(completion_with(&rewritten, None)).await.is_ok());
    let receipt = fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.priority, receipt.fallbacks[0].kind), (0, Fallback::UnknownObjective));
    assert_eq!((receipt.model.as_str(), receipt.engine_model()), ("m", "n"));
    drop(held);
    fixture.assert_nothing_in_flight();
}

#[tokio::test]
async fn metrics_that_are_missing_refuse_nobody_unless_wanted() {
    let outcome = async |parameters: &str, metrics: &[Option<EndpointMetrics>]| {
        let fixture = Fixture::new(&by_metrics(parameters), metrics.len());
        for (state, metrics) in fixture.pool.snapshot().states.iter().zip(metrics) {
            if let Some(metrics) = metrics {
                state.scraped(*metrics, Instant::now());
            }
        }
        let outcome = fixture.picker.pick(of("batch")).await;
        let receipt = fixture.receipts.find("last").unwrap();
        assert!(fixture.picker.pick(of("chat")).await.is_ok());
        let unknown = receipt.fallbacks.iter().any(|note| note.kind == Fallback::SaturationUnknown);
        (outcome.map(|_| ()), Arc::unwrap_or_clone(receipt).admission.unwrap(), unknown)
    };
    // Long enough for a busy machine.
    let (ours, peers) =
        ("{metricsStalenessThreshold: 1h}", "{metricsStalenessThreshold: 1h, stalenessPolicy: saturated}");
    let (full, idle) = (Some(EndpointMetrics::new(10, 0, 0.0)), Some(EndpointMetrics::new(0, 0, 0.0)));

    let (taken, admission, unknown) = outcome(ours, &[None, None]).await;
    assert!(taken.is_ok() && admission.admitted && unknown);
    assert_eq!((admission.saturation, admission.unknown_endpoints), (None, 2));
    let (refused, admission, unknown) = outcome(peers, &[None, None]).await;
    assert_saturated(&refused.unwrap_err());
    assert_eq!((admission.saturation, unknown), (Some(1.0), false));
    // The others decide.
    let (refused, admission, unknown) = outcome(ours, &[full, None]).await;
    assert_saturated(&refused.unwrap_err());
    assert_eq!((admission.saturation, admission.unknown_endpoints, unknown), (Some(2.0), 1, false));
    let (taken, admission, _) = outcome(ours, &[idle, None]).await;
    assert!(taken.is_ok());
    assert_eq!((admission.saturation, &*admission.detector), (Some(0.0), "utilization-detector"));
    let (taken, admission, _) = outcome(peers, &[idle, None]).await;
    assert!(taken.is_ok());
    assert_eq!(admission.saturation, Some(0.5));
}

#[tokio::test]
async fn the_subset_decides_and_an_empty_pool_is_not_full_but_missing() {
    let fixture = Fixture::new(&by_concurrency(), 2);
    let to =
        |at: usize, objective| completion_with(&[(OBJECTIVE, objective)], Some(vec![fixture.address(at)]));
    let held = join_all((0..2).map(|_| fixture.picker.pick(to(0, "chat")))).await;
    assert_saturated(&fixture.picker.pick(to(0, "batch")).await.unwrap_err());
    let picked = fixture.picker.pick(to(1, "batch")).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1)]);
    assert!(fixture.picker.pick(of("batch")).await.is_ok(), "half of the pool is free");
    drop((held, picked));
    fixture.assert_nothing_in_flight();

    let nobody = completion_with(&[(OBJECTIVE, "batch")], Some(Vec::new()));
    let refusal = fixture.picker.pick(nobody).await.unwrap_err();
    assert_eq!((refusal.status, refusal.reason), (503, Some("rejected-no-endpoints")));
    assert_eq!(fixture.receipts.find("last").unwrap().admission, None);
}
