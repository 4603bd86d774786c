//! Several engines announce and withdraw blocks of the same prompts at once; what is left is what each holds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents,
};
use warmroute_kv_index::{
    BlockKey, EngineSlot, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

const WRITERS: u64 = 4;
const STEPS: u64 = 4_000;
/// Blocks of the longest prompt. Each of them is one of two, so that prompts branch everywhere.
const BLOCKS: usize = 6;

/// A prompt of whole blocks; each number is one block.
type Path = Vec<u8>;

/// Multiplies and adds (Knuth's constants for 64 bits); its high bits are even enough.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn path(&mut self) -> Path {
        let blocks = 1 + self.below(BLOCKS as u64);
        (0..blocks).map(|_| self.below(2) as u8).collect()
    }
}

fn hash_of(path: &[u8]) -> EngineHash {
    EngineHash::from_u64(path.iter().fold(1, |hash, block| hash << 1 | u64::from(*block)))
}

fn apply(view: &mut EngineView, event: KvEvent) {
    let skipped = SkippedEvents::default();
    let applied = view.apply(&EventBatch { ts: 0.0, events: vec![event], data_parallel_rank: None, skipped });
    assert_eq!(applied.unknown_parents + applied.unknown_removed_blocks + applied.refused_blocks, 0);
}

/// Stores the blocks of a path from `from` on.
fn store(path: &[u8], from: usize) -> KvEvent {
    KvEvent::Stored(BlocksStored {
        hashes: (from..path.len()).map(|last| hash_of(&path[..=last])).collect(),
        parent: (from > 0).then(|| hash_of(&path[..from])),
        token_ids: path[from..].iter().flat_map(|block| [u32::from(*block), 7]).collect(),
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

fn remove(path: &[u8]) -> KvEvent {
    KvEvent::Removed(BlocksRemoved { hashes: vec![hash_of(path)], medium: Medium::Gpu, group: None })
}

/// Stores and removes at random, and returns the view with the paths whose last block it holds.
fn write(index: &Arc<KvIndex>, writer: u64) -> (EngineView, BTreeSet<Path>) {
    let (mut view, mut held) = (index.add_engine().unwrap(), BTreeSet::new());
    let mut numbers = Numbers(writer);
    for step in 0..STEPS {
        let path = numbers.path();
        if step % 1000 == 999 {
            apply(&mut view, KvEvent::Cleared);
            held.clear();
        } else if numbers.below(3) > 0 {
            // As far as it is held, the engine doesn't announce it again.
            let from = (0..path.len()).find(|last| !held.contains(&path[..=*last])).unwrap_or(path.len());
            let new = (from..path.len()).take_while(|last| !held.contains(&path[..=*last])).count();
            if new > 0 {
                apply(&mut view, store(&path[..from + new], from));
                held.extend((from..from + new).map(|last| path[..=last].to_vec()));
            }
        } else if held.remove(&path) {
            apply(&mut view, remove(&path));
        }
    }
    (view, held)
}

fn look_up(index: &KvIndex, path: &[u8], slots: &[EngineSlot], scratch: &mut LookupScratch) -> Vec<Match> {
    let tokens: Vec<u32> = path.iter().flat_map(|block| [u32::from(*block), 7]).collect();
    let mut keys: Vec<BlockKey> = Vec::new();
    block_keys(&tokens, 2, &KeyExtras::default(), &mut keys);
    let mut matches = vec![Match::default(); slots.len()];
    index.lookup(&keys, slots, scratch, &mut matches);
    matches
}

#[test]
fn what_is_left_is_what_each_engine_holds() {
    let index = KvIndex::new(IndexLimits::default());
    let done = AtomicBool::new(false);
    let written: Vec<(EngineView, BTreeSet<Path>)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let index = &index;
                    move || write(index, writer)
                })
            })
            .collect();
        scope.spawn(|| {
            let (mut numbers, mut scratch) = (Numbers(99), LookupScratch::default());
            let slots: Vec<EngineSlot> =
                (0..WRITERS as u32).map(|index| EngineSlot { index, generation: 0 }).collect();
            while !done.load(Ordering::Acquire) {
                look_up(&index, &numbers.path(), &slots, &mut scratch);
            }
        });
        let written = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        written
    });
    let slots: Vec<EngineSlot> = written.iter().map(|(view, _)| view.slot()).collect();
    let mut scratch = LookupScratch::default();
    for number in 0..1_u32 << BLOCKS {
        let path: Path = (0..BLOCKS).map(|bit| (number >> bit & 1) as u8).collect();
        let expected: Vec<u32> = written
            .iter()
            .map(|(_, held)| (0..BLOCKS).take_while(|last| held.contains(&path[..=*last])).count() as u32)
            .collect();
        let found = look_up(&index, &path, &slots, &mut scratch);
        let known: Vec<u32> = found.iter().map(|found| found.known_blocks).collect();
        assert_eq!(known, expected, "{path:?}");
    }
    let held: usize = written.iter().map(|(_, held)| held.len()).sum();
    assert_eq!(index.stats().entries, held);
    drop(written);
    assert_eq!((index.stats().entries, index.stats().keys), (0, 0));
}
