//! Text to token ids.

use std::cell::RefCell;
use std::path::Path;

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
}

/// The encoder of the `tokenizers` crate, 1.0.
pub struct FastEncoder {
    pipeline: PipelineTokenizer,
}

impl FastEncoder {
    /// Loads a `tokenizer.json`. What it says about truncation and padding is ignored.
    ///
    /// # Errors
    /// [`LoadError`] that names the file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
        let problem = |problem: String| LoadError::Encoder { path: path.to_owned(), problem };
        let canonical = tokenizers::canonicalize_str(&text).map_err(|error| problem(error.to_string()))?;
        let pipeline = tokenizers::from_json(&canonical).map_err(|error| problem(error.to_string()))?;
        Ok(Self { pipeline })
    }
}

impl Encoder for FastEncoder {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
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
            self.pipeline
                .encode_into(text, &options, tokens)
                .map_err(|error| TokenizeError::Unsupported(Unsupported::Encoder(error.to_string())))?;
            ids.extend_from_slice(PipelineToken::cast_slice(tokens));
            tokens.clear();
            tokens.shrink_to(MAX_KEPT_TOKENS);
            Ok(())
        })
    }
}
