//! Messages of a chat request, as the template sees them.

use std::borrow::Cow;

use minijinja::Value;
use warmroute_inference_api::{JsonObject, JsonValue, parse_json};

use crate::content_format::ContentFormat;
use crate::error::{Rejection, TokenizeError, Unsupported};
use crate::member::json_error;
use crate::python::is_space;
use crate::values::template_value;

/// What a client of Anthropic puts in front of a system prompt, and vLLM takes away.
const BILLING_HEADER: &str = "x-anthropic-billing-header";
/// What marks the end of a message to be continued.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG";

const MULTIMODAL_PARTS: [&str; 11] = [
    "audio_embeds",
    "audio_url",
    "file",
    "image",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "input_image",
    "video",
    "video_url",
];

/// What stands for media in texts, see [`MediaForm::Announced`]: characters for private use, which no template writes.
pub(crate) const MEDIA_MARK: &str = "\u{e000}media\u{e001}";

/// What becomes of images, sounds and videos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaForm {
    /// They are an error.
    Refused,
    /// As vLLM announces them to the template: a part that has a type alone, or, in contents that are one text,
    /// something in front of it, for which [`MEDIA_MARK`] stands.
    Announced,
    /// As if they weren't there.
    LeftOut,
}

/// Keys that some type of part declares; other keys of a part are handed to the template.
const PART_FIELDS: [&str; 14] = [
    "audio_embeds",
    "audio_url",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_url",
];

/// A message with its content normalised and its other members in the template's order.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    role: Cow<'a, str>,
    content: Content<'a>,
    members: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

#[derive(Debug)]
struct Part<'a> {
    kind: PartKind,
    text: Cow<'a, str>,
    extras: Vec<(&'a str, Value)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartKind {
    Text,
    ToolReference,
    /// `image`, `audio` or `video`.
    Media(&'static str),
}

/// How contents are to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContentForm {
    pub(crate) format: ContentFormat,
    pub(crate) media: MediaForm,
}

/// Reads the messages of a request as vLLM does (`entrypoints/chat_utils.py`).
pub(crate) fn normalized_messages<'a>(
    messages: &'a JsonValue<'_>,
    form: ContentForm,
) -> Result<Vec<Message<'a>>, TokenizeError> {
    let messages = messages.as_array().unwrap_or_default();
    messages.iter().enumerate().map(|(index, message)| Message::read(index, message, form)).collect()
}

impl<'a> Message<'a> {
    fn read(index: usize, message: &'a JsonValue<'_>, form: ContentForm) -> Result<Self, TokenizeError> {
        let wrong = |problem| TokenizeError::message(index, problem);
        let message = message.as_object().ok_or_else(|| wrong("is not an object"))?;
        let role = message.get("role").and_then(JsonValue::as_str).ok_or_else(|| wrong("has no role"))?;
        let content = message_content(index, role, message.get("content"), form)?;
        let mut members = Vec::new();
        match role {
            "assistant" => {
                if let Some(calls) = message.get("tool_calls").filter(|calls| !calls.is_null()) {
                    let calls = calls.as_array().ok_or_else(|| wrong("has tool_calls that are no array"))?;
                    let calls =
                        calls.iter().map(|call| tool_call(index, call)).collect::<Result<Vec<_>, _>>()?;
                    if !calls.is_empty() {
                        members.push(("tool_calls", Value::from(calls)));
                    }
                }
                let given = |key| message.get(key).filter(|text| !text.is_null());
                if let Some(reasoning) = given("reasoning").or_else(|| given("reasoning_content")) {
                    if !matches!(reasoning, JsonValue::String(_)) {
                        return Err(wrong("has reasoning that is no text"));
                    }
                    let reasoning = template_value(reasoning)?;
                    members.push(("reasoning", reasoning.clone()));
                    members.push(("reasoning_content", reasoning));
                }
            }
            "tool" => {
                if let Some(id) = message.get("tool_call_id") {
                    members
                        .push(("tool_call_id", text_value(index, id, "has a tool_call_id that is no text")?));
                }
            }
            _ => {}
        }
        if let Some(name) = message.get("name") {
            members.push(("name", text_value(index, name, "has a name that is no text")?));
        }
        if let Some(task @ JsonValue::String(_)) = message.get("task") {
            members.push(("task", template_value(task)?));
        }
        if let (true, Some(tools)) =
            (role == "developer", message.get("tools").filter(|tools| !tools.is_null()))
        {
            let tools = tools.as_array().ok_or_else(|| wrong("has tools that are no array"))?;
            let tools = tools.iter().map(developer_tool).collect::<Result<Vec<_>, _>>()?;
            members.push(("tools", Value::from(tools)));
        }
        Ok(Self { role: Cow::Borrowed(role), content, members })
    }

    pub(crate) fn is_developer(&self) -> bool {
        self.role == "developer"
    }

    fn is_system(&self) -> bool {
        self.role == "system"
    }

    /// Whether its content has media, as [`MediaForm::Announced`].
    pub(crate) fn has_media(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.contains(MEDIA_MARK),
            Content::Parts(parts) => parts.iter().any(Part::is_media),
        }
    }

    /// The text of the content, parts joined by line feeds.
    fn text(&self) -> Cow<'_, str> {
        match &self.content {
            Content::Text(text) => Cow::Borrowed(text),
            Content::Parts(parts) => Cow::Owned(joined(parts.iter().map(|part| part.text.as_ref()))),
        }
    }

    pub(crate) fn into_value(self) -> Value {
        let content = match self.content {
            Content::Text(text) => Value::from(text.as_ref()),
            Content::Parts(parts) => parts.into_iter().map(Part::into_value).collect(),
        };
        let first = [("role", Value::from(self.role.as_ref())), ("content", content)];
        Value::from_pairs(first.into_iter().chain(self.members))
    }
}

impl Part<'_> {
    fn into_value(self) -> Value {
        let (kind, key) = match self.kind {
            PartKind::Text => ("text", "text"),
            PartKind::ToolReference => ("tool_reference", "name"),
            PartKind::Media(kind) => return Value::from_pairs([("type", Value::from(kind))]),
        };
        let first = [("type", Value::from(kind)), (key, Value::from(self.text.as_ref()))];
        Value::from_pairs(first.into_iter().chain(self.extras))
    }
}

fn text_value(index: usize, value: &JsonValue<'_>, problem: &'static str) -> Result<Value, TokenizeError> {
    match value {
        JsonValue::String(_) | JsonValue::BrokenString => template_value(value),
        _ => Err(TokenizeError::message(index, problem)),
    }
}

fn message_content<'a>(
    index: usize,
    role: &str,
    content: Option<&'a JsonValue<'_>>,
    form: ContentForm,
) -> Result<Content<'a>, TokenizeError> {
    let mut parts = match content {
        None => Vec::new(),
        Some(JsonValue::Null) if matches!(role, "assistant" | "function") => Vec::new(),
        Some(JsonValue::String(text)) => vec![Part::text(text)],
        Some(JsonValue::BrokenString) => return Err(TokenizeError::Rejected(Rejection::BrokenText)),
        Some(JsonValue::Array(parts)) => {
            let mut read = Vec::with_capacity(parts.len());
            for part in parts {
                read.extend(content_part(index, part, form.media)?);
            }
            read
        }
        Some(_) => return Err(TokenizeError::message(index, "has a content that is neither text nor parts")),
    };
    if role == "system" {
        parts.retain_mut(|part| part.kind != PartKind::Text || part.strip_billing_header());
    }
    let is_flat = role == "tool" && parts.iter().all(|part| part.kind == PartKind::Text);
    if form.format == ContentFormat::OpenAi && !is_flat {
        return Ok(Content::Parts(parts));
    }
    if parts.iter().any(Part::is_media) {
        // The engine puts a model's placeholders in front.
        parts.retain(|part| !part.is_media());
        parts.insert(0, Part::text(MEDIA_MARK));
    }
    Ok(if parts.len() == 1 {
        Content::Text(parts.swap_remove(0).text)
    } else {
        Content::Text(Cow::Owned(joined(parts.iter().map(|part| part.text.as_ref()))))
    })
}

/// Non-empty texts joined by line feeds.
fn joined<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let mut joined = String::new();
    for text in texts.filter(|text| !text.is_empty()) {
        if !joined.is_empty() {
            joined.push('\n');
        }
        joined.push_str(text);
    }
    joined
}

impl<'a> Part<'a> {
    fn text(text: &'a str) -> Self {
        Self { kind: PartKind::Text, text: Cow::Borrowed(text), extras: Vec::new() }
    }

    fn is_media(&self) -> bool {
        matches!(self.kind, PartKind::Media(_))
    }

    /// Takes the billing line away; false if nothing is left.
    fn strip_billing_header(&mut self) -> bool {
        if !self.text.starts_with(BILLING_HEADER) {
            return true;
        }
        let rest = self.text.split_once('\n').map(|(_, rest)| rest).unwrap_or_default();
        self.text = Cow::Owned(rest.to_owned());
        !self.text.is_empty()
    }
}

fn content_part<'a>(
    index: usize,
    part: &'a JsonValue<'_>,
    media: MediaForm,
) -> Result<Option<Part<'a>>, TokenizeError> {
    let wrong = |problem| TokenizeError::message(index, problem);
    let part = part.as_object().ok_or_else(|| wrong("has a part that is no object"))?;
    let kind = part.get("type").and_then(JsonValue::as_str);
    let (kind, key) = match kind {
        Some("text") => (PartKind::Text, "text"),
        Some("refusal") => (PartKind::Text, "refusal"),
        Some("thinking") => (PartKind::Text, "thinking"),
        Some("tool_reference") => (PartKind::ToolReference, "name"),
        Some("prompt_embeds") => return Err(TokenizeError::Unsupported(Unsupported::PromptEmbeds)),
        Some(kind) if MULTIMODAL_PARTS.contains(&kind) => {
            return match (media, modality(kind)) {
                (MediaForm::Announced, Some(modality)) => {
                    let kind = PartKind::Media(modality);
                    Ok(Some(Part { kind, text: Cow::Borrowed(""), extras: Vec::new() }))
                }
                (MediaForm::LeftOut, Some(_)) => Ok(None),
                _ => {
                    let part = kind.to_owned();
                    Err(TokenizeError::Unsupported(Unsupported::Multimodal { index, part }))
                }
            };
        }
        Some(_) => return Err(wrong("has a part of unknown type")),
        // Some kinds of image are told by their key alone.
        None => return Err(TokenizeError::unclear("messages")),
    };
    let text = match part.get(key) {
        Some(JsonValue::String(text)) => text.as_ref(),
        Some(JsonValue::BrokenString) => return Err(TokenizeError::Rejected(Rejection::BrokenText)),
        Some(JsonValue::Null) if key != "name" => return Ok(None),
        _ => return Err(wrong("has a part without text")),
    };
    let mut extras = Vec::new();
    for (key, value) in part.iter().filter(|(key, _)| !PART_FIELDS.contains(key)) {
        extras.push((key, template_value(value)?));
    }
    Ok(Some(Part { kind, text: Cow::Borrowed(text), extras }))
}

/// What vLLM tells a template of a type of part; None for types that it doesn't know itself.
fn modality(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "image_url" | "input_image" | "image_pil" | "image_embeds" => "image",
        "audio_url" | "input_audio" | "audio_embeds" => "audio",
        "video_url" => "video",
        _ => return None,
    })
}

/// A tool call with its keys in pydantic's order and its arguments as an object.
fn tool_call(index: usize, call: &JsonValue<'_>) -> Result<Value, TokenizeError> {
    let wrong = |problem| TokenizeError::message(index, problem);
    let call = call.as_object().ok_or_else(|| wrong("has a tool call that is no object"))?;
    let id = call.get("id").ok_or_else(|| wrong("has a tool call without id"))?;
    let id = text_value(index, id, "has a tool call whose id is no text")?;
    if call.get("type").and_then(JsonValue::as_str) != Some("function") {
        return Err(wrong("has a tool call that is not of type function"));
    }
    let function = call.get("function").and_then(JsonValue::as_object);
    let function = function.ok_or_else(|| wrong("has a tool call without function"))?;
    let name = function.get("name").ok_or_else(|| wrong("has a tool call without name"))?;
    let name = text_value(index, name, "has a tool call whose name is no text")?;
    let arguments = match function.get("arguments") {
        Some(JsonValue::String(text)) => call_arguments(text)?,
        Some(JsonValue::BrokenString) => return Err(TokenizeError::Rejected(Rejection::BrokenText)),
        _ => return Err(wrong("has a tool call whose arguments are no text")),
    };
    let mut members = vec![("arguments", arguments), ("name", name)];
    members.extend(others(function, &["arguments", "name"])?);
    let mut outer =
        vec![("id", id), ("function", Value::from_pairs(members)), ("type", Value::from("function"))];
    outer.extend(others(call, &["id", "function", "type"])?);
    Ok(Value::from_pairs(outer))
}

/// The members of an object other than the known ones, in order.
fn others<'v>(object: &'v JsonObject<'_>, known: &[&str]) -> Result<Vec<(&'v str, Value)>, TokenizeError> {
    object
        .iter()
        .filter(|(key, _)| !known.contains(key))
        .map(|(key, value)| Ok((key, template_value(value)?)))
        .collect()
}

/// Arguments are JSON in a string; what isn't a JSON object counts as `{}`.
fn call_arguments(text: &str) -> Result<Value, TokenizeError> {
    match parse_json(text.as_bytes()) {
        Ok(arguments @ JsonValue::Object(_)) => template_value(&arguments),
        Ok(_) => Ok(empty_map()),
        Err(error) => match json_error("messages", error) {
            limit @ TokenizeError::Limit(_) => Err(limit),
            _ => Ok(empty_map()),
        },
    }
}

fn empty_map() -> Value {
    Value::from_pairs(Vec::<(&str, Value)>::new())
}

fn developer_tool(tool: &JsonValue<'_>) -> Result<Value, TokenizeError> {
    let (Some(tool), Some(function)) =
        (tool.as_object(), tool.get("function").and_then(JsonValue::as_object))
    else {
        return Err(TokenizeError::unclear("messages"));
    };
    let ordered =
        |object: &JsonObject<'_>, keys: &[&'static str]| -> Result<Vec<(&str, Value)>, TokenizeError> {
            let mut members = Vec::new();
            for key in keys {
                if let Some(value) = object.get(key) {
                    members.push((*key, template_value(value)?));
                }
            }
            Ok(members)
        };
    let mut outer = vec![(
        "function",
        Value::from_pairs(ordered(function, &["name", "description", "parameters", "strict"])?),
    )];
    outer.extend(ordered(tool, &["type"])?);
    Ok(Value::from_pairs(outer))
}

/// For templates that don't know the developer role: developer messages become system messages, and system
/// messages become one at the front, unless there is only that one (vLLM, `renderers/hf.py`).
pub(crate) fn merge_developers<'a>(mut messages: Vec<Message<'a>>) -> Vec<Message<'a>> {
    for message in messages.iter_mut().filter(|message| message.is_developer()) {
        message.role = Cow::Borrowed("system");
        message.members.retain(|(key, _)| *key != "tools");
    }
    if messages.iter().skip(1).all(|message| !message.is_system()) {
        return messages;
    }
    let texts: Vec<String> = messages
        .iter()
        .filter(|message| message.is_system())
        .map(|message| message.text().into_owned())
        .filter(|text| !text.is_empty())
        .collect();
    let merged = Message {
        role: Cow::Borrowed("system"),
        content: Content::Text(Cow::Owned(texts.join("\n\n"))),
        members: Vec::new(),
    };
    messages.retain(|message| !message.is_system());
    messages.insert(0, merged);
    messages
}

/// The last message of a conversation that is to be continued instead of closed.
#[derive(Debug)]
pub(crate) struct Continuation {
    text: String,
}

impl Continuation {
    /// Marks the end of the last message.
    pub(crate) fn mark(messages: &mut [Message<'_>]) -> Result<Self, TokenizeError> {
        let index = messages.len().saturating_sub(1);
        let last = match messages.last_mut().map(|message| &mut message.content) {
            Some(Content::Text(text)) => Some(text),
            Some(Content::Parts(parts)) => {
                parts.iter_mut().rev().find(|part| part.kind == PartKind::Text).map(|part| &mut part.text)
            }
            None => None,
        };
        let text = last.ok_or_else(|| TokenizeError::message(index, "has no text to continue"))?;
        let before = text.to_string();
        text.to_mut().push_str(CONTINUE_TAG);
        text.to_mut().push(' ');
        Ok(Self { text: before })
    }

    /// Cuts the rendered text at the mark. Where the template trimmed the space behind the mark, it would have
    /// trimmed the end of the message too.
    pub(crate) fn cut(&self, mut rendered: String) -> Result<String, TokenizeError> {
        let missing = TokenizeError::member("continue_final_message", "needs the last message in the prompt");
        if !rendered.contains(self.text.trim_matches(is_space)) {
            return Err(missing);
        }
        let at = rendered.rfind(CONTINUE_TAG).ok_or(missing)?;
        let has_space = rendered[at + CONTINUE_TAG.len()..].starts_with(' ');
        rendered.truncate(at);
        if !has_space {
            rendered.truncate(rendered.trim_end_matches(is_space).len());
        }
        Ok(rendered)
    }
}
