use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets through one line per interval of those that strangers can cause, and counts the others.
#[derive(Debug)]
pub struct LogRate {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl LogRate {
    /// One line per `every`.
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// Whether a line is due at `now`; then how many were left out since the last one.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_within_the_interval_are_left_out_and_counted() {
        let rate = LogRate::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| rate.due(start + Duration::from_secs(seconds));
        assert_eq!(
            (at(0), at(1), at(9), at(10), at(11), at(30)),
            (Some(0), None, None, Some(2), None, Some(1))
        );
    }
}
