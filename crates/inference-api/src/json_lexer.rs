//! The one lexer of Python's JSON dialect, used by the request scan and by the tree.

use std::borrow::Cow;
use std::ops::Range;

use crate::json_error::{JsonError, JsonErrorKind};

/// Arrays and objects may nest this deep in a request. Python's own parser gives up near here.
pub const MAX_SCAN_DEPTH: usize = 1_000;

/// Values that one tree may have, so that a body of tiny ones can't grow a tree many times its size.
pub const MAX_TREE_VALUES: usize = 1_000_000;

const HIGHEST_CONTROL: u8 = 0x1f;
/// Bytes looked at per step inside a string; a size that compilers turn into vector code.
const LANES: usize = 32;

/// A string as it stands in the text, without its quotes.
#[derive(Debug, Clone)]
pub(crate) struct StringToken {
    pub(crate) inner: Range<usize>,
    pub(crate) has_escapes: bool,
}

/// A number as it stands in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NumberToken {
    Integer(Range<usize>),
    Float(Range<usize>),
    NaN,
    Infinity,
    NegativeInfinity,
}

/// A cursor over a JSON text.
#[derive(Debug, Clone)]
pub(crate) struct JsonLexer<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// Values that a tree may still get.
    values_left: usize,
}

impl<'a> JsonLexer<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0, values_left: MAX_TREE_VALUES }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    /// Continues at `pos`; a position past the end counts as the end.
    pub(crate) fn seek(&mut self, pos: usize) {
        self.pos = pos.min(self.bytes.len());
    }

    /// The byte at the cursor.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    /// Skips JSON whitespace and returns the byte behind it.
    pub(crate) fn peek_token(&mut self) -> Option<u8> {
        while let Some(byte) = self.peek() {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.pos += 1;
        }
        None
    }

    /// Moves over the byte just peeked at.
    pub(crate) fn bump(&mut self) {
        self.pos += 1;
    }

    pub(crate) fn error(&self, kind: JsonErrorKind) -> JsonError {
        JsonError { offset: self.pos, kind }
    }

    /// The error for the byte at the cursor, which can't stand in `place`.
    pub(crate) fn unexpected(&self, place: &'static str) -> JsonError {
        self.error(match self.peek() {
            Some(byte) => JsonErrorKind::InvalidCharacter { byte, place },
            None => JsonErrorKind::UnexpectedEnd,
        })
    }

    /// Demands that nothing but whitespace follows.
    pub(crate) fn expect_end(&mut self) -> Result<(), JsonError> {
        match self.peek_token() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    /// At a `"`: moves behind the string, having checked its escapes and control characters.
    pub(crate) fn string(&mut self) -> Result<StringToken, JsonError> {
        self.bump();
        let start = self.pos;
        let mut has_escapes = false;
        loop {
            self.pos += plain_length(&self.bytes[self.pos..]);
            match self.peek() {
                Some(b'"') => {
                    let inner = start..self.pos;
                    self.bump();
                    return Ok(StringToken { inner, has_escapes });
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                _ => return Err(self.unexpected("in string literal")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.bump();
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.bump(),
            Some(b'u') => {
                self.bump();
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.unexpected("in \\u hexadecimal character escape"));
                    }
                    self.bump();
                }
            }
            _ => return Err(self.unexpected("in string escape code")),
        }
        Ok(())
    }

    /// At the first byte of a number, `NaN`, `Infinity` or `-Infinity`: moves behind it.
    pub(crate) fn number(&mut self) -> Result<NumberToken, JsonError> {
        let start = self.pos;
        match self.peek() {
            Some(b'N') => return self.literal("NaN").map(|()| NumberToken::NaN),
            Some(b'I') => return self.literal("Infinity").map(|()| NumberToken::Infinity),
            Some(b'-') => self.bump(),
            _ => {}
        }
        match self.peek() {
            Some(b'I') => return self.literal("Infinity").map(|()| NumberToken::NegativeInfinity),
            Some(b'0') => self.bump(),
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.unexpected("in numeric literal")),
        }
        let mut is_float = false;
        if self.peek() == Some(b'.') {
            is_float = true;
            self.bump();
            self.required_digits("after decimal point in numeric literal")?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            is_float = true;
            self.bump();
            if let Some(b'+' | b'-') = self.peek() {
                self.bump();
            }
            self.required_digits("in exponent of numeric literal")?;
        }
        let range = start..self.pos;
        Ok(if is_float { NumberToken::Float(range) } else { NumberToken::Integer(range) })
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.bump();
        }
    }

    fn required_digits(&mut self, place: &'static str) -> Result<(), JsonError> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.unexpected(place));
        }
        self.digits();
        Ok(())
    }

    /// At the first byte of `literal`: moves behind it.
    pub(crate) fn literal(&mut self, literal: &'static str) -> Result<(), JsonError> {
        for &expected in literal.as_bytes() {
            match self.peek() {
                Some(byte) if byte == expected => self.bump(),
                Some(byte) => {
                    return Err(self.error(JsonErrorKind::InvalidLiteral { byte, literal, expected }));
                }
                None => return Err(self.error(JsonErrorKind::UnexpectedEnd)),
            }
        }
        Ok(())
    }

    /// At a `{`: visits each member with the lexer standing at the first byte of its value. The visitor must
    /// move the lexer behind the value.
    pub(crate) fn object<F>(&mut self, mut visit: F) -> Result<(), JsonError>
    where
        F: FnMut(&mut Self, StringToken) -> Result<(), JsonError>,
    {
        self.bump();
        if self.peek_token() == Some(b'}') {
            self.bump();
            return Ok(());
        }
        loop {
            if self.peek_token() != Some(b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            let key = self.string()?;
            if self.peek_token() != Some(b':') {
                return Err(self.unexpected("after object key"));
            }
            self.bump();
            self.peek_token();
            visit(self, key)?;
            match self.peek_token() {
                Some(b',') => self.bump(),
                Some(b'}') => {
                    self.bump();
                    return Ok(());
                }
                _ => return Err(self.unexpected("after object key:value pair")),
            }
        }
    }

    /// At a `[`: visits each element with the lexer standing at its first byte. The visitor must move the
    /// lexer behind the element.
    pub(crate) fn array<F>(&mut self, mut visit: F) -> Result<(), JsonError>
    where
        F: FnMut(&mut Self) -> Result<(), JsonError>,
    {
        self.bump();
        if self.peek_token() == Some(b']') {
            self.bump();
            return Ok(());
        }
        loop {
            self.peek_token();
            visit(self)?;
            match self.peek_token() {
                Some(b',') => self.bump(),
                Some(b']') => {
                    self.bump();
                    return Ok(());
                }
                _ => return Err(self.unexpected("after array element")),
            }
        }
    }

    /// Moves behind the value at the cursor, checking its grammar, and returns its bytes.
    pub(crate) fn skip_value(&mut self, depth: usize) -> Result<Range<usize>, JsonError> {
        let first = self.peek_token();
        let start = self.pos;
        match first {
            Some(b'"') => {
                self.string()?;
            }
            Some(b'{') => {
                self.check_depth(depth, MAX_SCAN_DEPTH)?;
                self.object(|lexer, _| lexer.skip_value(depth + 1).map(drop))?;
            }
            Some(b'[') => {
                self.check_depth(depth, MAX_SCAN_DEPTH)?;
                self.array(|lexer| lexer.skip_value(depth + 1).map(drop))?;
            }
            _ => self.scalar()?,
        }
        Ok(start..self.pos)
    }

    fn scalar(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => self.number().map(drop),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    pub(crate) fn check_depth(&self, depth: usize, limit: usize) -> Result<(), JsonError> {
        if depth >= limit { Err(self.error(JsonErrorKind::TooDeep)) } else { Ok(()) }
    }

    /// Counts a value of a tree.
    pub(crate) fn count_value(&mut self) -> Result<(), JsonError> {
        match self.values_left.checked_sub(1) {
            Some(left) => {
                self.values_left = left;
                Ok(())
            }
            None => Err(self.error(JsonErrorKind::TooManyValues)),
        }
    }

    /// The text of a string, or `None` if it has a lone surrogate or invalid UTF-8.
    pub(crate) fn text(&self, token: &StringToken) -> Option<Cow<'a, str>> {
        let inner = std::str::from_utf8(&self.bytes[token.inner.clone()]).ok()?;
        if token.has_escapes { unescape(inner).map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
    }
}

/// Number of bytes before the first quote, backslash or control character.
fn plain_length(bytes: &[u8]) -> usize {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=HIGHEST_CONTROL);
    let mut length = 0;
    let mut lanes = bytes.chunks_exact(LANES);
    for lane in lanes.by_ref() {
        let any = lane.iter().fold(0u8, |any, byte| any | u8::from(special(byte)));
        if any != 0 {
            return length + lane.iter().position(special).unwrap_or(0);
        }
        length += LANES;
    }
    length + lanes.remainder().iter().position(special).unwrap_or(lanes.remainder().len())
}

/// Replaces the escapes of a string that the lexer has accepted. `None` for a lone surrogate.
fn unescape(inner: &str) -> Option<String> {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let escape = *rest.as_bytes().get(at + 1)?;
        let mut used = at + 2;
        text.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = hex4(rest, used)?;
                used += 4;
                if (0xd800..0xdc00).contains(&first) {
                    if rest.get(used..used + 2) != Some("\\u") {
                        return None;
                    }
                    let second = hex4(rest, used + 2)?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return None;
                    }
                    used += 6;
                    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))?
                } else {
                    char::from_u32(first)?
                }
            }
            other => char::from(other),
        });
        rest = rest.get(used..)?;
    }
    text.push_str(rest);
    Some(text)
}

fn hex4(text: &str, at: usize) -> Option<u32> {
    u32::from_str_radix(text.get(at..at + 4)?, 16).ok()
}
