//! Tokenizer files and chat templates to exactly the token ids that the engine will see.
//!
//! [`ModelTokenizer`] does what vLLM 0.32 does to a request before it has token ids: it checks the request,
//! normalises messages and tools, renders the chat template and encodes the text. All of it is synchronous
//! work of the CPU, bounded by [`PromptOptions`]; run it off the async threads.
//!
//! [`Estimator`] makes pseudo-tokens, for where nothing knows the engine's.

mod chat_template;
mod content_format;
mod encoder;
mod error;
mod estimator;
mod kwargs;
mod media_estimate;
mod media_tokens;
mod member;
mod message;
mod model_tokenizer;
mod prompt_options;
mod python;
mod python_json;
mod python_methods;
mod template_source;
mod tools;
mod truncation;
mod values;

pub use content_format::ContentFormat;
pub use encoder::{Encoder, FastEncoder};
pub use error::{Limit, LoadError, Rejection, TokenizeError, Unsupported};
pub use estimator::Estimator;
pub use media_estimate::{
    FrameChoice, ImageEstimate, NoResolution, PictureTokens, Resolution, VideoEstimate, VideoHints,
};
pub use model_tokenizer::{ModelTokenizer, PromptTokens};
pub use prompt_options::{Clock, PromptOptions};
