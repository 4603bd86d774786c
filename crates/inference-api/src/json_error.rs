//! Why a text is not JSON, in the words of Go's `encoding/json`.

use std::fmt;

/// A JSON error with its place.
///
/// The message is what Go's `encoding/json` says for the same text, since clients of the llm-d router
/// know those messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct JsonError {
    /// Byte offset of the offending byte, or the length of the text if it ended too early.
    pub offset: usize,
    /// What is wrong there.
    pub kind: JsonErrorKind,
}

/// What is wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonErrorKind {
    /// The text ends inside a value.
    UnexpectedEnd,
    /// A byte that can't stand here; `place` says where "here" is.
    InvalidCharacter {
        /// The byte.
        byte: u8,
        /// The rest of the sentence, such as `after object key`.
        place: &'static str,
    },
    /// A literal such as `null` is misspelt.
    InvalidLiteral {
        /// The byte found.
        byte: u8,
        /// The literal begun.
        literal: &'static str,
        /// The byte that should have come.
        expected: u8,
    },
    /// Arrays and objects nest deeper than the limit.
    TooDeep,
    /// A tree has more values than the limit.
    TooManyValues,
    /// An object key with a lone surrogate or invalid UTF-8.
    BrokenKey,
    /// The value has another type than an object.
    NotAnObject {
        /// Go's name of the type found.
        found: &'static str,
    },
}

impl fmt::Display for JsonErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnexpectedEnd => f.write_str("unexpected end of JSON input"),
            Self::InvalidCharacter { byte, place } => {
                write!(f, "invalid character {} {place}", QuotedByte(byte))
            }
            Self::InvalidLiteral { byte, literal, expected } => write!(
                f,
                "invalid character {} in literal {literal} (expecting {})",
                QuotedByte(byte),
                QuotedByte(expected)
            ),
            Self::TooDeep => f.write_str("exceeded max depth"),
            Self::TooManyValues => f.write_str("too many values"),
            Self::BrokenKey => f.write_str("object key is not valid text"),
            Self::NotAnObject { found } => {
                write!(f, "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}")
            }
        }
    }
}

/// A byte, taken as a code point, the way Go quotes it in these messages.
struct QuotedByte(u8);

impl fmt::Display for QuotedByte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b'\'' => f.write_str(r"'\''"),
            b'\\' => f.write_str(r"'\\'"),
            0x07 => f.write_str(r"'\a'"),
            0x08 => f.write_str(r"'\b'"),
            0x0b => f.write_str(r"'\v'"),
            0x0c => f.write_str(r"'\f'"),
            b'\n' => f.write_str(r"'\n'"),
            b'\r' => f.write_str(r"'\r'"),
            b'\t' => f.write_str(r"'\t'"),
            byte @ (0x20..=0x7e | 0xa1..=0xac | 0xae..=0xff) => write!(f, "'{}'", char::from(byte)),
            byte @ (0x00..=0x1f | 0x7f) => write!(f, "'\\x{byte:02x}'"),
            byte => write!(f, "'\\u{byte:04x}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{JsonErrorKind, QuotedByte};

    #[test]
    fn go_spelling() {
        let kind = JsonErrorKind::InvalidLiteral { byte: b'o', literal: "null", expected: b'u' };
        assert_eq!(kind.to_string(), "invalid character 'o' in literal null (expecting 'u')");
        for (byte, text) in [
            (b'x', "'x'"),
            (b'"', "'\"'"),
            (b'\'', r"'\''"),
            (0, r"'\x00'"),
            (0xe4, "'ä'"),
            (0x80, r"'\u0080'"),
        ] {
            assert_eq!(QuotedByte(byte).to_string(), text);
        }
    }
}
