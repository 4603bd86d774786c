//! What besides tokens decides a block's content, as engines of each version announce it: images, prompt embeddings,
//! LoRA adapters, cache salts. What has equal tokens and another content never matches, and what a version doesn't tell
//! is asked for by nobody.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::Value;
use warmroute_kv_events::{DecodeLimits, decode_batch};
use warmroute_kv_index::{
    Applied, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

const BLOCK_TOKENS: u32 = 4;
/// What stands for one token of an image.
const IMAGE: u32 = 900;

/// A value as engines write it, with bytes that aren't lists of numbers.
#[derive(Clone)]
enum Wire {
    Nil,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Wire>),
}

impl Serialize for Wire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_none(),
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::List(values) => values.serialize(serializer),
        }
    }
}

fn text(text: &str) -> Wire {
    Wire::Text(text.to_owned())
}

/// An image from vLLM 0.19 on: its identifier, and where it begins as seen from the block.
fn image(id: &str, offset_tokens: i64) -> Wire {
    Wire::List(vec![text(id), Wire::Int(offset_tokens)])
}

/// A store of consecutive blocks at the start of a sequence.
#[derive(Clone)]
struct Store {
    first_hash: u64,
    tokens: Vec<u32>,
    lora_id: Option<i64>,
    lora_name: Option<&'static str>,
    /// Per block.
    extra_keys: Vec<Vec<Wire>>,
}

impl Store {
    fn new(first_hash: u64, tokens: &[u32]) -> Self {
        Self { first_hash, tokens: tokens.to_vec(), lora_id: None, lora_name: None, extra_keys: Vec::new() }
    }

    fn with_extras(self, extra_keys: Vec<Vec<Wire>>) -> Self {
        Self { extra_keys, ..self }
    }

    fn of_adapter(self, number: i64, name: Option<&'static str>) -> Self {
        Self { lora_id: Some(number), lora_name: name, ..self }
    }

    fn hashes(&self) -> Wire {
        let blocks = self.tokens.len() as u64 / u64::from(BLOCK_TOKENS);
        Wire::List((0..blocks).map(|at| Wire::Int((self.first_hash + at) as i64)).collect())
    }

    fn extras(&self) -> Wire {
        let of_block = |extras: &Vec<Wire>| match extras.is_empty() {
            true => Wire::Nil,
            false => Wire::List(extras.clone()),
        };
        match self.extra_keys.is_empty() {
            true => Wire::Nil,
            false => Wire::List(self.extra_keys.iter().map(of_block).collect()),
        }
    }

    /// The form from vLLM 0.24 on.
    fn as_map(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct BlockStored<'a> {
            r#type: &'a str,
            block_hashes: Wire,
            parent_block_hash: Wire,
            token_ids: &'a [u32],
            block_size: u32,
            lora_id: Option<i64>,
            medium: &'a str,
            lora_name: Option<&'a str>,
            extra_keys: Wire,
            group_idx: u32,
            kv_cache_spec_kind: &'a str,
        }
        let event = BlockStored {
            r#type: "BlockStored",
            block_hashes: self.hashes(),
            parent_block_hash: Wire::Nil,
            token_ids: &self.tokens,
            block_size: BLOCK_TOKENS,
            lora_id: self.lora_id,
            medium: "GPU",
            lora_name: self.lora_name,
            extra_keys: self.extras(),
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        };
        let mut bytes = Vec::new();
        let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
        (1.0, (event,), 0).serialize(&mut serializer).unwrap();
        bytes
    }

    /// The forms before: with 8 fields (vLLM 0.17 to 0.19), with 7 (0.14 to 0.16) or 6 (0.10.2 to 0.13).
    fn as_array(&self, fields: usize) -> Vec<u8> {
        let number = |number: Option<i64>| number.map_or(Wire::Nil, Wire::Int);
        let mut event = vec![
            text("BlockStored"),
            self.hashes(),
            Wire::Nil,
            Wire::List(self.tokens.iter().map(|token| Wire::Int((*token).into())).collect()),
            Wire::Int(BLOCK_TOKENS.into()),
            number(self.lora_id),
            text("GPU"),
            self.lora_name.map_or(Wire::Nil, text),
            self.extras(),
        ];
        event.truncate(1 + fields);
        rmp_serde::to_vec(&(1.0, (event,), 0)).unwrap()
    }
}

/// One engine and what is asked of it.
struct Engine {
    index: std::sync::Arc<KvIndex>,
    view: EngineView,
}

impl Engine {
    fn new() -> Self {
        let index = KvIndex::new(IndexLimits::default());
        let view = index.add_engine().unwrap();
        Self { index, view }
    }

    fn apply(&mut self, payload: &[u8]) -> Applied {
        let batch = decode_batch(payload, &DecodeLimits::default()).unwrap();
        let applied = self.view.apply(&batch);
        assert_eq!((applied.malformed, applied.uneven_stores), (0, 0), "{batch:?}");
        applied
    }

    /// Leading blocks of a prompt that the engine is known to hold.
    fn known(&self, tokens: &[u32], extras: KeyExtras<'_>) -> u32 {
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        block_keys(tokens, BLOCK_TOKENS, &extras, &mut keys);
        self.index.lookup(&keys, &[self.view.slot()], &mut LookupScratch::default(), &mut matches);
        matches[0].known_blocks
    }
}

const PLAIN: KeyExtras<'static> = KeyExtras { lora: None, cache_salt: None };

fn lora(name: &str) -> KeyExtras<'_> {
    KeyExtras { lora: Some(name), cache_salt: None }
}

fn salt(salt: &str) -> KeyExtras<'_> {
    KeyExtras { lora: None, cache_salt: Some(salt) }
}

/// Two blocks of text, then an image that begins in the third, then text.
fn prompt_with_image() -> Vec<u32> {
    vec![1, 2, 3, 4, 5, 6, 7, 8, 9, IMAGE, IMAGE, IMAGE, IMAGE, 10, 11, 12, 13, 14, 15, 16]
}

/// What a request knows of it: the tokens before the image.
const BEFORE_IMAGE: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9];

#[test]
fn blocks_of_an_image_match_no_text_where_its_place_is_told() {
    let mut engine = Engine::new();
    let tokens = prompt_with_image();
    let extras = vec![vec![], vec![], vec![image("a", 1)], vec![image("a", -3)], vec![]];
    engine.apply(&Store::new(1, &tokens).with_extras(extras).as_map());
    assert_eq!(engine.known(BEFORE_IMAGE, PLAIN), 2);
    assert_eq!(engine.known(&tokens, PLAIN), 2, "a text with the image's tokens isn't the image");
    // Another image in its place is another third block, and the engine says so.
    let other = vec![vec![], vec![], vec![image("b", 1)], vec![image("b", -3)], vec![]];
    let applied =
        engine.apply(&Store { first_hash: 11, ..Store::new(1, &tokens).with_extras(other) }.as_map());
    assert_eq!((applied.key_conflicts, applied.stored_blocks), (0, 5));
}

#[test]
fn blocks_of_an_image_match_no_text_where_its_identifier_alone_is_told() {
    let mut engine = Engine::new();
    let tokens = prompt_with_image();
    let extras = vec![vec![], vec![], vec![text("a")], vec![text("a")], vec![]];
    engine.apply(&Store::new(1, &tokens).with_extras(extras).as_array(8));
    assert_eq!(engine.known(BEFORE_IMAGE, PLAIN), 2);
    assert_eq!(engine.known(&tokens, PLAIN), 2);
    // In the first block the identifier looks like a salt. No prompt has that salt, and text no more than any.
    let at_start = vec![IMAGE, IMAGE, 1, 2, 3, 4, 5, 6];
    engine.apply(&Store::new(21, &at_start).with_extras(vec![vec![text("a")], vec![]]).as_array(8));
    assert_eq!(engine.known(&at_start, PLAIN), 0);
    assert_eq!(engine.known(&at_start, salt("tenant")), 0);
    // With a salt behind it the salt is taken for one.
    let salted = vec![vec![text("a"), text("tenant")], vec![]];
    engine.apply(&Store::new(31, &at_start).with_extras(salted).as_array(8));
    assert_eq!(engine.known(&at_start, salt("tenant")), 0, "the image is still no text");
}

/// vLLM up to 0.16 doesn't tell of images: blocks of different ones look the same. A request is known up to its first
/// image only, so that nothing is claimed of them.
#[test]
fn where_images_are_not_told_nothing_behind_the_first_is_claimed() {
    for fields in [6, 7] {
        let mut engine = Engine::new();
        let tokens = prompt_with_image();
        engine.apply(&Store::new(1, &tokens).as_array(fields));
        // Another image: the engine hashes it otherwise, and doesn't say why.
        engine.apply(&Store::new(11, &tokens).as_array(fields));
        assert_eq!(engine.known(BEFORE_IMAGE, PLAIN), 2, "of this image or any other");
        for (first, left) in [(1, 2), (11, 0)] {
            let hashes: Vec<u64> = (first..first + 5).collect();
            let event = (1.0, (("BlockRemoved", hashes, "GPU"),), 0);
            assert_eq!(engine.apply(&rmp_serde::to_vec(&event).unwrap()).removed_blocks, 5);
            assert_eq!(engine.known(BEFORE_IMAGE, PLAIN), left);
        }
    }
}

#[test]
fn prompt_embeddings_match_neither_each_other_nor_zeros() {
    let zeros = [0; 8];
    let embedded = |hash, digest: u8| {
        let extras = [digest, digest + 1].map(|digest| vec![Wire::Bytes(vec![digest; 32])]);
        Store::new(hash, &zeros).with_extras(extras.to_vec())
    };
    for is_map in [true, false] {
        let mut engine = Engine::new();
        let bytes = |store: Store| if is_map { store.as_map() } else { store.as_array(8) };
        assert_eq!(engine.apply(&bytes(embedded(1, 10))).stored_blocks, 2);
        let other = engine.apply(&bytes(embedded(11, 20)));
        assert_eq!((other.stored_blocks, other.key_conflicts), (2, 0));
        assert_eq!(engine.known(&zeros, PLAIN), 0);
        assert_eq!(engine.known(&zeros, salt("tenant")), 0);
        // A text of zeros is one of its own.
        engine.apply(&bytes(Store::new(21, &zeros)));
        assert_eq!(engine.known(&zeros, PLAIN), 2);
    }
}

#[test]
fn an_adapter_and_the_model_have_blocks_of_their_own() {
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let named = |extra: bool| match extra {
        true => vec![vec![text("ada")], vec![text("ada")]],
        false => Vec::new(),
    };
    type Form = (&'static str, fn(&Store) -> Vec<u8>, bool);
    let forms: [Form; 3] = [
        ("map, name among the extra keys", Store::as_map, true),
        ("array, name among the extra keys", |store| store.as_array(8), true),
        ("array, name alone", |store| store.as_array(7), false),
    ];
    for (form, bytes, has_extras) in forms {
        let mut engine = Engine::new();
        engine
            .apply(&bytes(&Store::new(1, &tokens).of_adapter(1, Some("ada")).with_extras(named(has_extras))));
        assert_eq!(engine.known(&tokens, lora("ada")), 2, "{form}");
        assert_eq!((engine.known(&tokens, PLAIN), engine.known(&tokens, lora("bob"))), (0, 0), "{form}");
        engine.apply(&bytes(&Store::new(11, &tokens[..4])));
        assert_eq!((engine.known(&tokens, lora("ada")), engine.known(&tokens, PLAIN)), (2, 1), "{form}");
        // A model's name may hold what topics are split by.
        let odd = "org/x@fp8";
        engine.apply(&bytes(&Store::new(21, &tokens).of_adapter(2, Some(odd))));
        assert_eq!(
            (engine.known(&tokens, lora(odd)), engine.known(&tokens, lora("org/x"))),
            (2, 0),
            "{form}"
        );
    }
}

/// vLLM up to 0.13 tells an adapter's number alone. Which name has it isn't known, so nobody matches it.
#[test]
fn an_adapter_that_is_a_number_matches_nothing() {
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut engine = Engine::new();
    engine.apply(&Store::new(1, &tokens).of_adapter(1, None).as_array(6));
    for extras in [PLAIN, lora("ada"), lora("1"), salt("1")] {
        assert_eq!(engine.known(&tokens, extras), 0, "{extras:?}");
    }
    // Another number is another adapter: the same tokens are no conflict.
    let other = engine.apply(&Store::new(11, &tokens).of_adapter(2, None).as_array(6));
    assert_eq!((other.stored_blocks, other.key_conflicts), (2, 0));
    engine.apply(&Store::new(21, &tokens).as_array(6));
    assert_eq!((engine.known(&tokens, PLAIN), engine.known(&tokens, lora("ada"))), (2, 0));
}

#[test]
fn an_adapter_with_a_salt_matches_both_alone() {
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let both = KeyExtras { lora: Some("ada"), cache_salt: Some("tenant") };
    for is_map in [true, false] {
        let mut engine = Engine::new();
        let extras = vec![vec![text("ada"), text("tenant")], vec![text("ada")]];
        let store = Store::new(1, &tokens).of_adapter(1, Some("ada")).with_extras(extras);
        engine.apply(&if is_map { store.as_map() } else { store.as_array(8) });
        assert_eq!(engine.known(&tokens, both), 2);
        for extras in [PLAIN, lora("ada"), salt("tenant"), salt("ada"), lora("tenant")] {
            assert_eq!(engine.known(&tokens, extras), 0, "{extras:?}");
        }
        // A salt that is spelt like the adapter is one all the same.
        let extras = vec![vec![text("ada"), text("ada")], vec![text("ada")]];
        let store = Store::new(11, &tokens).of_adapter(1, Some("ada")).with_extras(extras);
        engine.apply(&if is_map { store.as_map() } else { store.as_array(8) });
        assert_eq!(engine.known(&tokens, KeyExtras { lora: Some("ada"), cache_salt: Some("ada") }), 2);
    }
}

/// From vLLM 0.31 on a block's hash covers the path of its adapter, which no event tells. An adapter that is loaded again
/// under its name from another path has other hashes, and the blocks of both look the same: they count until the last
/// of them is gone.
#[test]
fn an_adapter_under_another_path_has_other_hashes_and_the_same_keys() {
    let tokens = [1, 2, 3, 4];
    let mut engine = Engine::new();
    let named = |hash| {
        let store = Store::new(hash, &tokens).of_adapter(1, Some("ada"));
        store.with_extras(vec![vec![text("ada")]]).as_map()
    };
    let first = engine.apply(&named(1));
    let second = engine.apply(&named(11));
    assert_eq!((first.stored_blocks, second.stored_blocks, second.key_conflicts), (1, 1, 0));
    assert_eq!(engine.known(&tokens, lora("ada")), 1);
    for (hash, left) in [(1, 1), (11, 0)] {
        let event = (1.0, (("BlockRemoved", (hash,), "GPU", 0),), 0);
        assert_eq!(engine.apply(&rmp_serde::to_vec(&event).unwrap()).removed_blocks, 1);
        assert_eq!(engine.known(&tokens, lora("ada")), left);
    }
}

/// vLLM's own hashes of prompts whose blocks hold more than tokens: two prompts have a key in common exactly where they
/// have a hash in common. (Hashes cover an adapter's path too, but each adapter here has one.)
#[test]
fn keys_are_equal_where_vllms_hashes_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/vllm/hash-vectors/vectors-0.32.0-seed-0.jsonl");
    let file = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Some have numbers that are no tokens of any model.
    let has_tokens = |case: &Value| {
        let tokens = case["effective_token_ids"].as_array();
        tokens.is_some_and(|ids| ids.iter().all(|id| id.as_u64() <= Some(u32::MAX.into())))
    };
    let of_size = |size: u64| {
        let is_of_size = move |case: &&Value| {
            case["algo"] == "sha256_cbor" && case["block_size"] == size && has_tokens(case)
        };
        cases.iter().filter(is_of_size)
    };
    let (mut embedded, mut pictured, mut blocks) = (0, 0, 0);
    for size in [4, 16, 32, 256] {
        // One engine for all prompts of a block size: a key conflict would be two contents under one key.
        let index = KvIndex::new(IndexLimits::default());
        let mut view = index.add_engine().unwrap();
        let mut names = std::collections::HashSet::new();
        for case in of_size(size) {
            let applied = view.apply(&decode_batch(&published(case), &DecodeLimits::default()).unwrap());
            let of_case = case["blocks"].as_array().unwrap();
            let new =
                of_case.iter().filter(|block| names.insert(block["hash_u64"].as_u64().unwrap())).count();
            assert_eq!(applied.stored_blocks, new as u64, "{}", case["case"]);
            assert_eq!(applied.key_conflicts, 0, "{}", case["case"]);
            embedded += usize::from(!case["prompt_embeds"].is_null());
            pictured += usize::from(!case["mm"].is_null());
            blocks += new;
        }
        // As many keys as hashes: none was taken for another's.
        assert_eq!(index.stats().keys, names.len(), "block size {size}");
    }
    assert!(embedded >= 2 && pictured >= 4 && blocks > 40, "{embedded} {pictured} {blocks}");
}

/// The event of vLLM 0.32 for a recorded prompt: extra keys lose their tags, and adapters their paths.
fn published(case: &Value) -> Vec<u8> {
    let untagged = |key: &Value| {
        let parts = key.as_array().unwrap();
        match parts[0].as_str().unwrap() {
            "mm" => image(parts[1].as_str().unwrap(), parts[2].as_i64().unwrap()),
            "prompt_embeds" => Wire::Bytes(unhex(parts[1]["$bytes_hex"].as_str().unwrap())),
            _ => text(parts[1].as_str().unwrap()),
        }
    };
    let blocks = case["blocks"].as_array().unwrap();
    let extras = blocks.iter().map(|block| match &block["extra_keys"] {
        Value::Null => Wire::Nil,
        keys => Wire::List(keys.as_array().unwrap().iter().map(untagged).collect()),
    });
    let size = case["block_size"].as_u64().unwrap();
    let tokens = case["effective_token_ids"].as_array().unwrap();
    let tokens = &tokens[..blocks.len() * size as usize];
    let lora = &case["lora"];
    let lora_name = lora["name"].as_str().or_else(|| lora.as_array()?.first()?.as_str()).or(lora.as_str());
    let event = (
        "BlockStored",
        blocks.iter().map(|block| block["hash_u64"].as_u64().unwrap()).collect::<Vec<_>>(),
        (),
        tokens.iter().map(|token| token.as_u64().unwrap()).collect::<Vec<_>>(),
        size,
        (),
        "GPU",
        lora_name,
        extras.collect::<Vec<_>>(),
        0,
        "full_attention",
        (),
    );
    rmp_serde::to_vec(&(1.0, (event,), 0)).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}
