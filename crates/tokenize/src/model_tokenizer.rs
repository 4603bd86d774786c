//! All tokenizer files of one model.

use std::path::{Path, PathBuf};

use minijinja::Value;
use warmroute_inference_api::{Api, ApiRequest, Field, JsonNumber, JsonValue, Prompt, parse_json};

use crate::chat_template::ChatTemplate;
use crate::content_format::ContentFormat;
use crate::encoder::{Encoder, FastEncoder};
use crate::error::{LoadError, Rejection, TokenizeError, Unsupported};
use crate::kwargs::{PromptEnd, template_variables};
use crate::media_tokens::MediaTokens;
use crate::member::{flag, json_error, member};
use crate::message::{ContentForm, Continuation, MediaForm, merge_developers, normalized_messages};
use crate::prompt_options::PromptOptions;
use crate::tools::template_tools;
use crate::truncation::Truncation;

/// Special tokens that templates know by name.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The encoder, chat template and special tokens of one model. Share it by `Arc`.
pub struct ModelTokenizer {
    encoder: Box<dyn Encoder>,
    templates: Templates,
    special_tokens: Vec<(&'static str, String)>,
    pub(crate) media_tokens: MediaTokens,
}

/// A conversation as the template writes it.
pub(crate) struct RenderedChat {
    pub(crate) text: String,
    pub(crate) format: ContentFormat,
}

/// The chat templates of a model, of which some have one for conversations with tools.
#[derive(Default)]
struct Templates {
    default: Option<ChatTemplate>,
    tool_use: Option<ChatTemplate>,
    /// Whether the server was told the template, which then goes before one in `chat_template_kwargs`.
    is_set_by_server: bool,
}

/// Token ids of one prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptTokens {
    /// The ids, never empty.
    pub ids: Vec<u32>,
}

impl ModelTokenizer {
    /// Loads `tokenizer.json`, `tokenizer_config.json` and, if present, `chat_template.jinja` of a directory.
    /// A model without a chat template loads, but knows no tokens of chats.
    ///
    /// # Errors
    /// [`LoadError`] says which file, what is wrong and what to do.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        if !dir.is_dir() {
            return Err(LoadError::NoDirectory { path: dir.to_owned() });
        }
        let config_path = dir.join("tokenizer_config.json");
        let config_text = read(&config_path)?;
        let config = parse_json(config_text.as_bytes()).map_err(|error| LoadError::Invalid {
            path: config_path.clone(),
            problem: format!("{error} at byte {}", error.offset),
        })?;
        if config.as_object().is_none() {
            return Err(LoadError::Invalid { path: config_path, problem: "it is not an object".to_owned() });
        }
        let template_path = dir.join("chat_template.jinja");
        let templates = if template_path.is_file() {
            Templates {
                default: Some(compile(&template_path, &read(&template_path)?)?),
                ..Templates::default()
            }
        } else {
            Templates::of_config(&config_path, &config)?
        };
        let encoder = Box::new(FastEncoder::load(&dir.join("tokenizer.json"))?);
        let media_tokens = MediaTokens::new(encoder.hard_tokens());
        Ok(Self { encoder, templates, special_tokens: special_tokens(&config), media_tokens })
    }

    /// Replaces the chat template, as `vllm serve --chat-template` does.
    ///
    /// # Errors
    /// [`LoadError::Template`] if it doesn't compile; `path` is where it comes from, for the message.
    pub fn with_chat_template(mut self, path: &Path, template: &str) -> Result<Self, LoadError> {
        self.templates =
            Templates { default: Some(compile(path, template)?), tool_use: None, is_set_by_server: true };
        Ok(self)
    }

    /// The token ids that the engine computes for a request: one list per prompt.
    ///
    /// # Errors
    /// [`TokenizeError`] tells requests that the engine refuses from those that can't be told.
    pub fn tokens(
        &self,
        request: &ApiRequest<'_>,
        options: &PromptOptions,
    ) -> Result<Vec<PromptTokens>, TokenizeError> {
        check_salt(request)?;
        let truncation = Truncation::of(request, options)?;
        let add_special_tokens = flag(request, Field::AddSpecialTokens, "add_special_tokens")?;
        let encode = |text: &str, default: bool| {
            truncation.encode(self.encoder.as_ref(), text, add_special_tokens.unwrap_or(default))
        };
        let prompts = match request.api {
            Api::ChatCompletions => {
                vec![match reused_ids(request)? {
                    Some(ids) => truncation.cut(ids),
                    None => encode(&self.render_chat(request, options)?, false)?,
                }]
            }
            Api::Completions => {
                for (field, name) in [(Field::Suffix, "suffix"), (Field::PromptEmbeds, "prompt_embeds")] {
                    if member(request, field, name)?.is_some() {
                        return Err(match field {
                            Field::PromptEmbeds => TokenizeError::Unsupported(Unsupported::PromptEmbeds),
                            _ => TokenizeError::unclear(name),
                        });
                    }
                }
                let reused = reused_ids(request)?;
                match (&request.prompt, reused) {
                    (Prompt::Text(_), Some(ids)) => vec![truncation.cut(ids)],
                    (Prompt::Texts(_), Some(_)) => return Err(TokenizeError::unclear("kv_transfer_params")),
                    (Prompt::Text(text), None) => vec![encode(text, true)?],
                    (Prompt::Texts(texts), None) => {
                        texts.iter().map(|text| encode(text, true)).collect::<Result<_, _>>()?
                    }
                    (Prompt::TokenIds(ids), _) => vec![truncation.cut(ids.clone())],
                    (Prompt::TokenIdLists(lists), _) => {
                        lists.iter().map(|ids| truncation.cut(ids.clone())).collect()
                    }
                    (Prompt::Unclear(value), _) => return Err(unclear_prompt(value)),
                    (Prompt::None | Prompt::Chat(_) | Prompt::Items(_), _) => {
                        return Err(TokenizeError::member("prompt", "is missing"));
                    }
                }
            }
            _ => return Err(TokenizeError::Unsupported(Unsupported::Api)),
        };
        for (index, ids) in prompts.iter().enumerate() {
            truncation.check(index, ids)?;
        }
        Ok(prompts.into_iter().map(|ids| PromptTokens { ids }).collect())
    }

    /// The text that a chat request is rendered to.
    ///
    /// # Errors
    /// As [`Self::tokens`].
    pub fn render_chat(
        &self,
        request: &ApiRequest<'_>,
        options: &PromptOptions,
    ) -> Result<String, TokenizeError> {
        Ok(self.render(request, options, MediaForm::Refused)?.text)
    }

    /// Renders a chat request, with what `media` makes of its media.
    pub(crate) fn render(
        &self,
        request: &ApiRequest<'_>,
        options: &PromptOptions,
        media: MediaForm,
    ) -> Result<RenderedChat, TokenizeError> {
        let Prompt::Chat(chat) = &request.prompt else {
            return Err(TokenizeError::Unsupported(Unsupported::Api));
        };
        let end = PromptEnd::of(request)?;
        let tools = template_tools(request, options)?;
        let own_template = self.request_template(request, options)?;
        let template = match &own_template {
            Some(template) => template,
            None => self
                .templates
                .choose(tools.is_some())
                .ok_or(TokenizeError::Unsupported(Unsupported::NoChatTemplate))?,
        };
        let format = options.content_format.unwrap_or(template.content_format());
        let tree = parse_json(chat.messages).map_err(|error| json_error("messages", error))?;
        let mut messages = normalized_messages(&tree, ContentForm { format, media })?;
        if !template.mentions_developer() && messages.iter().any(|message| message.is_developer()) {
            if messages.iter().any(|message| message.has_media()) {
                return Err(TokenizeError::unclear("messages"));
            }
            messages = merge_developers(messages);
        }
        let continuation =
            end.continue_final_message.then(|| Continuation::mark(&mut messages)).transpose()?;
        let mut variables: Vec<(String, Value)> = self
            .special_tokens
            .iter()
            .map(|(name, token)| ((*name).to_owned(), Value::from(token.as_str())))
            .collect();
        variables.extend(template_variables(request, options, tools, end)?);
        let messages: Value = messages.into_iter().map(|message| message.into_value()).collect();
        variables.push(("messages".to_owned(), messages));
        let rendered = template.render(variables, options)?;
        let text = match continuation {
            Some(continuation) => continuation.cut(rendered)?,
            None => rendered,
        };
        Ok(RenderedChat { text, format })
    }

    /// Appends the ids of a text to `ids`.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizeError> {
        self.encoder.encode(text, add_special_tokens, ids)
    }

    /// Name and version of the library that encodes this model's texts: most models' `tokenizer.json` is for the
    /// faster of two.
    pub fn encoder_name(&self) -> &'static str {
        self.encoder.name()
    }

    /// The template that a request brings along, as a member or in `chat_template_kwargs`. An empty one counts
    /// as none, but must be allowed all the same.
    fn request_template(
        &self,
        request: &ApiRequest<'_>,
        options: &PromptOptions,
    ) -> Result<Option<ChatTemplate>, TokenizeError> {
        let mut template = member(request, Field::ChatTemplate, "chat_template")?;
        if let Some(kwargs) = member(request, Field::ChatTemplateKwargs, "chat_template_kwargs")?
            && let Some(in_kwargs) = kwargs.get("chat_template").filter(|value| !value.is_null())
        {
            if !options.trust_request_chat_template {
                return Err(TokenizeError::member("chat_template_kwargs", "must not set a chat template"));
            }
            let is_unset = self.templates.is_set_by_server || in_kwargs.as_str() == Some("auto");
            if !is_unset && template.as_ref().and_then(JsonValue::as_str).is_none_or(str::is_empty) {
                template = Some(in_kwargs.clone());
            }
        }
        let source = match template {
            None => return Ok(None),
            Some(JsonValue::String(source)) => source,
            Some(JsonValue::BrokenString) => return Err(TokenizeError::Rejected(Rejection::BrokenText)),
            Some(_) => return Err(TokenizeError::member("chat_template", "must be a string")),
        };
        if !options.trust_request_chat_template {
            return Err(TokenizeError::member("chat_template", "is not taken from requests"));
        }
        if source.is_empty() {
            return Ok(None);
        }
        ChatTemplate::compile(&source)
            .map(Some)
            .map_err(|error| TokenizeError::Unsupported(Unsupported::Template(error.to_string())))
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.templates.default.is_some() || self.templates.tool_use.is_some()
    }
}

impl Templates {
    /// `chat_template` is a text, or a list of named texts.
    fn of_config(path: &Path, config: &JsonValue<'_>) -> Result<Self, LoadError> {
        let mut templates = Self::default();
        match config.get("chat_template") {
            Some(JsonValue::String(source)) => templates.default = Some(compile(path, source)?),
            Some(JsonValue::Array(named)) => {
                for entry in named {
                    let text = |key| entry.get(key).and_then(JsonValue::as_str);
                    match (text("name"), text("template")) {
                        (Some("default"), Some(source)) => templates.default = Some(compile(path, source)?),
                        (Some("tool_use"), Some(source)) => templates.tool_use = Some(compile(path, source)?),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(templates)
    }

    fn choose(&self, has_tools: bool) -> Option<&ChatTemplate> {
        self.tool_use.as_ref().filter(|_| has_tools).or(self.default.as_ref())
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })
}

fn compile(path: &Path, source: &str) -> Result<ChatTemplate, LoadError> {
    let path: PathBuf = path.to_owned();
    ChatTemplate::compile(source).map_err(|error| LoadError::Template { path, problem: error.to_string() })
}

/// A special token is a text, or an object with its text in `content`.
fn special_tokens(config: &JsonValue<'_>) -> Vec<(&'static str, String)> {
    SPECIAL_TOKENS
        .into_iter()
        .filter_map(|name| {
            let token = config.get(name)?;
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((name, text.to_owned()))
        })
        .collect()
}

pub(crate) fn check_salt(request: &ApiRequest<'_>) -> Result<(), TokenizeError> {
    match member(request, Field::CacheSalt, "cache_salt")? {
        None => Ok(()),
        Some(JsonValue::String(salt)) if !salt.is_empty() => Ok(()),
        Some(JsonValue::BrokenString) => Err(TokenizeError::unclear("cache_salt")),
        Some(_) => Err(TokenizeError::member("cache_salt", "must be a non-empty string")),
    }
}

/// Ids that `kv_transfer_params.prompt_token_ids` gives in place of the text.
pub(crate) fn reused_ids(request: &ApiRequest<'_>) -> Result<Option<Vec<u32>>, TokenizeError> {
    let params = member(request, Field::KvTransferParams, "kv_transfer_params")?;
    match params.as_ref().and_then(|params| params.get("prompt_token_ids")) {
        None | Some(JsonValue::Null) => Ok(None),
        Some(ids) => ids
            .as_array()
            .and_then(|ids| ids.iter().map(JsonValue::as_u32).collect::<Option<Vec<u32>>>())
            .filter(|ids| !ids.is_empty())
            .map(Some)
            .ok_or(TokenizeError::unclear("kv_transfer_params")),
    }
}

/// Why a prompt that isn't text or ids has no tokens. What pydantic might read as ids is left undecided.
fn unclear_prompt(value: &[u8]) -> TokenizeError {
    let wrong = TokenizeError::member("prompt", "is neither text nor token ids");
    match parse_json(value) {
        Ok(JsonValue::BrokenString) => TokenizeError::Rejected(Rejection::BrokenText),
        Ok(JsonValue::Array(elements)) => {
            let is_negative =
                |element: &JsonValue<'_>| matches!(element, JsonValue::Number(JsonNumber::Int(..=-1)));
            let has = |test: fn(&JsonValue<'_>) -> bool| elements.iter().any(test);
            if has(|element| matches!(element, JsonValue::BrokenString)) {
                TokenizeError::Rejected(Rejection::BrokenText)
            } else if has(|element| matches!(element, JsonValue::Object(_) | JsonValue::Null))
                || elements.iter().any(is_negative)
                || (has(|element| matches!(element, JsonValue::Array(_)))
                    && has(|element| !matches!(element, JsonValue::Array(_))))
            {
                wrong
            } else {
                TokenizeError::unclear("prompt")
            }
        }
        Ok(_) => wrong,
        Err(error) => json_error("prompt", error),
    }
}
