//! Token usage in responses.

use crate::json_lexer::JsonLexer;
use crate::json_value::{JsonValue, parse_value};

/// What an engine says a request cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt; 0 if not reported.
    pub prompt_tokens: u32,
    /// Tokens generated; 0 if not reported.
    pub completion_tokens: u32,
    /// Tokens of the prompt that came from the prefix cache. `None` if not reported, which is not zero.
    pub cached_tokens: Option<u32>,
}

impl Usage {
    /// This usage after a later report, of which absent and zero counts say nothing.
    pub(crate) fn updated_by(self, later: Self) -> Self {
        let last = |earlier: u32, later: u32| if later == 0 { earlier } else { later };
        Self {
            prompt_tokens: last(self.prompt_tokens, later.prompt_tokens),
            completion_tokens: last(self.completion_tokens, later.completion_tokens),
            cached_tokens: later.cached_tokens.or(self.cached_tokens),
        }
    }
}

/// The usage in the JSON body of a response, or in one event of a streamed one.
///
/// Read are `usage` and, for the responses API, `response.usage`, with the names of the chat
/// (`prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`) and the responses API
/// (`input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens`). Numbers may be strings. Anything
/// else is passed over, and a body that isn't JSON has no usage.
pub fn usage_of_json(body: &[u8]) -> Option<Usage> {
    let mut lexer = JsonLexer::new(body);
    let mut usage = None;
    let mut nested = None;
    if lexer.peek_token() != Some(b'{') {
        return None;
    }
    let scanned = lexer.object(|lexer, key| {
        match &lexer.bytes()[key.inner] {
            b"usage" => usage = usage_of_value(&parse_value(lexer, 1)?),
            b"response" if lexer.peek() == Some(b'{') => lexer.object(|lexer, key| {
                if &lexer.bytes()[key.inner] == b"usage" {
                    nested = usage_of_value(&parse_value(lexer, 2)?);
                    Ok(())
                } else {
                    lexer.skip_value(2).map(drop)
                }
            })?,
            _ => {
                lexer.skip_value(1)?;
            }
        }
        Ok(())
    });
    scanned.ok()?;
    usage.or(nested)
}

fn usage_of_value(value: &JsonValue<'_>) -> Option<Usage> {
    let object = value.as_object()?;
    let either = |names: [&str; 2]| names.into_iter().find_map(|name| count(object.get(name)));
    let details = |name| count(object.get(name)?.get("cached_tokens"));
    let prompt_tokens = either(["prompt_tokens", "input_tokens"]);
    let completion_tokens = either(["completion_tokens", "output_tokens"]);
    if prompt_tokens.is_none() && completion_tokens.is_none() {
        return None;
    }
    Some(Usage {
        prompt_tokens: prompt_tokens.unwrap_or_default(),
        completion_tokens: completion_tokens.unwrap_or_default(),
        cached_tokens: details("prompt_tokens_details").or_else(|| details("input_tokens_details")),
    })
}

fn count(value: Option<&JsonValue<'_>>) -> Option<u32> {
    let value = value?;
    value.as_u32().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{Usage, usage_of_json};

    fn usage(prompt_tokens: u32, completion_tokens: u32, cached_tokens: Option<u32>) -> Option<Usage> {
        Some(Usage { prompt_tokens, completion_tokens, cached_tokens })
    }

    #[test]
    fn names_and_types() {
        for (body, expected) in [
            (r#"{"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}"#, usage(5, 7, None)),
            (
                r#"{"id":"x","usage":{"prompt_tokens":5,"completion_tokens":7,
                    "prompt_tokens_details":{"cached_tokens":4}}}"#,
                usage(5, 7, Some(4)),
            ),
            (
                r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0}}}"#,
                usage(5, 0, Some(0)),
            ),
            (r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}"#, usage(5, 0, None)),
            (
                r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":null}}}"#,
                usage(5, 0, None),
            ),
            (
                r#"{"usage":{"input_tokens":"5","output_tokens":7.0,"input_tokens_details":{"cached_tokens":"1"}}}"#,
                usage(5, 7, Some(1)),
            ),
            (
                r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":1}}}"#,
                usage(3, 1, None),
            ),
            (r#"{"usage":{"prompt_tokens":-5,"completion_tokens":true}}"#, None),
            (r#"{"usage":null}"#, None),
            (r#"{"usage":{}}"#, None),
            (r#"{"choices":[{"usage":{"prompt_tokens":5}}]}"#, None),
            (r#"{"usage":{"prompt_tokens":5}"#, None),
            (r#"[{"usage":{"prompt_tokens":5}}]"#, None),
            ("upstream connect error", None),
            ("", None),
        ] {
            assert_eq!(usage_of_json(body.as_bytes()), expected, "{body}");
        }
    }
}
