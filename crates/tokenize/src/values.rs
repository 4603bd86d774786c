//! JSON values as template values.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};
use warmroute_inference_api::{JsonNumber, JsonObject, JsonValue};

use crate::error::{Rejection, TokenizeError};

/// An integer beyond 128 bits, which the template engine can't hold: its digits.
#[derive(Debug)]
pub(crate) struct BigInt(pub(crate) String);

impl Object for BigInt {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A JSON value as a template value, with the order of keys kept.
///
/// # Errors
/// For text that isn't valid, which the engine's tokenizer refuses.
pub(crate) fn template_value(value: &JsonValue<'_>) -> Result<Value, TokenizeError> {
    Ok(match value {
        JsonValue::Null => Value::from(()),
        JsonValue::Bool(value) => Value::from(*value),
        JsonValue::Number(number) => template_number(*number),
        JsonValue::String(text) => Value::from(text.as_ref()),
        JsonValue::BrokenString => return Err(TokenizeError::Rejected(Rejection::BrokenText)),
        JsonValue::Array(elements) => {
            Value::from(elements.iter().map(template_value).collect::<Result<Vec<_>, _>>()?)
        }
        JsonValue::Object(object) => template_map(object)?,
    })
}

/// A JSON object as a template value.
pub(crate) fn template_map(object: &JsonObject<'_>) -> Result<Value, TokenizeError> {
    let mut pairs = Vec::with_capacity(object.len());
    for (key, value) in object.iter() {
        pairs.push((key, template_value(value)?));
    }
    Ok(Value::from_pairs(pairs))
}

fn template_number(number: JsonNumber<'_>) -> Value {
    match number {
        JsonNumber::Int(value) => Value::from(value),
        JsonNumber::Float(value) => Value::from(value),
        JsonNumber::BigInt(digits) => match digits.parse::<i128>() {
            Ok(value) => Value::from(value),
            Err(_) => Value::from_object(BigInt(digits.to_owned())),
        },
    }
}
