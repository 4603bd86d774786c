//! What a row costs in an expression, beside the built-in scorer that says the same.

use std::hint::black_box;

use http::HeaderValue;
use serde_json::{Value, json};
use warmroute_plugin::testing::{CandidatesFixture, Row, build_scorer, request};
use warmroute_plugin::{InferenceRequest, Registry};

use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call};

const ENDPOINTS: u32 = 100;

/// One plugin: its name in figures, its type and its parameters.
type Case = (&'static str, &'static str, Value);

/// Cost per endpoint of a few scorers over one table.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry)?;
    warmroute_expression::register(&mut registry)?;
    let (table, request) = (table(), tiered_request());
    let candidates = table.candidates();
    let mut scores = vec![0.0; candidates.len()];
    for (name, plugin_type, parameters) in cases() {
        let scorer = build_scorer(&registry, plugin_type, parameters)?;
        let cost = cpu_ns_per_call(effort, || {
            scores.fill(0.0);
            scorer.score(black_box(&request), black_box(&candidates), &mut scores);
            black_box(&scores);
        });
        let each = |value: f64| value / f64::from(ENDPOINTS);
        let each = Spread { median: each(cost.median), low: each(cost.low), high: each(cost.high) };
        report.figure(format!("expression/{name}_each"), each, "ns/endpoint");
    }
    Ok(())
}

fn cases() -> [Case; 5] {
    let expression = |text: &str| json!({"expression": text});
    [
        ("builtin_kv_cache", "kv-cache-utilization-scorer", json!({})),
        ("kv_cache", "expression-scorer", expression("1 - metrics.kv_cache_utilization")),
        (
            "queue_normalized",
            "expression-scorer",
            json!({"expression": "metrics.waiting_requests", "normalize": "lower-is-better"}),
        ),
        (
            "weighted",
            "expression-scorer",
            expression(
                "0.5 * prefix['approx-prefix-cache-producer'].matched_ratio \
                 + 0.3 / (1 + in_flight.requests) \
                 + 0.2 * (1 - math.least(last_metrics.waiting_requests, 128) / 128)",
            ),
        ),
        (
            "labels_and_headers",
            "expression-scorer",
            expression(
                "request.headers['x-tier'].matches('^(gold|silver)$') && 'tier' in endpoint.labels \
                 ? (endpoint.labels.tier == request.headers['x-tier'] ? 1.0 : 0.2) \
                 : (endpoint.labels.zone in ['eu-1', 'eu-2'] ? 0.6 : 0.4)",
            ),
        ),
    ]
}

fn tiered_request() -> InferenceRequest {
    let mut request = request();
    request.headers.insert("x-tier", HeaderValue::from_static("gold"));
    request
}

fn table() -> CandidatesFixture {
    let mut numbers = Numbers(7);
    let mut below = |limit: u64| (numbers.draw() % limit) as u32;
    CandidatesFixture::new((0..ENDPOINTS).map(|_| {
        let (waiting, running, used) = (below(20), below(100), below(100));
        Row::fresh(waiting, running, f64::from(used) / 100.0)
            .label("tier", if below(2) == 0 { "gold" } else { "silver" })
            .label("zone", format!("eu-{}", below(4)))
            .requests_in_flight(below(30))
            .prefix_match(below(513), 512, 16)
    }))
}
