//! The fast encoder against `tokenizers` 0.23, which is what vLLM runs.

use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::{Strategy, prop};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokenizers_0_23::Tokenizer;

use crate::files::{qwen, tokenizer_dir};

fn oracle() -> &'static Tokenizer {
    static ORACLE: OnceLock<Tokenizer> = OnceLock::new();
    ORACLE.get_or_init(|| Tokenizer::from_file(tokenizer_dir("qwen2.5").join("tokenizer.json")).unwrap())
}

fn assert_same(text: &str) {
    let expected = oracle().encode_fast(text, false).unwrap();
    let mut ids = vec![7];
    qwen().encode(text, false, &mut ids).unwrap();
    assert_eq!(ids[0], 7, "what was there stays");
    assert!(
        ids[1..] == *expected.get_ids(),
        "other ids for {:?}",
        text.chars().take(200).collect::<String>()
    );
}

/// Every text of the corpus: whole, and in pieces of 1,000 characters.
#[test]
fn corpus() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/corpus"));
    let mut bytes = 0;
    for name in ["prose.txt", "code.txt", "chinese.txt"] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        bytes += text.len();
        assert_same(&text);
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(1_000) {
            assert_same(&piece.iter().collect::<String>());
        }
    }
    assert!(bytes > 100_000, "{bytes} bytes");
}

#[test]
fn awkward_unicode() {
    for text in [
        "",
        " ",
        "\n",
        "\r\n\r\n\u{b}\u{c}\u{85}\u{2028}\u{2029}x",
        "   leading and trailing   ",
        "a\u{0}b\u{1}\u{7f}\u{80}",
        "e\u{301} \u{e9} \u{1e9b}\u{323} \u{212b} \u{fb01} \u{2126}",
        "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}",
        "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪❤️1️⃣",
        "مرحبا שלום ‏(x)‎ नमस्ते क्षि สวัสดี ᠮᠣᠩᠭᠣᠯ አማርኛ",
        "𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ \u{10ffff}\u{fffe}\u{feff}\u{e0001}",
        "don't I'LL we'Ve it’s 'S 'Ll rock'n'roll'",
        "1 12 123 1234567890 ３４５ ٣٤٥ ²³ ½ Ⅷ",
        "<|im_start|>user\n<|im_end|><|endoftext|><tool_call><|im_st",
        "\u{ad}\u{200b}\u{200c}\u{200d}\u{2060}\u{180e}",
        "a\u{a0}b\u{3000}c\u{2009}d\u{202f}e",
        "foo\u{300}\u{301}\u{302}\u{303}\u{304}bar ﬀ ǅ ß ẞ İ ı",
        "_____====----....!!!!????",
    ] {
        assert_same(text);
    }
    assert_same(&"a".repeat(3_000));
    assert_same(&" ".repeat(3_000));
    assert_same(&"\u{301}".repeat(500));
    assert_same(&"ab ".repeat(1_000));
    assert_same("\u{9fe}\u{a3c} \u{fb3e}\u{16ff0} \u{c56}\u{9fe}x");
}

/// Runs that are one word to the model, and lone carriage returns and special tokens between long texts.
#[test]
fn long_runs() {
    for unit in [
        " ",
        "a",
        "中",
        "的",
        "\n",
        "\r",
        "!",
        "7",
        "é",
        "e\u{301}",
        "👍",
        "中文",
        "don't",
        "<|im_start|>",
        "<|im",
    ] {
        let run = unit.repeat(20_000 / unit.len());
        assert_same(&run);
        assert_same(&format!("x\r{run}<|im_end|>\r y {run}"));
    }
}

/// Characters of any script, assigned or not: marks that are newer than the tables 0.23 normalises by must stay in
/// the order that it leaves them in.
const ANY_CHARACTERS: &str = "([\\x00-\u{52f}\u{590}-\u{6ff}\u{900}-\u{1cff}\u{1e00}-\u{20bf}\u{2100}-\u{2fff}\
    \u{3000}-\u{30ff}\u{4e00}-\u{9fff}\u{ac00}-\u{d7a3}\u{f900}-\u{ffef}\u{10000}-\u{11fff}\u{16f00}-\u{16fff}\
    \u{1d400}-\u{1d7ff}\u{1f300}-\u{1f64f}]|(?s:.)){0,30}";

#[test]
fn random_text() {
    let words = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        "\t",
        "the",
        "The",
        "'s",
        "'LL",
        "123",
        "4",
        "é",
        "e\u{301}",
        "中文",
        "，",
        "🙂",
        "<|im_end|>",
        "<|im_start|>",
        "_",
        "\u{a0}",
        "\u{200d}",
        "!",
        "?!",
        "\u{1112}\u{1161}",
        "\r\n",
        "x",
        "नि",
        "'",
        "0",
    ]);
    let texts = (prop::collection::vec(words, 0..60), ANY_CHARACTERS)
        .prop_map(|(words, tail)| words.concat() + &tail);
    let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
        .run(&texts, |text| {
            assert_same(&text);
            Ok(())
        })
        .unwrap();
}
