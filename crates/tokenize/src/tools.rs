//! Tools of a chat request, as the template sees them.

use minijinja::Value;
use warmroute_inference_api::{ApiRequest, Field, JsonObject, JsonValue};

use crate::error::TokenizeError;
use crate::member::member;
use crate::prompt_options::PromptOptions;
use crate::values::{template_map, template_value};

/// Tools that the template gets, or `None`.
///
/// After vLLM's `ChatCompletionToolsParam`: known keys in a fixed order whatever the order of the request,
/// `description` and `parameters` always present, unknown keys dropped. The choice of a tool is checked but
/// doesn't change the prompt.
pub(crate) fn template_tools(
    request: &ApiRequest<'_>,
    options: &PromptOptions,
) -> Result<Option<Value>, TokenizeError> {
    let tools = member(request, Field::Tools, "tools")?;
    let choice = member(request, Field::ToolChoice, "tool_choice")?;
    let elements = match &tools {
        None => None,
        Some(JsonValue::Array(elements)) if elements.is_empty() => {
            return Err(TokenizeError::member("tools", "must not be an empty array"));
        }
        Some(JsonValue::Array(elements)) => Some(elements),
        Some(_) => return Err(TokenizeError::member("tools", "must be an array")),
    };
    let is_forbidden = check_choice(choice.as_ref(), elements)?;
    let Some(elements) = elements else { return Ok(None) };
    let tools = elements.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    if is_forbidden && options.exclude_tools_when_tool_choice_none {
        return Ok(None);
    }
    Ok(Some(Value::from(tools)))
}

/// Checks `tool_choice`; true if it forbids tools.
fn check_choice(
    choice: Option<&JsonValue<'_>>,
    tools: Option<&Vec<JsonValue<'_>>>,
) -> Result<bool, TokenizeError> {
    let wrong = |problem| Err(TokenizeError::member("tool_choice", problem));
    match (choice, tools) {
        (None, _) => Ok(false),
        (Some(choice), _) if choice.as_str() == Some("none") => Ok(true),
        (Some(_), None) => wrong("needs `tools`"),
        (Some(JsonValue::String(choice)), Some(_)) => match choice.as_ref() {
            "auto" | "required" => Ok(false),
            _ => wrong("must be none, auto, required or a named tool"),
        },
        (Some(JsonValue::Object(choice)), Some(tools)) => {
            let name = choice.get("function").and_then(|function| function.get("name"));
            let named = name.and_then(JsonValue::as_str);
            let has_name = |tool: &JsonValue<'_>| {
                tool.get("function").and_then(|function| function.get("name")).and_then(JsonValue::as_str)
                    == named
            };
            if named.is_some() && tools.iter().any(has_name) {
                Ok(false)
            } else {
                wrong("names no tool of `tools`")
            }
        }
        _ => wrong("must be none, auto, required or a named tool"),
    }
}

fn tool(tool: &JsonValue<'_>) -> Result<Value, TokenizeError> {
    let wrong = |problem| TokenizeError::member("tools", problem);
    let tool = tool.as_object().ok_or_else(|| wrong("must hold objects"))?;
    if tool.get("type").is_some_and(|kind| kind.as_str() != Some("function")) {
        return Err(wrong("must hold tools of type function"));
    }
    let function = tool.get("function").and_then(JsonValue::as_object);
    let function = function.ok_or_else(|| wrong("must hold a function each"))?;
    let name = function.get("name").filter(|name| matches!(name, JsonValue::String(_)));
    let name = name.ok_or_else(|| wrong("must hold functions with a name"))?;
    let mut members = vec![("name", template_value(name)?)];
    members.push((
        "description",
        match function.get("description") {
            None | Some(JsonValue::Null) => Value::from(()),
            Some(text @ (JsonValue::String(_) | JsonValue::BrokenString)) => template_value(text)?,
            Some(_) => return Err(wrong("must hold descriptions that are strings")),
        },
    ));
    members.push((
        "parameters",
        match function.get("parameters") {
            None | Some(JsonValue::Null) => Value::from(()),
            Some(JsonValue::Object(schema)) => template_map(schema)?,
            Some(_) => return Err(wrong("must hold parameters that are objects")),
        },
    ));
    if let Some(strict) = flag(function, "strict")? {
        members.push(("strict", Value::from(strict)));
    }
    let defer_loading = flag(tool, "defer_loading")?;
    if let Some(defers) = flag(function, "defer_loading")?.or(defer_loading) {
        members.push(("defer_loading", Value::from(defers)));
    }
    let mut outer = vec![("type", Value::from("function")), ("function", Value::from_pairs(members))];
    if let Some(defers) = defer_loading {
        outer.push(("defer_loading", Value::from(defers)));
    }
    Ok(Value::from_pairs(outer))
}

fn flag(object: &JsonObject<'_>, key: &'static str) -> Result<Option<bool>, TokenizeError> {
    match object.get(key) {
        None | Some(JsonValue::Null) => Ok(None),
        Some(JsonValue::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(TokenizeError::unclear("tools")),
    }
}
