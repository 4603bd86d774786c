//! What counts as expected, and for how long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents,
};
use warmroute_kv_index::{
    BlockKey, EngineSlot, EngineView, Expectation, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match,
    block_keys,
};

const TTL: Duration = Duration::from_secs(60);

/// Two tokens a block; each character of a prompt is one block.
fn tokens_of(prompt: &str) -> Vec<u32> {
    prompt.bytes().flat_map(|block| [u32::from(block), 7]).collect()
}

fn keys_of(prompt: &str) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    block_keys(&tokens_of(prompt), 2, &KeyExtras::default(), &mut keys);
    keys
}

fn hash_of(prompt: &str) -> EngineHash {
    EngineHash::from_bytes(prompt.as_bytes()).unwrap()
}

fn apply(view: &mut EngineView, event: KvEvent) {
    let skipped = SkippedEvents::default();
    view.apply(&EventBatch { ts: 0.0, events: vec![event], data_parallel_rank: None, skipped });
}

/// Announces the blocks of a prompt after the first `from`.
fn store(view: &mut EngineView, prompt: &str, from: usize) {
    apply(
        view,
        KvEvent::Stored(BlocksStored {
            hashes: (from + 1..=prompt.len()).map(|end| hash_of(&prompt[..end])).collect(),
            parent: (from > 0).then(|| hash_of(&prompt[..from])),
            token_ids: tokens_of(&prompt[from..]),
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

/// Announces that the last block of a prompt is gone.
fn remove(view: &mut EngineView, prompt: &str) {
    let hashes = vec![hash_of(prompt)];
    apply(view, KvEvent::Removed(BlocksRemoved { hashes, medium: Medium::Gpu, group: None }));
}

fn look_up(index: &KvIndex, slots: &[EngineSlot], prompt: &str) -> Vec<(u32, u32)> {
    let mut matches = vec![Match::default(); slots.len()];
    index.lookup(&keys_of(prompt), slots, &mut LookupScratch::default(), &mut matches);
    matches.iter().map(|found| (found.known_blocks, found.expected_blocks)).collect()
}

/// Known and expected blocks at one engine.
fn found(index: &KvIndex, slot: EngineSlot, prompt: &str) -> (u32, u32) {
    look_up(index, &[slot], prompt)[0]
}

/// Expects a prompt by what a lookup just found.
fn expect(index: &KvIndex, slot: EngineSlot, prompt: &str) -> Option<Expectation> {
    index.expect(slot, &keys_of(prompt), found(index, slot, prompt).0, Instant::now(), TTL)
}

fn one_engine() -> (Arc<KvIndex>, EngineView) {
    let index = KvIndex::new(IndexLimits::default());
    let view = index.add_engine().unwrap();
    (index, view)
}

fn expectations(index: &KvIndex) -> (usize, usize) {
    (index.stats().expectations, index.stats().expected_blocks)
}

#[test]
fn known_and_expected_are_counted_apart() {
    let (index, mut view) = one_engine();
    store(&mut view, "ab", 0);
    let expectation = expect(&index, view.slot(), "abcd").unwrap();
    assert_eq!(expectations(&index), (1, 2));
    assert_eq!(found(&index, view.slot(), "abcdef"), (2, 4));
    assert_eq!(found(&index, view.slot(), "abc"), (2, 3));
    assert_eq!(found(&index, view.slot(), "abx"), (2, 2));
    assert_eq!(found(&index, view.slot(), "xbcd"), (0, 0));
    index.withdraw(expectation);
    index.withdraw(expectation);
    assert_eq!(found(&index, view.slot(), "abcdef"), (2, 2));
    assert_eq!(expectations(&index), (0, 0));
}

#[test]
fn prompts_that_branch_are_expected_side_by_side() {
    let (index, view) = one_engine();
    let one = expect(&index, view.slot(), "abcde").unwrap();
    let other = expect(&index, view.slot(), "abxy").unwrap();
    assert_eq!(found(&index, view.slot(), "abcdez"), (0, 5));
    assert_eq!(found(&index, view.slot(), "abxyz"), (0, 4));
    assert_eq!(found(&index, view.slot(), "abz"), (0, 2));
    index.withdraw(one);
    assert_eq!(found(&index, view.slot(), "abcdez"), (0, 2));
    assert_eq!(found(&index, view.slot(), "abxyz"), (0, 4));
    index.withdraw(other);
    assert_eq!(found(&index, view.slot(), "abxyz"), (0, 0));
}

#[test]
fn a_half_confirmed_expectation_counts_up_to_its_end() {
    let (index, mut view) = one_engine();
    expect(&index, view.slot(), "abcd").unwrap();
    store(&mut view, "ab", 0);
    assert_eq!(found(&index, view.slot(), "abcde"), (2, 4));
    remove(&mut view, "ab");
    assert_eq!(found(&index, view.slot(), "abcde"), (1, 4));
}

#[test]
fn the_last_block_ends_an_expectation_and_only_what_is_held_counts() {
    let (index, mut view) = one_engine();
    let expectation = expect(&index, view.slot(), "abcd").unwrap();
    store(&mut view, "abc", 0);
    remove(&mut view, "ab");
    assert_eq!(found(&index, view.slot(), "abcd"), (1, 4));
    store(&mut view, "abcd", 3);
    assert_eq!(found(&index, view.slot(), "abcd"), (1, 1));
    assert_eq!(expectations(&index), (0, 0));
    index.withdraw(expectation);
    assert_eq!(expectations(&index), (0, 0));
}

#[test]
fn the_last_block_at_another_engine_ends_nothing() {
    let (index, view) = one_engine();
    let mut other = index.add_engine().unwrap();
    expect(&index, view.slot(), "abcd").unwrap();
    store(&mut other, "abcd", 0);
    assert_eq!(look_up(&index, &[view.slot(), other.slot()], "abcd"), [(0, 4), (4, 4)]);
}

#[test]
fn each_request_expects_for_itself() {
    let (index, view) = one_engine();
    let burst: Vec<Expectation> = (0..200).map(|_| expect(&index, view.slot(), "abcd").unwrap()).collect();
    let longer = expect(&index, view.slot(), "abcdef").unwrap();
    assert_eq!(expectations(&index), (201, 806));
    index.withdraw(longer);
    for (ended, expectation) in burst.iter().enumerate() {
        assert_eq!(found(&index, view.slot(), "abcdef"), (0, 4), "{ended} ended");
        index.withdraw(*expectation);
    }
    assert_eq!(found(&index, view.slot(), "abcdef"), (0, 0));
}

#[test]
fn one_event_fulfils_a_burst() {
    let (index, mut view) = one_engine();
    let burst: Vec<Expectation> = (0..50).map(|_| expect(&index, view.slot(), "abcd").unwrap()).collect();
    store(&mut view, "abcd", 0);
    assert_eq!(expectations(&index), (0, 0));
    // The block is gone, and expected again by a request that has nothing to do with those.
    remove(&mut view, "abcd");
    let later = expect(&index, view.slot(), "abcd").unwrap();
    burst.into_iter().for_each(|over| index.withdraw(over));
    assert_eq!(found(&index, view.slot(), "abcd"), (3, 4));
    index.withdraw(later);
    assert_eq!(found(&index, view.slot(), "abcd"), (3, 3));
}

#[test]
fn what_is_held_at_the_end_is_not_expected() {
    let (index, mut view) = one_engine();
    store(&mut view, "abcd", 0);
    assert_eq!(expect(&index, view.slot(), "abcd"), None);
    // Announced after the lookup.
    assert_eq!(index.expect(view.slot(), &keys_of("abcd"), 2, Instant::now(), TTL), None);
    assert_eq!(index.expect(view.slot(), &keys_of("abcd"), 9, Instant::now(), TTL), None);
    remove(&mut view, "ab");
    let expectation = expect(&index, view.slot(), "abcd").unwrap();
    assert_eq!(expectations(&index), (1, 1));
    assert_eq!(found(&index, view.slot(), "abcd"), (1, 4));
    index.withdraw(expectation);
    expect(&index, view.slot(), "abcd").unwrap();
    store(&mut view, "ab", 1);
    assert_eq!((found(&index, view.slot(), "abcd"), expectations(&index)), ((4, 4), (0, 0)));
    assert_eq!(index.stats().refused_expectations, 0);
}

/// The second prompt's first expected block lies within what the first prompt covers.
#[test]
fn covers_join_after_a_reset() {
    let (index, mut view) = one_engine();
    let far = index.add_engine().unwrap();
    expect(&index, far.slot(), "abcdefghij").unwrap();
    expect(&index, view.slot(), "abcdef").unwrap();
    store(&mut view, "abc", 0);
    expect(&index, view.slot(), "abcdefgh").unwrap();
    assert_eq!(found(&index, view.slot(), "abcdefghij"), (3, 8));
    view.clear();
    assert_eq!(look_up(&index, &[view.slot(), far.slot()], "abcdefghij"), [(0, 8), (0, 10)]);
}

#[test]
fn another_engine_in_the_slot_is_expected_nothing() {
    let index = KvIndex::new(IndexLimits { max_engines: 1, ..IndexLimits::default() });
    let view = index.add_engine().unwrap();
    let (old, expectation) = (view.slot(), expect(&index, view.slot(), "abcd").unwrap());
    drop(view);
    assert_eq!(expect(&index, old, "xy"), None);
    let mut view = index.add_engine().unwrap();
    assert_eq!(view.slot().index, old.index);
    assert_eq!(look_up(&index, &[old, view.slot()], "abcd"), [(0, 0), (0, 0)]);
    let newer = expect(&index, view.slot(), "abcdef").unwrap();
    assert_eq!(look_up(&index, &[old, view.slot()], "abcd"), [(0, 0), (0, 4)]);
    store(&mut view, "abcd", 0);
    index.withdraw(newer);
    assert_eq!(look_up(&index, &[old, view.slot()], "abcd"), [(0, 0), (4, 4)]);
    index.withdraw(expectation);
    assert_eq!(expectations(&index), (0, 0));
}

#[test]
fn expectations_are_bounded_and_run_out() {
    let index = KvIndex::new(IndexLimits { max_expected_blocks: 7, ..IndexLimits::default() });
    let view = index.add_engine().unwrap();
    let start = Instant::now();
    let first = index.expect(view.slot(), &keys_of("abcd"), 0, start, TTL).unwrap();
    assert_eq!(index.expect(view.slot(), &keys_of("abcd"), 0, start, TTL), None);
    assert_eq!(index.stats().refused_expectations, 1);
    index.expect(view.slot(), &keys_of("xyz"), 0, start + TTL, TTL).unwrap();
    assert_eq!(expectations(&index), (2, 7));
    assert_eq!(index.expire(start + TTL - Duration::from_nanos(1)), 0);
    assert_eq!(index.expire(start + TTL), 1);
    assert_eq!(found(&index, view.slot(), "abcd"), (0, 0));
    index.withdraw(first);
    assert_eq!(expectations(&index), (1, 3));
    assert_eq!(index.expire(start + 3 * TTL), 1);
    assert_eq!(expectations(&index), (0, 0));
}
