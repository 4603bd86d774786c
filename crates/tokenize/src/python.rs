//! Values printed the way Python prints them.

use std::fmt::{self, Write};

use minijinja::value::ValueKind;
use minijinja::{Error, Output, State, Value};

/// Floats from here on are printed with an exponent, as Python's `repr` does.
const EXPONENT_FROM: f64 = 1e16;
/// Floats below this are printed with an exponent.
const EXPONENT_BELOW: f64 = 1e-4;

/// Python's `repr` of a finite float, or `inf`, `-inf`, `nan`.
pub(crate) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if value == 0.0 || (EXPONENT_BELOW..EXPONENT_FROM).contains(&value.abs()) {
        let mut text = value.to_string();
        if !text.contains('.') {
            text.push_str(".0");
        }
        return text;
    }
    let text = format!("{value:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Whether a value is a float, as opposed to an integer.
pub(crate) fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        f64::try_from(value.clone()).ok()
    } else {
        None
    }
}

/// Writes Python's `str` of a value; undefined values print nothing.
pub(crate) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => match value.as_str() {
            Some(text) => out.write_str(text),
            None => write!(out, "{value}"),
        },
        _ => write_repr(out, value),
    }
}

/// Python's `str` of a value.
pub(crate) fn str_of(value: &Value) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_str(&mut text, value);
    text
}

fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    if let Some(float) = as_float(value) {
        return out.write_str(&float_repr(float));
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::String => match value.as_str() {
            Some(text) => write_str_repr(out, text),
            None => write!(out, "{value}"),
        },
        ValueKind::Seq => {
            let is_tuple = value.is_tuple();
            let length = value.len();
            out.write_char(if is_tuple { '(' } else { '[' })?;
            for (place, element) in value.try_iter().into_iter().flatten().enumerate() {
                if place > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &element)?;
            }
            out.write_str(match (is_tuple, length) {
                (true, Some(1)) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            })
        }
        ValueKind::Map if value.as_object().is_some() => {
            out.write_char('{')?;
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            for (place, (key, element)) in pairs.into_iter().flatten().enumerate() {
                if place > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &element)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Python's `repr` of a string.
fn write_str_repr(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            character if character == quote => write!(out, "\\{character}")?,
            character if is_printable(character) => out.write_char(character)?,
            character => match u32::from(character) {
                code @ 0..=0xff => write!(out, "\\x{code:02x}")?,
                code @ 0x100..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// Python's `str.isprintable`. Rust escapes the same categories in debug output, except that it also escapes
/// combining characters at the start, so the character is looked at behind a letter.
fn is_printable(character: char) -> bool {
    let mut text = String::from("a");
    text.push(character);
    matches!(character, '\'' | '"' | '\\') || text.escape_debug().count() == 2
}

/// Whether Python's `str.isspace` holds; its set is Unicode's plus four separators of ASCII.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// Prints an expression of a template.
pub(crate) fn formatter(
    out: &mut Output<'_>,
    _state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    write_str(out, value).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use minijinja::Value;
    use minijinja::value::Tuple;

    use super::{float_repr, str_of};

    #[test]
    fn floats() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-10, "1.5e-10"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn lists_and_strings() {
        let value = Value::from(Tuple::from([
            Value::from("it's"),
            Value::from("say \"x\""),
            Value::from("both ' \""),
            Value::from("\u{200d}\u{301}é\n\u{7f}"),
            Value::from(true),
            Value::from(()),
        ]));
        assert_eq!(
            str_of(&value),
            "(\"it's\", 'say \"x\"', 'both \\' \"', '\\u200d\u{301}é\\n\\x7f', True, None)"
        );
        assert_eq!(str_of(&Value::from_pairs([("a", Value::from(vec![1e22]))])), "{'a': [1e+22]}");
        assert_eq!(str_of(&Value::UNDEFINED), "");
    }
}
