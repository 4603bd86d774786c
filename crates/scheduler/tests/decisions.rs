//! What a decision is for any pool, any scores and any filters.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, option, prop_assert, prop_assert_eq, proptest};
use warmroute_builtin::MaxScorePicker;
use warmroute_plugin::testing::{CandidatesFixture, Row, request};
use warmroute_plugin::{
    BuildContext, Candidates, Filter, InferenceRequest, MetricsState, Needs, Pick, PickHeaders, Picker,
    PrefixMatch, Scorer,
};
use warmroute_scheduler::{
    NamedFilter, NamedPicker, Profile, ProfileStep, ScheduleError, Scheduler, SchedulerError, Scratch,
    WeightedScorer,
};

/// Scores by endpoint id: what was written down for it. Remembers what it was told of picks.
#[derive(Default)]
struct TableScorer {
    scores: Vec<f64>,
    picked: AtomicU32,
}

impl Scorer for TableScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        assert!(scores.iter().all(|score| *score == 0.0));
        for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
            *score = self.scores[endpoint.id.0 as usize];
        }
    }

    fn picked(&self, _: &InferenceRequest, pick: &Pick<'_>, _: &mut PickHeaders) {
        self.picked.store(pick.endpoint().id.0 + 1, Ordering::Relaxed);
    }
}

/// Keeps by endpoint id.
struct TableFilter(Vec<bool>);

impl Filter for TableFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        assert!(keep.iter().all(|keep| *keep));
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            *keep = self.0[endpoint.id.0 as usize];
        }
    }
}

/// Names what it was told to.
struct FixedPicker(Vec<u32>);

impl Picker for FixedPicker {
    fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, _: &[f64], order: &mut Vec<u32>) {
        assert!(order.is_empty());
        order.extend(&self.0);
    }
}

fn profile(filters: &[Vec<bool>], scorers: &[(Arc<TableScorer>, f64)], picker: impl Picker) -> Profile {
    let filter = |(index, keep): (usize, &Vec<bool>)| NamedFilter {
        name: format!("filter-{index}").into(),
        filter: Arc::new(TableFilter(keep.clone())),
    };
    let scorer = |(index, (scorer, weight)): (usize, &(Arc<TableScorer>, f64))| WeightedScorer {
        name: format!("scorer-{index}").into(),
        weight: *weight,
        scorer: Arc::clone(scorer) as Arc<dyn Scorer>,
    };
    Profile {
        name: "default".into(),
        filters: filters.iter().enumerate().map(filter).collect(),
        scorers: scorers.iter().enumerate().map(scorer).collect(),
        picker: NamedPicker { name: "picker".into(), picker: Arc::new(picker) },
    }
}

fn scheduler(filters: &[Vec<bool>], scorers: &[(Vec<f64>, f64)], picker: impl Picker) -> Scheduler {
    let scorer = |(scores, weight): &(Vec<f64>, f64)| {
        (Arc::new(TableScorer { scores: scores.clone(), ..TableScorer::default() }), *weight)
    };
    let scorers: Vec<_> = scorers.iter().map(scorer).collect();
    Scheduler::try_new(vec![profile(filters, &scorers, picker)], Vec::new()).unwrap()
}

fn pool(rows: usize) -> CandidatesFixture {
    CandidatesFixture::new((0..rows).map(|row| Row::fresh(row as u32, 0, 0.5)))
}

#[test]
fn scores_are_clamped_weighted_and_summed() {
    let scorers = [
        (vec![0.5, 2.0, -1.0], 2.0),
        (vec![1.0, f64::NAN, 0.25], -1.0),
        (vec![f64::INFINITY, 0.0, f64::NEG_INFINITY], 0.5),
    ];
    let scheduler = scheduler(&[], &scorers, MaxScorePicker::new(3));
    let (pool, mut scratch) = (pool(3), Scratch::new());
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    let run = decision.primary();
    assert_eq!(run.totals(), [0.5, 2.0, -0.25]);
    assert_eq!(run.order(), [1, 0, 2]);
    assert_eq!(decision.table_rows().collect::<Vec<_>>(), [1, 0, 2]);
    assert_eq!(run.runner_up(), Some(0));
    let scorers: Vec<_> = run.scorers().collect();
    assert_eq!(scorers[0].scores, [0.5, 1.0, 0.0]);
    assert_eq!(scorers[1].scores, [1.0, 0.0, 0.25]);
    assert_eq!(scorers.iter().map(|scorer| scorer.not_a_number).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!((&**scorers[1].name, scorers[1].weight, scorers[1].weighted(0)), ("scorer-1", -1.0, -1.0));
}

#[test]
fn filters_run_one_after_the_other_and_name_what_they_took() {
    let filters = [vec![true, false, true, true], vec![true, false, false, true]];
    let scheduler = scheduler(&filters, &[(vec![0.1, 1.0, 0.9, 0.2], 1.0)], MaxScorePicker::new(1));
    let (pool, mut scratch) = (pool(4), Scratch::new());
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    let run = decision.primary();
    assert_eq!(decision.table_row(), 3);
    assert_eq!(run.kept(), [0, 3]);
    let filtered: Vec<_> = run.filtered().map(|(row, filter)| (row, filter.to_string())).collect();
    assert_eq!(filtered, [(1, "filter-0".into()), (2, "filter-1".into())]);
    let waiting: Vec<_> =
        run.candidates().metrics().iter().map(|m| m.fresh().unwrap().waiting_requests).collect();
    assert_eq!(waiting, [0, 3]);
}

thread_local! {
    static TICKS: std::cell::Cell<u64> = const { std::cell::Cell::new(100) };
}

/// A clock that goes one millisecond further whenever it is read.
fn ticking() -> Duration {
    Duration::from_millis(TICKS.replace(TICKS.get() + 1))
}

#[test]
fn plugins_are_timed_by_the_clock_that_is_lent() {
    let filters = [vec![true, false, true], vec![true, true, true]];
    let scheduler = scheduler(&filters, &[(vec![0.1, 1.0, 0.9], 1.0)], MaxScorePicker::new(1));
    let (pool, mut scratch) = (pool(3), Scratch::timed(ticking));
    for first in [100, 105] {
        let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
        let run = decision.primary();
        assert_eq!(run.started(), Some(Duration::from_millis(first)));
        let times: Vec<_> = run.plugin_times().map(|time| (time.step, time.name.to_string())).collect();
        let expected = [
            (ProfileStep::Filter, "filter-0"),
            (ProfileStep::Filter, "filter-1"),
            (ProfileStep::Scorer, "scorer-0"),
            (ProfileStep::Picker, "picker"),
        ];
        assert_eq!(times, expected.map(|(step, name)| (step, name.to_owned())));
        assert!(run.plugin_times().all(|time| time.took == Duration::from_millis(1)));
    }
    scratch.set_clock(None);
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    assert_eq!((decision.primary().started(), decision.primary().plugin_times().count()), (None, 0));
}

#[test]
fn the_reasons_for_no_endpoint_are_told_apart() {
    let mut scratch = Scratch::new();
    let of = |scheduler: &Scheduler, rows: usize, scratch: &mut Scratch| {
        scheduler.decide(&request(), &pool(rows).candidates(), scratch).map(|_| ()).unwrap_err()
    };
    let all = scheduler(&[], &[], MaxScorePicker::new(1));
    assert_eq!(of(&all, 0, &mut scratch), ScheduleError::NoCandidates);
    let filters = [vec![true, false], vec![false, true], vec![true, true]];
    let filtered = scheduler(&filters, &[], MaxScorePicker::new(1));
    let by = ScheduleError::FilteredOut { profile: "default".into(), by: "filter-1".into() };
    assert_eq!(of(&filtered, 2, &mut scratch), by);
    for picks in [vec![], vec![7, 2]] {
        let nothing = scheduler(&[], &[], FixedPicker(picks));
        let no_pick = ScheduleError::NoPick { profile: "default".into(), picker: "picker".into() };
        assert_eq!(of(&nothing, 2, &mut scratch), no_pick);
    }
}

#[test]
fn a_picker_that_errs_is_put_right() {
    let scheduler = scheduler(&[], &[], FixedPicker(vec![9, 1, 1, 0, 2]));
    let (pool, mut scratch) = (pool(2), Scratch::new());
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    assert_eq!(decision.primary().order(), [1, 0]);
    assert_eq!(decision.primary().invalid_picks(), 3);
}

#[test]
fn scorers_learn_of_the_pick_when_told() {
    let scorer = Arc::new(TableScorer { scores: vec![0.0, 0.5, 1.0], ..TableScorer::default() });
    let profile = profile(&[vec![false, true, true]], &[(Arc::clone(&scorer), 1.0)], MaxScorePicker::new(1));
    let scheduler = Scheduler::try_new(vec![profile], Vec::new()).unwrap();
    let (pool, mut scratch) = (pool(3), Scratch::new());
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    assert_eq!(scorer.picked.load(Ordering::Relaxed), 0);
    decision.report_picked(&request(), &mut PickHeaders::default());
    assert_eq!(scorer.picked.load(Ordering::Relaxed), 3);
}

/// Reads a prefix column; a row's score is its share.
struct ColumnScorer(warmroute_plugin::PrefixColumn);

impl Scorer for ColumnScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let column = candidates.prefix_match(self.0);
        assert_eq!(column.len(), scores.len());
        for (score, matched) in scores.iter_mut().zip(column) {
            *score = matched.ratio();
        }
    }
}

#[test]
fn prefix_columns_keep_their_producer_and_follow_the_filters() {
    let mut needs = Needs::default();
    let mut context = BuildContext::new("scorer", &mut needs);
    let columns = ["a", "b", "a"].map(|producer| context.prefix_match(producer));
    assert_eq!(columns[0], columns[2]);
    assert_eq!(needs.prefix_producers(), ["a", "b"]);
    let mut profile = profile(&[vec![true, false, true]], &[], MaxScorePicker::new(1));
    for (name, column) in [("a", columns[0]), ("b", columns[1])] {
        profile.scorers.push(WeightedScorer {
            name: name.into(),
            weight: 1.0,
            scorer: Arc::new(ColumnScorer(column)),
        });
    }
    let scheduler = Scheduler::try_new(vec![profile], needs.prefix_producers().to_vec()).unwrap();
    let row = |a, b| Row::never_scraped().prefix_match(a, 4, 16).prefix_match(b, 4, 16);
    let (pool, mut scratch) = (CandidatesFixture::new([row(1, 4), row(2, 2), row(3, 0)]), Scratch::new());
    let decision = scheduler.decide(&request(), &pool.candidates(), &mut scratch).unwrap();
    let scores: Vec<_> = decision.primary().scorers().map(|scorer| scorer.scores.to_vec()).collect();
    assert_eq!(scores, [[0.25, 0.75], [1.0, 0.0]]);
    let without = CandidatesFixture::new([Row::never_scraped()]);
    let error = scheduler.decide(&request(), &without.candidates(), &mut scratch).map(|_| ()).unwrap_err();
    assert_eq!(error, ScheduleError::MissingColumns { needed: 2, found: 0 });
}

#[test]
fn a_table_of_some_endpoints_is_filtered_further() {
    let all: Vec<_> = pool(5).candidates().endpoints().cloned().collect();
    let rows = [4, 2, 0];
    let (metrics, in_flight) = ([MetricsState::NeverScraped; 3], [Default::default(); 3]);
    let table =
        Candidates::builder(&all).rows(&rows).metrics(&metrics).in_flight(&in_flight).build().unwrap();
    let scheduler = scheduler(
        &[vec![true, true, true, true, false]],
        &[(vec![0.5, 0.0, 1.0, 0.0, 0.0], 1.0)],
        MaxScorePicker::new(1),
    );
    let mut scratch = Scratch::new();
    let decision = scheduler.decide(&request(), &table, &mut scratch).unwrap();
    assert_eq!(decision.table_row(), 1);
    let ids: Vec<u32> = decision.primary().candidates().endpoints().map(|endpoint| endpoint.id.0).collect();
    assert_eq!(ids, [2, 0]);
    assert_eq!(decision.primary().pick().unwrap().endpoint().id.0, 2);
}

#[test]
fn columns_of_wrong_length_are_refused() {
    let all: Vec<_> = pool(2).candidates().endpoints().cloned().collect();
    let (metrics, in_flight) = ([MetricsState::NeverScraped; 2], [Default::default(); 2]);
    let builder = Candidates::builder(&all).metrics(&metrics).in_flight(&in_flight);
    assert!(builder.build().is_ok());
    let odd = [PrefixMatch::default(); 3];
    assert_eq!(builder.prefix_matches(&odd).build().unwrap_err().column, "prefix_matches");
    assert_eq!(builder.metrics(&metrics[..1]).build().unwrap_err().column, "metrics");
    assert_eq!(builder.in_flight(&[]).build().unwrap_err().column, "in_flight");
    assert_eq!(builder.rows(&[0, 2]).build().unwrap_err().column, "rows");
}

#[test]
fn a_scheduler_has_one_profile_with_finite_weights() {
    let error = |profiles| Scheduler::try_new(profiles, Vec::new()).map(|_| ()).unwrap_err();
    assert_eq!(error(vec![]), SchedulerError::NoProfile);
    let plain = || profile(&[], &[], MaxScorePicker::new(1));
    assert_eq!(error(vec![plain(), plain()]), SchedulerError::SeveralProfiles { count: 2 });
    let heavy = profile(&[], &[(Arc::default(), f64::INFINITY)], MaxScorePicker::new(1));
    assert!(matches!(error(vec![heavy]), SchedulerError::Weight { .. }));
}

fn score() -> impl Strategy<Value = f64> {
    prop_oneof![8 => -0.5..=1.5, 2 => Just(0.5), 1 => any::<f64>()]
}

type Case = (Vec<Vec<bool>>, Vec<(Vec<f64>, f64)>, Option<usize>);

fn cases() -> impl Strategy<Value = (usize, Case)> {
    (1usize..30).prop_flat_map(|rows| {
        let filters =
            collection::vec(collection::vec(prop_oneof![3 => Just(true), 1 => Just(false)], rows), 0..4);
        let scorers = collection::vec((collection::vec(score(), rows), -2.0..=4.0), 0..4);
        (Just(rows), (filters, scorers, option::of(2usize..5)))
    })
}

proptest! {
    #[test]
    fn the_order_respects_the_totals_and_no_filtered_row_is_picked((rows, case) in cases()) {
        let (filters, scorers, max_endpoints) = case;
        let max_endpoints = max_endpoints.unwrap_or(1);
        let scheduler = scheduler(&filters, &scorers, MaxScorePicker::new(max_endpoints));
        let (pool, mut scratch) = (pool(rows), Scratch::new());
        let kept: Vec<usize> = (0..rows).filter(|&row| filters.iter().all(|filter| filter[row])).collect();
        let total = |row: usize| scorers.iter().fold(0.0, |total, (scores, weight)| {
            let score = if scores[row].is_nan() { 0.0 } else { scores[row].clamp(0.0, 1.0) };
            total + score * weight
        });
        // Twice, since the second decision finds what the first one left in the scratch.
        for _ in 0..2 {
            let candidates = pool.candidates();
            let decision = match scheduler.decide(&request(), &candidates, &mut scratch) {
                Ok(decision) => decision,
                Err(error) => {
                    prop_assert!(kept.is_empty());
                    let is_filtered_out = matches!(error, ScheduleError::FilteredOut { .. });
                    prop_assert!(is_filtered_out);
                    continue;
                }
            };
            let run = decision.primary();
            prop_assert_eq!(run.kept().iter().map(|&row| row as usize).collect::<Vec<_>>(), kept.clone());
            prop_assert_eq!(run.filtered().count() + kept.len(), rows);
            prop_assert_eq!(run.totals().to_vec(), kept.iter().map(|&row| total(row)).collect::<Vec<_>>());
            let picked: Vec<usize> = decision.table_rows().collect();
            prop_assert_eq!(picked.len(), max_endpoints.min(kept.len()));
            prop_assert!(picked.iter().all(|row| kept.contains(row)));
            prop_assert!(picked.windows(2).all(|pair| total(pair[0]) >= total(pair[1])));
            let best_left = kept.iter().filter(|row| !picked.contains(row)).map(|&row| total(row));
            let last = total(picked[picked.len() - 1]);
            prop_assert!(best_left.clone().all(|left| left <= last));
            let runner_up = run.runner_up().map(|row| total(kept[row]));
            let others = kept.iter().filter(|&&row| row != picked[0]).map(|&row| total(row));
            prop_assert_eq!(runner_up, others.max_by(f64::total_cmp));
        }
    }
}
