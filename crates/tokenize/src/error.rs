//! What can go wrong when loading a model's files and when turning a request into tokens.

use std::path::PathBuf;

use warmroute_inference_api::JsonError;

/// A model's files can't be used. The message says which file, what is wrong with it and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The directory itself is missing.
    #[error(
        "tokenizer directory {} does not exist; download the model's tokenizer.json and \
         tokenizer_config.json into it, or correct the path",
        path.display()
    )]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A file can't be read.
    #[error("can't read {}: {source}; the model's Hugging Face repository has this file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is not valid: {problem}; download it again", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// The tokenizer is of a kind that isn't supported.
    #[error(
        "{} can't be loaded: {problem}; only byte-pair-encoding tokenizers are supported, and Git LFS \
         pointers must be replaced by the files they point to",
        path.display()
    )]
    Encoder {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        problem: String,
    },
    /// The chat template doesn't compile.
    #[error(
        "the chat template in {} does not compile: {problem}; correct it, or remove it if only completions \
         are served",
        path.display()
    )]
    Template {
        /// The file.
        path: PathBuf,
        /// What the template engine says, with the line.
        problem: String,
    },
}

/// A request has no token ids that can be known here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenizeError {
    /// The engine answers status 400 to this request, so it needs no tokens.
    #[error("the engine refuses the request: {0}")]
    Rejected(Rejection),
    /// The engine may accept this request, but its tokens can't be told here.
    #[error("tokens can't be told: {0}")]
    Unsupported(Unsupported),
    /// A limit of [`crate::PromptOptions`] or of this crate was hit.
    #[error("limit exceeded: {0}")]
    Limit(Limit),
}

/// Why the engine refuses a request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// A member of the body has a wrong type or value.
    #[error("`{member}` {problem}")]
    Member {
        /// Name of the member.
        member: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A message of a conversation is wrong.
    #[error("message {index} {problem}")]
    Message {
        /// Place of the message, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A text has a lone surrogate or invalid UTF-8.
    #[error("a text has a lone surrogate or invalid UTF-8")]
    BrokenText,
    /// A member is not JSON after all.
    #[error("`{member}` is not valid: {error}")]
    Json {
        /// Name of the member.
        member: &'static str,
        /// The error, with its offset in the member.
        error: JsonError,
    },
    /// The chat template raised an exception.
    #[error("the chat template says: {0}")]
    RaisedByTemplate(String),
    /// A prompt comes out without tokens.
    #[error("prompt {index} is empty")]
    EmptyPrompt {
        /// Place of the prompt, from 0.
        index: usize,
    },
    /// A prompt leaves no room for output.
    #[error("prompt {index} has {tokens} tokens of a context of {max_model_len}")]
    TooLong {
        /// Place of the prompt, from 0.
        index: usize,
        /// Its length in tokens.
        tokens: usize,
        /// The model's context length in tokens.
        max_model_len: u32,
    },
}

/// Why the tokens of a request can't be told.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The API isn't one that this crate prepares.
    #[error("the API of this path is not prepared here")]
    Api,
    /// The model has no chat template.
    #[error("the model's files have no chat template")]
    NoChatTemplate,
    /// Images, audio or video.
    #[error("message {index} has a part of type {part}")]
    Multimodal {
        /// Place of the message, from 0.
        index: usize,
        /// Type of the part.
        part: String,
    },
    /// A prompt of embeddings, which has no tokens.
    #[error("prompt embeddings have no tokens")]
    PromptEmbeds,
    /// A member is used in a way whose effect isn't known.
    #[error("`{member}` is used in an unknown way")]
    Member {
        /// Name of the member.
        member: &'static str,
    },
    /// `truncate_prompt_tokens` is -1 and the context length isn't known.
    #[error("the context length is not known")]
    UnknownContextLength,
    /// The chat template failed, which may be a difference between template engines.
    #[error("the chat template fails: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("the tokenizer fails: {0}")]
    Encoder(String),
}

/// A limit that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Limit {
    /// The template executed more instructions than allowed.
    #[error("the chat template ran longer than {instructions} instructions")]
    Fuel {
        /// Instructions allowed.
        instructions: u64,
    },
    /// The rendered prompt grew beyond the limit.
    #[error("the rendered prompt is longer than {bytes} bytes")]
    RenderedBytes {
        /// Bytes allowed.
        bytes: usize,
    },
    /// A JSON value has too many parts.
    #[error("`{member}` has too many values")]
    Values {
        /// Name of the member.
        member: &'static str,
    },
    /// A JSON value nests too deep.
    #[error("`{member}` nests too deep")]
    Depth {
        /// Name of the member.
        member: &'static str,
    },
}

impl TokenizeError {
    pub(crate) fn member(member: &'static str, problem: &'static str) -> Self {
        Self::Rejected(Rejection::Member { member, problem })
    }

    pub(crate) fn message(index: usize, problem: &'static str) -> Self {
        Self::Rejected(Rejection::Message { index, problem })
    }

    pub(crate) fn unclear(member: &'static str) -> Self {
        Self::Unsupported(Unsupported::Member { member })
    }
}
