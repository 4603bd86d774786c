//! Snapshots that come from elsewhere: broken, malformed, too large, and taken while others write.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use warmroute_kv_events::{BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent};
use warmroute_kv_index::{
    BlockRows, EngineView, ImportError, IndexLimits, KeyExtras, KvIndex, LayerRows, LookupScratch, Match,
    ViewOutline, block_keys, key_check,
};

const BLOCK_TOKENS: u32 = 4;

/// Stores a prompt of blocks that begin with these numbers.
fn store(view: &mut EngineView, salt: u64, prompt: &[u32]) {
    let stored = BlocksStored {
        hashes: (1..=prompt.len()).map(|end| name_of(salt, &prompt[..end])).collect(),
        token_ids: tokens_of(prompt),
        block_size_tokens: BLOCK_TOKENS,
        ..BlocksStored::default()
    };
    view.apply(&EventBatch { events: vec![KvEvent::Stored(stored)], ..EventBatch::default() });
}

fn remove(view: &mut EngineView, salt: u64, prompt: &[u32]) {
    let removed =
        BlocksRemoved { hashes: vec![name_of(salt, prompt)], medium: Default::default(), group: None };
    view.apply(&EventBatch { events: vec![KvEvent::Removed(removed)], ..EventBatch::default() });
}

fn name_of(salt: u64, prompt: &[u32]) -> EngineHash {
    let name = prompt.iter().fold(salt, |name, block| {
        name.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(*block) + 1).rotate_left(23)
    });
    EngineHash::from_u64(name)
}

fn tokens_of(prompt: &[u32]) -> Vec<u32> {
    prompt.iter().flat_map(|block| [*block, 1, 2, 3]).collect()
}

fn matched(index: &KvIndex, view: &EngineView, prompt: &[u32]) -> u32 {
    let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
    block_keys(&tokens_of(prompt), BLOCK_TOKENS, &KeyExtras::default(), &mut keys);
    index.lookup(&keys, &[view.slot()], &mut LookupScratch::default(), &mut matches);
    matches[0].known_blocks
}

fn new_index() -> Arc<KvIndex> {
    KvIndex::new(IndexLimits::default())
}

fn assert_clean(index: &KvIndex) {
    let stats = index.stats();
    assert_eq!((stats.entries, stats.keys), (0, 0));
}

#[test]
fn keys_are_made_as_they_were() {
    // Another number means other keys: snapshots of older versions would claim wrong blocks.
    assert_eq!(key_check(), KEY_CHECK);
}

const KEY_CHECK: u64 = 9_184_510_092_531_696_056;

#[test]
fn a_hole_in_front_of_what_is_held_goes_along() {
    let (here, there) = (new_index(), new_index());
    let (mut old, mut other, mut new) =
        (here.add_engine().unwrap(), here.add_engine().unwrap(), there.add_engine().unwrap());
    let prompt: Vec<u32> = (0..10).collect();
    store(&mut old, 1, &prompt);
    // Another engine's prompt cuts the run in two.
    store(&mut other, 2, &[0, 1, 2, 77]);
    remove(&mut old, 1, &prompt[..5]);
    remove(&mut old, 1, &prompt[..2]);
    let snapshot = old.export(64);
    assert!(snapshot.rows.len() > 1);
    new.begin_import(&snapshot.outline).unwrap();
    snapshot.rows.iter().for_each(|rows| new.import(rows).unwrap());
    new.end_import();
    assert_eq!((matched(&here, &old, &prompt), matched(&there, &new, &prompt)), (1, 1));
    assert_eq!((new.entries(), there.stats().entries), (8, 8));
    // What comes back makes the prompt whole again, as at the engine that was followed.
    store(&mut new, 1, &prompt[..2]);
    assert_eq!(matched(&there, &new, &prompt), 4);
    for end in (1..=10).rev() {
        remove(&mut new, 1, &prompt[..end]);
    }
    // The first block was announced again, so it is held no longer either.
    assert_clean(&there);
}

#[test]
fn an_import_that_ends_halfway_leaves_nothing() {
    for is_dropped in [true, false] {
        let (here, there) = (new_index(), new_index());
        let (mut old, mut new) = (here.add_engine().unwrap(), there.add_engine().unwrap());
        let prompt: Vec<u32> = (0..100).collect();
        store(&mut old, 1, &prompt);
        remove(&mut old, 1, &prompt[..7]);
        let snapshot = old.export(300);
        new.begin_import(&snapshot.outline).unwrap();
        assert_eq!(new.begin_import(&snapshot.outline), Err(ImportError::NotEmpty));
        new.import(&snapshot.rows[0]).unwrap();
        assert_eq!(matched(&there, &new, &prompt), 0, "not before all of it is there");
        if is_dropped {
            drop(new);
        } else {
            new.abandon_import();
            assert!(new.import(&snapshot.rows[1]).is_err());
            assert_clean(&there);
            // It can begin again, by another snapshot or by events.
            store(&mut new, 3, &prompt[..4]);
            assert_eq!(matched(&there, &new, &prompt), 4);
            assert_eq!(new.begin_import(&snapshot.outline), Err(ImportError::NotEmpty));
            new.clear();
        }
        assert_clean(&there);
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_whole() {
    let here = new_index();
    let there = KvIndex::new(IndexLimits { max_entries: 50, ..IndexLimits::default() });
    let (mut old, mut new) = (here.add_engine().unwrap(), there.add_engine().unwrap());
    store(&mut old, 1, &(0..60).collect::<Vec<_>>());
    let snapshot = old.export(100);
    new.begin_import(&snapshot.outline).unwrap();
    let outcome = snapshot.rows.iter().try_for_each(|rows| new.import(rows));
    assert_eq!(outcome, Err(ImportError::IndexFull));
    assert_clean(&there);
}

/// Engines write the runs that an export reads: it says what its engine holds all the same.
#[test]
fn others_that_write_meanwhile_do_not_matter() {
    let index = new_index();
    let mut view = index.add_engine().unwrap();
    let prompts: Vec<Vec<u32>> = (0..200_u32)
        .map(|number| (0..40).map(|at| if at < number % 40 { at } else { number * 100 + at }).collect())
        .collect();
    prompts.iter().for_each(|prompt| store(&mut view, 1, prompt));
    let names = |view: &EngineView| {
        let snapshot = view.export(512);
        let mut names: Vec<u64> =
            snapshot.rows.iter().flat_map(|rows| &rows.layers).flat_map(|rows| rows.names.clone()).collect();
        names.sort_unstable();
        (snapshot, names)
    };
    let (_, expected) = names(&view);
    std::thread::scope(|scope| {
        let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (index, prompts, stop) = (&index, &prompts, is_over.clone());
        scope.spawn(move || {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let mut other = index.add_engine().unwrap();
                for (number, prompt) in prompts.iter().enumerate() {
                    let mut branch = prompt.clone();
                    let cut = (number + round) % 40;
                    branch.truncate(cut);
                    branch.extend([1_000_000 + number as u32, round as u32]);
                    store(&mut other, 2, &branch);
                }
            }
        });
        for _ in 0..30 {
            let (snapshot, found) = names(&view);
            assert_eq!(found, expected);
            let there = new_index();
            let mut new = there.add_engine().unwrap();
            new.begin_import(&snapshot.outline).unwrap();
            snapshot.rows.iter().for_each(|rows| new.import(rows).unwrap());
            new.end_import();
            for prompt in prompts {
                assert_eq!(matched(&there, &new, prompt), 40);
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn any_rows() -> impl Strategy<Value = BlockRows> {
    let number = || prop_oneof![3 => 0..6_u32, 1 => any::<u32>()];
    let step = || prop_oneof![3 => -3..3_i32, 1 => any::<i32>()];
    let layer = (0..3_u32, number(), vec(step(), 0..4), vec(0..9_u64, 0..5), vec(0..3_u32, 0..4)).prop_map(
        |(layer, first, steps, names, more_copies)| LayerRows { layer, first, steps, names, more_copies },
    );
    (vec(0..4_u32, 0..4), vec(number(), 0..4), vec(0..12_u64, 0..6), vec(layer, 0..3))
        .prop_map(|(lengths, parents, keys, layers)| BlockRows { lengths, parents, keys, layers })
}

proptest! {
    /// Whatever comes, nothing panics, and nothing stays when the engine leaves.
    #[test]
    fn any_bytes_are_taken_or_refused(
        rows in vec(any_rows(), 1..5),
        block_size_tokens in prop_oneof![Just(0_u32), Just(4), any::<u32>()],
        ends: bool,
    ) {
        let index = new_index();
        let (mut view, mut other) = (index.add_engine().unwrap(), index.add_engine().unwrap());
        store(&mut other, 1, &[1, 2, 3]);
        let outline = ViewOutline { block_size_tokens, ..ViewOutline::default() };
        view.begin_import(&outline).unwrap();
        let taken = rows.iter().take_while(|rows| view.import(rows).is_ok()).count();
        if taken == rows.len() && ends {
            view.end_import();
            store(&mut view, 5, &[1, 2, 9]);
            view.export(100);
        }
        drop(view);
        prop_assert_eq!(matched(&index, &other, &[1, 2, 3]), 3);
        drop(other);
        let stats = index.stats();
        prop_assert_eq!((stats.entries, stats.keys), (0, 0));
    }
}
