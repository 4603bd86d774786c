//! What besides the request decides its tokens.

use chrono::NaiveDateTime;

use crate::content_format::ContentFormat;

/// Settings of the server that the engine runs with, and limits.
///
/// The defaults are those of `vllm serve` without flags, with limits that no honest request meets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PromptOptions {
    /// Time shown by templates that print the date.
    pub clock: Clock,
    /// Context length of the engine in tokens. If known, requests that don't fit are told apart.
    pub max_model_len: Option<u32>,
    /// Whether the engine takes a chat template from the request (`--trust-request-chat-template`).
    pub trust_request_chat_template: bool,
    /// Whether tools are left out if the request forbids their use
    /// (`--exclude-tools-when-tool-choice-none`).
    pub exclude_tools_when_tool_choice_none: bool,
    /// Form of message contents that the template gets (`--chat-template-content-format`); `None` to detect it.
    pub content_format: Option<ContentFormat>,
    /// JSON object of template variables (`--default-chat-template-kwargs`).
    pub default_chat_template_kwargs: Option<String>,
    /// Instructions that a template may execute.
    pub template_fuel: u64,
    /// Bytes that a rendered prompt may have.
    pub max_rendered_bytes: usize,
}

/// Where the date in a prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The local time of this machine, which should be in the engine's time zone.
    #[default]
    System,
    /// Always this local time.
    Frozen(NaiveDateTime),
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self {
            clock: Clock::System,
            max_model_len: None,
            trust_request_chat_template: false,
            exclude_tools_when_tool_choice_none: false,
            content_format: None,
            default_chat_template_kwargs: None,
            template_fuel: 50_000_000,
            max_rendered_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Clock {
    /// The local time now.
    pub(crate) fn now(self) -> NaiveDateTime {
        match self {
            Self::System => chrono::Local::now().naive_local(),
            Self::Frozen(time) => time,
        }
    }
}
