//! What the scorers that read metrics promise of endpoints whose metrics aren't fresh, for any table.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, prop_assert, prop_assert_eq, proptest};
use warmroute_builtin::{
    KvCacheUtilizationScorer, LoadAwareScorer, QueueScorer, RunningRequestsSizeScorer, UnknownMetrics,
};
use warmroute_plugin::Scorer;
use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

/// Waiting, running, share of the KV cache in use.
type Metrics = (u32, u32, f64);

#[derive(Clone, Copy, Debug)]
enum State {
    Fresh(Metrics),
    Stale(Metrics),
    Never,
}

impl State {
    fn row(self) -> Row {
        match self {
            Self::Fresh((waiting, running, used)) => Row::fresh(waiting, running, used),
            Self::Stale((waiting, running, used)) => Row::stale(waiting, running, used),
            Self::Never => Row::never_scraped(),
        }
    }
}

fn metrics() -> impl Strategy<Value = Metrics> {
    let count = || prop_oneof![0..20u32, any::<u32>()];
    (count(), count(), prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0])
}

fn states() -> impl Strategy<Value = Vec<State>> {
    let state = prop_oneof![
        3 => metrics().prop_map(State::Fresh),
        1 => metrics().prop_map(State::Stale),
        1 => Just(State::Never),
    ];
    collection::vec(state, 1..20)
}

fn scorers(unknown_metrics: UnknownMetrics) -> [Box<dyn Scorer>; 4] {
    [
        Box::new(QueueScorer::new(unknown_metrics)),
        Box::new(RunningRequestsSizeScorer::new(unknown_metrics)),
        Box::new(LoadAwareScorer::new(10, unknown_metrics)),
        Box::new(KvCacheUtilizationScorer::new(unknown_metrics)),
    ]
}

/// The peer's formulas, written down once more.
fn peer(rows: &[Metrics]) -> [Vec<f64>; 4] {
    let lowest = |counts: Vec<u32>| {
        let (min, max) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        let score = |count| if max == min { 1.0 } else { f64::from(max - count) / f64::from(max - min) };
        counts.into_iter().map(score).collect()
    };
    let load = |waiting: u32| {
        if waiting == 0 { 0.5 } else { 0.5 * (1.0 - f64::from(waiting.min(10)) / 10.0) }
    };
    [
        lowest(rows.iter().map(|row| row.0).collect()),
        lowest(rows.iter().map(|row| row.1).collect()),
        rows.iter().map(|row| load(row.0)).collect(),
        rows.iter().map(|row| 1.0 - row.2).collect(),
    ]
}

proptest! {
    #[test]
    fn fresh_tables_score_exactly_as_at_the_peer(rows in collection::vec(metrics(), 1..20)) {
        let table = CandidatesFixture::new(rows.iter().map(|&row| State::Fresh(row).row()));
        for mode in [UnknownMetrics::BelowFresh, UnknownMetrics::AsPeer] {
            for (scorer, expected) in scorers(mode).iter().zip(peer(&rows)) {
                prop_assert_eq!(scores(&**scorer, &table), expected);
            }
        }
    }

    #[test]
    fn as_peer_scores_exactly_as_at_the_peer_in_any_state(states in states()) {
        let table = CandidatesFixture::new(states.iter().map(|state| state.row()));
        let rows: Vec<Metrics> = states.iter().map(|state| match *state {
            State::Fresh(metrics) | State::Stale(metrics) => metrics,
            State::Never => (0, 0, 0.0),
        }).collect();
        for (scorer, expected) in scorers(UnknownMetrics::AsPeer).iter().zip(peer(&rows)) {
            prop_assert_eq!(scores(&**scorer, &table), expected);
        }
    }

    #[test]
    fn a_row_that_is_not_fresh_scores_strictly_below_every_fresh_one(states in states()) {
        let table = CandidatesFixture::new(states.iter().map(|state| state.row()));
        for scorer in scorers(UnknownMetrics::BelowFresh) {
            let scores = scores(&*scorer, &table);
            prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
            let of = |fresh: bool| {
                let rows = states.iter().zip(&scores);
                let rows = rows.filter(move |(state, _)| matches!(state, State::Fresh(_)) == fresh);
                rows.map(|(_, score)| *score).collect::<Vec<_>>()
            };
            let (fresh, others) = (of(true), of(false));
            prop_assert!(others.iter().all(|score| *score == others[0]));
            for other in others {
                prop_assert!(fresh.iter().all(|fresh| *fresh > other));
            }
        }
    }

    #[test]
    fn fresh_rows_keep_their_order_beside_others(rows in collection::vec(metrics(), 2..20)) {
        let alone = CandidatesFixture::new(rows.iter().map(|&row| State::Fresh(row).row()));
        let mixed = rows.iter().map(|&row| State::Fresh(row).row());
        let mixed = CandidatesFixture::new(mixed.chain([Row::never_scraped()]));
        for scorer in scorers(UnknownMetrics::BelowFresh) {
            let (alone, mixed) = (scores(&*scorer, &alone), scores(&*scorer, &mixed));
            for a in 0..rows.len() {
                for b in 0..rows.len() {
                    prop_assert!(alone[a] > alone[b] || mixed[a] <= mixed[b]);
                }
            }
        }
    }
}
