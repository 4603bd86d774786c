//! What several suites share.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::NaiveDate;
use warmroute_tokenize::{Clock, ModelTokenizer, PromptOptions};

/// The directory of a model's tokenizer files, which the set-up fetches.
pub(crate) fn tokenizer_dir(model: &str) -> PathBuf {
    let root = match std::env::var_os("WARMROUTE_TOKENIZERS") {
        Some(root) => PathBuf::from(root),
        None => Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tokenizers")).to_owned(),
    };
    let dir = root.join(model);
    assert!(
        dir.join("tokenizer.json").is_file(),
        "no tokenizer files in {}: run make setup (or set WARMROUTE_TOKENIZERS)",
        dir.display()
    );
    dir
}

/// The genuine Qwen2.5 tokenizer.
pub(crate) fn qwen() -> &'static ModelTokenizer {
    static QWEN: OnceLock<ModelTokenizer> = OnceLock::new();
    QWEN.get_or_init(|| ModelTokenizer::load(&tokenizer_dir("qwen2.5")).expect("loads"))
}

/// A file of the repository's test data.
pub(crate) fn data(path: &str) -> String {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The settings of the server that recorded the chat vectors.
pub(crate) fn recorded_options() -> PromptOptions {
    let mut options = PromptOptions::default();
    let day = NaiveDate::from_ymd_opt(2026, 11, 20).expect("a day");
    options.clock = Clock::Frozen(day.and_hms_opt(12, 0, 0).expect("a time"));
    options.max_model_len = Some(8192);
    options.trust_request_chat_template = true;
    options
}

/// A tokenizer with one token per byte (`a` is 0, `b` is 1, …), which puts token 9 in front of a sequence.
pub(crate) fn tiny_tokenizer() -> String {
    let mut vocabulary = serde_json::Map::new();
    let mut next_id = 10;
    let mut next_stand_in = 256;
    for byte in 0..=255u8 {
        // Bytes that don't print stand as characters from U+0100 on, as in every byte-level vocabulary.
        let character = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte)
        } else {
            next_stand_in += 1;
            char::from_u32(next_stand_in - 1).unwrap()
        };
        let id = match byte {
            b'a'..=b'h' => u32::from(byte - b'a'),
            b' ' => 8,
            _ => {
                next_id += 1;
                next_id - 1
            }
        };
        vocabulary.insert(character.to_string(), id.into());
    }
    vocabulary.insert("<B>".to_owned(), 9.into());
    let special = serde_json::json!({"id": 9, "content": "<B>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
        "pre_tokenizer":
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<B>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<B>": {"id": "<B>", "ids": [9], "tokens": ["<B>"]}},
        },
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": []},
    })
    .to_string()
}
