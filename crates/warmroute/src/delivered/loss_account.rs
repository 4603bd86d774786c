//! Where cached tokens are lost on the way from what a workload would allow to what engines deliver.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use warmroute_kv_index::BlockKey;

use super::seen_blocks::SeenBlocks;

/// What is looked back on: so many parts of so long.
const PARTS: usize = 12;
const PART: Duration = Duration::from_secs(300);

/// What could have been served of one prompt from a cache, in tokens, each at most as good as the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixReach {
    /// Tokens per block of the picked engine.
    pub block_size_tokens: u32,
    /// By the best of all engines that the gateway allows.
    pub held_tokens: u32,
    /// By the best of the candidates that the profile's filters leave.
    pub reachable_tokens: u32,
    /// By the picked engine.
    pub promised_tokens: u32,
}

/// Sums over requests, in prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossSums {
    /// Requests whose exact tokens are known.
    pub requests: u64,
    /// Requests of which they aren't, beside those.
    pub unknown_requests: u64,
    /// Their prompts.
    pub prompt_tokens: u64,
    /// What had been in an earlier prompt: what a cache that never evicts could serve. Estimated once many blocks have
    /// been seen.
    pub seen_tokens: i64,
    /// What at least one engine held.
    pub held_tokens: u64,
    /// What at least one candidate held that the filters left.
    pub reachable_tokens: u64,
    /// What the picked engine held, or was expected to hold by then.
    pub promised_tokens: u64,
    /// The same of those requests of which it is known what was delivered.
    pub compared_tokens: u64,
    /// What was delivered of these.
    pub delivered_tokens: u64,
}

impl LossSums {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.unknown_requests += other.unknown_requests;
        self.prompt_tokens += other.prompt_tokens;
        self.seen_tokens += other.seen_tokens;
        self.held_tokens += other.held_tokens;
        self.reachable_tokens += other.reachable_tokens;
        self.promised_tokens += other.promised_tokens;
        self.compared_tokens += other.compared_tokens;
        self.delivered_tokens += other.delivered_tokens;
    }
}

/// The sums of the newest requests and of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    /// How far the newest reach back, in seconds.
    pub newest_s: u64,
    /// The newest requests.
    pub newest: LossSums,
    /// All since the start.
    pub all: LossSums,
    /// Share of the blocks by which it is estimated what had been seen; 1 as long as that is exact.
    pub sampled_share: f64,
}

/// Keeps the sums of one pool. Bounded: the keys of blocks seen, at most 1.2 MB, and an hour in parts.
#[derive(Debug, Default)]
pub struct LossAccount(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    seen: SeenBlocks,
    all: LossSums,
    /// The newest is last; each has the number of its part since `began`.
    parts: std::collections::VecDeque<(u64, LossSums)>,
    began: Option<Instant>,
}

impl LossAccount {
    /// Counts a decided request: its prompts, each with its number of tokens and its block keys.
    pub fn decided<'a>(
        &self,
        now: Instant,
        prompts: impl Iterator<Item = (u32, &'a [BlockKey])>,
        reach: PrefixReach,
    ) {
        let mut books = self.0.lock();
        let mut sums = LossSums {
            requests: 1,
            held_tokens: reach.held_tokens.into(),
            reachable_tokens: reach.reachable_tokens.into(),
            promised_tokens: reach.promised_tokens.into(),
            ..LossSums::default()
        };
        let block_size_tokens = reach.block_size_tokens;
        for (tokens, keys) in prompts {
            sums.prompt_tokens += u64::from(tokens);
            // The last token is always computed.
            let reusable = tokens.saturating_sub(1).checked_div(block_size_tokens).unwrap_or(0) as usize;
            sums.seen_tokens += books.seen.see(keys, reusable.min(keys.len())) * i64::from(block_size_tokens);
        }
        books.add(now, &sums);
    }

    /// Counts a request of which the exact tokens aren't known.
    pub fn unknown(&self, now: Instant) {
        self.0.lock().add(now, &LossSums { unknown_requests: 1, ..LossSums::default() });
    }

    /// Counts what was delivered of what was promised.
    pub fn delivered(&self, now: Instant, promised_tokens: u64, delivered_tokens: u64) {
        let sums = LossSums { compared_tokens: promised_tokens, delivered_tokens, ..LossSums::default() };
        self.0.lock().add(now, &sums);
    }

    /// The sums as of now.
    pub fn report(&self, now: Instant) -> LossReport {
        let mut books = self.0.lock();
        let part = books.part(now);
        books.forget(part);
        let mut newest = LossSums::default();
        books.parts.iter().for_each(|(_, sums)| newest.add(sums));
        let since = books.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        let reach = since.min(PART * PARTS as u32);
        LossReport {
            newest_s: reach.as_secs(),
            newest,
            all: books.all,
            sampled_share: books.seen.sampled_share(),
        }
    }
}

impl Books {
    fn add(&mut self, now: Instant, sums: &LossSums) {
        self.all.add(sums);
        let part = self.part(now);
        self.forget(part);
        match self.parts.back_mut() {
            Some((newest, known)) if *newest >= part => known.add(sums),
            _ => self.parts.push_back((part, *sums)),
        }
    }

    fn part(&mut self, now: Instant) -> u64 {
        let began = *self.began.get_or_insert(now);
        now.saturating_duration_since(began).as_secs() / PART.as_secs()
    }

    fn forget(&mut self, part: u64) {
        while self.parts.front().is_some_and(|(oldest, _)| oldest + PARTS as u64 <= part) {
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_summed_up_and_the_newest_hour_is_told_apart() {
        let account = LossAccount::default();
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let keys: Vec<BlockKey> = (1..=4).map(BlockKey).collect();
        let reach =
            PrefixReach { block_size_tokens: 16, held_tokens: 48, reachable_tokens: 32, promised_tokens: 16 };
        for minutes in [0, 1] {
            account.decided(at(minutes), [(64, keys.as_slice())].into_iter(), reach);
        }
        account.delivered(at(1), 16, 8);
        account.unknown(at(30));
        let report = account.report(at(30));
        assert_eq!(report.newest, report.all);
        assert_eq!(report.newest_s, 1800);
        let expected = LossSums {
            requests: 2,
            unknown_requests: 1,
            prompt_tokens: 128,
            // The fourth block is the end of a prompt that fills it exactly.
            seen_tokens: 48,
            held_tokens: 96,
            reachable_tokens: 64,
            promised_tokens: 32,
            compared_tokens: 16,
            delivered_tokens: 8,
        };
        assert_eq!(report.all, expected);
        assert_eq!(account.report(at(70)).newest, LossSums { unknown_requests: 1, ..LossSums::default() });
        assert_eq!(account.report(at(200)).newest, LossSums::default());
        assert_eq!((account.report(at(200)).all, account.report(at(200)).newest_s), (expected, 3600));
    }
}
