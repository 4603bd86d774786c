//! Randomness without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

/// Gives a generator per pick. A counter, so that threads share it without a lock, and so that a test
/// can fix where it starts.
#[derive(Debug)]
pub(crate) struct Seeds(AtomicU64);

/// The step of the counter: 2⁶⁴ divided by the golden ratio, as in SplitMix64 (Steele, Lea and Flood, 2014),
/// which spreads neighbouring seeds over the whole range.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Seeds {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(crate) fn random() -> Self {
        Self::new(fastrand::u64(..))
    }

    pub(crate) fn next(&self) -> Rng {
        Rng::with_seed(self.0.fetch_add(STEP, Ordering::Relaxed))
    }
}
