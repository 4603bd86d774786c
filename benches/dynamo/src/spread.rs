//! Middle, ends and percentiles.

use quanta::Clock;

/// The median of some values, 0 without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The geometric mean of some positive values.
pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// Median and 99th percentile of times, in ns.
#[derive(Debug, Clone, Copy)]
pub struct Percentiles {
    /// The median.
    pub p50_ns: f64,
    /// The 99th percentile.
    pub p99_ns: f64,
}

impl Percentiles {
    /// Of some times.
    pub fn of(mut times_ns: Vec<f64>) -> Self {
        times_ns.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = ((times_ns.len() as f64 * share) as usize).min(times_ns.len().saturating_sub(1));
            times_ns.get(index).copied().unwrap_or_default()
        };
        Self { p50_ns: at(0.5), p99_ns: at(0.99) }
    }
}

/// What one reading of the clock costs, in ns.
pub fn clock_ns(clock: &Clock) -> u64 {
    let mut times: Vec<u64> = (0..100_000).map(|_| clock.delta_as_nanos(clock.raw(), clock.raw())).collect();
    times.sort_unstable();
    times[times.len() / 2]
}
