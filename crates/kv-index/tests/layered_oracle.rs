//! Engines with several tiers and KV cache groups under random schedules, against a slow model of what such an engine
//! holds, announces and reuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::{Config, TestCaseError};
use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents, SpecKind,
};
use warmroute_kv_index::{
    EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, OffloadedBlocks, Tier, ViewSnapshot,
    block_keys,
};

/// A prompt; each number is a block of one token.
type Path = Vec<u8>;

/// Blocks that the group with the sliding window needs, of three tokens.
const WINDOW_BLOCKS: usize = 2;
const TIERS: [Medium; 2] = [Medium::Cpu, Medium::Storage];

#[derive(Debug, Clone)]
enum Step {
    /// A request of a prompt that ends with a block.
    Request {
        path: Path,
        other_groups_first: bool,
    },
    /// One copy of a block leaves GPU memory.
    Evict {
        group: usize,
        path: Path,
    },
    /// A block that is in GPU memory is copied to another tier.
    Offload {
        group: usize,
        path: Path,
        tier: usize,
        has_tokens: bool,
    },
    /// A block leaves another tier.
    EvictCopy {
        group: usize,
        path: Path,
        tier: usize,
    },
    /// A cached prefix is announced again.
    Report {
        path: Path,
    },
    Reset {
        takes_copies: bool,
    },
}

fn a_path() -> impl Strategy<Value = Path> {
    vec(0..2_u8, 1..6)
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (a_path(), any::<bool>())
            .prop_map(|(path, other_groups_first)| Step::Request { path, other_groups_first }),
        5 => (0..3_usize, a_path()).prop_map(|(group, path)| Step::Evict { group, path }),
        9 => (0..3_usize, a_path(), 0..2_usize, any::<bool>())
            .prop_map(|(group, path, tier, has_tokens)| Step::Offload { group, path, tier, has_tokens }),
        3 => (0..3_usize, a_path(), 0..2_usize)
            .prop_map(|(group, path, tier)| Step::EvictCopy { group, path, tier }),
        1 => a_path().prop_map(|path| Step::Report { path }),
        1 => any::<bool>().prop_map(|takes_copies| Step::Reset { takes_copies }),
    ]
}

/// What the engine holds.
struct Engine {
    /// 1: full attention alone; 2: with a sliding window; 3: with Mamba layers too.
    groups: usize,
    gpu: [BTreeMap<Path, u32>; 3],
    copies: [[BTreeSet<Path>; 2]; 3],
    /// Whether something was announced that can't be told from something else, so that less may be known than it holds.
    is_ambiguous: bool,
}

impl Engine {
    fn new(groups: usize) -> Self {
        Self { groups, gpu: Default::default(), copies: Default::default(), is_ambiguous: false }
    }

    /// Whether a group has what it needs of the first `end` blocks, of which those before `begin` are there.
    fn has(
        &self,
        group: usize,
        path: &[u8],
        begin: usize,
        end: usize,
        holds: &dyn Fn(&[u8]) -> bool,
    ) -> bool {
        let needed = match group {
            0 => begin..end,
            1 => end.saturating_sub(WINDOW_BLOCKS)..end,
            _ => end - 1..end,
        };
        needed.into_iter().all(|at| holds(&path[..=at]))
    }

    /// How many leading blocks of a prompt it finds in GPU memory.
    fn hit(&self, path: &[u8], most: usize) -> usize {
        let is_hit = |end: &usize| {
            (0..self.groups)
                .all(|group| self.has(group, path, 0, *end, &|block| self.gpu[group].contains_key(block)))
        };
        (1..=most).rev().find(is_hit).unwrap_or(0)
    }

    /// What it reuses of a prompt of which `most` blocks can be: all, and those that it loads.
    fn reuses(&self, path: &[u8], most: usize) -> (usize, OffloadedBlocks) {
        let hit = self.hit(path, most);
        let is_loadable = |end: &usize| {
            (0..self.groups).all(|group| {
                let holds = |block: &[u8]| self.copies[group].iter().any(|tier| tier.contains(block));
                self.has(group, path, hit, *end, &holds)
            })
        };
        let end = (hit + 1..=most).rev().find(is_loadable).unwrap_or(hit);
        let cpu = (hit..end).filter(|at| self.copies[0][0].contains(&path[..=*at])).count() as u32;
        (end, OffloadedBlocks { cpu, storage: (end - hit) as u32 - cpu, other: 0 })
    }

    /// Takes a step; returns the events that tell of it.
    fn take(&mut self, step: Step) -> Vec<KvEvent> {
        match step {
            Step::Request { path, other_groups_first } => self.request(&path, other_groups_first),
            Step::Evict { group, path } => {
                let Some(copies) = self.gpu[group].get_mut(&path) else { return Vec::new() };
                *copies -= 1;
                if *copies == 0 {
                    self.gpu[group].remove(&path);
                }
                vec![removed(Medium::Gpu, group, &path)]
            }
            Step::Offload { group, path, tier, has_tokens } => {
                if !self.gpu[group].contains_key(&path) || !self.copies[group][tier].insert(path.clone()) {
                    return Vec::new();
                }
                let begin = path.len() - 1;
                // Only groups with full attention tell the tokens, and the block before must be known.
                let is_told =
                    has_tokens && group == 0 && (begin == 0 || self.gpu[0].contains_key(&path[..begin]));
                let stored = match is_told {
                    true => stored(0, &path, begin, begin..path.len()),
                    false => BlocksStored {
                        parent: None,
                        token_ids: Vec::new(),
                        block_size_tokens: 0,
                        spec_kind: None,
                        ..stored(group, &path, begin, begin..path.len())
                    },
                };
                vec![KvEvent::Stored(BlocksStored { medium: TIERS[tier].clone(), ..stored })]
            }
            Step::EvictCopy { group, path, tier } => match self.copies[group][tier].remove(&path) {
                true => vec![removed(TIERS[tier].clone(), group, &path)],
                false => Vec::new(),
            },
            Step::Report { path } => {
                let hit = self.hit(&path, path.len());
                // A single block can't be told from a copy.
                let is_several = hit > 1;
                self.is_ambiguous |= is_several;
                let groups = if is_several { 0..self.groups } else { 0..0 };
                groups.map(|group| KvEvent::Stored(stored(group, &path[..hit], 0, 0..hit))).collect()
            }
            Step::Reset { takes_copies } => {
                self.gpu = Default::default();
                for copies in &mut self.copies {
                    self.is_ambiguous |= !takes_copies && !copies[0].is_empty();
                    if takes_copies {
                        copies[0].clear();
                    }
                }
                vec![KvEvent::Cleared]
            }
        }
    }

    /// Computes what isn't hit, and keeps of it what each group needs at its end.
    fn request(&mut self, path: &Path, other_groups_first: bool) -> Vec<KvEvent> {
        let hit = self.hit(path, path.len() - 1);
        let is_held = |end: usize| self.gpu[0].contains_key(&path[..end]);
        let is_told = self.groups > 1 && path.len() > 1;
        self.is_ambiguous |= hit == 0 && !is_told && (1..=path.len()).any(is_held);
        // A window of the whole prompt looks like an announced prefix.
        self.is_ambiguous |= hit == 0 && self.groups == 2 && path.len() <= WINDOW_BLOCKS && is_held(1);
        let mut events = Vec::new();
        for group in 0..self.groups {
            let kept = match group {
                0 => hit..path.len(),
                1 => hit.max(path.len().saturating_sub(WINDOW_BLOCKS))..path.len(),
                _ => path.len() - 1..path.len(),
            };
            for at in kept.clone() {
                *self.gpu[group].entry(path[..=at].to_vec()).or_default() += 1;
            }
            events.push(KvEvent::Stored(stored(group, path, hit, kept)));
        }
        if other_groups_first {
            events.reverse();
        }
        events
    }
}

/// The engine's own name of the last block of a path.
fn name_of(path: &[u8]) -> EngineHash {
    EngineHash::from_bytes(&[&[9][..], path].concat()).unwrap()
}

/// Blocks of a group, of a prompt that was computed from `begin` on.
fn stored(group: usize, path: &[u8], begin: usize, blocks: std::ops::Range<usize>) -> BlocksStored {
    let kinds = [SpecKind::FullAttention, SpecKind::SlidingWindow, SpecKind::Mamba];
    BlocksStored {
        hashes: blocks.map(|at| name_of(&path[..=at])).collect(),
        parent: (begin > 0).then(|| name_of(&path[..begin])),
        token_ids: path[begin..].iter().copied().map(u32::from).collect(),
        block_size_tokens: 1,
        medium: Medium::Gpu,
        group: Some(group as u32),
        spec_kind: Some(kinds[group].clone()),
        sliding_window_tokens: (group == 1).then_some(WINDOW_BLOCKS as u32 + 1),
        ..BlocksStored::default()
    }
}

fn removed(medium: Medium, group: usize, path: &[u8]) -> KvEvent {
    KvEvent::Removed(BlocksRemoved { hashes: vec![name_of(path)], medium, group: Some(group as u32) })
}

struct Reader {
    index: std::sync::Arc<KvIndex>,
    view: EngineView,
    scratch: LookupScratch,
}

impl Reader {
    fn found(&mut self, path: &[u8], most: usize) -> (usize, OffloadedBlocks) {
        let tokens: Vec<u32> = path.iter().copied().map(u32::from).collect();
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        block_keys(&tokens, 1, &KeyExtras::default(), &mut keys);
        let slots = [self.view.slot()];
        self.index.lookup_reusable(&keys, most as u32, &slots, &mut self.scratch, &mut matches);
        (matches[0].known_blocks as usize, self.scratch.offloaded(0, &matches[0]))
    }
}

/// Has another index go on with what this one knows.
fn move_on(reader: &mut Reader, piece_bytes: usize) {
    let snapshot = reader.view.export(piece_bytes);
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    view.begin_import(&snapshot.outline).unwrap();
    for rows in &snapshot.rows {
        view.import(rows).unwrap();
    }
    assert_eq!(index.lookup_of(&view), 0, "nothing is seen before all of it is there");
    view.end_import();
    assert_eq!(view.entries(), reader.view.entries());
    assert_eq!(index.stats().entries, view.entries());
    // Numbers aside, it says the same again.
    assert_eq!(names_of(&view.export(usize::MAX)), names_of(&reader.view.export(usize::MAX)));
    (reader.index, reader.view) = (index, view);
}

trait LookUp {
    fn lookup_of(&self, view: &EngineView) -> u32;
}

impl LookUp for KvIndex {
    /// The longest match of any prompt of one block.
    fn lookup_of(&self, view: &EngineView) -> u32 {
        let (mut scratch, mut most) = (LookupScratch::default(), 0);
        for token in 0..2 {
            let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
            block_keys(&[token], 1, &KeyExtras::default(), &mut keys);
            self.lookup(&keys, &[view.slot()], &mut scratch, &mut matches);
            most = most.max(matches[0].known_blocks);
        }
        most
    }
}

/// Tier and group of a layer, unless it is the main one; name, key and copies of a block there.
type NamedBlock = (Option<(Tier, Option<u32>)>, u64, u64, u32);

fn names_of(snapshot: &ViewSnapshot) -> BTreeSet<NamedBlock> {
    let keys: Vec<u64> = snapshot.rows.iter().flat_map(|rows| rows.keys.iter().copied()).collect();
    let mut names = BTreeSet::new();
    for rows in snapshot.rows.iter().flat_map(|rows| &rows.layers) {
        let layer = rows.layer.checked_sub(1).map(|at| snapshot.outline.layers[at as usize]);
        let mut number = i64::from(rows.first);
        for (at, name) in rows.names.iter().enumerate() {
            number += if at > 0 { rows.steps.get(at - 1).map_or(0, |step| i64::from(*step)) } else { 0 };
            let copies = rows.more_copies.get(at).copied().unwrap_or(0);
            names.insert((layer, *name, keys[number as usize], copies));
            number += 1;
        }
    }
    names
}

/// What is claimed is there; and all is claimed of an engine that was followed from its start.
fn compare(engine: &Engine, reader: &mut Reader, is_followed: bool) -> Result<(), TestCaseError> {
    for number in 0..32_u8 {
        let path: Path = (0..5).map(|bit| number >> bit & 1).collect();
        // A prompt that ends with its last block, of which one group needs all anyway, and one that goes on.
        let mosts = if engine.groups == 1 { 5..=5 } else { 4..=5 };
        for most in mosts {
            let (found, offloaded) = reader.found(&path, most);
            let (reused, loaded) = engine.reuses(&path, most);
            prop_assert!(found <= reused, "{found} of {reused} blocks of {path:?} are claimed");
            if is_followed && !engine.is_ambiguous {
                prop_assert_eq!((found, offloaded), (reused, loaded), "{:?}", path);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 400, ..Config::default() })]

    #[test]
    fn nothing_is_claimed_that_is_not_reused_and_nothing_lacks(
        groups in 1..4_usize,
        missed in prop_oneof![4 => 0..1_usize, 1 => 1..12_usize],
        steps in vec((a_step(), prop_oneof![9 => 0..1_usize, 1 => 1..200_usize]), 1..60),
    ) {
        let index = KvIndex::new(IndexLimits::default());
        let mut reader = Reader { view: index.add_engine().unwrap(), index, scratch: LookupScratch::default() };
        let mut engine = Engine::new(groups);
        for (at, (step, piece_bytes)) in steps.into_iter().enumerate() {
            // Who comes late can't tell an announced prefix from a new one, of which other groups need all blocks.
            let is_misleading = missed > 0 && groups > 1 && matches!(step, Step::Report { .. });
            if is_misleading {
                continue;
            }
            let events = engine.take(step);
            // It has missed the first batches, but knows the groups from the first store on.
            if at < missed {
                continue;
            }
            let skipped = SkippedEvents::default();
            reader.view.apply(&EventBatch { ts: 0.0, events, data_parallel_rank: None, skipped });
            if piece_bytes > 0 {
                move_on(&mut reader, piece_bytes);
            }
            compare(&engine, &mut reader, missed == 0)?;
        }
        let Reader { index, view, .. } = reader;
        drop(view);
        let stats = index.stats();
        prop_assert_eq!((stats.entries, stats.keys, stats.engines), (0, 0, 0));
    }
}
