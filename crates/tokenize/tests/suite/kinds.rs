//! Which encoder takes which `tokenizer.json`, and that each gives the ids of `tokenizers` 0.23.

use std::fs;

use serde_json::{Value, json};
use tokenizers_0_23::Tokenizer;
use warmroute_tokenize::{LoadError, ModelTokenizer};

use crate::files::{qwen, tiny_tokenizer};

/// The tiny tokenizer with one part replaced.
fn with(part: &str, value: Value) -> Value {
    let mut tokenizer: Value = serde_json::from_str(&tiny_tokenizer()).unwrap();
    tokenizer[part] = value;
    tokenizer
}

fn load(tokenizer: &Value, config: &str) -> Result<ModelTokenizer, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    ModelTokenizer::load(dir.path())
}

fn ids(tokenizer: &ModelTokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, true, &mut ids).unwrap();
    ids
}

/// Text that each of the parts below changes or cuts.
const TEXT: &str = "Ab c12\u{ff21}e\u{301}<B> h,\n  de\u{fb01}FG 3";

#[test]
fn the_fast_one_is_preferred() {
    assert_eq!(qwen().encoder_name(), "fastokens 0.3.5");
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let prefixed =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let plain =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split = |behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": "\\p{N}|[a-c]+"}, "behavior": behavior, "invert": invert});
    let digits = json!({"type": "Digits", "individual_digits": true});
    for (part, value) in [
        ("normalizer", Value::Null),
        ("normalizer", json!({"type": "NFC"})),
        ("normalizer", json!({"type": "Lowercase"})),
        ("normalizer", json!({"type": "Prepend", "prepend": "h"})),
        ("normalizer", json!({"type": "Replace", "pattern": {"String": " "}, "content": "gg"})),
        ("normalizer", json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFC"}]})),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [digits, byte_level]})),
        ("pre_tokenizer", prefixed),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split("MergedWithPrevious", false), plain]}),
        ),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split("Removed", true), plain]})),
        ("pre_tokenizer", byte_level.clone()),
    ] {
        let tokenizer = with(part, value);
        let loaded = load(&tokenizer, "{}").unwrap();
        assert_eq!(loaded.encoder_name(), "fastokens 0.3.5", "{}", tokenizer[part]);
        let oracle: Tokenizer = tokenizer.to_string().parse().unwrap();
        assert_eq!(
            ids(&loaded, TEXT),
            oracle.encode_fast(TEXT, true).unwrap().get_ids(),
            "{}",
            tokenizer[part]
        );
    }
}

#[test]
fn what_it_does_not_know_is_left_to_the_other() {
    for (part, value) in [
        ("normalizer", json!({"type": "NFKC"})),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}),
        ),
    ] {
        let tokenizer = with(part, value);
        let loaded = load(&tokenizer, "{}").unwrap();
        assert_eq!(loaded.encoder_name(), "tokenizers 1.0.0-rc.3", "{}", tokenizer[part]);
        let oracle: Tokenizer = tokenizer.to_string().parse().unwrap();
        assert_eq!(
            ids(&loaded, TEXT),
            oracle.encode_fast(TEXT, true).unwrap().get_ids(),
            "{}",
            tokenizer[part]
        );
    }
    for model in [
        json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]], "byte_fallback": false}),
    ] {
        assert!(matches!(load(&with("model", model), "{}"), Err(LoadError::Encoder { .. })));
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let truncation = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 4,
        "pad_type_id": 0, "pad_token": "e"});
    for tokenizer in [with("truncation", truncation), with("padding", padding)] {
        assert_eq!(ids(&load(&tokenizer, "{}").unwrap(), "abcdefgh"), [9, 0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

/// transformers adds them too, and engines run it.
#[test]
fn added_tokens_of_the_configuration_count() {
    let config = r#"{"added_tokens_decoder": {"300": {"content": "<image>", "lstrip": false, "normalized": false,
        "rstrip": false, "single_word": false, "special": true}}}"#;
    let tokenizer: Value = serde_json::from_str(&tiny_tokenizer()).unwrap();
    assert_eq!(ids(&load(&tokenizer, config).unwrap(), "a<image>b"), [9, 0, 300, 1]);
}

/// How many prompts are encoded at a time is bounded elsewhere; a long one must not take more cores than that.
#[cfg(target_os = "linux")]
#[test]
fn a_long_text_stays_on_its_thread() {
    let text = "A long prompt is no reason to start threads. ".repeat(10_000);
    let mut encoded = Vec::new();
    qwen().encode(&text, false, &mut encoded).unwrap();
    assert_eq!(encoded.len(), 100_001);
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let Ok(name) = fs::read_to_string(task.unwrap().path().join("comm")) else { continue };
        assert!(!name.starts_with("fastokens"), "{name}");
    }
}
