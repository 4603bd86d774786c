//! Text to token ids.

use std::cell::RefCell;
use std::path::Path;

use fastokens::Tokenizer;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use crate::error::{LoadError, TokenizeError, Unsupported};

/// Ids that a thread keeps room for between texts.
const MAX_KEPT_TOKENS: usize = 1 << 20;

/// Turns text into token ids.
pub trait Encoder: Send + Sync {
    /// Appends the ids of `text` to `ids`. `add_special_tokens` surrounds them with those that the model's
    /// post-processor adds, such as a beginning-of-sequence token; special tokens written out in the text
    /// become ids either way.
    ///
    /// # Errors
    /// If the tokenizer fails; `ids` is then as before.
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), TokenizeError>;

    /// Name and version of the library that encodes, for logs and reports.
    fn name(&self) -> &'static str;

    /// Ids and texts of the tokens that are found in a text before anything else, whatever stands beside them; as far
    /// as they are known.
    fn hard_tokens(&self) -> Vec<(u32, String)>;
}

/// The fastest encoder that can load a model's tokenizer: `fastokens`, or else the one of `tokenizers` 1.0, which
/// knows some kinds of normalizers and pre-tokenizers more.
pub struct FastEncoder {
    library: Library,
}

enum Library {
    Fastokens(Box<Tokenizer>),
    Tokenizers(Box<PipelineTokenizer>),
}

impl FastEncoder {
    /// Loads a `tokenizer.json`. What it says about truncation and padding is ignored. Like transformers, the
    /// faster encoder knows added tokens of a `tokenizer_config.json` next to it too.
    ///
    /// # Errors
    /// [`LoadError`] that names the file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
        if let Ok(mut tokenizer) = Tokenizer::from_file(path) {
            tokenizer.set_truncation(None);
            tokenizer.set_padding(None);
            prepare(&tokenizer);
            return Ok(Self { library: Library::Fastokens(Box::new(tokenizer)) });
        }
        let problem = |problem: String| LoadError::Encoder { path: path.to_owned(), problem };
        let canonical = tokenizers::canonicalize_str(&text).map_err(|error| problem(error.to_string()))?;
        let pipeline = tokenizers::from_json(&canonical).map_err(|error| problem(error.to_string()))?;
        Ok(Self { library: Library::Tokenizers(Box::new(pipeline)) })
    }
}

/// Builds what `fastokens` else builds during the first request (about 50 ms), on a thread of its own: the copy
/// that each encoding thread keeps (16 MB for a vocabulary of 150,000) ends with that one.
///
/// The thread may use one core only. So `fastokens`, which asks once in a process how many there are, starts no
/// threads to spread long texts over. A prompt then costs the thread that encodes it and no other: how many
/// prompts are encoded at a time is for the caller to bound.
fn prepare(tokenizer: &Tokenizer) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stay_on_one_core();
            fastokens::fanout::threads();
            // A tokenizer that fails on this fails on every text, and says so then.
            let _ = tokenizer.encode("a é 中文 🙂");
        });
    });
}

/// Where this isn't possible, `fastokens` does start threads, and nothing else changes.
#[cfg(target_os = "linux")]
fn stay_on_one_core() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let Ok(allowed) = sched_getaffinity(None) else { return };
    if let Some(core) = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)) {
        let mut one = CpuSet::new();
        one.set(core);
        let _ = sched_setaffinity(None, &one);
    }
}

#[cfg(not(target_os = "linux"))]
fn stay_on_one_core() {}

impl Encoder for FastEncoder {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        match &self.library {
            Library::Fastokens(tokenizer) => {
                let found =
                    tokenizer.encode_with_special_tokens(text, add_special_tokens).map_err(failure)?;
                ids.extend_from_slice(&found);
                Ok(())
            }
            Library::Tokenizers(pipeline) => encode_by_pipeline(pipeline, text, add_special_tokens, ids),
        }
    }

    fn name(&self) -> &'static str {
        match self.library {
            Library::Fastokens(_) => "fastokens 0.3.5",
            Library::Tokenizers(_) => "tokenizers 1.0.0-rc.3",
        }
    }

    fn hard_tokens(&self) -> Vec<(u32, String)> {
        let Library::Fastokens(tokenizer) = &self.library else { return Vec::new() };
        let added = tokenizer.added_token_configs().iter();
        let hard = added.filter(|token| !token.single_word && !token.normalized);
        hard.map(|token| (token.id, token.content.clone())).collect()
    }
}

fn encode_by_pipeline(
    pipeline: &PipelineTokenizer,
    text: &str,
    add_special_tokens: bool,
    ids: &mut Vec<u32>,
) -> Result<(), TokenizeError> {
    thread_local! {
        static TOKENS: RefCell<Vec<PipelineToken>> = const { RefCell::new(Vec::new()) };
    }
    let options = EncodeOptions {
        add_special_tokens,
        encode_special_tokens: false,
        padding: Override::Off,
        truncation: Override::Off,
    };
    TOKENS.with_borrow_mut(|tokens| {
        tokens.clear();
        pipeline.encode_into(text, &options, tokens).map_err(failure)?;
        ids.extend_from_slice(PipelineToken::cast_slice(tokens));
        tokens.clear();
        tokens.shrink_to(MAX_KEPT_TOKENS);
        Ok(())
    })
}

fn failure(error: impl std::fmt::Display) -> TokenizeError {
    TokenizeError::Unsupported(Unsupported::Encoder(error.to_string()))
}
