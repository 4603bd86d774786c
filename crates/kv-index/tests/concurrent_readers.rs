//! Readers beside writers: a lookup may miss, but never claims what the engine never announced.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use warmroute_kv_events::{BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents};
use warmroute_kv_index::{
    BlockKey, EngineSlot, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

const BLOCKS: u32 = 8;
const WRITERS: u32 = 2;
const LIVES: u32 = 400;
/// The number of the engine that is there all the time.
const STAYS: u32 = 1_000_000;

/// The prompt that only engine number `engine` announces; all share the first block.
fn tokens_of(engine: u32) -> Vec<u32> {
    (0..2 * BLOCKS).map(|position| if position < 2 { 5 } else { 1_000 * (engine + 1) + position }).collect()
}

fn keys_of(engine: u32) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    block_keys(&tokens_of(engine), 2, &KeyExtras::default(), &mut keys);
    keys
}

fn apply(view: &mut EngineView, event: KvEvent) {
    let skipped = SkippedEvents::default();
    view.apply(&EventBatch { ts: 0.0, events: vec![event], data_parallel_rank: None, skipped });
}

fn store_all(view: &mut EngineView, engine: u32) {
    apply(
        view,
        KvEvent::Stored(BlocksStored {
            hashes: (1..=u64::from(BLOCKS)).map(EngineHash::from_u64).collect(),
            parent: None,
            token_ids: tokens_of(engine),
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
        }),
    );
}

/// Which slot belonged to which engine, over all lives.
type Lives = Mutex<Vec<(EngineSlot, u32)>>;

fn live_and_die(index: &Arc<KvIndex>, writer: u32, lives: &Lives) {
    for life in 0..LIVES {
        let engine = life * WRITERS + writer;
        let mut view = index.add_engine().unwrap();
        lives.lock().unwrap().push((view.slot(), engine));
        for _ in 0..3 {
            store_all(&mut view, engine);
            apply(&mut view, KvEvent::Cleared);
        }
        let expectation =
            index.expect(view.slot(), &keys_of(engine), 0, Instant::now(), Duration::from_secs(60)).unwrap();
        store_all(&mut view, engine);
        if life % 2 == 0 {
            index.withdraw(expectation);
        }
    }
}

fn read(index: &KvIndex, stays: EngineSlot, lives: &Lives, done: &AtomicBool, claims: &AtomicU64) {
    let mut scratch = LookupScratch::default();
    while !done.load(Ordering::Acquire) {
        let recent: Vec<(EngineSlot, u32)> = lives.lock().unwrap().iter().rev().take(12).copied().collect();
        let rows: Vec<(EngineSlot, u32)> = [(stays, STAYS)].into_iter().chain(recent).collect();
        let slots: Vec<EngineSlot> = rows.iter().map(|(slot, _)| *slot).collect();
        let mut matches = vec![Match::default(); slots.len()];
        for (_, asked) in &rows {
            index.lookup(&keys_of(*asked), &slots, &mut scratch, &mut matches);
            for ((_, engine), found) in rows.iter().zip(&matches) {
                // The first block is everybody's, the others are one engine's alone.
                let most = if engine == asked { BLOCKS } else { 1 };
                assert!(
                    found.known_blocks <= most && found.expected_blocks <= most,
                    "{engine} {asked} {found:?}"
                );
                assert!(found.known_blocks <= found.expected_blocks);
                // What nobody touches is never missed.
                assert!(*engine != STAYS || found.known_blocks == most);
                claims.fetch_add(u64::from(found.known_blocks > 0), Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn readers_never_see_what_was_not_announced() {
    // Few slots, so that they are reused all the time.
    let index = KvIndex::new(IndexLimits { max_engines: WRITERS + 1, ..IndexLimits::default() });
    let (lives, done, claims) = (Lives::default(), AtomicBool::new(false), AtomicU64::new(0));
    // One engine stays, so that there is always something to find.
    let mut stays = index.add_engine().unwrap();
    store_all(&mut stays, STAYS);
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| read(&index, stays.slot(), &lives, &done, &claims))).collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (index, lives) = (&index, &lives);
                scope.spawn(move || live_and_die(index, writer, lives))
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Release);
        assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert!(claims.load(Ordering::Relaxed) > 0);
    index.expire(Instant::now() + Duration::from_secs(120));
    let stats = index.stats();
    assert_eq!((stats.entries, stats.keys, stats.engines), (BLOCKS as usize, BLOCKS as usize, 1));
    assert_eq!((stats.expectations, stats.expected_blocks), (0, 0));
}

/// A lookup notes the engine's state, then that of thousands of other rows, and only then goes through the blocks. In
/// between the engine goes, and the next one takes over its slot and announces just what is asked for.
#[test]
fn a_slot_taken_over_during_a_lookup_claims_nothing_for_its_last_engine() {
    const ROUNDS: u32 = 50;
    let index = KvIndex::new(IndexLimits { max_engines: 1, ..IndexLimits::default() });
    let (to_reader, from_writer) = mpsc::channel::<EngineSlot>();
    let (to_writer, from_reader) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let index = &index;
        scope.spawn(move || {
            let (mut scratch, mut matches) = (LookupScratch::default(), vec![Match::default(); 50_000]);
            for (engine, slot) in from_writer.iter().enumerate() {
                let (keys, slots) = (keys_of(engine as u32 + 1), vec![slot; matches.len()]);
                to_writer.send(()).unwrap(); // the lookup begins
                index.lookup(&keys, &slots, &mut scratch, &mut matches);
                assert!(matches.iter().all(|found| found.known_blocks <= 1 && found.expected_blocks <= 1));
                to_writer.send(()).unwrap();
            }
        });
        let mut view = index.add_engine().unwrap();
        store_all(&mut view, 0);
        for engine in 0..ROUNDS {
            to_reader.send(view.slot()).unwrap();
            from_reader.recv().unwrap();
            drop(view);
            view = index.add_engine().unwrap();
            store_all(&mut view, engine + 1);
            from_reader.recv().unwrap();
        }
        drop(to_reader);
    });
}

/// Engines that fight for one slot: what one leaves behind never touches the next, which itself finds exactly what it
/// has announced.
#[test]
fn a_slot_is_free_only_when_its_last_engine_is_gone() {
    let index = KvIndex::new(IndexLimits { max_engines: 1, ..IndexLimits::default() });
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let index = &index;
            scope.spawn(move || {
                let mut scratch = LookupScratch::default();
                for life in 0..1_000 {
                    let engine = 2 * life + writer;
                    let mut view = loop {
                        match index.add_engine() {
                            Ok(view) => break view,
                            Err(_) => std::thread::yield_now(),
                        }
                    };
                    let (keys, mut matches) = (keys_of(engine), [Match::default()]);
                    index.lookup(&keys, &[view.slot()], &mut scratch, &mut matches);
                    assert_eq!(matches[0].known_blocks, 0);
                    store_all(&mut view, engine);
                    index.lookup(&keys, &[view.slot()], &mut scratch, &mut matches);
                    assert_eq!(matches[0].known_blocks, BLOCKS);
                }
            });
        }
    });
    assert_eq!((index.stats().keys, index.stats().engines), (0, 0));
}

/// What is expected and then announced is there for a reader at each moment in between.
#[test]
fn a_lookup_never_misses_what_turns_from_expected_to_known() {
    const ROUNDS: u32 = 500;
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    let slot = view.slot();
    let (to_reader, from_writer) = mpsc::channel::<u32>();
    let (to_writer, from_reader) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let index = &index;
        scope.spawn(move || {
            let (mut scratch, mut matches) = (LookupScratch::default(), [Match::default()]);
            for engine in from_writer {
                let keys = keys_of(engine);
                to_writer.send(()).unwrap(); // the lookups begin
                while matches[0].known_blocks < BLOCKS {
                    index.lookup(&keys, &[slot], &mut scratch, &mut matches);
                    assert_eq!(matches[0].expected_blocks, BLOCKS, "{matches:?}");
                }
                matches = [Match::default()];
                to_writer.send(()).unwrap();
            }
        });
        for engine in 0..ROUNDS {
            apply(&mut view, KvEvent::Cleared);
            // The same blocks twice, and once from their fourth on.
            for known_blocks in [0, 3, 0] {
                let ttl = Duration::from_secs(60);
                index.expect(slot, &keys_of(engine), known_blocks, Instant::now(), ttl).unwrap();
            }
            to_reader.send(engine).unwrap();
            from_reader.recv().unwrap();
            store_all(&mut view, engine);
            from_reader.recv().unwrap();
            assert_eq!((index.stats().expectations, index.stats().expected_blocks), (0, 0));
        }
        drop(to_reader);
    });
}
