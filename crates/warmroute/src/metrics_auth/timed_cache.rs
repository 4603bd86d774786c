use std::time::Instant;

use hashlink::LruCache;
use parking_lot::Mutex;

/// A digest of what is asked: tokens themselves aren't kept.
pub(super) type Digest = [u8; 32];

/// Answers that hold for a while, the most recently used ones of them.
pub(super) struct TimedCache<V> {
    entries: Mutex<LruCache<Digest, (V, Instant)>>,
}

impl<V: Clone> TimedCache<V> {
    /// Keeps at most `capacity` answers.
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: Mutex::new(LruCache::new(capacity)) }
    }

    /// The answer, if there is one that still holds at `now`.
    pub(super) fn get(&self, key: &Digest, now: Instant) -> Option<V> {
        let mut entries = self.entries.lock();
        let (value, until) = entries.get(key)?;
        if now < *until { Some(value.clone()) } else { None }
    }

    /// Keeps an answer that holds until then.
    pub(super) fn put(&self, key: Digest, value: V, until: Instant) {
        self.entries.lock().insert(key, (value, until));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn answers_hold_until_their_time_and_the_least_used_go_first() {
        let cache = TimedCache::new(2);
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        cache.put([1; 32], 'a', now + second);
        cache.put([2; 32], 'b', now + 2 * second);
        assert_eq!((cache.get(&[1; 32], now), cache.get(&[1; 32], now + second)), (Some('a'), None));
        cache.put([3; 32], 'c', now + second);
        assert_eq!((cache.get(&[2; 32], now), cache.get(&[1; 32], now)), (None, Some('a')));
    }
}
