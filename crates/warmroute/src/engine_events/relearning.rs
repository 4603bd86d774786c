use std::sync::atomic::{AtomicU32, Ordering};

/// At most one in so many requests that could teach something asks.
const ONE_IN: u32 = 4;
/// Requests that may ask without a sign that the engine holds what isn't known.
const ASKS_WITHOUT_A_SIGN: u32 = 16;

/// When requests to an engine ask it to announce again what they hit in its cache.
///
/// A view that began late lacks what was stored before, and engines don't announce again what stays. Whether there is
/// such a thing shows when blocks are stored after one that isn't known, or more is delivered than is known; without
/// such signs asking ends after a while, also at engines that don't understand it.
#[derive(Debug)]
pub struct Relearning {
    asks_left: AtomicU32,
    skips_left: AtomicU32,
}

impl Default for Relearning {
    fn default() -> Self {
        Self { asks_left: AtomicU32::new(ASKS_WITHOUT_A_SIGN), skips_left: AtomicU32::new(0) }
    }
}

impl Relearning {
    /// The engine holds what isn't known, or its view begins anew.
    pub fn is_worthwhile(&self) {
        self.asks_left.store(ASKS_WITHOUT_A_SIGN, Ordering::Relaxed);
    }

    /// Whether a request that could teach something asks. To be called once for each.
    pub fn asks(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        if self.skips_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return false;
        }
        let asks = self.asks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
        if asks {
            self.skips_left.store(ONE_IN - 1, Ordering::Relaxed);
        }
        asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_four_asks_and_without_a_sign_it_ends() {
        let relearning = Relearning::default();
        let asked: Vec<u32> = (0..1000).filter(|_| relearning.asks()).collect();
        assert_eq!((asked.len(), &asked[..3]), (16, &[0, 4, 8][..]));
        relearning.is_worthwhile();
        assert_eq!((0..1000).filter(|_| relearning.asks()).count(), 16);
    }
}
