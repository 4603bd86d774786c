//! Bodies of the inference APIs: request body to typed request, response body to usage.
//!
//! [`ParserList`] says which API a path belongs to. [`parse_request`] scans a contiguous body once and borrows from it; [`usage_of_json`] and [`SseUsage`]
//! read what a response says about its tokens. Everything here is bounded in memory and nesting, and no
//! input panics.
//!
//! The JSON dialect is that of Python's `json` module, because that is what vLLM reads requests with:
//! `NaN`, `Infinity` and `-Infinity` are numbers, integers are unbounded, `1e400` is infinity, and of
//! duplicate keys the last value wins at the place of the first.

mod api;
mod field;
mod json_error;
mod json_lexer;
mod json_value;
mod message_count;
mod rejection;
mod request;
mod sse_usage;
mod token_ids;
mod usage;

pub use api::{Api, ApiParser, ParserList, api_of_path};
pub use field::Field;
pub use json_error::{JsonError, JsonErrorKind};
pub use json_lexer::{MAX_SCAN_DEPTH, MAX_TREE_VALUES};
pub use json_value::{JsonNumber, JsonObject, JsonValue, MAX_TREE_DEPTH, parse_json};
pub use rejection::Rejection;
pub use request::{ApiRequest, ChatBody, Prompt, parse_request};
pub use sse_usage::{MAX_LINE_BYTES, SseUsage};
pub use usage::{Usage, usage_of_json};
