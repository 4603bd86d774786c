//! Engines that hold blocks in several layers: tiers beside GPU memory, and several KV cache groups.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::sync::Arc;

use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents, SpecKind,
};
use warmroute_kv_index::{
    Applied, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, OffloadedBlocks, Tier,
    block_keys,
};

/// Blocks of one token; block n of the only prompt is called n.
fn stored(names: std::ops::Range<u64>) -> BlocksStored {
    BlocksStored {
        hashes: names.clone().map(EngineHash::from_u64).collect(),
        parent: (names.start > 1).then(|| EngineHash::from_u64(names.start - 1)),
        token_ids: names.map(|name| name as u32).collect(),
        block_size_tokens: 1,
        medium: Medium::Gpu,
        group: Some(0),
        spec_kind: Some(SpecKind::FullAttention),
        sliding_window_tokens: None,
        ..BlocksStored::default()
    }
}

/// As vLLM's offloading connector announces a block by default.
fn placeholder(medium: Medium, group: u32, name: u64) -> KvEvent {
    KvEvent::Stored(BlocksStored {
        hashes: vec![EngineHash::from_u64(name)],
        parent: None,
        token_ids: Vec::new(),
        block_size_tokens: 0,
        medium,
        group: Some(group),
        spec_kind: None,
        ..stored(1..2)
    })
}

/// Of one of the groups beside group 0: some blocks of a prompt of so many, by their names, as vLLM announces them.
fn of_group(group: u32, kind: SpecKind, window_tokens: Option<u32>, names: &[u64], prompt: u64) -> KvEvent {
    KvEvent::Stored(BlocksStored {
        hashes: names.iter().copied().map(EngineHash::from_u64).collect(),
        group: Some(group),
        spec_kind: Some(kind),
        sliding_window_tokens: window_tokens,
        ..stored(1..prompt + 1)
    })
}

fn removed(medium: Medium, group: u32, names: &[u64]) -> KvEvent {
    let hashes = names.iter().copied().map(EngineHash::from_u64).collect();
    KvEvent::Removed(BlocksRemoved { hashes, medium, group: Some(group) })
}

struct Subject {
    index: Arc<KvIndex>,
    view: EngineView,
}

impl Subject {
    fn new() -> Self {
        let index = KvIndex::new(IndexLimits::default());
        Self { view: index.add_engine().unwrap(), index }
    }

    fn apply(&mut self, events: Vec<KvEvent>) -> Applied {
        let skipped = SkippedEvents::default();
        self.view.apply(&EventBatch { ts: 0.0, events, data_parallel_rank: None, skipped })
    }

    /// What is known of a prompt of so many blocks of which one block less can be reused than it has.
    fn found(&self, prompt: u32) -> (u32, OffloadedBlocks) {
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        let tokens: Vec<u32> = (1..=prompt).collect();
        block_keys(&tokens, 1, &KeyExtras::default(), &mut keys);
        let mut scratch = LookupScratch::default();
        self.index.lookup_reusable(&keys, prompt - 1, &[self.view.slot()], &mut scratch, &mut matches);
        (matches[0].known_blocks, scratch.offloaded(0, &matches[0]))
    }

    fn known(&self, prompt: u32) -> u32 {
        self.found(prompt).0
    }
}

const NONE: OffloadedBlocks = OffloadedBlocks { cpu: 0, storage: 0, other: 0 };

#[test]
fn a_store_without_tokens_is_found_by_name() {
    let mut engine = Subject::new();
    engine.apply(vec![KvEvent::Stored(stored(1..5))]);
    let copied = (1..5).map(|name| placeholder(Medium::Cpu, 0, name)).collect();
    let applied = engine.apply(copied);
    assert_eq!((applied.stored_blocks, applied.other_media), (4, 0));
    assert_eq!(applied.facts(), Default::default(), "the view stays exact");
    assert_eq!(engine.found(9), (4, NONE), "GPU memory is better");
    // Evicted from GPU memory, the blocks are still in the host's.
    engine.apply(vec![removed(Medium::Gpu, 0, &[4, 3])]);
    assert_eq!(engine.found(9), (4, OffloadedBlocks { cpu: 2, ..NONE }));
    engine.apply(vec![removed(Medium::Gpu, 0, &[2, 1])]);
    assert_eq!(engine.found(9), (4, OffloadedBlocks { cpu: 4, ..NONE }));
    // Loaded again, the names lead to the same blocks.
    assert_eq!(engine.apply(vec![KvEvent::Stored(stored(3..5))]).stored_blocks, 2);
    assert_eq!(engine.found(9), (4, OffloadedBlocks { cpu: 4, ..NONE }), "they are behind a gap");
    let applied = engine.apply(vec![removed(Medium::Cpu, 0, &[2])]);
    assert_eq!((applied.removed_blocks, applied.other_media), (1, 0));
    assert_eq!(engine.found(9), (1, OffloadedBlocks { cpu: 1, ..NONE }));
}

#[test]
fn a_name_that_is_not_known_is_left_out_and_counted() {
    let mut engine = Subject::new();
    engine.apply(vec![KvEvent::Stored(stored(1..3))]);
    let applied = engine.apply(vec![placeholder(Medium::Cpu, 0, 7)]);
    assert_eq!((applied.stored_blocks, applied.other_media), (0, 1));
    assert!(applied.facts().other_tiers, "the view is partial");
    // A name that the same batch explains later is known.
    let applied = engine.apply(vec![placeholder(Medium::Cpu, 0, 3), KvEvent::Stored(stored(3..4))]);
    assert_eq!((applied.stored_blocks, applied.other_media), (2, 0));
    // And one that it withdraws again isn't missing.
    let events = vec![
        placeholder(Medium::Cpu, 0, 4),
        removed(Medium::Cpu, 0, &[4]),
        KvEvent::Stored(stored(4..5)),
        removed(Medium::Gpu, 0, &[3]),
    ];
    assert_eq!(engine.apply(events).other_media, 0);
    assert_eq!(engine.found(9), (3, OffloadedBlocks { cpu: 1, ..NONE }));
}

#[test]
fn a_store_with_tokens_in_another_tier_needs_no_other() {
    let mut engine = Subject::new();
    let self_describing = |names| KvEvent::Stored(BlocksStored { medium: Medium::Cpu, ..stored(names) });
    assert_eq!(engine.apply(vec![self_describing(1..3)]).stored_blocks, 2);
    assert_eq!(engine.known(9), 0, "not before it is known which group tells the tokens");
    engine.apply(vec![KvEvent::Stored(stored(1..2))]);
    assert_eq!(engine.found(9), (2, OffloadedBlocks { cpu: 1, ..NONE }));
    // Its parent may be in another tier.
    engine.apply(vec![KvEvent::Stored(stored(3..4)), self_describing(4..6)]);
    engine.apply(vec![placeholder(Medium::Cpu, 0, 3)]);
    assert_eq!(engine.found(9), (5, OffloadedBlocks { cpu: 4, ..NONE }));
    assert_eq!((engine.view.held_blocks(), engine.view.held_blocks_in(Tier::Cpu)), (2, 5));
}

#[test]
fn every_block_counts_in_the_best_tier_that_it_can_be_loaded_from() {
    let mut engine = Subject::new();
    engine.apply(vec![KvEvent::Stored(stored(1..7))]);
    let mut events: Vec<KvEvent> = (2..6).map(|name| placeholder(Medium::Storage, 0, name)).collect();
    events.push(placeholder(Medium::Cpu, 0, 3));
    events.push(placeholder(Medium::Other("EXTERNAL".into()), 0, 6));
    events.push(removed(Medium::Gpu, 0, &[2, 3, 4, 6]));
    assert_eq!(engine.apply(events).other_media, 0);
    // 1 GPU, 2 storage, 3 CPU, 4 and 5 storage (5 is in GPU memory too, but behind a gap), 6 elsewhere.
    assert_eq!(engine.found(9), (6, OffloadedBlocks { cpu: 1, storage: 3, other: 1 }));
    // What is only in GPU memory behind a gap isn't used.
    engine.apply(vec![removed(Medium::Storage, 0, &[5])]);
    assert_eq!(engine.found(9), (4, OffloadedBlocks { cpu: 1, storage: 2, other: 0 }));
}

#[test]
fn a_tier_holds_a_block_once() {
    let mut engine = Subject::new();
    engine.apply(vec![KvEvent::Stored(stored(1..3)), placeholder(Medium::Cpu, 0, 1)]);
    engine.apply(vec![placeholder(Medium::Cpu, 0, 1), removed(Medium::Gpu, 0, &[1])]);
    assert_eq!(engine.found(9), (1, OffloadedBlocks { cpu: 1, ..NONE }));
    engine.apply(vec![removed(Medium::Cpu, 0, &[1])]);
    assert_eq!(engine.known(9), 0, "one removal is of all copies");
}

#[test]
fn a_reset_takes_all_but_storage() {
    let mut engine = Subject::new();
    let copies = [Medium::Cpu, Medium::Storage].map(|medium| placeholder(medium, 0, 1));
    engine.apply([vec![KvEvent::Stored(stored(1..3))], copies.to_vec()].concat());
    let applied = engine.apply(vec![KvEvent::Cleared]);
    assert_eq!((applied.cleared, applied.other_media), (1, 1), "the host's memory may be as it was");
    assert_eq!(engine.found(9), (1, OffloadedBlocks { storage: 1, ..NONE }));
    // Another process keeps nothing that is known.
    engine.view.clear();
    assert_eq!((engine.known(9), engine.index.stats().entries), (0, 0));
    assert_eq!(engine.index.stats().engines, 1);
    drop(engine.view);
    assert_eq!((engine.index.stats().engines, engine.index.stats().keys), (0, 0));
}

#[test]
fn a_sliding_window_needs_the_end_of_a_prefix() {
    // Three tokens: the token itself and two blocks before it.
    let window = |names: &[u64], prompt| of_group(1, SpecKind::SlidingWindow, Some(3), names, prompt);
    let mut engine = Subject::new();
    let applied = engine.apply(vec![window(&[4, 5], 5), KvEvent::Stored(stored(1..6))]);
    assert_eq!(applied.facts(), Default::default(), "the view is exact");
    assert_eq!(engine.known(9), 5);
    assert_eq!(engine.known(6), 5);
    // The prompt that fills the five blocks computes its last token, and of four blocks the window lacks the third.
    assert_eq!(engine.known(5), 0);
    // A prefix shorter than the window needs all of its blocks.
    engine.apply(vec![window(&[1], 1)]);
    assert_eq!((engine.known(5), engine.known(2), engine.known(9)), (1, 1, 5));
    engine.apply(vec![removed(Medium::Gpu, 1, &[4])]);
    assert_eq!(engine.known(9), 1);
    // Held by the window's group, and no longer by the other.
    engine.apply(vec![removed(Medium::Gpu, 0, &[1])]);
    assert_eq!(engine.known(9), 0);
    assert!(!engine.view.is_unsupported());
}

#[test]
fn a_prefix_that_a_window_group_lacks_is_stored_again_as_copies() {
    let window = |names: &[u64], prompt| of_group(1, SpecKind::SlidingWindow, Some(3), names, prompt);
    let mut engine = Subject::new();
    engine.apply(vec![window(&[4, 5], 5), KvEvent::Stored(stored(1..6))]);
    let applied = engine.apply(vec![window(&[2, 3], 3), KvEvent::Stored(stored(1..4))]);
    assert_eq!((applied.stored_copies, applied.announced_again), (3, 0));
    engine.apply(vec![removed(Medium::Gpu, 0, &[3])]);
    assert_eq!(engine.known(9), 5, "its copy is still there");
}

#[test]
fn what_groups_announce_again_they_may_not_hold() {
    let window = |names: &[u64], prompt| of_group(1, SpecKind::SlidingWindow, Some(3), names, prompt);
    let mut engine = Subject::new();
    engine.apply(vec![window(&[4, 5], 5), KvEvent::Stored(stored(1..6))]);
    // `kv_cache_report_mode=full` names every block of the prefix for every group.
    let applied = engine.apply(vec![window(&[1, 2, 3, 4, 5], 5), KvEvent::Stored(stored(1..6))]);
    assert_eq!(applied.announced_again, 10);
    assert_eq!((engine.known(9), engine.known(4)), (5, 0));
}

#[test]
fn mamba_needs_the_state_at_the_end() {
    let state = |names: &[u64], prompt| of_group(1, SpecKind::Mamba, None, names, prompt);
    let mut engine = Subject::new();
    engine.apply(vec![state(&[2, 5], 5), KvEvent::Stored(stored(1..6))]);
    assert_eq!((engine.known(9), engine.known(5), engine.known(2)), (5, 2, 0));
    engine.apply(vec![removed(Medium::Gpu, 1, &[5])]);
    assert_eq!(engine.known(9), 2);
}

#[test]
fn several_groups_have_to_agree() {
    let window = |group, names: &[u64]| of_group(group, SpecKind::SlidingWindow, Some(3), names, 8);
    let state = |names: &[u64]| of_group(3, SpecKind::Mamba, None, names, 8);
    let mut engine = Subject::new();
    engine.apply(vec![
        window(1, &[2, 3, 4, 5, 6, 7]),
        window(2, &[1, 2, 3, 4, 7, 8]),
        state(&[1, 3, 4, 8]),
        of_group(4, SpecKind::MlaAttention, None, &[1, 2, 3, 4, 5, 6], 6),
        KvEvent::Stored(stored(1..9)),
    ]);
    assert_eq!((engine.known(9), engine.known(4)), (4, 3));
}

#[test]
fn kinds_that_are_not_understood_claim_nothing() {
    let kinds = [
        (SpecKind::ChunkedLocalAttention, Some(3)),
        (SpecKind::SlidingWindow, None),
        (SpecKind::Other("cross_attention".into()), None),
    ];
    for (kind, window_tokens) in kinds {
        let mut engine = Subject::new();
        engine.apply(vec![KvEvent::Stored(stored(1..6)), placeholder(Medium::Cpu, 0, 1)]);
        assert_eq!(engine.known(9), 5);
        let applied = engine.apply(vec![of_group(1, kind, window_tokens, &[5], 5)]);
        assert!(applied.facts().unsupported_groups && engine.view.is_unsupported());
        assert_eq!((engine.known(9), engine.index.stats().entries), (0, 0));
        assert_eq!(engine.apply(vec![placeholder(Medium::Cpu, 0, 1)]).unsupported_groups, 1);
    }
    // A group whose blocks are of another size, and an engine without full attention.
    let mut engine = Subject::new();
    let KvEvent::Stored(window) = of_group(1, SpecKind::SlidingWindow, Some(3), &[4], 4) else { panic!() };
    let other_size = BlocksStored { block_size_tokens: 2, ..window.clone() };
    engine.apply(vec![KvEvent::Stored(stored(1..6)), KvEvent::Stored(other_size)]);
    assert!(engine.view.is_unsupported());
    let mut engine = Subject::new();
    engine.apply(vec![KvEvent::Stored(BlocksStored { hashes: stored(1..5).hashes, ..window })]);
    assert!(engine.view.is_unsupported());
    assert_eq!(engine.known(9), 0);
}

#[test]
fn a_hybrid_model_loads_what_all_groups_have_offloaded() {
    let window = |names: &[u64], prompt| of_group(1, SpecKind::SlidingWindow, Some(3), names, prompt);
    let mut engine = Subject::new();
    engine.apply(vec![window(&[1, 2, 5, 6], 6), KvEvent::Stored(stored(1..7))]);
    let mut copies: Vec<KvEvent> = (1..7).map(|name| placeholder(Medium::Cpu, 0, name)).collect();
    copies.push(placeholder(Medium::Cpu, 1, 6));
    engine.apply(copies);
    engine.apply(vec![removed(Medium::Gpu, 0, &[6, 5, 4, 3])]);
    assert_eq!(engine.found(9), (2, NONE), "the window's blocks aren't all there");
    engine.apply(vec![placeholder(Medium::Cpu, 1, 5)]);
    assert_eq!(engine.found(9), (6, OffloadedBlocks { cpu: 4, ..NONE }));
    engine.apply(vec![removed(Medium::Cpu, 0, &[4])]);
    assert_eq!(engine.found(9), (2, NONE));
}

#[test]
fn engines_with_one_layer_are_looked_up_as_ever() {
    let mut tiered = Subject::new();
    tiered.apply(vec![KvEvent::Stored(stored(1..5)), placeholder(Medium::Cpu, 0, 1)]);
    let mut plain = tiered.index.add_engine().unwrap();
    let events = vec![KvEvent::Stored(stored(1..4))];
    let skipped = SkippedEvents::default();
    plain.apply(&EventBatch { ts: 0.0, events, data_parallel_rank: None, skipped });
    let (mut keys, mut matches) = (Vec::new(), [Match::default(); 2]);
    block_keys(&[1, 2, 3, 4, 5], 1, &KeyExtras::default(), &mut keys);
    let mut scratch = LookupScratch::default();
    let slots = [plain.slot(), tiered.view.slot()];
    tiered.index.lookup(&keys, &slots, &mut scratch, &mut matches);
    assert_eq!(matches.map(|found| found.known_blocks), [3, 4]);
    assert_eq!(tiered.index.stats().engines, 2);
    // The slot of a layer passes to another engine without a trace.
    tiered.apply(vec![KvEvent::Cleared]);
    tiered.view.clear();
    let fresh = tiered.index.add_engine().unwrap();
    tiered.index.lookup(&keys, &[fresh.slot()], &mut scratch, &mut matches[..1]);
    assert_eq!((matches[0].known_blocks, tiered.index.stats().engines), (0, 3));
}

#[test]
fn without_a_slot_for_a_group_nothing_is_claimed() {
    let index = KvIndex::new(IndexLimits { max_engines: 1, ..IndexLimits::default() });
    let mut engine = Subject { view: index.add_engine().unwrap(), index };
    engine.apply(vec![KvEvent::Stored(stored(1..6))]);
    assert_eq!(engine.apply(vec![placeholder(Medium::Cpu, 0, 1)]).other_media, 1);
    assert_eq!(engine.known(9), 5);
    engine.apply(vec![of_group(1, SpecKind::SlidingWindow, Some(3), &[4, 5], 5)]);
    assert_eq!((engine.known(9), engine.view.is_unsupported()), (0, true));
}
