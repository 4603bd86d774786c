//! What was sent where, under random schedules, against a slow and obviously right model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::{Config, TestCaseError};
use warmroute_kv_index::{
    ApproximateExtras, ApproximateIndex, BlockKey, EngineSlot, IndexLimits, LookupScratch, Match, SentBlocks,
    approximate_keys,
};

/// A prompt; each number is one block of two tokens, the last one may be half a block.
type Path = Vec<u8>;

const MAX_ENTRIES: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Add,
    Drop { endpoint: usize },
    Send { endpoint: usize, path: Path, capacity: usize },
}

fn a_path() -> impl Strategy<Value = Path> {
    vec(0..2_u8, 1..6)
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any::<u8>().prop_map(|_| Step::Add),
        1 => any::<usize>().prop_map(|endpoint| Step::Drop { endpoint }),
        9 => (any::<usize>(), a_path(), 1..9_usize)
            .prop_map(|(endpoint, path, capacity)| Step::Send { endpoint, path, capacity }),
    ]
}

fn keys_of(path: &[u8]) -> Vec<BlockKey> {
    let tokens: Vec<u32> = path.iter().flat_map(|block| [u32::from(*block), 7]).collect();
    let mut keys = Vec::new();
    let extras = ApproximateExtras { model: "m", ..ApproximateExtras::default() };
    approximate_keys(&tokens, 2, &extras, usize::MAX, &mut keys);
    keys
}

/// An endpoint of the model: prefixes, the one sent longest ago first.
#[derive(Default)]
struct Model {
    sent: Vec<Path>,
}

impl Model {
    fn send(&mut self, path: &[u8], capacity: usize, others: usize) {
        let path = &path[..path.len().min(capacity)];
        let held = (1..=path.len()).take_while(|end| self.holds(&path[..*end])).count();
        let mut end = path.len();
        while others + self.sent.len() + end - held > MAX_ENTRIES {
            // Its own oldest blocks make room, but not those of the same prompt.
            match self.sent.iter().position(|prefix| !path[..held].starts_with(prefix)) {
                Some(oldest) => {
                    self.sent.remove(oldest);
                }
                None => end -= 1,
            }
        }
        for end in (1..=end).rev() {
            self.sent.retain(|prefix| *prefix != path[..end]);
            self.sent.push(path[..end].to_vec());
        }
        self.sent.drain(..self.sent.len().saturating_sub(capacity));
    }

    fn holds(&self, path: &[u8]) -> bool {
        self.sent.iter().any(|held| held == path)
    }
}

fn expected(models: &[Model], path: &[u8]) -> Vec<u32> {
    let prefixes = || (1..=path.len()).map(|end| &path[..end]);
    let held = |model: &Model| prefixes().take_while(|prefix| model.holds(prefix)).count();
    // What is behind a hole would count at the peer: there is none.
    let scattered = |model: &Model| prefixes().filter(|prefix| model.holds(prefix)).count();
    models.iter().for_each(|model| assert_eq!(held(model), scattered(model)));
    models.iter().map(|model| held(model) as u32).collect()
}

fn found(index: &ApproximateIndex, endpoints: &[SentBlocks], path: &[u8]) -> Vec<u32> {
    let slots: Vec<EngineSlot> = endpoints.iter().map(SentBlocks::slot).collect();
    let mut matches = vec![Match::default(); slots.len()];
    index.lookup(&keys_of(path), &slots, &mut LookupScratch::default(), &mut matches);
    matches.iter().for_each(|found| assert_eq!(found.known_blocks, found.expected_blocks));
    matches.iter().map(|found| found.known_blocks).collect()
}

fn check(steps: &[Step], asked: &[Path]) -> Result<(), TestCaseError> {
    let limits = IndexLimits { max_entries: MAX_ENTRIES, max_engines: 4, ..IndexLimits::default() };
    let index = ApproximateIndex::new(limits);
    let (mut endpoints, mut models) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Add => {
                if let Ok(endpoint) = index.add_endpoint() {
                    endpoints.push(endpoint);
                    models.push(Model::default());
                } else {
                    prop_assert_eq!(models.len(), 4);
                }
            }
            Step::Drop { endpoint } if !models.is_empty() => {
                let at = endpoint % models.len();
                let slot = endpoints.remove(at).slot();
                models.remove(at);
                let mut gone = [Match { known_blocks: 9, expected_blocks: 9 }];
                index.lookup(&keys_of(&asked[0]), &[slot], &mut LookupScratch::default(), &mut gone);
                prop_assert_eq!(gone, [Match::default()]);
            }
            Step::Send { endpoint, path, capacity } if !models.is_empty() => {
                let at = endpoint % models.len();
                let all: usize = models.iter().map(|model| model.sent.len()).sum();
                let others = all - models[at].sent.len();
                endpoints[at].send(&keys_of(path), *capacity);
                models[at].send(path, *capacity, others);
            }
            Step::Drop { .. } | Step::Send { .. } => {}
        }
        let blocks: Vec<usize> = endpoints.iter().map(SentBlocks::blocks).collect();
        prop_assert_eq!(&blocks, &models.iter().map(|model| model.sent.len()).collect::<Vec<_>>());
        prop_assert_eq!(index.stats().entries, blocks.iter().sum::<usize>());
        for path in asked {
            prop_assert_eq!(found(&index, &endpoints, path), expected(&models, path), "{:?}", path);
        }
    }
    drop(endpoints);
    let left = index.stats();
    prop_assert_eq!((left.entries, left.keys, left.engines), (0, 0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 400, ..Config::default() })]

    #[test]
    fn matches_are_those_of_the_model(
        steps in vec(a_step(), 1..60),
        asked in vec(a_path(), 1..6),
    ) {
        let steps: Vec<Step> = [Step::Add, Step::Add].into_iter().chain(steps).collect();
        check(&steps, &asked)?;
    }
}

#[test]
fn of_a_prompt_that_has_no_room_the_beginning_stays() {
    let index = ApproximateIndex::new(IndexLimits::default());
    let endpoints = [index.add_endpoint().unwrap()];
    endpoints[0].send(&keys_of(&[1, 1, 1, 1]), 4);
    endpoints[0].send(&keys_of(&[0, 0]), 4);
    assert_eq!(found(&index, &endpoints, &[1, 1, 1, 1]), [2]);
    assert_eq!(found(&index, &endpoints, &[0, 0]), [2]);
    endpoints[0].send(&keys_of(&[1, 0, 1, 0, 1, 0]), 4);
    assert_eq!(found(&index, &endpoints, &[1, 0, 1, 0, 1, 0]), [4]);
}

#[test]
fn what_is_about_to_be_sent_is_expected_until_it_is_sent() {
    let index = ApproximateIndex::new(IndexLimits::default());
    let endpoint = index.add_endpoint().unwrap();
    let (keys, now) = (keys_of(&[1, 0, 1]), Instant::now());
    let look = || {
        let mut found = [Match::default()];
        index.lookup(&keys, &[endpoint.slot()], &mut LookupScratch::default(), &mut found);
        found[0]
    };
    let expectation = endpoint.expect(&keys, 0, now, Duration::from_secs(1)).unwrap();
    assert_eq!(look(), Match { known_blocks: 0, expected_blocks: 3 });
    endpoint.send(&keys, 9);
    endpoint.sent(expectation);
    assert_eq!(look(), Match { known_blocks: 3, expected_blocks: 3 });
    assert!(endpoint.expect(&keys, 3, now, Duration::from_secs(1)).is_none(), "nothing is left to expect");
    let other = keys_of(&[0, 0]);
    endpoint.expect(&other, 0, now, Duration::from_secs(1)).unwrap();
    index.expire(now + Duration::from_secs(2));
    let mut found = [Match::default()];
    index.lookup(&other, &[endpoint.slot()], &mut LookupScratch::default(), &mut found);
    assert_eq!(found[0], Match::default());
}
