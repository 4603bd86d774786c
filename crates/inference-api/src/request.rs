//! A request body, scanned once.

use std::borrow::Cow;
use std::ops::Range;

use crate::api::Api;
use crate::field::Field;
use crate::json_error::{JsonError, JsonErrorKind};
use crate::json_lexer::JsonLexer;
use crate::json_value::{JsonValue, parse_json};
use crate::message_count::MessageCount;
use crate::rejection::Rejection;
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
    /// Most tokens to generate: for chat `max_completion_tokens`, else `max_tokens`; for responses
    /// `max_output_tokens`; in `sampling_params` vLLM's `max_tokens` and SGLang's `max_new_tokens`.
    pub max_tokens: Option<u32>,
    /// Number of answers asked for.
    pub n: Option<u32>,
    /// The salt that separates this request's KV blocks from those of others: `cache_salt`, for SGLang `extra_key`.
    pub cache_salt: Option<Cow<'a, str>>,
    /// The prompt.
    pub prompt: Prompt<'a>,
    /// Images, sounds and videos in the prompt.
    pub media_parts: u32,
    message_text_bytes: usize,
    fields: [Option<&'a [u8]>; Field::COUNT],
}

/// What the engine is to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt<'a> {
    /// None known, because the API is a raw one, or because embeddings are given instead.
    None,
    /// One text.
    Text(Cow<'a, str>),
    /// Several texts.
    Texts(Vec<Cow<'a, str>>),
    /// One list of token ids.
    TokenIds(Vec<u32>),
    /// Several lists of token ids.
    TokenIdLists(Vec<Vec<u32>>),
    /// A conversation: OpenAI's chat messages, or Anthropic's.
    Chat(ChatBody<'a>),
    /// The JSON text of what a response or a conversation begins with: a text or a non-empty list.
    Items(&'a [u8]),
    /// A prompt that is none of these: the JSON text of the value. The engine refuses most of them.
    Unclear(&'a [u8]),
}

/// The conversation of a chat request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatBody<'a> {
    /// JSON text of the non-empty `messages` array.
    pub messages: &'a [u8],
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

    /// Whether the body has a member that isn't null.
    pub fn has(&self, field: Field) -> bool {
        self.field(field).is_some_and(|value| value != b"null")
    }

    /// Bytes of the prompt's texts and tools, about: texts of messages count with their escapes, and pictures not at
    /// all. 0 for prompts of token ids.
    pub fn text_bytes(&self) -> usize {
        let field_bytes = |field| self.field(field).map_or(0, <[u8]>::len);
        match &self.prompt {
            Prompt::None | Prompt::TokenIds(_) | Prompt::TokenIdLists(_) => 0,
            Prompt::Text(text) => text.len(),
            Prompt::Texts(texts) => texts.iter().map(|text| text.len()).sum(),
            Prompt::Chat(_) => {
                self.message_text_bytes + field_bytes(Field::Tools) + field_bytes(Field::System)
            }
            Prompt::Items(_) => {
                self.message_text_bytes + field_bytes(Field::Tools) + field_bytes(Field::Instructions)
            }
            Prompt::Unclear(value) => value.len(),
        }
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
            media_parts: 0,
            message_text_bytes: 0,
            fields: [None; Field::COUNT],
        }
    }
}

/// Reads a request body.
///
/// Only what the llm-d router refuses is refused here, and less where an engine takes more. A body that the engine
/// will refuse for another reason passes, so that the engine gives its own answer. Whether there is a model isn't
/// looked at: it may come from elsewhere.
///
/// # Errors
/// [`Rejection`] as it says. Bodies of raw APIs ([`Api::is_raw`]) are never rejected.
pub fn parse_request(api: Api, body: &[u8]) -> Result<ApiRequest<'_>, Rejection> {
    let mut scan = Scan { body, request: ApiRequest::new(api), prompt: None, messages: None };
    let scanned = scan.run();
    if api.is_raw() {
        return Ok(if scanned.is_ok() { scan.request } else { ApiRequest::new(api) });
    }
    scanned?;
    scan.finish()
}

/// How the member that holds the prompt is read.
enum Reading {
    /// A text, texts or token ids.
    Prompt,
    /// Messages or items.
    Messages,
}

/// What a member of the body holds of the prompt.
fn reading(api: Api, key: &str) -> Option<Reading> {
    Some(match (api, key) {
        (Api::ChatCompletions | Api::Messages, "messages")
        | (Api::Responses, "input")
        | (Api::Conversations, "items") => Reading::Messages,
        (Api::Completions | Api::ImageGenerations, "prompt")
        | (Api::Embeddings, "input")
        | (Api::VllmGenerate, "token_ids")
        | (Api::SglangGenerate, "input_ids" | "text") => Reading::Prompt,
        _ => return None,
    })
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
        match reading(self.request.api, key) {
            Some(Reading::Prompt) => {
                let prompt = prompt(lexer)?;
                match self.request.api {
                    Api::SglangGenerate => self.sglang_member(key, prompt),
                    _ => self.prompt = Some(prompt),
                }
                return Ok(());
            }
            Some(Reading::Messages) => {
                let (range, count) = MessageCount::read(lexer)?;
                self.messages = Some(&self.body[range]);
                self.request.media_parts = count.media_parts;
                self.request.message_text_bytes = count.text_bytes;
                return Ok(());
            }
            None => {}
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
            _ => {
                if let Some(field) = Field::of_key(key) {
                    self.request.fields[field as usize] = Some(value);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<ApiRequest<'a>, Rejection> {
        let api = self.request.api;
        self.request.prompt = match api {
            Api::ChatCompletions => chat(self.messages).ok_or(Rejection::NoMessages)?,
            Api::Messages => chat(self.messages).ok_or(Rejection::NoAnthropicMessages)?,
            Api::Responses => {
                let input = self.messages.filter(|input| !is_empty_json(input));
                Prompt::Items(input.ok_or(Rejection::NoResponsesInput)?)
            }
            Api::Conversations => {
                let items = self.messages.filter(|items| has_elements(items));
                Prompt::Items(items.ok_or(Rejection::NoItems)?)
            }
            Api::Completions => match self.filled_prompt() {
                Some(prompt) => prompt,
                // vLLM takes embeddings in the place of a prompt.
                None if self.request.has(Field::PromptEmbeds) => Prompt::None,
                None => return Err(Rejection::NoPrompt),
            },
            Api::ImageGenerations => self.filled_prompt().ok_or(Rejection::NoImagePrompt)?,
            Api::Embeddings => self.filled_prompt().ok_or(Rejection::NoEmbeddingsInput)?,
            Api::VllmGenerate => match self.filled_prompt() {
                Some(ids @ Prompt::TokenIds(_)) => ids,
                _ => return Err(Rejection::NoTokenIds),
            },
            Api::SglangGenerate => self.sglang_prompt()?,
            Api::CountTokens | Api::Other => Prompt::None,
        };
        let request = &mut self.request;
        request.max_tokens = max_tokens(request);
        request.cache_salt = request.field(Field::CacheSalt).and_then(text);
        if api == Api::SglangGenerate {
            request.cache_salt = extra_key(request)?;
            request.media_parts = [Field::ImageData, Field::AudioData, Field::VideoData]
                .iter()
                .filter_map(|field| request.field(*field))
                .fold(0, |parts: u32, data| parts.saturating_add(elements(data)));
        }
        Ok(self.request)
    }

    fn filled_prompt(&mut self) -> Option<Prompt<'a>> {
        self.prompt.take().filter(|prompt| !is_empty(prompt))
    }

    /// SGLang has two members for a prompt, of which the ids say more.
    fn sglang_member(&mut self, key: &str, prompt: Prompt<'a>) {
        let is_text = matches!(prompt, Prompt::Text(_) | Prompt::Texts(_));
        let has_text = matches!(self.prompt, None | Some(Prompt::Text(_) | Prompt::Texts(_)));
        match (key, prompt) {
            (_, Prompt::Unclear(b"null")) => {}
            ("text", prompt) if has_text && is_text => self.prompt = Some(prompt),
            ("input_ids", _) if is_text => self.prompt = Some(Prompt::Unclear(b"")),
            ("input_ids", prompt) => self.prompt = Some(prompt),
            _ => {}
        }
    }

    fn sglang_prompt(&mut self) -> Result<Prompt<'a>, Rejection> {
        match self.prompt.take().ok_or(Rejection::NoInputIds)? {
            Prompt::Unclear(value) if value.first() == Some(&b'[') && !has_elements(value) => {
                Err(Rejection::EmptyInputIds)
            }
            Prompt::Unclear(_) => Err(Rejection::WrongInputIds),
            prompt if is_empty(&prompt) => Err(Rejection::NoInputIds),
            prompt => Ok(prompt),
        }
    }
}

fn chat(messages: Option<&[u8]>) -> Option<Prompt<'_>> {
    let messages = messages.filter(|messages| has_elements(messages))?;
    Some(Prompt::Chat(ChatBody { messages }))
}

fn max_tokens(request: &ApiRequest<'_>) -> Option<u32> {
    let integer = |field| request.field(field).and_then(small_integer);
    let sampling = |name| match request.value(Field::SamplingParams) {
        Ok(Some(parameters)) => parameters.get(name).and_then(JsonValue::as_u32),
        _ => None,
    };
    match request.api {
        Api::ChatCompletions => integer(Field::MaxCompletionTokens).or_else(|| integer(Field::MaxTokens)),
        Api::Responses => integer(Field::MaxOutputTokens),
        Api::VllmGenerate => sampling("max_tokens"),
        Api::SglangGenerate => sampling("max_new_tokens"),
        _ => integer(Field::MaxTokens),
    }
}

/// SGLang's name for the salt.
fn extra_key<'a>(request: &ApiRequest<'a>) -> Result<Option<Cow<'a, str>>, Rejection> {
    match request.field(Field::ExtraKey) {
        None | Some(b"null") => Ok(None),
        Some(value) => text(value).map(Some).ok_or(Rejection::WrongExtraKey),
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

/// Elements of an array, or 1 for another value that isn't null.
fn elements(value: &[u8]) -> u32 {
    if value.first() != Some(&b'[') {
        return u32::from(value != b"null");
    }
    let mut elements: u32 = 0;
    let counted = JsonLexer::new(value).array(|lexer| {
        elements = elements.saturating_add(1);
        lexer.skip_value(1).map(drop)
    });
    if counted.is_ok() { elements } else { 0 }
}

/// Whether a value is null, an empty text or an empty list.
fn is_empty_json(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"") || (value.first() == Some(&b'[') && !has_elements(value))
}

fn is_empty(prompt: &Prompt<'_>) -> bool {
    match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Unclear(value) => is_empty_json(value),
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
