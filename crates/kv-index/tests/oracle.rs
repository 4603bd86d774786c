//! Random schedules against a slow and obviously right model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::{Config, TestCaseError};
use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents,
};
use warmroute_kv_index::{
    EngineSlot, EngineView, Expectation, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

/// A prompt of whole blocks; each number is one block.
type Path = Vec<u8>;

const MAX_ENTRIES: usize = 20;
const MAX_EXPECTED: usize = 16;

#[derive(Debug, Clone)]
enum Step {
    Add,
    Drop {
        engine: usize,
    },
    /// Blocks `from..` of the path, under one of two engine hashes for the same content.
    Store {
        engine: usize,
        path: Path,
        from: usize,
        parent_variant: u8,
        variant: u8,
    },
    Remove {
        engine: usize,
        path: Path,
        variant: u8,
    },
    Clear {
        engine: usize,
    },
    /// What is known of the engine goes through a snapshot.
    Move {
        engine: usize,
        piece_bytes: usize,
    },
    Expect {
        engine: usize,
        path: Path,
        /// Of the leading blocks that the engine holds, those that are known when the blocks are expected.
        most_known: usize,
        ttl_ms: u64,
    },
    Withdraw {
        number: usize,
    },
    Pass {
        ms: u64,
    },
}

fn a_path() -> impl Strategy<Value = Path> {
    vec(0..2_u8, 1..5)
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any::<u8>().prop_map(|_| Step::Add),
        1 => any::<usize>().prop_map(|engine| Step::Drop { engine }),
        8 => (any::<usize>(), a_path(), 0..4_usize, 0..2_u8, 0..2_u8).prop_map(
            |(engine, path, from, parent_variant, variant)| {
                let from = from.min(path.len() - 1);
                Step::Store { engine, path, from, parent_variant, variant }
            }
        ),
        6 => (any::<usize>(), a_path(), 0..2_u8)
            .prop_map(|(engine, path, variant)| Step::Remove { engine, path, variant }),
        1 => any::<usize>().prop_map(|engine| Step::Clear { engine }),
        2 => (any::<usize>(), 1..100_usize)
            .prop_map(|(engine, piece_bytes)| Step::Move { engine, piece_bytes }),
        5 => (any::<usize>(), a_path(), 0..9_usize, 1..50_u64).prop_map(
            |(engine, path, most_known, ttl_ms)| Step::Expect { engine, path, most_known, ttl_ms }
        ),
        3 => any::<usize>().prop_map(|number| Step::Withdraw { number }),
        2 => (1..30_u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// The engine's own name of the last block of a path.
fn hash_of(path: &[u8], variant: u8) -> EngineHash {
    EngineHash::from_bytes(&[&[variant + 1][..], path].concat()).unwrap()
}

fn tokens_of(path: &[u8]) -> Vec<u32> {
    path.iter().flat_map(|block| [u32::from(*block), 7]).collect()
}

#[derive(Default)]
struct ModelEngine {
    /// Copies by path and variant.
    copies: BTreeMap<(Path, u8), u32>,
    /// Whether it has announced a prefix of several blocks of which it held some.
    announces_again: bool,
}

impl ModelEngine {
    fn holds(&self, path: &[u8]) -> bool {
        (0..2).any(|variant| self.copies.contains_key(&(path.to_vec(), variant)))
    }
}

struct ModelExpectation {
    number: usize,
    engine: usize,
    /// Its blocks, each as the path up to it, first to last: what it takes of the limit, confirmed or not.
    blocks: Vec<Path>,
    deadline_ms: u64,
}

#[derive(Default)]
struct Model {
    /// By number; `None` for those that are gone.
    engines: Vec<Option<ModelEngine>>,
    expectations: Vec<ModelExpectation>,
    refused_expectations: u64,
    now_ms: u64,
}

impl Model {
    fn entries(&self) -> usize {
        self.engines.iter().flatten().map(|engine| engine.copies.len()).sum()
    }

    /// Blocks that some engine holds, and those with all that come before them.
    fn keys(&self) -> (usize, usize) {
        let engines = self.engines.iter().flatten();
        let held: BTreeSet<&[u8]> =
            engines.flat_map(|engine| engine.copies.keys().map(|(path, _)| &path[..])).collect();
        let prefixes = |path: &'_ &[u8]| (1..=path.len()).collect::<Vec<_>>();
        let all: BTreeSet<&[u8]> =
            held.iter().flat_map(|path| prefixes(path).into_iter().map(|blocks| &path[..blocks])).collect();
        (held.len(), all.len())
    }

    fn store(&mut self, number: usize, path: &Path, from: usize, parent_variant: u8, variant: u8) {
        let mut entries = self.entries();
        let Some(Some(engine)) = self.engines.get_mut(number) else { return };
        if from > 0 && !engine.copies.contains_key(&(path[..from].to_vec(), parent_variant)) {
            return;
        }
        for end in from + 1..=path.len() {
            let block = path[..end].to_vec();
            if let Some(copies) = engine.copies.get_mut(&(block.clone(), variant)) {
                engine.announces_again |= from == 0 && path.len() > 1;
                if from > 0 || !engine.announces_again {
                    *copies += 1;
                }
            } else if entries < MAX_ENTRIES {
                entries += 1;
                engine.copies.insert((block.clone(), variant), 1);
                // An expectation is over when its last block is there.
                self.expectations
                    .retain(|known| known.engine != number || known.blocks.last() != Some(&block));
            }
        }
    }

    fn remove(&mut self, number: usize, path: &Path, variant: u8) {
        let Some(Some(engine)) = self.engines.get_mut(number) else { return };
        let place = (path.clone(), variant);
        if let Some(copies) = engine.copies.get_mut(&place) {
            *copies -= 1;
            if *copies == 0 {
                engine.copies.remove(&place);
            }
        }
    }

    /// Whether the expectation is kept.
    fn expect(&mut self, number: usize, expectation: usize, path: &Path, known: usize, ttl_ms: u64) -> bool {
        let Some(Some(engine)) = self.engines.get(number) else { return false };
        let last = (known + 1..=path.len()).filter(|end| !engine.holds(&path[..*end])).max();
        let Some(last) = last else { return false };
        let blocks: Vec<Path> = (known + 1..=last).map(|end| path[..end].to_vec()).collect();
        if self.expected_blocks() + blocks.len() > MAX_EXPECTED {
            self.refused_expectations += 1;
            return false;
        }
        let deadline_ms = self.now_ms + ttl_ms;
        self.expectations.push(ModelExpectation { number: expectation, engine: number, blocks, deadline_ms });
        true
    }

    fn expected_blocks(&self) -> usize {
        self.expectations.iter().map(|known| known.blocks.len()).sum()
    }

    fn lookup(&self, number: usize, path: &Path) -> Match {
        let Some(Some(engine)) = self.engines.get(number) else { return Match::default() };
        let expects = |block: &[u8]| {
            self.expectations
                .iter()
                .any(|known| known.engine == number && known.blocks.iter().any(|path| path == block))
        };
        let leading = |has: &dyn Fn(&[u8]) -> bool| {
            (1..=path.len()).take_while(|end| has(&path[..*end])).count() as u32
        };
        Match {
            known_blocks: leading(&|block| engine.holds(block)),
            expected_blocks: leading(&|block| engine.holds(block) || expects(block)),
        }
    }
}

/// The index under test, driven by the same steps.
struct Subject {
    index: std::sync::Arc<KvIndex>,
    views: Vec<Option<EngineView>>,
    slots: Vec<EngineSlot>,
    expectations: Vec<Option<Expectation>>,
    start: Instant,
    scratch: LookupScratch,
}

impl Subject {
    fn apply(&mut self, number: usize, event: KvEvent) {
        if let Some(Some(view)) = self.views.get_mut(number) {
            let skipped = SkippedEvents::default();
            view.apply(&EventBatch { ts: 0.0, events: vec![event], data_parallel_rank: Some(0), skipped });
        }
    }

    fn expect(
        &mut self,
        number: usize,
        path: &Path,
        known: u32,
        now_ms: u64,
        ttl_ms: u64,
    ) -> Option<Expectation> {
        let mut keys = Vec::new();
        block_keys(&tokens_of(path), 2, &KeyExtras::default(), &mut keys);
        let now = self.start + Duration::from_millis(now_ms);
        self.index.expect(self.slots[number], &keys, known, now, Duration::from_millis(ttl_ms))
    }

    fn lookup_all(&mut self, path: &Path) -> Vec<Match> {
        let mut keys = Vec::new();
        block_keys(&tokens_of(path), 2, &KeyExtras::default(), &mut keys);
        let mut matches = vec![Match { known_blocks: 99, expected_blocks: 99 }; self.slots.len()];
        self.index.lookup(&keys, &self.slots, &mut self.scratch, &mut matches);
        matches
    }
}

fn stored_event(path: &Path, from: usize, parent_variant: u8, variant: u8) -> KvEvent {
    KvEvent::Stored(BlocksStored {
        hashes: (from + 1..=path.len()).map(|end| hash_of(&path[..end], variant)).collect(),
        parent: (from > 0).then(|| hash_of(&path[..from], parent_variant)),
        token_ids: tokens_of(&path[from..]),
        block_size_tokens: 2,
        lora_name: None,
        lora_id: None,
        medium: Medium::Gpu,
        group: None,
        spec_kind: None,
        sliding_window_tokens: None,
        extra_keys: Vec::new(),
        cache_salt: None,
        ..BlocksStored::default()
    })
}

/// What is known of an engine goes through a snapshot to another slot.
fn move_engine(engine: usize, piece_bytes: usize, model: &mut Model, subject: &mut Subject) {
    let Some(Some(view)) = subject.views.get_mut(engine) else { return };
    let snapshot = view.export(piece_bytes);
    // There may be no room for both.
    let slot = view.slot();
    subject.views[engine] = None;
    let mut view = subject.index.add_engine().unwrap();
    view.begin_import(&snapshot.outline).unwrap();
    snapshot.rows.iter().for_each(|rows| view.import(rows).unwrap());
    view.end_import();
    assert_ne!(view.slot(), slot);
    subject.slots[engine] = view.slot();
    subject.views[engine] = Some(view);
    // They are of the old slot, until their time is up.
    let of_it = model.expectations.iter_mut().filter(|known| known.engine == engine);
    of_it.for_each(|known| known.engine = usize::MAX);
}

fn take_step(step: Step, model: &mut Model, subject: &mut Subject) {
    let engines = model.engines.len().max(1);
    match step {
        Step::Add => {
            let view = subject.index.add_engine().unwrap();
            subject.slots.push(view.slot());
            subject.views.push(Some(view));
            model.engines.push(Some(ModelEngine::default()));
        }
        Step::Drop { engine } => {
            if let Some(gone) = model.engines.get_mut(engine % engines) {
                (*gone, subject.views[engine % engines]) = (None, None);
            }
        }
        Step::Store { engine, path, from, parent_variant, variant } => {
            let engine = engine % engines;
            model.store(engine, &path, from, parent_variant, variant);
            subject.apply(engine, stored_event(&path, from, parent_variant, variant));
        }
        Step::Remove { engine, path, variant } => {
            let engine = engine % engines;
            model.remove(engine, &path, variant);
            let hashes = vec![hash_of(&path, variant)];
            subject
                .apply(engine, KvEvent::Removed(BlocksRemoved { hashes, medium: Medium::Gpu, group: None }));
        }
        Step::Clear { engine } => {
            let engine = engine % engines;
            if let Some(Some(engine)) = model.engines.get_mut(engine) {
                engine.copies.clear();
            }
            subject.apply(engine, KvEvent::Cleared);
        }
        Step::Move { engine, piece_bytes } => move_engine(engine % engines, piece_bytes, model, subject),
        Step::Expect { engine, path, most_known, ttl_ms } => {
            let engine = engine % engines;
            if engine >= model.engines.len() {
                return;
            }
            let known = model.lookup(engine, &path).known_blocks.min(most_known as u32);
            let expectation = subject.expect(engine, &path, known, model.now_ms, ttl_ms);
            let number = subject.expectations.len();
            assert_eq!(expectation.is_some(), model.expect(engine, number, &path, known as usize, ttl_ms));
            subject.expectations.push(expectation);
        }
        Step::Withdraw { number } => {
            let number = number % subject.expectations.len().max(1);
            if let Some(Some(expectation)) = subject.expectations.get(number) {
                subject.index.withdraw(*expectation);
                model.expectations.retain(|known| known.number != number);
            }
        }
        Step::Pass { ms } => {
            model.now_ms += ms;
            let before = model.expectations.len();
            model.expectations.retain(|known| known.deadline_ms > model.now_ms);
            let expired = subject.index.expire(subject.start + Duration::from_millis(model.now_ms));
            assert_eq!(expired, before - model.expectations.len());
        }
    }
}

fn compare(model: &Model, subject: &mut Subject) -> Result<(), TestCaseError> {
    for number in 0..16_u8 {
        let path: Path = (0..4).map(|bit| number >> bit & 1).collect();
        let expected: Vec<Match> =
            (0..model.engines.len()).map(|engine| model.lookup(engine, &path)).collect();
        prop_assert_eq!(subject.lookup_all(&path), expected, "path {:?}", path);
    }
    let stats = subject.index.stats();
    prop_assert_eq!(stats.entries, model.entries());
    let (held, most) = model.keys();
    prop_assert!((held..=most).contains(&stats.keys), "{} of {held}..={most}", stats.keys);
    prop_assert_eq!(stats.engines as usize, model.engines.iter().flatten().count());
    prop_assert_eq!(stats.expectations, model.expectations.len());
    prop_assert_eq!(stats.expected_blocks, model.expected_blocks());
    prop_assert_eq!(stats.refused_expectations, model.refused_expectations);
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 400, ..Config::default() })]

    #[test]
    fn every_lookup_is_what_the_model_says(steps in vec(a_step(), 1..120)) {
        let limits = IndexLimits { max_entries: MAX_ENTRIES, max_expected_blocks: MAX_EXPECTED, max_engines: 200 };
        let mut model = Model::default();
        let mut subject = Subject {
            index: KvIndex::new(limits),
            views: Vec::new(),
            slots: Vec::new(),
            expectations: Vec::new(),
            start: Instant::now(),
            scratch: LookupScratch::default(),
        };
        for step in [Step::Add, Step::Add].into_iter().chain(steps) {
            take_step(step, &mut model, &mut subject);
            compare(&model, &mut subject)?;
        }
        // Nothing of engines that are gone stays, and expectations all run out.
        subject.views.clear();
        subject.index.expire(subject.start + Duration::from_secs(3_600));
        let stats = subject.index.stats();
        prop_assert_eq!((stats.entries, stats.keys, stats.engines), (0, 0, 0));
        prop_assert_eq!((stats.expectations, stats.expected_blocks), (0, 0));
    }
}
