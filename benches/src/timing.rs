//! Repeating and pairing measurements.

use std::time::{Duration, Instant};

use crate::cpu;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs of a comparison, after one that is thrown away.
    pub pairs: usize,
    /// Time over which one figure without a baseline is repeated.
    pub per_figure: Duration,
}

impl Effort {
    /// For figures to quote.
    pub const FULL: Self = Self { pairs: 7, per_figure: Duration::from_millis(300) };
    /// For a look at whether something broke.
    pub const QUICK: Self = Self { pairs: 3, per_figure: Duration::from_millis(60) };
}

/// Middle and ends of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median; of an even number the mean of the middle two.
    pub median: f64,
    /// The lowest value.
    pub low: f64,
    /// The highest value.
    pub high: f64,
}

impl Spread {
    /// Of at least one value; all zero without any.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let half = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (at(half.saturating_sub(1)) + at(half)) / 2.0
        } else {
            at(half)
        };
        Self { median, low: at(0), high: at(sorted.len().saturating_sub(1)) }
    }
}

/// What pairs of measurements gave. Both sides are costs: less is better.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Baseline cost ÷ our cost, pair by pair: how many times cheaper ours is.
    pub ratio: Spread,
    /// Our cost.
    pub ours: Spread,
    /// The baseline's cost.
    pub baseline: Spread,
}

/// Which side of a comparison is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Ours,
    /// What it is compared with.
    Baseline,
}

/// Measures both sides in interleaved pairs, the first side changing from pair to pair. `measure` gets the number of
/// the pair (0 is the warm-up, which doesn't count) and the side, and returns a cost.
///
/// # Errors
/// The first error of `measure`.
pub fn compare(
    effort: Effort,
    mut measure: impl FnMut(usize, Side) -> anyhow::Result<f64>,
) -> anyhow::Result<Comparison> {
    let (mut ratios, mut ours, mut baseline) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=effort.pairs {
        let (our_cost, baseline_cost) = if pair % 2 == 0 {
            let our_cost = measure(pair, Side::Ours)?;
            (our_cost, measure(pair, Side::Baseline)?)
        } else {
            let baseline_cost = measure(pair, Side::Baseline)?;
            (measure(pair, Side::Ours)?, baseline_cost)
        };
        if pair > 0 {
            ratios.push(baseline_cost / our_cost);
            ours.push(our_cost);
            baseline.push(baseline_cost);
        }
    }
    Ok(Comparison { ratio: Spread::of(&ratios), ours: Spread::of(&ours), baseline: Spread::of(&baseline) })
}

/// CPU nanoseconds of one call of `work`, from at least five rounds of many calls over [`Effort::per_figure`].
pub fn cpu_ns_per_call(effort: Effort, mut work: impl FnMut()) -> Spread {
    let mut calls: u32 = 1;
    // Rounds long enough that reading the clock doesn't matter; this warms up too.
    let round = effort.per_figure / 10;
    loop {
        let time = repeat_cpu(calls, &mut work);
        if time >= round / 2 || calls >= 1 << 24 {
            break;
        }
        let factor = (round.as_nanos() / time.as_nanos().max(1)).clamp(2, 16);
        calls = calls.saturating_mul(factor as u32).min(1 << 24);
    }
    let (started, mut rounds) = (Instant::now(), Vec::new());
    while rounds.len() < 5 || (started.elapsed() < effort.per_figure && rounds.len() < 1_000) {
        rounds.push(repeat_cpu(calls, &mut work).as_nanos() as f64 / f64::from(calls));
    }
    Spread::of(&rounds)
}

fn repeat_cpu(calls: u32, work: &mut impl FnMut()) -> Duration {
    let start = cpu::process_time();
    for _ in 0..calls {
        work();
    }
    cpu::process_time().saturating_sub(start)
}

/// CPU time of one call and what it returned.
pub fn cpu_time_of<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = cpu::process_time();
    let result = work();
    (cpu::process_time().saturating_sub(start), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_sorted() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[]).median, 0.0);
    }

    #[test]
    fn pairs_alternate_and_the_warm_up_does_not_count() {
        let mut order = Vec::new();
        let effort = Effort { pairs: 2, ..Effort::QUICK };
        let compared = compare(effort, |pair, side| {
            order.push((pair, side));
            let cost = if side == Side::Ours { 2.0 } else { 3.0 };
            Ok(if pair == 0 { 1000.0 } else { cost })
        });
        let compared = compared.unwrap();
        assert_eq!(compared.ratio, Spread { median: 1.5, low: 1.5, high: 1.5 });
        let sides: Vec<Side> = order.iter().map(|(_, side)| *side).collect();
        use Side::{Baseline, Ours};
        assert_eq!(sides, [Ours, Baseline, Baseline, Ours, Ours, Baseline]);
    }
}
