//! [`Histogram`]: counts per bucket, and quantiles estimated from them.

/// A histogram with cumulative buckets, as Prometheus has them: each counts the observations up to its upper bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// (upper bound, observations up to it), bounds ascending; the last bound is usually infinite.
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// From cumulative buckets in any order.
    pub fn from_cumulative(mut buckets: Vec<(f64, u64)>) -> Self {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { buckets }
    }

    /// All observations.
    pub fn count(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, count)| *count)
    }

    /// The sum of two histograms with the same bounds; bounds that only one of them has are dropped.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// What came since `earlier`, for the same bounds.
    #[must_use]
    pub fn minus(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    fn combine(&self, other: &Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        let theirs = |bound: f64| other.buckets.iter().find(|(their, _)| *their == bound);
        let buckets = self.buckets.iter();
        let buckets = buckets
            .filter_map(|(bound, ours)| theirs(*bound).map(|(_, count)| (*bound, operation(*ours, *count))));
        Self { buckets: buckets.collect() }
    }

    /// The value below which a share `q` (0 to 1) of the observations lies, as `histogram_quantile` of Prometheus
    /// estimates it: evenly spread within a bucket, the lowest bucket starts at 0, and the bucket without upper bound
    /// answers its lower one. `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q.clamp(0.0, 1.0) * self.count() as f64;
        let index = self.buckets.iter().position(|(_, count)| *count > 0 && *count as f64 >= rank)?;
        let (upper, count) = self.buckets[index];
        let (lower, before) = if index == 0 { (0.0, 0) } else { self.buckets[index - 1] };
        if upper.is_infinite() {
            return Some(lower);
        }
        let within = (rank - before as f64) / (count - before) as f64;
        Some(lower + (upper - lower) * within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram() -> Histogram {
        Histogram::from_cumulative(vec![(f64::INFINITY, 100), (0.001, 50), (0.002, 90), (0.004, 98)])
    }

    #[test]
    fn quantiles_are_spread_within_their_bucket() {
        let h = histogram();
        assert_eq!(h.count(), 100);
        assert!((h.quantile(0.25).unwrap() - 0.0005).abs() < 1e-12);
        assert!((h.quantile(0.5).unwrap() - 0.001).abs() < 1e-12);
        assert!((h.quantile(0.7).unwrap() - 0.0015).abs() < 1e-12);
        assert!((h.quantile(0.94).unwrap() - 0.003).abs() < 1e-12);
        assert_eq!(h.quantile(0.99), Some(0.004));
    }

    #[test]
    fn a_difference_has_only_what_came_between() {
        let later =
            Histogram::from_cumulative(vec![(0.001, 50), (0.002, 90), (0.004, 108), (f64::INFINITY, 110)]);
        let between = later.minus(&histogram());
        assert_eq!(between.count(), 10);
        assert!((between.quantile(0.5).unwrap() - 0.003).abs() < 1e-12);
        assert_eq!(between.plus(&histogram()), later);
    }

    #[test]
    fn nothing_observed_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(histogram().minus(&histogram()).quantile(0.5), None);
    }
}
