//! `report.json` has the agreed shape; `report.html` is well formed and needs nothing from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use warmroute_demo::load::{Failure, Outcome};
use warmroute_demo::report::{
    ExpectationReport, Machine, Measured, PolicyReport, Report, ScenarioReport, table,
};
use warmroute_demo::scenario::HitRatioLead;
use warmroute_demo::scrape::{CacheCounters, Histogram};

fn outcome(index: usize, ttft_ms: u64, failure: Option<Failure>) -> Outcome {
    let ttft = failure.is_none().then(|| Duration::from_millis(ttft_ms));
    let total = Duration::from_millis(ttft_ms + 50);
    Outcome { index, lag: Duration::ZERO, ttft, total, usage: None, served_by: None, failure }
}

fn policy(name: &str, hit_tokens: u64) -> PolicyReport {
    let engine = |hit_tokens| CacheCounters { queried_tokens: 5_000, hit_tokens };
    let engines =
        [("127.0.0.2:8000".to_owned(), engine(hit_tokens)), ("127.0.0.3:8000".to_owned(), engine(1_000))];
    let decisions = Histogram::from_cumulative(vec![(0.001, 50), (0.002, 100), (f64::INFINITY, 100)]);
    let measured = Measured {
        policy: name,
        description: "Picks <by> \"chance\" & luck.",
        engines: &engines,
        decisions: Some(&decisions),
        ceiling_tokens: 9_000,
        machine_busy: Some(0.4),
    };
    let mut outcomes: Vec<_> = (0..100).map(|index| outcome(index, 1 + index as u64, None)).collect();
    outcomes.push(outcome(100, 1, Some(Failure::Status(503))));
    outcomes.push(outcome(101, 1, Some(Failure::Status(503))));
    PolicyReport::new(&measured, &outcomes)
}

fn report() -> Report {
    let scenario = ScenarioReport {
        expectations: Vec::new(),
        name: "repeat".to_owned(),
        policies: vec![policy("random", 2_000), policy("precise", 4_500)],
        description: "A <b>scenario</b>.".to_owned(),
        setup: vec!["2 engines".to_owned()],
    };
    let machine = Machine { hardware: "a machine".to_owned(), versions: vec!["Envoy 1.40.0".to_owned()] };
    Report { scenarios: vec![scenario], machine }
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn an_expectation_is_met_or_fails_the_demo() {
    let mut report = report();
    let lead = |points| HitRatioLead { policy: "precise".to_owned(), over: "random".to_owned(), points };
    let other = HitRatioLead { over: "lucky".to_owned(), ..lead(0.0) };
    // 4,500 and 1,000 of 10,000 tokens against 2,000 and 1,000.
    let policies = &report.scenarios[0].policies;
    let met = ExpectationReport::of(&[lead(24.9), other], policies);
    assert_eq!(met.iter().map(|one| one.is_met).collect::<Vec<_>>(), [true], "lucky didn't run");
    let missed = ExpectationReport::of(&[lead(25.1)], policies);
    report.scenarios[0].expectations = met;
    assert!(report.refuse_missed().is_ok());
    report.scenarios[0].expectations.extend(missed);
    let error = report.refuse_missed().unwrap_err().to_string();
    assert!(
        error.contains("repeat: the hit ratio of precise is +25.0 points from that of random"),
        "{error}"
    );
    assert!(table(&report).contains("NOT AS EXPECTED: the hit ratio"), "{}", table(&report));
}

#[test]
fn the_json_has_the_agreed_fields_first() {
    let folder = tempfile::tempdir().unwrap();
    let [json_path, _] = report().write(folder.path()).unwrap();
    assert_eq!(json_path, folder.path().join("report.json"));
    let text = std::fs::read_to_string(json_path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(keys(&json).contains(&"scenarios"));
    let scenario = &json["scenarios"][0];
    assert!(keys(scenario).contains(&"policies"));
    let policy = &scenario["policies"][1];
    for (field, value) in [
        ("name", serde_json::json!("precise")),
        ("requests", serde_json::json!(102)),
        ("errors", serde_json::json!(2)),
        ("prompt_tokens", serde_json::json!(10_000)),
        ("cached_tokens", serde_json::json!(5_500)),
        ("ceiling_tokens", serde_json::json!(9_000)),
        ("hit_ratio", serde_json::json!(0.55)),
        ("ttft_ms", serde_json::json!({"p50": 50.0, "p90": 90.0, "p99": 99.0})),
        ("picker_ms", serde_json::json!({"p50": 1.0, "p99": 1.98})),
    ] {
        assert_eq!(policy[field], value, "{field}");
    }
    let order: Vec<usize> = [
        "\"name\"",
        "\"requests\"",
        "\"errors\"",
        "\"prompt_tokens\"",
        "\"cached_tokens\"",
        "\"ceiling_tokens\"",
        "\"hit_ratio\"",
        "\"ttft_ms\"",
        "\"picker_ms\"",
        "\"spread\"",
        "\"description\"",
    ]
    .iter()
    .map(|field| {
        let policies = text.find("\"policies\"").unwrap();
        policies + text[policies..].find(field).unwrap()
    })
    .collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(policy["failures"], serde_json::json!([{"reason": "status 503", "count": 2}]));
    assert_eq!(policy["ttft_percentiles_ms"].as_array().unwrap().len(), 101);
}

#[test]
fn without_measurements_the_numbers_are_null_not_zero() {
    let measured = Measured {
        policy: "none",
        description: "",
        engines: &[],
        decisions: None,
        ceiling_tokens: 0,
        machine_busy: None,
    };
    let json = serde_json::to_value(PolicyReport::new(&measured, &[])).unwrap();
    assert!(json["ttft_ms"]["p50"].is_null());
    assert!(json["picker_ms"]["p99"].is_null());
    assert_eq!(json["hit_ratio"], 0.0);
}

#[test]
fn the_table_shows_every_policy_and_failure() {
    let text = table(&report());
    for part in
        ["repeat", "random", "precise", "55.0 %", "61.1 %", "90 ms", "1.00 / 1.98 ms", "2 × status 503"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// Checks that elements are nested and closed, and returns the names of all of them.
fn well_formed(page: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open: Vec<String> = Vec::new();
    let mut names = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        assert!(
            !rest[..start].contains('>'),
            "a stray > before {:?}",
            &rest[start..rest.len().min(start + 60)]
        );
        let end = start + rest[start..].find('>').expect("an element without end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        assert!(tag.matches('"').count().is_multiple_of(2), "odd quotes in {tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed in the wrong place");
        } else {
            let name: String = tag.split([' ', '/']).next().unwrap().to_owned();
            if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
                open.push(name.clone());
            }
            names.push(name);
        }
    }
    assert_eq!(open, Vec::<String>::new());
    names
}

#[test]
fn the_page_is_well_formed_and_self_contained() {
    let folder = tempfile::tempdir().unwrap();
    let [_, html_path] = report().write(folder.path()).unwrap();
    let page = std::fs::read_to_string(html_path).unwrap();
    let names = well_formed(&page);
    for name in ["script", "link", "img", "iframe", "object", "image", "use", "foreignObject"] {
        assert!(!names.iter().any(|other| other == name), "<{name}>");
    }
    for outside in ["http:", "https:", "url(", "@import", "src=", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(names.iter().filter(|name| *name == "polyline").count() == 2, "a line per policy");
    assert!(page.contains("Picks &lt;by&gt; &quot;chance&quot; &amp; luck."), "text is escaped");
    assert!(page.contains("A &lt;b&gt;scenario&lt;/b&gt;."));
    for part in ["a machine", "Envoy 1.40.0", "55.0 %", "2 × status 503"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn a_run_without_any_success_still_makes_a_page() {
    let mut report = report();
    for policy in &mut report.scenarios[0].policies {
        policy.ttft_percentiles_ms.clear();
        policy.engines.clear();
    }
    well_formed(&warmroute_demo::report::html(&report));
}
