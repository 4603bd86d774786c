//! [`PlannedRequest`]: a request with its time.

use std::time::Duration;

use bytes::Bytes;

/// A request that is due at a certain time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRequest {
    /// When it is due, counted from the start of the run. Of no meaning for [`Pace::OneByOne`](super::Pace::OneByOne).
    pub due: Duration,
    /// The path, such as `/v1/chat/completions`.
    pub path: &'static str,
    /// The JSON body.
    pub body: Bytes,
    /// Request headers beyond content type and length.
    pub headers: Vec<(&'static str, String)>,
}

/// `count` arrival times of a Poisson process with `rate_per_s` arrivals per second on average, in order.
///
/// The gaps are exponential, drawn from `random` by inversion; a rate that is not above zero gives no gaps at all.
pub fn poisson_arrivals(count: usize, rate_per_s: f64, random: &mut fastrand::Rng) -> Vec<Duration> {
    let mut at = Duration::ZERO;
    (0..count)
        .map(|_| {
            // 1 − u lies in (0, 1], so the logarithm is finite.
            let gap_s = -(1.0 - random.f64()).ln() / rate_per_s;
            at += Duration::try_from_secs_f64(gap_s).unwrap_or_default();
            at
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_ordered_repeatable_and_have_the_rate() {
        let times = poisson_arrivals(20_000, 50.0, &mut fastrand::Rng::with_seed(3));
        assert_eq!(times, poisson_arrivals(20_000, 50.0, &mut fastrand::Rng::with_seed(3)));
        assert_ne!(times, poisson_arrivals(20_000, 50.0, &mut fastrand::Rng::with_seed(4)));
        assert!(times.is_sorted());
        // The sum of n exponential gaps has a relative deviation of 1/√n: 0.7 % here.
        let rate = 20_000.0 / times[19_999].as_secs_f64();
        assert!((rate / 50.0 - 1.0).abs() < 0.03, "{rate}");
        // A Poisson process is bursty: 1 − 1/e of its gaps are shorter than the mean.
        let short = times.windows(2).filter(|pair| (pair[1] - pair[0]).as_secs_f64() < 0.02).count();
        assert!((short as f64 / 19_999.0 - 0.632).abs() < 0.02, "{short}");
    }

    #[test]
    fn no_rate_means_no_gaps() {
        assert_eq!(poisson_arrivals(2, 0.0, &mut fastrand::Rng::with_seed(1)), [Duration::ZERO; 2]);
    }
}
