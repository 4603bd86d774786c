//! Variables of a chat template.

use minijinja::Value;
use warmroute_inference_api::{ApiRequest, Field, JsonObject, JsonValue, parse_json};

use crate::error::TokenizeError;
use crate::member::{flag, json_error, member};
use crate::prompt_options::PromptOptions;
use crate::values::template_value;

/// Names that Hugging Face's `apply_chat_template` takes for itself, so that templates never see them.
const TAKEN_NAMES: [&str; 11] = [
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
];

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// How the end of the prompt is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PromptEnd {
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
}

impl PromptEnd {
    pub(crate) fn of(request: &ApiRequest<'_>) -> Result<Self, TokenizeError> {
        let add = flag(request, Field::AddGenerationPrompt, "add_generation_prompt")?;
        let continue_final = flag(request, Field::ContinueFinalMessage, "continue_final_message")?;
        let end = Self {
            add_generation_prompt: add.unwrap_or(true),
            continue_final_message: continue_final.unwrap_or(false),
        };
        if end.add_generation_prompt && end.continue_final_message {
            return Err(TokenizeError::member("continue_final_message", "excludes a generation prompt"));
        }
        Ok(end)
    }
}

/// Variables in the order in which they replace each other: server defaults and tools, then
/// `chat_template_kwargs`, then members of the request. In the later layers null and `"auto"` count as
/// unset (vLLM, `renderers/params.py`, `merge_kwargs`).
pub(crate) fn template_variables(
    request: &ApiRequest<'_>,
    options: &PromptOptions,
    tools: Option<Value>,
    end: PromptEnd,
) -> Result<Vec<(String, Value)>, TokenizeError> {
    let mut variables = vec![
        ("tools".to_owned(), tools.unwrap_or_else(|| Value::from(()))),
        ("documents".to_owned(), Value::from(())),
    ];
    if let Some(defaults) = &options.default_chat_template_kwargs {
        let name = "default_chat_template_kwargs";
        let defaults = parse_json(defaults.as_bytes()).map_err(|error| json_error(name, error))?;
        let defaults = defaults.as_object().ok_or(TokenizeError::member(name, "must be an object"))?;
        for (key, value) in defaults.iter() {
            variables.push((key.to_owned(), template_value(value)?));
        }
    }
    let kwargs = member(request, Field::ChatTemplateKwargs, "chat_template_kwargs")?;
    let kwargs = match &kwargs {
        None => None,
        Some(JsonValue::Object(kwargs)) => Some(kwargs),
        Some(_) => return Err(TokenizeError::member("chat_template_kwargs", "must be an object")),
    };
    if let Some(kwargs) = kwargs {
        add_request_kwargs(kwargs, &mut variables)?;
    }
    if let Some(documents) = member(request, Field::Documents, "documents")? {
        check_documents(&documents)?;
        variables.push(("documents".to_owned(), template_value(&documents)?));
    }
    if let Some(effort) = member(request, Field::ReasoningEffort, "reasoning_effort")? {
        let effort = effort.as_str().filter(|effort| EFFORTS.contains(effort));
        let effort = effort.ok_or(TokenizeError::member("reasoning_effort", "must be a known effort"))?;
        variables.push(("reasoning_effort".to_owned(), Value::from(effort)));
        if kwargs.is_none_or(|kwargs| kwargs.get("enable_thinking").is_none()) {
            variables.push(("enable_thinking".to_owned(), Value::from(effort != "none")));
        }
    }
    variables.push(("add_generation_prompt".to_owned(), Value::from(end.add_generation_prompt)));
    Ok(variables)
}

fn add_request_kwargs(
    kwargs: &JsonObject<'_>,
    variables: &mut Vec<(String, Value)>,
) -> Result<(), TokenizeError> {
    for (key, value) in kwargs.iter() {
        if key == "messages" {
            return Err(TokenizeError::member("chat_template_kwargs", "must not set messages"));
        }
        let is_unset = value.is_null() || value.as_str() == Some("auto");
        if !is_unset && !TAKEN_NAMES.contains(&key) {
            variables.push((key.to_owned(), template_value(value)?));
        }
    }
    Ok(())
}

fn check_documents(documents: &JsonValue<'_>) -> Result<(), TokenizeError> {
    let is_document = |document: &JsonValue<'_>| {
        document
            .as_object()
            .is_some_and(|document| document.iter().all(|(_, value)| value.as_str().is_some()))
    };
    if documents.as_array().is_some_and(|documents| documents.iter().all(is_document)) {
        Ok(())
    } else {
        Err(TokenizeError::member("documents", "must be an array of objects with texts"))
    }
}
