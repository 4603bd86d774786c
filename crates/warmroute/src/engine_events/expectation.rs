//! Expected residency: what was just picked will be held by that engine soon, so a burst of one prompt stays together.
//!
//! The index holds the expectations and drops each block of one as soon as the engine's events confirm it. Here lives
//! when an expectation that was never confirmed ends: some time after its request's lease, not at a fixed time after the
//! pick, since a request may wait in an engine's queue for long.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use warmroute_kv_index::{BlockKey, EngineSlot, KvIndex};

use crate::prompt::PromptKeys;

/// After the end of a request: time for the engine's events to arrive before the expectation is withdrawn.
const EVENTS_MAY_LAG: Duration = Duration::from_secs(1);
/// An expectation ends after this time even if its request goes on: by then its prompt has long been computed.
const LONGEST: Duration = Duration::from_secs(600);
/// Withdrawals that may wait; beyond it they happen at once.
const WAITING_WITHDRAWALS: usize = 100_000;
/// How often due withdrawals are made.
pub const WITHDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Ends expectations in an index at the right time.
pub struct Expectations {
    index: Arc<KvIndex>,
    due: Mutex<BinaryHeap<Reverse<Withdrawal>>>,
}

impl Expectations {
    /// Expectations in `index`.
    pub fn new(index: Arc<KvIndex>) -> Self {
        Self { index, due: Mutex::default() }
    }

    /// Expects the prompts' blocks at the engine, whose blocks have `block_size_tokens`, until the value is dropped and
    /// a while longer, for `shortest` at least. `known_blocks` says how many leading blocks of a prompt the engine is known to hold: those
    /// aren't expected.
    pub fn expect(
        self: &Arc<Self>,
        slot: EngineSlot,
        prompt: &PromptKeys,
        block_size_tokens: u32,
        known_blocks: impl Fn(usize) -> u32,
        shortest: Duration,
    ) -> Expectation {
        let now = Instant::now();
        let keys = prompt.set(block_size_tokens).into_iter().flat_map(|set| &set.prompts).enumerate();
        let expect = |(at, keys): (usize, &Vec<BlockKey>)| {
            self.index.expect(slot, keys, known_blocks(at), now, LONGEST)
        };
        let held = keys.filter_map(expect).collect();
        Expectation { owner: self.clone(), held, not_before: now + shortest }
    }

    /// Makes the withdrawals whose time has come, and ends what lasted too long.
    pub fn withdraw_due(&self, now: Instant) {
        loop {
            let withdrawal = {
                let mut due = self.due.lock();
                match due.peek() {
                    Some(Reverse(first)) if first.at <= now => due.pop(),
                    _ => break,
                }
            };
            if let Some(Reverse(withdrawal)) = withdrawal {
                self.withdraw(&withdrawal.held);
            }
        }
        self.index.expire(now);
    }

    fn withdraw(&self, held: &[warmroute_kv_index::Expectation]) {
        for expectation in held {
            self.index.withdraw(*expectation);
        }
    }
}

/// The expectation of one request. Dropping it starts its end.
pub struct Expectation {
    owner: Arc<Expectations>,
    /// One per prompt that has blocks which aren't held yet.
    held: Vec<warmroute_kv_index::Expectation>,
    not_before: Instant,
}

impl fmt::Debug for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expectation").field("prompts", &self.held.len()).finish_non_exhaustive()
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        let at = self.not_before.max(Instant::now() + EVENTS_MAY_LAG);
        let mut due = self.owner.due.lock();
        if due.len() < WAITING_WITHDRAWALS {
            due.push(Reverse(Withdrawal { at, held }));
        } else {
            drop(due);
            self.owner.withdraw(&held);
        }
    }
}

/// Ordered by time alone.
struct Withdrawal {
    at: Instant,
    held: Vec<warmroute_kv_index::Expectation>,
}

impl PartialEq for Withdrawal {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Withdrawal {}

impl PartialOrd for Withdrawal {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Withdrawal {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmroute_kv_index::{IndexLimits, KeyExtras, LookupScratch, Match, block_keys};

    use crate::prompt::KeySet;

    fn prompt() -> PromptKeys {
        let tokens: Vec<u32> = (0..64).collect();
        let mut keys = Vec::new();
        block_keys(&tokens, 16, &KeyExtras::default(), &mut keys);
        PromptKeys {
            prompt_tokens: vec![64],
            sets: vec![KeySet { block_size_tokens: 16, prompts: vec![keys] }],
            token_ids: Vec::new(),
            is_up_to_media: false,
        }
    }

    fn found(index: &KvIndex, slot: EngineSlot) -> Match {
        let mut found = [Match::default()];
        index.lookup(&prompt().sets[0].prompts[0], &[slot], &mut LookupScratch::default(), &mut found);
        found[0]
    }

    #[test]
    fn an_expectation_outlives_its_request_by_the_lag_of_events() {
        let index = KvIndex::new(IndexLimits::default());
        let engine = index.add_engine().unwrap();
        let expectations = Arc::new(Expectations::new(index.clone()));
        let now = Instant::now();
        let expectation = expectations.expect(engine.slot(), &prompt(), 16, |_| 0, Duration::from_secs(2));
        assert_eq!(found(&index, engine.slot()), Match { known_blocks: 0, expected_blocks: 4 });
        expectations.withdraw_due(now + Duration::from_secs(60));
        assert_eq!(found(&index, engine.slot()).expected_blocks, 4, "its request still runs");
        drop(expectation);
        expectations.withdraw_due(now + Duration::from_millis(1900));
        assert_eq!(found(&index, engine.slot()).expected_blocks, 4, "its events may be on their way");
        expectations.withdraw_due(now + Duration::from_secs(60));
        assert_eq!(found(&index, engine.slot()).expected_blocks, 0);
    }
}
