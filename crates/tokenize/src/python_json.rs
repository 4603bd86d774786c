//! The `tojson` filter: Python's `json.dumps` as Hugging Face sets it up.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::python::{as_float, float_repr};
use crate::values::BigInt;

/// Values may nest this deep.
const MAX_DEPTH: usize = 500;

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(crate) fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let option = |place: usize, name: &str| -> Result<Value, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| positional.get(place).cloned()).unwrap_or_default())
    };
    let ensure_ascii = option(0, "ensure_ascii")?.is_true();
    let indent = indentation(&option(1, "indent")?)?;
    let separators = option(2, "separators")?;
    let sort_keys = option(3, "sort_keys")?.is_true();
    kwargs.assert_all_used()?;
    let (between, colon) = if separators.is_undefined() || separators.is_none() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        let text = |place: usize| -> Result<String, Error> {
            let separator = separators.get_item_by_index(place)?;
            separator.as_str().map(str::to_owned).ok_or_else(|| wrong("separators must be two strings"))
        };
        (text(0)?, text(1)?)
    };
    let mut writer =
        JsonWriter { out: String::new(), ensure_ascii, indent, between, colon, sort_keys, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

fn indentation(value: &Value) -> Result<Option<String>, Error> {
    if value.is_undefined() || value.is_none() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let width = value.as_i64().ok_or_else(|| wrong("indent must be an integer or a string"))?;
    let width = usize::try_from(width.clamp(0, 64)).unwrap_or_default();
    Ok(Some(" ".repeat(width)))
}

fn wrong(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

struct JsonWriter {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    sort_keys: bool,
    depth: usize,
}

impl JsonWriter {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if let Some(float) = as_float(value) {
            self.out.push_str(&json_float(float));
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => match value.as_str() {
                Some(text) => self.string(text),
                None => return Err(wrong("text that is not UTF-8 can't be written as JSON")),
            },
            ValueKind::Seq => self.sequence(value)?,
            ValueKind::Map => self.map(value)?,
            ValueKind::Plain if value.downcast_object_ref::<BigInt>().is_some() => {
                self.out.push_str(&value.to_string());
            }
            kind => {
                let detail = format!("Object of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, detail));
            }
        }
        Ok(())
    }

    fn sequence(&mut self, value: &Value) -> Result<(), Error> {
        self.out.push('[');
        self.enter()?;
        let mut is_empty = true;
        for element in value.try_iter()? {
            self.separate(std::mem::take(&mut is_empty));
            self.value(&element)?;
        }
        self.leave(is_empty);
        self.out.push(']');
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
        let mut members = Vec::new();
        for (key, member) in pairs.into_iter().flatten() {
            members.push((key_text(&key)?, member));
        }
        if self.sort_keys {
            members.sort_by(|left, right| left.0.cmp(&right.0));
        }
        self.out.push('{');
        self.enter()?;
        for (place, (key, member)) in members.iter().enumerate() {
            self.separate(place == 0);
            self.string(key);
            self.out.push_str(&self.colon);
            self.value(member)?;
        }
        self.leave(members.is_empty());
        self.out.push('}');
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(wrong("value nests too deep for JSON")) } else { Ok(()) }
    }

    fn separate(&mut self, is_first: bool) {
        if !is_first {
            self.out.push_str(&self.between);
        }
        self.new_line();
    }

    fn leave(&mut self, is_empty: bool) {
        self.depth -= 1;
        if !is_empty {
            self.new_line();
        }
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\x1f' => self.escape(u32::from(character)),
                '\x7f'.. if self.ensure_ascii => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        self.escape(u32::from(*unit));
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, unit: u32) {
        self.out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn json_float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float_repr(value)
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    if let Some(float) = as_float(key) {
        return Ok(json_float(float));
    }
    match key.kind() {
        ValueKind::String | ValueKind::Number => Ok(key.to_string()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        _ => Err(wrong("keys must be str, int, float, bool or None")),
    }
}
