//! Answers in the shape of vLLM 0.32's OpenAI server: the same members in the same order.

use serde::Serialize;

/// The build that answers claim to come from.
const SYSTEM_FINGERPRINT: &str = "vllm-0.32.0-sim";
/// Output always ends because it is long enough.
pub(crate) const FINISH_REASON: &str = "length";

/// Token counts of a request.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Option<PromptTokensDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<()>,
}

#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

impl Usage {
    /// `cached_tokens` is `None` where details are switched off.
    pub(crate) fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: Option<u32>) -> Self {
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: cached_tokens.map(|cached_tokens| PromptTokensDetails { cached_tokens }),
            completion_tokens_details: None,
        }
    }
}

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) is_chat: bool,
}

/// One finished choice, or the newest piece of a streamed one.
pub(crate) struct ChoicePart<'a> {
    pub(crate) index: usize,
    pub(crate) text: &'a str,
    /// Given if the request asked for token ids.
    pub(crate) token_ids: Option<&'a [u32]>,
    /// Given with the whole answer or the first piece, if asked for.
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) is_finished: bool,
}

#[derive(Serialize)]
struct Body<'a, C> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_fingerprint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
    stop_reason: Option<()>,
    token_ids: Option<&'a [u32]>,
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
    stop_reason: Option<()>,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'a str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: usize,
    delta: ChatDelta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    content: &'a str,
}

impl AnswerHead {
    /// The JSON of a whole, unstreamed answer.
    pub(crate) fn whole(&self, choices: &[ChoicePart<'_>], usage: Usage) -> String {
        if !self.is_chat {
            let choices = choices.iter().map(text_choice).collect();
            return self.json("text_completion", choices, Some(usage), None, true);
        }
        let chat = choices.iter().map(|choice| ChatChoice {
            index: choice.index,
            message: ChatMessage { role: "assistant", content: choice.text, refusal: None },
            logprobs: None,
            finish_reason: Some(FINISH_REASON),
            stop_reason: None,
            token_ids: choice.token_ids,
        });
        let prompt_token_ids = choices.first().and_then(|choice| choice.prompt_token_ids);
        self.json("chat.completion", chat.collect(), Some(usage), prompt_token_ids, true)
    }

    /// The first server-sent event of a streamed chat: the role.
    pub(crate) fn role_event(&self, prompt_token_ids: Option<&[u32]>, usage: Option<Usage>) -> String {
        let delta = ChatDelta { role: Some("assistant"), content: "" };
        let choice =
            ChatChunkChoice { index: 0, delta, logprobs: None, finish_reason: None, token_ids: None };
        event(&self.json("chat.completion.chunk", vec![choice], usage, prompt_token_ids, false))
    }

    /// A server-sent event with a piece of text.
    pub(crate) fn piece_event(&self, piece: &ChoicePart<'_>, usage: Option<Usage>) -> String {
        if !self.is_chat {
            return event(&self.json("text_completion", vec![text_choice(piece)], usage, None, false));
        }
        let choice = ChatChunkChoice {
            index: piece.index,
            delta: ChatDelta { role: None, content: piece.text },
            logprobs: None,
            finish_reason: piece.is_finished.then_some(FINISH_REASON),
            token_ids: piece.token_ids,
        };
        event(&self.json("chat.completion.chunk", vec![choice], usage, None, false))
    }

    /// The server-sent event with the usage, before the last one.
    pub(crate) fn usage_event(&self, usage: Usage) -> String {
        let object = if self.is_chat { "chat.completion.chunk" } else { "text_completion" };
        event(&self.json(object, Vec::<()>::new(), Some(usage), None, true))
    }

    fn json<C: Serialize>(
        &self,
        object: &str,
        choices: Vec<C>,
        usage: Option<Usage>,
        prompt_token_ids: Option<&[u32]>,
        with_fingerprint: bool,
    ) -> String {
        let body = Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            system_fingerprint: with_fingerprint.then_some(SYSTEM_FINGERPRINT),
            usage,
            prompt_token_ids,
        };
        // Structs of text and numbers always serialize.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

/// The server-sent event that ends a stream.
pub(crate) const DONE_EVENT: &str = "data: [DONE]\n\n";

fn event(json: &str) -> String {
    format!("data: {json}\n\n")
}

fn text_choice<'a>(choice: &ChoicePart<'a>) -> TextChoice<'a> {
    TextChoice {
        index: choice.index,
        text: choice.text,
        logprobs: None,
        finish_reason: choice.is_finished.then_some(FINISH_REASON),
        stop_reason: None,
        token_ids: choice.token_ids,
        prompt_token_ids: choice.prompt_token_ids,
    }
}
