//! Whether a request is worth a stage of its own.

use std::fmt;
use std::sync::Arc;

use warmroute_plugin::{Candidates, InferenceRequest, PrefixColumn};

/// A decider and its name in the configuration.
#[derive(Clone, Debug)]
pub struct NamedDecider {
    /// The plugin's name.
    pub name: Arc<str>,
    /// The decider.
    pub decider: Decider,
}

/// Says whether a stage that needn't run is run for a request.
///
/// The formulas are those of the llm-d Router EPP (`profilehandler/disagg` in github.com/llm-d/llm-d-router).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Decider {
    /// Yes.
    Always,
    /// Yes if enough of the prompt is left to compute where the request was picked to go so far.
    UncachedTokens {
        /// Tokens that must be left to compute; 0 means that the stage never runs.
        least_uncached_tokens: u32,
        /// Tokens that the prompt must have, cached ones included; 0 for no such limit.
        least_prompt_tokens: u32,
        /// Which producer knows what is cached.
        prefix: PrefixColumn,
    },
    /// Yes if the prompt has an image, a sound or a video.
    Multimodal,
}

/// What a decider said of one request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the stage runs.
    pub runs: bool,
    /// Why.
    pub reason: Reason,
}

/// What a decider looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing.
    Always,
    /// The prompt and how much of it is cached.
    Tokens {
        /// Length of the prompt; `None` if it isn't known.
        prompt_tokens: Option<u32>,
        /// Whether that is an estimate.
        estimated: bool,
        /// Tokens that the endpoint picked so far holds, or is expected to hold soon.
        cached_tokens: u64,
        /// See [`Decider::UncachedTokens`].
        least_uncached_tokens: u32,
        /// See [`Decider::UncachedTokens`].
        least_prompt_tokens: u32,
    },
    /// Images, sounds and videos in the prompt.
    MediaParts(u32),
}

impl Decider {
    /// What it says of a request; `picked` is the row of the table that was picked so far.
    pub(crate) fn decide(
        &self,
        request: &InferenceRequest,
        table: &Candidates<'_>,
        picked: Option<u32>,
    ) -> Verdict {
        match *self {
            Self::Always => Verdict { runs: true, reason: Reason::Always },
            Self::Multimodal => {
                let parts = request.media_parts;
                Verdict { runs: parts > 0, reason: Reason::MediaParts(parts) }
            }
            Self::UncachedTokens { least_uncached_tokens, least_prompt_tokens, prefix } => {
                let column = table.prefix_match(prefix);
                let held = picked.and_then(|row| column.get(row as usize));
                let cached_tokens = held.map_or(0, |held| held.matched_tokens());
                let prompt_tokens = request.prompt_tokens;
                let tokens = prompt_tokens.unwrap_or(0);
                let uncached = u64::from(tokens).saturating_sub(cached_tokens);
                let runs = least_uncached_tokens > 0
                    && tokens >= least_prompt_tokens
                    && uncached >= u64::from(least_uncached_tokens);
                let reason = Reason::Tokens {
                    prompt_tokens,
                    estimated: request.prompt_tokens_estimated,
                    cached_tokens,
                    least_uncached_tokens,
                    least_prompt_tokens,
                };
                Verdict { runs, reason }
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.runs { "yes: " } else { "no: " })?;
        match self.reason {
            Reason::Always => f.write_str("always"),
            Reason::MediaParts(parts) => write!(f, "{parts} media parts"),
            Reason::Tokens { least_uncached_tokens: 0, .. } => f.write_str("nonCachedTokens is 0"),
            Reason::Tokens { prompt_tokens: None, .. } => f.write_str("the length of the prompt isn't known"),
            Reason::Tokens {
                prompt_tokens: Some(tokens),
                estimated,
                cached_tokens,
                least_uncached_tokens,
                least_prompt_tokens,
            } => {
                let uncached = u64::from(tokens).saturating_sub(cached_tokens);
                let about = if estimated { "about " } else { "" };
                write!(
                    f,
                    "{about}{tokens} prompt tokens, {cached_tokens} of them cached, {uncached} left; "
                )?;
                write!(f, "from nonCachedTokens {least_uncached_tokens} on")?;
                match least_prompt_tokens {
                    0 => Ok(()),
                    least => write!(f, ", for prompts from promptTokens {least} on"),
                }
            }
        }
    }
}
