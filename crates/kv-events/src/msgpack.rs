//! A msgpack reader over a slice: no allocation, no recursion, every length checked against what is left.
//! Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use crate::DecodeError;

/// An integer of any msgpack form.
#[derive(Clone, Copy)]
pub(crate) enum Int {
    Unsigned(u64),
    Negative(i64),
}

impl Int {
    /// As 64 bits: two's complement if negative.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Unsigned(value) => value,
            Self::Negative(value) => value as u64,
        }
    }

    #[inline]
    fn wide(self) -> i128 {
        match self {
            Self::Unsigned(value) => i128::from(value),
            Self::Negative(value) => i128::from(value),
        }
    }
}

/// What the next value is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nil,
    Int,
    Float,
    Text,
    Binary,
    Array,
    Map,
    Other,
}

#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    #[inline]
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The bytes from `start` to here.
    #[inline]
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    #[cold]
    fn truncated(&self, what: &'static str, offset: usize, needed: u64) -> DecodeError {
        DecodeError::Truncated { what, offset, needed, left: self.bytes.len().saturating_sub(offset) }
    }

    #[inline]
    pub(crate) fn peek(&self, what: &'static str) -> Result<u8, DecodeError> {
        self.bytes.get(self.position).copied().ok_or_else(|| self.truncated(what, self.position, 1))
    }

    #[inline]
    pub(crate) fn kind(&self, what: &'static str) -> Result<Kind, DecodeError> {
        Ok(match self.peek(what)? {
            0xc0 => Kind::Nil,
            0x00..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => Kind::Int,
            0xca | 0xcb => Kind::Float,
            0xa0..=0xbf | 0xd9..=0xdb => Kind::Text,
            0xc4..=0xc6 => Kind::Binary,
            0x90..=0x9f | 0xdc | 0xdd => Kind::Array,
            0x80..=0x8f | 0xde | 0xdf => Kind::Map,
            _ => Kind::Other,
        })
    }

    #[cold]
    fn wrong_type(&self, what: &'static str, expected: &'static str) -> DecodeError {
        let marker = self.bytes.get(self.position).copied().unwrap_or_default();
        DecodeError::WrongType { what, offset: self.position, marker, expected }
    }

    /// Takes a nil if there is one.
    #[inline]
    pub(crate) fn nil(&mut self) -> bool {
        let is_nil = self.bytes.get(self.position) == Some(&0xc0);
        self.position += usize::from(is_nil);
        is_nil
    }

    /// The `N` bytes after the marker, which are consumed with it.
    #[inline]
    fn after_marker<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let rest = self.bytes.get(self.position + 1..).and_then(|rest| rest.first_chunk::<N>());
        let Some(value) = rest else {
            return Err(self.truncated(what, self.position, 1 + N as u64));
        };
        self.position += 1 + N;
        Ok(*value)
    }

    #[inline]
    pub(crate) fn int(&mut self, what: &'static str) -> Result<Int, DecodeError> {
        let signed = |value: i64| u64::try_from(value).map_or(Int::Negative(value), Int::Unsigned);
        Ok(match self.peek(what)? {
            marker @ 0x00..=0x7f => {
                self.position += 1;
                Int::Unsigned(u64::from(marker))
            }
            marker @ 0xe0..=0xff => {
                self.position += 1;
                Int::Negative(i64::from(marker as i8))
            }
            0xcc => Int::Unsigned(u64::from(u8::from_be_bytes(self.after_marker(what)?))),
            0xcd => Int::Unsigned(u64::from(u16::from_be_bytes(self.after_marker(what)?))),
            0xce => Int::Unsigned(u64::from(u32::from_be_bytes(self.after_marker(what)?))),
            0xcf => Int::Unsigned(u64::from_be_bytes(self.after_marker(what)?)),
            0xd0 => signed(i64::from(i8::from_be_bytes(self.after_marker(what)?))),
            0xd1 => signed(i64::from(i16::from_be_bytes(self.after_marker(what)?))),
            0xd2 => signed(i64::from(i32::from_be_bytes(self.after_marker(what)?))),
            0xd3 => signed(i64::from_be_bytes(self.after_marker(what)?)),
            _ => return Err(self.wrong_type(what, "an integer")),
        })
    }

    #[inline]
    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let offset = self.position;
        let value = self.int(what)?;
        u32::try_from(value.wide()).map_err(|_| DecodeError::OutOfRange {
            what,
            offset,
            value: value.wide(),
            expected: "0..2^32",
        })
    }

    #[inline]
    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let offset = self.position;
        let value = self.int(what)?;
        i64::try_from(value.wide()).map_err(|_| DecodeError::OutOfRange {
            what,
            offset,
            value: value.wide(),
            expected: "-2^63..2^63",
        })
    }

    /// A float or an integer.
    pub(crate) fn f64(&mut self, what: &'static str) -> Result<f64, DecodeError> {
        Ok(match self.peek(what)? {
            0xca => f64::from(f32::from_be_bytes(self.after_marker(what)?)),
            0xcb => f64::from_be_bytes(self.after_marker(what)?),
            _ if self.kind(what)? == Kind::Int => self.int(what)?.wide() as f64,
            _ => return Err(self.wrong_type(what, "a number")),
        })
    }

    /// `len` bytes from here; `offset` is where the value with its head starts.
    #[inline]
    fn take(&mut self, what: &'static str, offset: usize, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let Some(value) = rest.get(..len) else {
            return Err(self.truncated(what, offset, (self.position - offset) as u64 + len as u64));
        };
        self.position += len;
        Ok(value)
    }

    /// A string's bytes, UTF-8 or not: enough to compare with known names.
    #[inline]
    pub(crate) fn text_bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let offset = self.position;
        let len = match self.peek(what)? {
            marker @ 0xa0..=0xbf => {
                self.position += 1;
                usize::from(marker & 0x1f)
            }
            0xd9 => usize::from(u8::from_be_bytes(self.after_marker(what)?)),
            0xda => usize::from(u16::from_be_bytes(self.after_marker(what)?)),
            0xdb => u32::from_be_bytes(self.after_marker(what)?) as usize,
            _ => return Err(self.wrong_type(what, "a string")),
        };
        self.take(what, offset, len)
    }

    #[inline]
    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let offset = self.position;
        let bytes = self.text_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8 { what, offset })
    }

    #[inline]
    pub(crate) fn binary(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let offset = self.position;
        let len = match self.peek(what)? {
            0xc4 => usize::from(u8::from_be_bytes(self.after_marker(what)?)),
            0xc5 => usize::from(u16::from_be_bytes(self.after_marker(what)?)),
            0xc6 => u32::from_be_bytes(self.after_marker(what)?) as usize,
            _ => return Err(self.wrong_type(what, "bytes")),
        };
        self.take(what, offset, len)
    }

    /// The length of an array whose elements follow; never more than the bytes left, for each element needs one.
    #[inline]
    pub(crate) fn array(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let offset = self.position;
        let len = match self.peek(what)? {
            marker @ 0x90..=0x9f => {
                self.position += 1;
                usize::from(marker & 0x0f)
            }
            0xdc => usize::from(u16::from_be_bytes(self.after_marker(what)?)),
            0xdd => u32::from_be_bytes(self.after_marker(what)?) as usize,
            _ => return Err(self.wrong_type(what, "an array")),
        };
        self.check_claim(what, offset, len as u64)?;
        Ok(len)
    }

    /// The number of entries of a map whose keys and values follow.
    #[inline]
    pub(crate) fn map(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let offset = self.position;
        let len = match self.peek(what)? {
            marker @ 0x80..=0x8f => {
                self.position += 1;
                usize::from(marker & 0x0f)
            }
            0xde => usize::from(u16::from_be_bytes(self.after_marker(what)?)),
            0xdf => u32::from_be_bytes(self.after_marker(what)?) as usize,
            _ => return Err(self.wrong_type(what, "a map")),
        };
        self.check_claim(what, offset, 2 * len as u64)?;
        Ok(len)
    }

    #[inline]
    fn check_claim(&self, what: &'static str, offset: usize, elements: u64) -> Result<(), DecodeError> {
        if elements > self.left() as u64 {
            return Err(self.truncated(what, offset, (self.position - offset) as u64 + elements));
        }
        Ok(())
    }

    /// Steps over one value of any kind and any depth, in one loop: only the number of values still to come is kept.
    pub(crate) fn skip(&mut self, what: &'static str) -> Result<(), DecodeError> {
        let start = self.position;
        let mut values: u64 = 1;
        while values > 0 {
            values -= 1;
            let offset = self.position;
            match self.kind(what)? {
                Kind::Array => values += self.array(what)? as u64,
                Kind::Map => values += 2 * self.map(what)? as u64,
                Kind::Int => drop(self.int(what)?),
                Kind::Float => drop(self.f64(what)?),
                Kind::Text => drop(self.text_bytes(what)?),
                Kind::Binary => drop(self.binary(what)?),
                Kind::Nil => self.position += 1,
                Kind::Other => self.skip_other(what, offset)?,
            }
            // The check keeps the sum far from overflow and fails early on nested claims.
            self.check_claim(what, start, values)?;
        }
        Ok(())
    }

    /// Booleans and extension types.
    fn skip_other(&mut self, what: &'static str, offset: usize) -> Result<(), DecodeError> {
        let payload = match self.peek(what)? {
            0xc2 | 0xc3 => {
                self.position += 1;
                return Ok(());
            }
            marker @ 0xd4..=0xd8 => {
                self.position += 1;
                1_usize << (marker - 0xd4)
            }
            0xc7 => usize::from(u8::from_be_bytes(self.after_marker(what)?)),
            0xc8 => usize::from(u16::from_be_bytes(self.after_marker(what)?)),
            0xc9 => u32::from_be_bytes(self.after_marker(what)?) as usize,
            _ => return Err(self.wrong_type(what, "a msgpack value")),
        };
        // One byte for the extension's type.
        self.take(what, offset, payload + 1).map(drop)
    }

    /// Appends `count` token ids. A list among them is its own error.
    #[inline]
    pub(crate) fn token_ids(&mut self, count: usize, tokens: &mut Vec<u32>) -> Result<(), DecodeError> {
        const WHAT: &str = "token id";
        tokens.reserve(count);
        for _ in 0..count {
            let rest = self.bytes.get(self.position..).unwrap_or_default();
            // Nearly all take two or four bytes, in no order by which a branch could be foretold.
            if let Some(head) = rest.first_chunk::<8>()
                && matches!(head[0], 0xcd | 0xce)
            {
                let is_four = u32::from(head[0] == 0xce);
                tokens.push(((u64::from_be_bytes(*head) << 8) >> (48 - 16 * is_four)) as u32);
                self.position += 3 + 2 * is_four as usize;
                continue;
            }
            let (token, used) = match *rest {
                [small @ 0..=0x7f, ..] => (u32::from(small), 1),
                [0xcd, a, b, ..] => (u32::from(u16::from_be_bytes([a, b])), 3),
                [0xce, a, b, c, d, ..] => (u32::from_be_bytes([a, b, c, d]), 5),
                [0x90..=0x9f | 0xdc | 0xdd, ..] => {
                    return Err(DecodeError::TokenPairs { offset: self.position });
                }
                _ => {
                    tokens.push(self.u32(WHAT)?);
                    continue;
                }
            };
            tokens.push(token);
            self.position += used;
        }
        Ok(())
    }
}
