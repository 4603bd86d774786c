//! [`Outcome`]: what became of one request.

use std::fmt;
use std::time::Duration;

/// Token counts that the engine reported at the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Prompt tokens taken from the engine's prefix cache, where it says.
    pub cached_tokens: Option<u64>,
}

/// Why a request counts as failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Failure {
    /// No answer at all: refused, reset before the headers.
    NoAnswer(String),
    /// An answer with another status than 200.
    Status(u16),
    /// The stream broke off.
    Broken(String),
    /// The stream ended without `[DONE]`.
    Truncated,
    /// The engine sent an error within the stream.
    InStream,
    /// The stream held no generated text.
    NoContent,
    /// It took longer than the generator waits.
    TimedOut,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(reason) => write!(f, "no answer: {reason}"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Broken(reason) => write!(f, "stream broke off: {reason}"),
            Self::Truncated => f.write_str("stream ended before it was done"),
            Self::InStream => f.write_str("error within the stream"),
            Self::NoContent => f.write_str("stream without text"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// What became of one request. Times count from when it was due (open loop) or sent (one by one).
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its place in the plan.
    pub index: usize,
    /// How late it was sent: the generator's own fault, and part of every latency.
    pub lag: Duration,
    /// Time to the first generated text.
    pub ttft: Option<Duration>,
    /// Time to the end of the answer, however it ended.
    pub total: Duration,
    /// What the engine reported.
    pub usage: Option<StreamUsage>,
    /// The engine's `x-served-by` response header, where there is one.
    pub served_by: Option<String>,
    /// `None` for a complete answer.
    pub failure: Option<Failure>,
}
