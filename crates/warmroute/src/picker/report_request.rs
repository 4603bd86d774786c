//! Asks vLLM, in a request's body, to announce again what the request hits in its prefix cache.
//!
//! `vllm_xargs` are the engine's extra arguments of a request; from vLLM 0.26 on `kv_cache_report_mode` with the value
//! `full` makes it publish the hit blocks as stored once more (`vllm/v1/core/kv_cache_manager.py`), older ones ignore
//! it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

const MEMBER: &str = "\"kv_cache_report_mode\":\"full\"";

/// The members that are looked at; of one that stands there twice nothing is made.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default, deserialize_with = "written")]
    vllm_xargs: Option<&'a RawValue>,
}

/// What is written there, `null` too.
fn written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The body with that argument added. None if it can't be: it isn't JSON in the strict sense, or says something of the
/// argument itself.
pub(super) fn with_full_report(body: &[u8]) -> Option<Bytes> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let Body { vllm_xargs } = serde_json::from_slice(body).ok()?;
    let Some(arguments) = vllm_xargs.map(RawValue::get) else {
        let inside = 1 + body.iter().position(|byte| *byte == b'{')?;
        return Some(spliced(
            body,
            inside..inside,
            &format!("\"vllm_xargs\":{{{MEMBER}}}{}", comma(&body[inside..])),
        ));
    };
    // Where the text stands that was borrowed from the body.
    let start = (arguments.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    if arguments == "null" {
        return Some(spliced(body, start..start + arguments.len(), &format!("{{{MEMBER}}}")));
    }
    let known: BTreeMap<Cow<'_, str>, serde::de::IgnoredAny> = serde_json::from_str(arguments).ok()?;
    if known.contains_key("kv_cache_report_mode") {
        return None;
    }
    let inside = start + 1;
    Some(spliced(body, inside..inside, &format!("{MEMBER}{}", comma(&body[inside..]))))
}

/// What is needed before the rest of an object.
fn comma(rest: &[u8]) -> &'static str {
    match rest.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'}') | None => "",
        Some(_) => ",",
    }
}

fn spliced(body: &[u8], range: std::ops::Range<usize>, text: &str) -> Bytes {
    [&body[..range.start], text.as_bytes(), &body[range.end..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(body: &str) -> Option<Value> {
        with_full_report(body.as_bytes()).map(|body| serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn the_argument_is_added_and_nothing_else_changes() {
        let full = json!({"kv_cache_report_mode": "full"});
        for (body, expected) in [
            (
                r#"{"model":"m","prompt":"é \" {"}"#,
                json!({"model": "m", "prompt": "é \" {", "vllm_xargs": full}),
            ),
            (" { } ", json!({ "vllm_xargs": full })),
            (r#"{"vllm_xargs": null, "n": 1}"#, json!({"vllm_xargs": full, "n": 1})),
            (r#"{"n": 1, "vllm_xargs": { }}"#, json!({"vllm_xargs": full, "n": 1})),
            (
                r#"{"vllm_xargs": {"session_id": "s", "a": {"b": [1]}}}"#,
                json!({"vllm_xargs": {"session_id": "s", "a": {"b": [1]}, "kv_cache_report_mode": "full"}}),
            ),
        ] {
            assert_eq!(with(body), Some(expected), "{body}");
        }
    }

    #[test]
    fn what_the_client_says_stays_and_what_is_unclear_is_left_alone() {
        for body in [
            r#"{"vllm_xargs":{"kv_cache_report_mode":"incremental"}}"#,
            r#"{"vllm_xargs":{"\u006bv_cache_report_mode":"incremental"}}"#,
            r#"{"vllm_xargs":7}"#,
            r#"{"vllm_xargs":{},"vllm_xargs":{}}"#,
            r#"{"temperature":NaN}"#,
            "[{}]",
            "[]",
            "",
            "{",
        ] {
            assert_eq!(with(body), None, "{body}");
        }
    }
}
