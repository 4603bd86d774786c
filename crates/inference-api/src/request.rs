//! A request body, scanned once.

use std::borrow::Cow;
use std::ops::Range;

use crate::api::Api;
use crate::json_error::{JsonError, JsonErrorKind};
use crate::json_lexer::JsonLexer;
use crate::json_value::{JsonValue, parse_json};
use crate::token_ids::{INITIAL_TOKENS, token_id_list, token_id_lists};

const UTF8_BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a request body says, borrowed from it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiRequest<'a> {
    /// The schema by which the body was read.
    pub api: Api,
    /// The model asked for; absent if missing or not a string.
    pub model: Option<Cow<'a, str>>,
    /// Bytes of the model's value in the body, quotes included: what to replace to rewrite the model.
    pub model_range: Option<Range<usize>>,
    /// Whether `stream` is `true`.
    pub stream: bool,
    /// Most tokens to generate: for chat `max_completion_tokens`, else `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Number of answers asked for.
    pub n: Option<u32>,
    /// The salt that separates this request's KV blocks from those of others.
    pub cache_salt: Option<Cow<'a, str>>,
    /// The prompt.
    pub prompt: Prompt<'a>,
    fields: [Option<&'a [u8]>; Field::COUNT],
}

/// What the engine is to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt<'a> {
    /// None known, because the API is [`Api::Other`].
    None,
    /// One text.
    Text(Cow<'a, str>),
    /// Several texts.
    Texts(Vec<Cow<'a, str>>),
    /// One list of token ids.
    TokenIds(Vec<u32>),
    /// Several lists of token ids.
    TokenIdLists(Vec<Vec<u32>>),
    /// A conversation.
    Chat(ChatBody<'a>),
    /// A `prompt` that is none of these: the JSON text of the value. The engine refuses most of them.
    Unclear(&'a [u8]),
}

/// The conversation of a chat request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatBody<'a> {
    /// JSON text of the non-empty `messages` array.
    pub messages: &'a [u8],
}

/// Members of a request that can change its token ids, or whether the engine accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the JSON member of the same name in snake case")]
#[repr(usize)]
pub enum Field {
    AddGenerationPrompt,
    AddSpecialTokens,
    CacheSalt,
    ChatTemplate,
    ChatTemplateKwargs,
    ContinueFinalMessage,
    Documents,
    KvTransferParams,
    MaxCompletionTokens,
    MaxTokens,
    MmProcessorKwargs,
    PromptEmbeds,
    ReasoningEffort,
    Suffix,
    ToolChoice,
    Tools,
    TruncatePromptTokens,
    TruncationSide,
}

impl Field {
    const COUNT: usize = Self::TruncationSide as usize + 1;

    fn of_key(key: &str) -> Option<Self> {
        Some(match key {
            "add_generation_prompt" => Self::AddGenerationPrompt,
            "add_special_tokens" => Self::AddSpecialTokens,
            "cache_salt" => Self::CacheSalt,
            "chat_template" => Self::ChatTemplate,
            "chat_template_kwargs" => Self::ChatTemplateKwargs,
            "continue_final_message" => Self::ContinueFinalMessage,
            "documents" => Self::Documents,
            "kv_transfer_params" => Self::KvTransferParams,
            "max_completion_tokens" => Self::MaxCompletionTokens,
            "max_tokens" => Self::MaxTokens,
            "mm_processor_kwargs" => Self::MmProcessorKwargs,
            "prompt_embeds" => Self::PromptEmbeds,
            "reasoning_effort" => Self::ReasoningEffort,
            "suffix" => Self::Suffix,
            "tool_choice" => Self::ToolChoice,
            "tools" => Self::Tools,
            "truncate_prompt_tokens" => Self::TruncatePromptTokens,
            "truncation_side" => Self::TruncationSide,
            _ => return None,
        })
    }
}

/// A body that is refused with status 400, in the words of the llm-d router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
}

impl Rejection {
    /// Byte offset in the body of what is wrong, where there is one.
    pub fn offset(&self) -> Option<usize> {
        match self {
            Self::NotAnObject(error) => Some(error.offset),
            Self::NoMessages | Self::NoPrompt => None,
        }
    }
}

impl From<JsonError> for Rejection {
    fn from(error: JsonError) -> Self {
        Self::NotAnObject(error)
    }
}

impl<'a> ApiRequest<'a> {
    /// JSON text of a member, if the body has it; of duplicates the last.
    pub fn field(&self, field: Field) -> Option<&'a [u8]> {
        self.fields[field as usize]
    }

    /// The value of a member, if the body has it and it isn't null.
    ///
    /// # Errors
    /// [`JsonError`] with the offset within the member, for example if it nests too deep.
    pub fn value(&self, field: Field) -> Result<Option<JsonValue<'a>>, JsonError> {
        let value = self.field(field).map(parse_json).transpose()?;
        Ok(value.filter(|value| !value.is_null()))
    }

    fn new(api: Api) -> Self {
        Self {
            api,
            model: None,
            model_range: None,
            stream: false,
            max_tokens: None,
            n: None,
            cache_salt: None,
            prompt: Prompt::None,
            fields: [None; Field::COUNT],
        }
    }
}

/// Reads a request body.
///
/// Only what the llm-d router refuses is refused here. A body that the engine will refuse for another
/// reason passes, so that the engine gives its own answer.
///
/// # Errors
/// [`Rejection`] as it says. Bodies of [`Api::Other`] are never rejected.
pub fn parse_request(api: Api, body: &[u8]) -> Result<ApiRequest<'_>, Rejection> {
    let mut scan = Scan { body, request: ApiRequest::new(api), prompt: None, messages: None };
    let scanned = scan.run();
    if api == Api::Other {
        return Ok(if scanned.is_ok() { scan.request } else { ApiRequest::new(api) });
    }
    scanned?;
    scan.finish()
}

struct Scan<'a> {
    body: &'a [u8],
    request: ApiRequest<'a>,
    prompt: Option<Prompt<'a>>,
    messages: Option<&'a [u8]>,
}

impl<'a> Scan<'a> {
    fn run(&mut self) -> Result<(), JsonError> {
        let mut lexer = JsonLexer::new(self.body);
        if self.body.starts_with(UTF8_BYTE_ORDER_MARK) {
            lexer.seek(UTF8_BYTE_ORDER_MARK.len());
        }
        match lexer.peek_token() {
            Some(b'{') => lexer.object(|lexer, key| {
                let key = lexer.text(&key);
                self.member(lexer, key.as_deref().unwrap_or_default())
            })?,
            _ => {
                let start = lexer.pos();
                lexer.skip_value(0)?;
                let found = match self.body.get(start) {
                    Some(b'[') => "array",
                    Some(b'"') => "string",
                    Some(b't' | b'f') => "bool",
                    Some(b'n') => "",
                    _ => "number",
                };
                lexer.expect_end()?;
                // Go reads null into a nil map without complaint.
                if !found.is_empty() {
                    return Err(JsonError { offset: start, kind: JsonErrorKind::NotAnObject { found } });
                }
            }
        }
        lexer.expect_end()
    }

    /// Reads one member; the lexer stands at its value and is left behind it.
    fn member(&mut self, lexer: &mut JsonLexer<'a>, key: &str) -> Result<(), JsonError> {
        if key == "prompt" && self.request.api == Api::Completions {
            self.prompt = Some(prompt(lexer)?);
            return Ok(());
        }
        let range = lexer.skip_value(1)?;
        let value = &self.body[range.clone()];
        match key {
            "model" => {
                self.request.model = text(value);
                self.request.model_range = self.request.model.is_some().then_some(range);
            }
            "stream" => self.request.stream = value == b"true",
            "n" => self.request.n = small_integer(value),
            "messages" => self.messages = Some(value),
            _ => {
                if let Some(field) = Field::of_key(key) {
                    self.request.fields[field as usize] = Some(value);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<ApiRequest<'a>, Rejection> {
        let request = &mut self.request;
        request.cache_salt = request.field(Field::CacheSalt).and_then(text);
        let max_tokens = |field| request.field(field).and_then(small_integer);
        request.max_tokens = match request.api {
            Api::ChatCompletions => {
                max_tokens(Field::MaxCompletionTokens).or_else(|| max_tokens(Field::MaxTokens))
            }
            _ => max_tokens(Field::MaxTokens),
        };
        request.prompt = if request.api == Api::ChatCompletions {
            let messages = self.messages.filter(|messages| has_elements(messages));
            Prompt::Chat(ChatBody { messages: messages.ok_or(Rejection::NoMessages)? })
        } else {
            self.prompt.filter(|prompt| !is_empty(prompt)).ok_or(Rejection::NoPrompt)?
        };
        Ok(self.request)
    }
}

fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    match parse_json(value) {
        Ok(JsonValue::String(text)) => Some(text),
        _ => None,
    }
}

fn small_integer(value: &[u8]) -> Option<u32> {
    // An object is at least two bytes and can't be an integer, so nothing large is parsed here.
    value.first().filter(|byte| byte.is_ascii_digit())?;
    parse_json(value).ok()?.as_u32()
}

fn has_elements(array: &[u8]) -> bool {
    let mut lexer = JsonLexer::new(array);
    if lexer.peek() != Some(b'[') {
        return false;
    }
    lexer.bump();
    lexer.peek_token() != Some(b']')
}

fn is_empty(prompt: &Prompt<'_>) -> bool {
    match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Unclear(value) => *value == b"null" || (value.first() == Some(&b'[') && !has_elements(value)),
        _ => false,
    }
}

/// Reads the value of `prompt`.
fn prompt<'a>(lexer: &mut JsonLexer<'a>) -> Result<Prompt<'a>, JsonError> {
    match lexer.peek_token() {
        Some(b'"') => {
            let start = lexer.pos();
            let token = lexer.string()?;
            Ok(match lexer.text(&token) {
                Some(text) => Prompt::Text(text),
                None => Prompt::Unclear(&lexer.bytes()[start..lexer.pos()]),
            })
        }
        Some(b'[') => {
            if let Some(ids) = token_id_list(lexer, INITIAL_TOKENS) {
                return Ok(Prompt::TokenIds(ids));
            }
            if let Some(lists) = token_id_lists(lexer) {
                return Ok(Prompt::TokenIdLists(lists));
            }
            let start = lexer.pos();
            if let Some(texts) = texts(lexer)? {
                return Ok(Prompt::Texts(texts));
            }
            lexer.seek(start);
            lexer.skip_value(1).map(|range| Prompt::Unclear(&lexer.bytes()[range]))
        }
        _ => lexer.skip_value(1).map(|range| Prompt::Unclear(&lexer.bytes()[range])),
    }
}

/// At a `[`: reads a non-empty list of texts. `None`, at an unspecified place, if it isn't one.
fn texts<'a>(lexer: &mut JsonLexer<'a>) -> Result<Option<Vec<Cow<'a, str>>>, JsonError> {
    let mut texts = Vec::new();
    let mut is_other = false;
    lexer.array(|lexer| {
        if is_other || lexer.peek() != Some(b'"') {
            is_other = true;
            return lexer.skip_value(2).map(drop);
        }
        let token = lexer.string()?;
        match lexer.text(&token) {
            Some(text) => texts.push(text),
            None => is_other = true,
        }
        Ok(())
    })?;
    Ok((!is_other && !texts.is_empty()).then_some(texts))
}
