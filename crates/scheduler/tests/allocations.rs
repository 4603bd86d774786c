//! Once its scratch has grown, a decision allocates nothing, whatever the size of the pool.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use serde_json::json;
use warmroute_plugin::testing::{CandidatesFixture, Row, request};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, Filter, InferenceRequest, NoParameters, PickHeaders, Registry,
};
use warmroute_scheduler::{
    Decider, Disaggregation, HelperStage, NamedDecider, OnFailure, ProfileHandler, Scheduler,
    SchedulerBuilder, Scratch, StageOrder,
};

/// Takes out every third row, so that the kept rows must be copied.
struct ThirdsFilter;

impl Filter for ThirdsFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            *keep = endpoint.id.0 % 3 != 2;
        }
    }
}

/// How many profiles there are: the second helps the first one, as prefill does.
fn scheduler(max_endpoints: u32, filtered: bool, profiles: usize) -> Scheduler {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry).unwrap();
    let build = |_: NoParameters, _: &mut BuildContext<'_>| Ok::<_, BuildError>(ThirdsFilter);
    registry.filter("thirds-filter", "drops every third", build).unwrap();
    let mut builder = SchedulerBuilder::new(&registry);
    let mut plugins = vec![];
    for (name, weight) in [
        ("thirds-filter", 1.0),
        ("queue-scorer", 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("prefix-cache-scorer", 3.0),
        ("active-request-scorer", 1.0),
    ] {
        if filtered || name != "thirds-filter" {
            builder.plugin(name, name, json!({})).unwrap();
            plugins.push((name, weight));
        }
    }
    builder
        .plugin("max-score-picker", "max-score-picker", json!({"maxNumOfEndpoints": max_endpoints}))
        .unwrap();
    plugins.push(("max-score-picker", 1.0));
    for profile in ["default", "helper"].into_iter().take(profiles) {
        builder.profile(profile, plugins.clone()).unwrap();
    }
    if profiles > 1 {
        let prefix = builder.prefix_column("decider", "approx-prefix-cache-producer");
        let decider = Decider::UncachedTokens { least_uncached_tokens: 1, least_prompt_tokens: 0, prefix };
        let decider = Some(NamedDecider { name: "decider".into(), decider });
        let prefill = HelperStage { profile: "helper".into(), decider, on_failure: OnFailure::Aggregate };
        builder.handler(ProfileHandler::Disaggregated(Disaggregation {
            stage_order: StageOrder::DecodeFirst,
            decode: "default".into(),
            prefill: Some(prefill),
            encode: None,
            primary_port: None,
        }));
    }
    builder.build().unwrap().scheduler
}

fn pool(rows: u32) -> CandidatesFixture {
    let row = |row: u32| match row % 7 {
        0 => Row::never_scraped(),
        1 => Row::stale(row, 1, 0.5),
        _ => Row::fresh(row % 5, 3, f64::from(row % 10) / 10.0),
    };
    let row = |n: u32| row(n).requests_in_flight(n % 4).prefix_match(n % 9, 8, 16);
    CandidatesFixture::new((0..rows).map(row))
}

#[test]
fn a_decision_allocates_nothing_after_warm_up() {
    for (max_endpoints, filtered, profiles) in [(1, false, 1), (1, true, 1), (3, true, 1), (1, true, 2)] {
        let scheduler = scheduler(max_endpoints, filtered, profiles);
        let mut request = request();
        request.prompt_tokens = Some(1000);
        for rows in [10, 100, 1000] {
            let pool = pool(rows);
            let mut scratch = Scratch::new();
            let first = allocation_counter::measure(|| {
                scheduler.decide(&request, &pool.candidates(), &mut scratch).unwrap();
            });
            assert!(first.count_total > 0, "the counter counts nothing");
            let then = allocation_counter::measure(|| {
                for _ in 0..20 {
                    let decision = scheduler.decide(&request, &pool.candidates(), &mut scratch).unwrap();
                    decision.report_picked(&request, &mut PickHeaders::default());
                    assert!(decision.table_row() < rows as usize);
                    assert_eq!(decision.helpers().count(), profiles - 1);
                    let run = decision.primary();
                    let weighted: f64 =
                        run.scorers().map(|scorer| scorer.weighted(run.order()[0] as usize)).sum();
                    assert!((weighted - run.totals()[run.order()[0] as usize]).abs() < 1e-9);
                }
            });
            assert_eq!(
                then.count_total, 0,
                "{rows} rows, {max_endpoints} endpoints, filtered: {filtered}, {profiles} profiles"
            );
        }
    }
}
