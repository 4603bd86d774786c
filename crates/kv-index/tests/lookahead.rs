//! Blocks whose names depend on tokens after them: vLLM from 0.33 on with a draft model that reads ahead. Such events
//! were not recorded; they are written here after the schema: `lookahead_token_ids`, one list per hash.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use serde_json::{Value, json};
use warmroute_kv_events::{DecodeLimits, decode_batch};
use warmroute_kv_index::{
    Applied, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
    predicted_cached_tokens,
};

const BLOCK_TOKENS: u32 = 4;

fn apply(view: &mut EngineView, events: &[Value]) -> Applied {
    let payload = rmp_serde::to_vec(&json!([1.5, events, 0])).unwrap();
    let batch = decode_batch(&payload, &DecodeLimits::default()).unwrap();
    assert_eq!(batch.skipped.count, 0);
    view.apply(&batch)
}

/// Consecutive blocks of `tokens`, which `ahead` further tokens follow.
fn stored(hashes: &[u64], parent: Option<u64>, tokens: &[u32], ahead: usize) -> Value {
    let blocks = hashes.len();
    let size = BLOCK_TOKENS as usize;
    let lists: Vec<&[u32]> =
        (1..=blocks).map(|block| &tokens[block * size..(block * size + ahead).min(tokens.len())]).collect();
    json!({
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent,
        "token_ids": tokens[..blocks * size], "block_size": size, "lora_id": null, "medium": "GPU",
        "lora_name": null, "lookahead_token_ids": lists, "group_idx": 0, "kv_cache_spec_kind": "full_attention",
    })
}

fn removed(hash: u64) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": [hash], "medium": "GPU", "group_idx": 0})
}

struct Engine(std::sync::Arc<KvIndex>, EngineView);

impl Engine {
    fn new() -> Self {
        let index = KvIndex::new(IndexLimits::default());
        let view = index.add_engine().unwrap();
        Self(index, view)
    }

    fn predicted(&self, tokens: &[u32]) -> u32 {
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        block_keys(tokens, BLOCK_TOKENS, &KeyExtras::default(), &mut keys);
        self.0.lookup(&keys, &[self.1.slot()], &mut LookupScratch::default(), &mut matches);
        predicted_cached_tokens(matches[0].known_blocks, tokens.len() as u32, BLOCK_TOKENS)
    }
}

/// Two prompts that part in the lookahead of their second block: its tokens are the same, its names are two.
#[test]
fn one_block_with_two_names_stays_until_both_are_gone() {
    let one: Vec<u32> = (0..14).collect();
    let other: Vec<u32> = (0..8).chain(50..56).collect();
    let mut engine = Engine::new();
    let applied = apply(&mut engine.1, &[stored(&[1, 2, 3], None, &one, 2)]);
    assert_eq!((applied.stored_blocks, applied.key_conflicts), (3, 0));
    // The engine finds the first block only: the second's name goes on with 8, 9.
    assert_eq!(engine.predicted(&other), 4, "never more than delivered");
    assert_eq!(engine.predicted(&one), 8, "the last block isn't claimed: what follows it isn't known");

    apply(&mut engine.1, &[stored(&[12, 13], Some(1), &other[4..], 2)]);
    assert_eq!((engine.predicted(&one), engine.predicted(&other)), (8, 8));
    assert_eq!(engine.1.held_blocks(), 5);

    // The other's branch is evicted, from its end.
    apply(&mut engine.1, &[removed(13), removed(12)]);
    assert_eq!((engine.predicted(&one), engine.predicted(&other)), (8, 4));
    apply(&mut engine.1, &[removed(3), removed(2), removed(1)]);
    assert_eq!((engine.predicted(&one), engine.1.held_blocks()), (0, 0));
    assert_eq!(engine.0.stats().entries, 0);
}

/// A lookahead over more than a block takes more blocks away; after a reset without one, none.
#[test]
fn as_many_blocks_are_left_out_as_the_lookahead_reaches() {
    let tokens: Vec<u32> = (0..40).collect();
    let mut engine = Engine::new();
    let hashes: Vec<u64> = (1..=8).collect();
    for (ahead, known) in [(0, 32), (1, 28), (4, 28), (5, 24), (8, 24)] {
        apply(&mut engine.1, &[json!({"type": "AllBlocksCleared"}), stored(&hashes, None, &tokens, ahead)]);
        assert_eq!(engine.predicted(&tokens[..37]), known, "{ahead} tokens ahead");
    }
    assert_eq!(engine.predicted(&tokens[..4]), 0);
}

/// A part of a block that a model with several kinds of cache announces is neither kept nor in the way.
#[test]
fn blocks_of_another_size_are_left_out() {
    let tokens: Vec<u32> = (0..16).collect();
    let mut engine = Engine::new();
    apply(&mut engine.1, &[stored(&[1, 2], None, &tokens, 0)]);
    let part = json!({
        "type": "BlockStored", "block_hashes": [90], "parent_block_hash": 2, "token_ids": [8, 9], "block_size": 2,
        "lora_id": null, "medium": "GPU", "lora_name": null, "group_idx": 0, "kv_cache_spec_kind": "full_attention",
    });
    let applied = apply(&mut engine.1, &[part, removed(90), stored(&[3], Some(2), &tokens[8..], 0)]);
    assert_eq!((applied.other_block_sizes, applied.unknown_removed_blocks, applied.stored_blocks), (1, 1, 1));
    assert_eq!(engine.predicted(&tokens[..13]), 12);
}
