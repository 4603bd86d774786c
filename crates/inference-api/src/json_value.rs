//! A JSON tree that keeps what Python's `json` keeps: key order, exact integers, NaN and infinity.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::json_error::{JsonError, JsonErrorKind};
use crate::json_lexer::{JsonLexer, NumberToken, StringToken};

/// Arrays and objects may nest this deep in a tree; deeper texts get [`JsonErrorKind::TooDeep`].
pub const MAX_TREE_DEPTH: usize = 200;

/// Objects up to this many members look for duplicate keys by comparing all pairs.
const FEW_MEMBERS: usize = 16;

/// A JSON value, borrowing unescaped text from its source.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number
    Number(JsonNumber<'a>),
    /// A string
    String(Cow<'a, str>),
    /// A string with a lone surrogate or invalid UTF-8, which Python may hold but which is no text.
    BrokenString,
    /// An array
    Array(Vec<JsonValue<'a>>),
    /// An object
    Object(JsonObject<'a>),
}

/// A number as Python's `json` reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum JsonNumber<'a> {
    /// An integer that fits 64 bits; `-0` is 0.
    Int(i64),
    /// Any other integer: its digits with an optional `-`.
    BigInt(&'a str),
    /// A number with a point or an exponent, `NaN` or an infinity.
    Float(f64),
}

/// The members of an object in the order in which their keys first appeared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JsonObject<'a> {
    members: Vec<(Cow<'a, str>, JsonValue<'a>)>,
}

/// Reads one JSON text, with whitespace around it. A byte order mark is an error.
///
/// # Errors
/// [`JsonError`] with the byte offset; also for nesting beyond [`MAX_TREE_DEPTH`] and for more values than
/// [`crate::MAX_TREE_VALUES`].
pub fn parse_json(text: &[u8]) -> Result<JsonValue<'_>, JsonError> {
    let mut lexer = JsonLexer::new(text);
    let value = parse_value(&mut lexer, 0)?;
    lexer.expect_end()?;
    Ok(value)
}

/// Reads the value at the cursor and moves behind it.
pub(crate) fn parse_value<'a>(lexer: &mut JsonLexer<'a>, depth: usize) -> Result<JsonValue<'a>, JsonError> {
    lexer.count_value()?;
    match lexer.peek_token() {
        Some(b'"') => {
            let token = lexer.string()?;
            Ok(lexer.text(&token).map_or(JsonValue::BrokenString, JsonValue::String))
        }
        Some(b'{') => {
            lexer.check_depth(depth, MAX_TREE_DEPTH)?;
            let mut members = Vec::new();
            lexer.object(|lexer, key| {
                let key = key_text(lexer, &key)?;
                members.push((key, parse_value(lexer, depth + 1)?));
                Ok(())
            })?;
            Ok(JsonValue::Object(JsonObject { members: without_duplicates(members) }))
        }
        Some(b'[') => {
            lexer.check_depth(depth, MAX_TREE_DEPTH)?;
            let mut elements = Vec::new();
            lexer.array(|lexer| {
                elements.push(parse_value(lexer, depth + 1)?);
                Ok(())
            })?;
            Ok(JsonValue::Array(elements))
        }
        Some(b't') => lexer.literal("true").map(|()| JsonValue::Bool(true)),
        Some(b'f') => lexer.literal("false").map(|()| JsonValue::Bool(false)),
        Some(b'n') => lexer.literal("null").map(|()| JsonValue::Null),
        Some(b'-' | b'0'..=b'9' | b'N' | b'I') => {
            let token = lexer.number()?;
            Ok(JsonValue::Number(number(lexer, token)?))
        }
        _ => Err(lexer.unexpected("looking for beginning of value")),
    }
}

fn key_text<'a>(lexer: &JsonLexer<'a>, key: &StringToken) -> Result<Cow<'a, str>, JsonError> {
    lexer.text(key).ok_or(JsonError { offset: key.inner.start, kind: JsonErrorKind::BrokenKey })
}

fn number<'a>(lexer: &JsonLexer<'a>, token: NumberToken) -> Result<JsonNumber<'a>, JsonError> {
    let (range, is_float) = match token {
        NumberToken::NaN => return Ok(JsonNumber::Float(f64::NAN)),
        NumberToken::Infinity => return Ok(JsonNumber::Float(f64::INFINITY)),
        NumberToken::NegativeInfinity => return Ok(JsonNumber::Float(f64::NEG_INFINITY)),
        NumberToken::Integer(range) => (range, false),
        NumberToken::Float(range) => (range, true),
    };
    let wrong = || lexer.unexpected("in numeric literal");
    let text = std::str::from_utf8(&lexer.bytes()[range]).map_err(|_| wrong())?;
    if is_float {
        return text.parse().map(JsonNumber::Float).map_err(|_| wrong());
    }
    Ok(text.parse().map_or(JsonNumber::BigInt(text), JsonNumber::Int))
}

/// Python's rule: of equal keys the last value stays, at the place of the first.
fn without_duplicates<'a>(
    mut members: Vec<(Cow<'a, str>, JsonValue<'a>)>,
) -> Vec<(Cow<'a, str>, JsonValue<'a>)> {
    let duplicates = duplicate_places(&members);
    if duplicates.is_empty() {
        return members;
    }
    for &(first, later) in &duplicates {
        members[first].1 = std::mem::replace(&mut members[later].1, JsonValue::Null);
    }
    let mut later = duplicates.iter().map(|&(_, later)| later).peekable();
    let mut place = 0;
    members.retain(|_| {
        let drop = later.next_if_eq(&place).is_some();
        place += 1;
        !drop
    });
    members
}

/// Pairs of places with equal keys: the first one and each later one, by rising later place.
fn duplicate_places(members: &[(Cow<'_, str>, JsonValue<'_>)]) -> Vec<(usize, usize)> {
    let mut duplicates = Vec::new();
    if members.len() <= FEW_MEMBERS {
        for later in 1..members.len() {
            if let Some(first) = members[..later].iter().position(|(key, _)| *key == members[later].0) {
                duplicates.push((first, later));
            }
        }
        return duplicates;
    }
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(members.len());
    for (place, (key, _)) in members.iter().enumerate() {
        let first = *places.entry(key).or_insert(place);
        if first != place {
            duplicates.push((first, place));
        }
    }
    duplicates
}

impl<'a> JsonObject<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&JsonValue<'a>> {
        self.members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &JsonValue<'a>)> {
        self.members.iter().map(|(key, value)| (key.as_ref(), value))
    }
}

impl<'a> JsonValue<'a> {
    /// The text, if this is a string of valid text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The integer, if this is a number with an integral value in the range of `i64`.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Number(JsonNumber::Int(value)) => Some(value),
            #[allow(clippy::cast_possible_truncation, reason = "the range and the fraction are checked")]
            Self::Number(JsonNumber::Float(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
                Some(value as i64)
            }
            _ => None,
        }
    }

    /// The integer, if this is a number with an integral value in the range of `u32`.
    pub fn as_u32(&self) -> Option<u32> {
        self.as_i64().and_then(|value| u32::try_from(value).ok())
    }

    /// The elements, if this is an array.
    pub fn as_array(&self) -> Option<&[JsonValue<'a>]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// The members, if this is an object.
    pub fn as_object(&self) -> Option<&JsonObject<'a>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The value of a key, if this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&JsonValue<'a>> {
        self.as_object()?.get(key)
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Name of the type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) | Self::BrokenString => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }
}
