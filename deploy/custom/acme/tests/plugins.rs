//! The plugins alone: no picker, no network.

use std::time::Duration;

use serde_json::json;
use warmroute_plugin::testing::{
    CandidatesFixture, Row, build, build_filter, build_picker, picked, request, scores,
};
use warmroute_plugin::{BuildContext, Needs, Plugin, Registry};

fn registry() -> Registry {
    let mut registry = Registry::default();
    acme::register(&mut registry).unwrap();
    registry
}

#[test]
fn a_tenant_gets_its_endpoints_and_those_of_everybody() {
    let filter = build_filter(&registry(), "acme-tenant-filter", json!({})).unwrap();
    let row = Row::never_scraped;
    let rows = [row().label("tenants", "blue.red"), row().label("tenants", "green"), row()];
    let table = CandidatesFixture::new(rows);
    let kept = |tenant: Option<&'static str>| {
        let mut request = request();
        request.headers.extend(tenant.map(|tenant| {
            (http::HeaderName::from_static("x-tenant"), http::HeaderValue::from_static(tenant))
        }));
        let mut keep = [true; 3];
        filter.filter(&request, &table.candidates(), &mut keep);
        keep
    };
    assert_eq!(kept(Some("red")), [true, false, true]);
    assert_eq!(kept(Some("gray")), [false, false, true]);
    assert_eq!(kept(None), [true; 3]);
}

/// With `start_paused` nobody sleeps: the clock jumps to the next timer.
#[tokio::test(start_paused = true)]
async fn prices_are_read_again_and_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    let mut needs = Needs::default();
    let mut context = BuildContext::new("price", &mut needs);
    let parameters = json!({"file": file.path(), "refreshSeconds": 5});
    let Ok(Plugin::Scorer(scorer)) = registry().build("acme-price-scorer", parameters, &mut context) else {
        panic!("a scorer");
    };
    let (_, mut task) = needs.take_tasks().remove(0);
    let row = |zone: &str| Row::never_scraped().label("zone", zone);
    let table = CandidatesFixture::new([row("eu-1"), row("us-1"), row("moon"), Row::never_scraped()]);

    assert_eq!(scores(&*scorer, &table), [0.0; 4]);
    assert_eq!(needs.fallbacks()[0].counter.take(), 4);
    write(r#"{"eu-1": 2.5, "us-1": 1.0, "moon": 0}"#);
    let seconds = Duration::from_secs;
    tokio::time::timeout(seconds(1), &mut task).await.unwrap_err();
    assert_eq!(scores(&*scorer, &table), [0.4, 1.0, 0.0, 0.0]);
    assert_eq!(needs.fallbacks()[0].counter.take(), 2);
    write(r#"{"eu-1": 1.0, "us-1": 2.0}"#);
    tokio::time::timeout(seconds(5), &mut task).await.unwrap_err();
    assert_eq!(scores(&*scorer, &table), [1.0, 0.5, 0.0, 0.0]);
    write("half a fi");
    tokio::time::timeout(seconds(5), &mut task).await.unwrap_err();
    assert_eq!(scores(&*scorer, &table), [1.0, 0.5, 0.0, 0.0], "the last good prices stay");
}

#[test]
fn the_least_busy_of_the_best_is_picked() {
    let picker = build_picker(&registry(), "acme-near-best-picker", json!({"tolerance": 0.25})).unwrap();
    let row = |requests| Row::never_scraped().requests_in_flight(requests);
    let table = CandidatesFixture::new([row(5), row(3), row(0)]);
    assert_eq!(picked(&*picker, &table, &[2.0, 1.75, 1.5]), [1]);
    assert_eq!(picked(&*picker, &table, &[1.0, 1.0, 1.0]), [2]);
    assert_eq!(picked(&*picker, &CandidatesFixture::new([]), &[]), [0u32; 0]);
}

#[test]
fn mistakes_in_parameters_are_refused() {
    let mistake =
        |plugin_type, parameters| build(&registry(), plugin_type, parameters).unwrap_err().to_string();
    assert_eq!(mistake("acme-tenant-filter", json!({"headerName": ""})), "headerName: must not be empty");
    let unknown = mistake("acme-tenant-filter", json!({"header": "x"}));
    assert!(unknown.starts_with("header: unknown field `header`"), "{unknown}");
    assert_eq!(mistake("acme-price-scorer", json!({})), "missing field `file`");
    let never = mistake("acme-price-scorer", json!({"file": "x", "refreshSeconds": 0}));
    assert_eq!(never, "refreshSeconds: must be at least 1");
    assert_eq!(mistake("acme-near-best-picker", json!({"tolerance": -1})), "tolerance: must be 0 or more");
}
