//! What single events do to the index: identity (LoRA, salt, media), copies, groups, media, limits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, EngineHash, EventBatch, ExtraKey, KvEvent, Medium, SkippedEvents, SpecKind,
};
use warmroute_kv_index::{
    Applied, EngineSlot, EngineView, IndexError, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match,
    block_keys,
};

fn stored(hashes: &[u64], parent: Option<u64>, token_ids: &[u32]) -> BlocksStored {
    BlocksStored {
        hashes: hashes.iter().map(|hash| EngineHash::from_u64(*hash)).collect(),
        parent: parent.map(EngineHash::from_u64),
        token_ids: token_ids.to_vec(),
        block_size_tokens: 2,
        lora_name: None,
        lora_id: None,
        medium: Medium::Gpu,
        group: Some(0),
        spec_kind: Some(SpecKind::FullAttention),
        sliding_window_tokens: None,
        extra_keys: Vec::new(),
        cache_salt: None,
        ..BlocksStored::default()
    }
}

fn removed(hashes: &[u64]) -> BlocksRemoved {
    BlocksRemoved {
        hashes: hashes.iter().map(|hash| EngineHash::from_u64(*hash)).collect(),
        medium: Medium::Gpu,
        group: Some(0),
    }
}

fn apply(view: &mut EngineView, events: Vec<KvEvent>) -> Applied {
    view.apply(&EventBatch { ts: 0.0, events, data_parallel_rank: None, skipped: SkippedEvents::default() })
}

fn store(view: &mut EngineView, event: BlocksStored) -> Applied {
    apply(view, vec![KvEvent::Stored(event)])
}

fn remove(view: &mut EngineView, event: BlocksRemoved) -> Applied {
    apply(view, vec![KvEvent::Removed(event)])
}

fn known(index: &KvIndex, slot: EngineSlot, tokens: &[u32], extras: KeyExtras<'_>) -> u32 {
    known_of_size(index, slot, tokens, 2, extras)
}

fn known_of_size(index: &KvIndex, slot: EngineSlot, tokens: &[u32], size: u32, extras: KeyExtras<'_>) -> u32 {
    let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
    block_keys(tokens, size, &extras, &mut keys);
    index.lookup(&keys, &[slot], &mut LookupScratch::default(), &mut matches);
    matches[0].known_blocks
}

const PLAIN: KeyExtras<'static> = KeyExtras { lora: None, cache_salt: None };

fn text(text: &str) -> ExtraKey {
    ExtraKey::Text(text.into())
}

#[test]
fn blocks_chain_over_events() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    assert_eq!((index.block_size(view.slot()), index.block_sizes().len()), (None, 0));
    assert_eq!(store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4])).stored_blocks, 2);
    store(&mut view, stored(&[3], Some(2), &[5, 6]));
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4, 5, 6, 7], PLAIN), 3);
    assert_eq!(known(&index, view.slot(), &[1, 2, 9, 9, 5, 6], PLAIN), 1);
    assert_eq!(index.block_size(view.slot()), Some(2));
    assert_eq!(index.block_sizes().into_iter().collect::<Vec<_>>(), [2]);
    // Without its middle block the rest isn't usable, and comes back with it.
    assert_eq!(remove(&mut view, removed(&[2])).removed_blocks, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4, 5, 6], PLAIN), 1);
    store(&mut view, stored(&[2], Some(1), &[3, 4]));
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4, 5, 6], PLAIN), 3);
    // Some emitters write parent 0 for none.
    store(&mut view, stored(&[8], Some(0), &[7, 7]));
    assert_eq!(known(&index, view.slot(), &[7, 7], PLAIN), 1);
}

#[test]
fn a_block_is_held_until_its_last_copy_is_gone() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    let total = {
        let mut total = store(&mut view, stored(&[1], None, &[1, 2]));
        total += store(&mut view, stored(&[1], None, &[1, 2]));
        total += remove(&mut view, removed(&[1]));
        total
    };
    assert_eq!((total.stored_blocks, total.stored_copies, total.removed_copies), (1, 1, 1));
    assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 1);
    assert_eq!(remove(&mut view, removed(&[1])).removed_blocks, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 0);
    assert_eq!(remove(&mut view, removed(&[1])).unknown_removed_blocks, 1);
    assert_eq!(index.stats().keys, 0);
}

/// A name that stands for two blocks: what comes after it is left out. Placed after the block that had the name first,
/// it would come after itself.
#[test]
fn what_follows_a_name_that_stands_for_two_blocks_is_left_out() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4]));
    // So that the second block begins a run.
    store(&mut view, stored(&[3], Some(1), &[5, 6]));
    let applied = store(&mut view, stored(&[2, 9], None, &[1, 2, 3, 4]));
    assert_eq!((applied.stored_blocks, applied.key_conflicts), (0, 1));
    assert!(applied.facts().unreadable_stores);
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4], PLAIN), 2);
    assert_eq!((view.held_blocks(), index.stats().entries), (3, 3));
    drop(view);
    assert_eq!((index.stats().keys, index.stats().entries), (0, 0));
}

/// `kv_cache_report_mode=full`: the prefix that a request hit is announced again, and is still there once.
#[test]
fn a_prefix_that_is_announced_again_is_no_copy() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4]));
    let again = store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4]));
    assert_eq!((again.announced_again, again.stored_copies, again.stored_blocks), (2, 0, 0));
    // From now on a prefix of one block isn't taken for a copy either.
    assert_eq!(store(&mut view, stored(&[1], None, &[1, 2])).announced_again, 1);
    // A picker that came late learns the prefix, and what follows can be placed.
    let longer = store(&mut view, stored(&[1, 2, 3], None, &[1, 2, 3, 4, 5, 6]));
    assert_eq!((longer.announced_again, longer.stored_blocks), (2, 1));
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4, 5, 6], PLAIN), 3);
    // Blocks behind a parent are copies as ever.
    assert_eq!(store(&mut view, stored(&[3], Some(2), &[5, 6])).stored_copies, 1);
    assert_eq!(remove(&mut view, removed(&[3, 2])).removed_blocks, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4, 5, 6], PLAIN), 1);
    assert_eq!(remove(&mut view, removed(&[1, 3])).removed_blocks, 2);
    assert_eq!((view.held_blocks(), index.stats().keys), (0, 0));
}

#[test]
fn a_key_is_held_while_any_of_its_engine_hashes_is() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    for hash in [1, 2, 3] {
        store(&mut view, stored(&[hash], None, &[1, 2]));
    }
    for hash in [2, 1] {
        remove(&mut view, removed(&[hash]));
        assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 1);
    }
    remove(&mut view, removed(&[3]));
    assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 0);
}

#[test]
fn what_cannot_be_placed_is_left_out_and_counted() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    assert_eq!(store(&mut view, stored(&[2], Some(1), &[1, 2])).unknown_parents, 1);
    // Two hashes for three blocks of tokens, and none at all.
    assert_eq!(store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4, 5, 6])).uneven_stores, 1);
    assert_eq!(store(&mut view, stored(&[], None, &[1, 2])).uneven_stores, 1);
    let placeholder = BlocksStored { block_size_tokens: 0, ..stored(&[9], None, &[]) };
    assert_eq!(store(&mut view, placeholder).stores_without_tokens, 1);
    for medium in [Medium::Cpu, Medium::Storage, Medium::Other("EXTERNAL".into())] {
        let elsewhere = BlocksStored { medium, block_size_tokens: 0, ..stored(&[1], None, &[]) };
        assert_eq!(store(&mut view, elsewhere).other_media, 1);
    }
    assert_eq!((view.held_blocks(), index.stats().keys), (0, 0));
    store(&mut view, stored(&[1], None, &[1, 2]));
    assert_eq!(remove(&mut view, BlocksRemoved { medium: Medium::Cpu, ..removed(&[1]) }).other_media, 1);
    let other_size = BlocksStored { block_size_tokens: 4, ..stored(&[7], None, &[1, 2, 3, 4]) };
    assert_eq!(store(&mut view, other_size.clone()).other_block_sizes, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 1);
    // After a reset the engine may have another block size.
    let applied = apply(&mut view, vec![KvEvent::Cleared, KvEvent::Stored(other_size)]);
    assert_eq!((applied.cleared, applied.stored_blocks), (1, 1));
    assert_eq!(known_of_size(&index, view.slot(), &[1, 2, 3, 4], 4, PLAIN), 1);
    assert_eq!(known(&index, view.slot(), &[1, 2], PLAIN), 0);
    let skipped = SkippedEvents { count: 3, reasons: Vec::new() };
    let batch = EventBatch { ts: 0.0, events: Vec::new(), data_parallel_rank: None, skipped };
    assert_eq!(view.apply(&batch), Applied { malformed: 3, ..Applied::default() });
}

#[test]
fn lora_and_salt_are_part_of_the_prompt() {
    let index = KvIndex::new(IndexLimits::default());
    let tokens = [1, 2, 3, 4];
    let all = [
        KeyExtras { lora: None, cache_salt: None },
        KeyExtras { lora: Some("ada"), cache_salt: None },
        KeyExtras { lora: Some("ada"), cache_salt: Some("tenant") },
        KeyExtras { lora: Some("ada"), cache_salt: Some("ada") },
        KeyExtras { lora: None, cache_salt: Some("tenant") },
        KeyExtras { lora: None, cache_salt: Some("ada") },
    ];
    for extras in all {
        // As vLLM announces it: the adapter on every block, the salt on the first.
        let adapter = extras.lora.map(text);
        let keys = |salt: Option<&str>| {
            let keys: Vec<ExtraKey> = adapter.clone().into_iter().chain(salt.map(text)).collect();
            (!keys.is_empty()).then_some(keys)
        };
        let mut view = index.add_engine().unwrap();
        let lora_name = extras.lora.map(Into::into);
        let first = BlocksStored {
            lora_name: lora_name.clone(),
            extra_keys: vec![keys(extras.cache_salt)],
            ..stored(&[1], None, &tokens[..2])
        };
        let second =
            BlocksStored { lora_name, extra_keys: vec![keys(None)], ..stored(&[2], Some(1), &tokens[2..]) };
        apply(&mut view, vec![KvEvent::Stored(first), KvEvent::Stored(second)]);
        for asked in all {
            let expected = if asked == extras { 2 } else { 0 };
            assert_eq!(known(&index, view.slot(), &tokens, asked), expected, "{extras:?} {asked:?}");
        }
    }
    // SGLang sends the salt as a field.
    let mut view = index.add_engine().unwrap();
    store(&mut view, BlocksStored { cache_salt: Some("tenant".into()), ..stored(&[1, 2], None, &tokens) });
    assert_eq!(known(&index, view.slot(), &tokens, all[4]), 2);
    assert_eq!(known(&index, view.slot(), &tokens, all[0]), 0);
    // An adapter known by number only matches nobody.
    let mut view = index.add_engine().unwrap();
    store(&mut view, BlocksStored { lora_id: Some(1), ..stored(&[1, 2], None, &tokens) });
    assert!(all.iter().all(|asked| known(&index, view.slot(), &tokens, *asked) == 0));
}

#[test]
fn blocks_with_media_or_embeddings_are_no_text() {
    let index = KvIndex::new(IndexLimits::default());
    let tokens = [0; 6];
    let extras = [
        ExtraKey::Media { id: "img".into(), offset_tokens: 1 },
        ExtraKey::Bytes([7; 32].into()),
        text("image identifier of an early version"),
        ExtraKey::Int(4),
        ExtraKey::Other([0xc3].into()),
    ];
    for extra in extras {
        let mut view = index.add_engine().unwrap();
        let event = BlocksStored {
            extra_keys: vec![None, Some(vec![extra.clone()])],
            ..stored(&[1, 2, 3], None, &tokens)
        };
        assert_eq!(store(&mut view, event).stored_blocks, 3);
        assert_eq!(known(&index, view.slot(), &tokens, PLAIN), 1, "{extra:?}");
    }
    // With a salt beside the image on the first block, the salt seeds the chain and the image marks the block.
    let mut view = index.add_engine().unwrap();
    let media = ExtraKey::Media { id: "img".into(), offset_tokens: 0 };
    let event =
        BlocksStored { extra_keys: vec![Some(vec![media, text("salt")])], ..stored(&[1], None, &[0, 0]) };
    store(&mut view, event);
    for cache_salt in [None, Some("salt"), Some("img")] {
        assert_eq!(known(&index, view.slot(), &[0, 0], KeyExtras { lora: None, cache_salt }), 0);
    }
}

#[test]
fn engines_with_other_attention_claim_nothing() {
    let index = KvIndex::new(IndexLimits::default());
    let sliding = |group| BlocksStored {
        group: Some(group),
        spec_kind: Some(SpecKind::SlidingWindow),
        ..stored(&[1], None, &[1, 2])
    };
    let mut hybrid = index.add_engine().unwrap();
    let applied =
        apply(&mut hybrid, vec![KvEvent::Stored(stored(&[1], None, &[1, 2])), KvEvent::Stored(sliding(1))]);
    assert_eq!((applied.stored_blocks, applied.unsupported_groups), (0, 2));
    assert!(hybrid.is_unsupported());
    // What was claimed before the other group showed up is withdrawn.
    let mut late = index.add_engine().unwrap();
    store(&mut late, stored(&[1], None, &[1, 2]));
    assert_eq!(known(&index, late.slot(), &[1, 2], PLAIN), 1);
    let second_group = BlocksStored { group: Some(1), spec_kind: None, ..stored(&[1], None, &[1, 2]) };
    assert_eq!(store(&mut late, second_group).unsupported_groups, 1);
    assert_eq!(known(&index, late.slot(), &[1, 2], PLAIN), 0);
    assert_eq!(store(&mut late, stored(&[1], None, &[1, 2])).unsupported_groups, 1);
    assert_eq!(index.stats().entries, 0);
    // Versions that number the group without naming its kind have one.
    let mut unnamed = index.add_engine().unwrap();
    store(&mut unnamed, BlocksStored { spec_kind: None, ..stored(&[1], None, &[1, 2]) });
    assert_eq!(known(&index, unnamed.slot(), &[1, 2], PLAIN), 1);
    for spec_kind in [SpecKind::MlaAttention, SpecKind::SinkFullAttention] {
        let mut view = index.add_engine().unwrap();
        let event = BlocksStored { spec_kind: Some(spec_kind), ..stored(&[1], None, &[1, 2]) };
        assert_eq!(store(&mut view, event).stored_blocks, 1);
    }
}

#[test]
fn a_full_index_refuses_and_counts() {
    let index = KvIndex::new(IndexLimits { max_entries: 3, ..IndexLimits::default() });
    let mut view = index.add_engine().unwrap();
    let applied = store(&mut view, stored(&[1, 2, 3, 4, 5], None, &[1, 1, 2, 2, 3, 3, 4, 4, 5, 5]));
    assert_eq!((applied.stored_blocks, applied.refused_blocks), (3, 2));
    assert_eq!(store(&mut view, stored(&[6], Some(5), &[6, 6])).unknown_parents, 1);
    // A copy takes no room.
    assert_eq!(store(&mut view, stored(&[1], None, &[1, 1])).stored_copies, 1);
    let stats = index.stats();
    assert_eq!((stats.entries, stats.keys, stats.refused_blocks, stats.engines), (3, 3, 2, 1));
    view.clear();
    assert_eq!(store(&mut view, stored(&[1, 2, 3], None, &[1, 1, 2, 2, 3, 3])).stored_blocks, 3);
    drop(view);
    assert_eq!((index.stats().entries, index.stats().keys, index.stats().engines), (0, 0, 0));
}

#[test]
fn a_slot_is_reused_without_a_trace() {
    let index = KvIndex::new(IndexLimits { max_engines: 1, ..IndexLimits::default() });
    let mut first = index.add_engine().unwrap();
    assert_eq!(index.add_engine().err(), Some(IndexError::TooManyEngines { max_engines: 1 }));
    store(&mut first, stored(&[1], None, &[1, 2]));
    let old = first.slot();
    drop(first);
    assert_eq!((known(&index, old, &[1, 2], PLAIN), index.block_size(old)), (0, None));
    let mut second = index.add_engine().unwrap();
    assert_eq!(second.slot().index, old.index);
    assert_eq!(known(&index, second.slot(), &[1, 2], PLAIN), 0);
    store(&mut second, stored(&[1], None, &[1, 2]));
    assert_eq!(known(&index, old, &[1, 2], PLAIN), 0);
    assert_eq!(known(&index, second.slot(), &[1, 2], PLAIN), 1);
}

#[test]
fn hundreds_of_engines_hold_one_prompt() {
    let index = KvIndex::new(IndexLimits::default());
    let mut views: Vec<EngineView> = (0..700).map(|_| index.add_engine().unwrap()).collect();
    for (number, view) in views.iter_mut().enumerate() {
        let blocks = number % 5;
        let hashes: Vec<u64> = (1..=blocks as u64).collect();
        let tokens: Vec<u32> = (0..2 * blocks as u32).collect();
        if blocks > 0 {
            store(view, stored(&hashes, None, &tokens));
        }
    }
    let mut keys = Vec::new();
    block_keys(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2, &PLAIN, &mut keys);
    // In any order, also with one slot twice.
    let slots: Vec<EngineSlot> = views.iter().rev().chain(&views[..1]).map(EngineView::slot).collect();
    let mut matches = vec![Match::default(); slots.len()];
    index.lookup(&keys, &slots, &mut LookupScratch::default(), &mut matches);
    for (slot, found) in slots.iter().zip(matches) {
        assert_eq!(found.known_blocks, slot.index % 5);
        assert_eq!(found.expected_blocks, slot.index % 5);
    }
    drop(views);
    assert_eq!(index.stats().keys, 0);
}

#[test]
fn blocks_of_every_size_are_matched_in_their_own() {
    let index = KvIndex::new(IndexLimits::default());
    let views: Vec<EngineView> = [1_u32, 16, 64, 1_056]
        .into_iter()
        .map(|size| {
            let mut view = index.add_engine().unwrap();
            let tokens: Vec<u32> = (0..3 * size).collect();
            let event = BlocksStored { block_size_tokens: size, ..stored(&[1, 2, 3], None, &tokens) };
            assert_eq!(store(&mut view, event).stored_blocks, 3);
            let longer: Vec<u32> = (0..5 * size).collect();
            assert_eq!(known_of_size(&index, view.slot(), &longer, size, PLAIN), 3);
            let end = 2 * size as usize;
            assert_eq!(
                known_of_size(&index, view.slot(), &tokens[..end + size as usize / 2], size, PLAIN),
                2
            );
            view
        })
        .collect();
    assert_eq!(index.block_sizes().into_iter().collect::<Vec<_>>(), [1, 16, 64, 1_056]);
    // In another engine's size nothing is found, though the tokens are the same.
    assert_eq!(known_of_size(&index, views[1].slot(), &(0..3_168).collect::<Vec<u32>>(), 64, PLAIN), 0);
}

/// Two requests with one prompt decode side by side, a block at a time, while the cache evicts from the other end of the
/// older answer.
#[test]
fn blocks_are_decoded_one_at_a_time_while_others_are_evicted() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    let token = |answer: u32, block: u32| [answer * 1_000 + 2 * block, answer * 1_000 + 2 * block + 1];
    let hash = |answer: u32, block: u32| u64::from(answer * 1_000 + block + 1);
    store(&mut view, stored(&[500, 501], None, &[1, 2, 3, 4]));
    let prompt = |answer: u32, blocks: u32| {
        let tokens = (0..blocks).flat_map(|block| token(answer, block));
        [1, 2, 3, 4].into_iter().chain(tokens).collect::<Vec<u32>>()
    };
    for block in 0..200 {
        for answer in [1, 2] {
            let parent = if block == 0 { 501 } else { hash(answer, block - 1) };
            let applied =
                store(&mut view, stored(&[hash(answer, block)], Some(parent), &token(answer, block)));
            assert_eq!(applied.stored_blocks, 1);
        }
    }
    assert_eq!(known(&index, view.slot(), &prompt(1, 200), PLAIN), 202);
    for block in (50..200).rev() {
        assert_eq!(remove(&mut view, removed(&[hash(1, block)])).removed_blocks, 1);
        let parent = hash(2, 399 - block - 1);
        store(&mut view, stored(&[hash(2, 399 - block)], Some(parent), &token(2, 399 - block)));
        assert_eq!(known(&index, view.slot(), &prompt(1, 200), PLAIN), block + 2);
    }
    assert_eq!(known(&index, view.slot(), &prompt(2, 350), PLAIN), 352);
    assert_eq!(index.stats().keys, 2 + 50 + 350);
}

/// A prompt that fills its last block exactly is computed again from that block on, since its last token always is: the
/// engine then holds the block twice.
#[test]
fn the_last_block_of_an_exactly_filled_prompt_is_a_copy() {
    let index = KvIndex::new(IndexLimits::default());
    let mut view = index.add_engine().unwrap();
    store(&mut view, stored(&[1, 2], None, &[1, 2, 3, 4]));
    assert_eq!(store(&mut view, stored(&[2], Some(1), &[3, 4])).stored_copies, 1);
    assert_eq!(remove(&mut view, removed(&[2])).removed_copies, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4], PLAIN), 2);
    assert_eq!(remove(&mut view, removed(&[2])).removed_blocks, 1);
    assert_eq!(known(&index, view.slot(), &[1, 2, 3, 4], PLAIN), 1);
}
