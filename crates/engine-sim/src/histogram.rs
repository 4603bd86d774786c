//! A Prometheus histogram of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts durations by upper bound. The bounds are those of the metrics page.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds_seconds: Vec<f64>,
    // One per bound, not cumulative; the last one is above all bounds.
    counts: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

/// The state of a histogram at one moment.
#[derive(Debug, PartialEq)]
pub(crate) struct HistogramSnapshot {
    /// Observations at most as long as each bound; the last one is all of them.
    pub(crate) cumulative: Vec<u64>,
    pub(crate) sum_seconds: f64,
}

impl Histogram {
    /// Bounds in rising order, the infinite one left out.
    pub(crate) fn new(bounds_seconds: Vec<f64>) -> Self {
        let counts = (0..=bounds_seconds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_seconds, counts, sum_us: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = self.bounds_seconds.partition_point(|bound| *bound < seconds);
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> HistogramSnapshot {
        let mut total = 0;
        let cumulative = self.counts.iter().map(|count| {
            total += count.load(Ordering::Relaxed);
            total
        });
        HistogramSnapshot {
            cumulative: cumulative.collect(),
            sum_seconds: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;
    use std::time::Duration;

    #[test]
    fn a_bound_is_included() {
        let histogram = Histogram::new(vec![0.001, 0.01]);
        for ms in [1, 2, 10, 11] {
            histogram.observe(Duration::from_millis(ms));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.cumulative, [1, 3, 4]);
        assert!((snapshot.sum_seconds - 0.024).abs() < 1e-9);
    }
}
