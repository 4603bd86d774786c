//! What is refused of a request.

use crate::json_error::JsonError;

/// Longest part of a path that an error repeats, in bytes.
const SHOWN_PATH_BYTES: usize = 200;

/// A request that is refused with status 400, in the words of the llm-d router (`pkg/epp/handlers/parsers.go` and
/// `pkg/epp/framework/plugins/requesthandling/parsers` in github.com/llm-d/llm-d-router).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The body isn't a JSON object.
    #[error("error unmarshaling request bodyMap: {0}")]
    NotAnObject(JsonError),
    /// A chat request whose `messages` is missing, empty or no array.
    #[error("invalid chat completions request: must have valid messages field")]
    NoMessages,
    /// A completion request whose `prompt` is missing, null or empty.
    #[error("invalid completions request: must have prompt field")]
    NoPrompt,
    /// A request for images without a `prompt`.
    #[error("invalid images generations request: must have prompt field")]
    NoImagePrompt,
    /// A request for embeddings whose `input` is missing, null or empty.
    #[error("invalid embeddings request: must have input field")]
    NoEmbeddingsInput,
    /// A request for a response whose `input` is missing, null or empty.
    #[error("invalid responses request: must have input field")]
    NoResponsesInput,
    /// A request for a conversation whose `items` is missing, empty or no array.
    #[error("invalid conversations request: must have items field")]
    NoItems,
    /// An Anthropic request whose `messages` is missing, empty or no array.
    #[error("invalid messages request: must have at least one message")]
    NoAnthropicMessages,
    /// A generate request of vLLM without token ids.
    #[error("invalid generate request: must have non-empty token_ids field")]
    NoTokenIds,
    /// A generate request of SGLang that has neither token ids nor a text.
    #[error("invalid generate request: input_ids or text must be provided")]
    NoInputIds,
    /// A generate request of SGLang whose token ids aren't any.
    #[error("invalid generate request: input_ids must be an array of uint32 integers")]
    WrongInputIds,
    /// A generate request of SGLang without a single token.
    #[error("invalid generate request: input_ids cannot be empty")]
    EmptyInputIds,
    /// A generate request of SGLang whose salt is no text.
    #[error("unsupported generate request: extra_key must be a string")]
    WrongExtraKey,
    /// The API needs a model, and the body names none, or an empty one.
    #[error("model not found in request body")]
    NoModel,
    /// No parser of the configuration takes the path, and none takes everything.
    #[error("no parser registered matching path suffix for: {path}")]
    NoParser {
        /// The path, shortened.
        path: String,
    },
    /// The parser of this path's suffix takes one path only, and this is another.
    #[error("unsupported path: {path}")]
    UnsupportedPath {
        /// The path, shortened.
        path: String,
    },
}

impl Rejection {
    /// Byte offset in the body of what is wrong, where there is one.
    pub fn offset(&self) -> Option<usize> {
        match self {
            Self::NotAnObject(error) => Some(error.offset),
            _ => None,
        }
    }

    pub(crate) fn no_parser(path: &str) -> Self {
        Self::NoParser { path: shown(path) }
    }

    pub(crate) fn unsupported_path(path: &str) -> Self {
        Self::UnsupportedPath { path: shown(path) }
    }
}

fn shown(path: &str) -> String {
    path[..path.floor_char_boundary(SHOWN_PATH_BYTES)].to_owned()
}

impl From<JsonError> for Rejection {
    fn from(error: JsonError) -> Self {
        Self::NotAnObject(error)
    }
}
