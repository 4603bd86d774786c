//! Token-id lists, read by a tight digit loop.

use crate::json_lexer::JsonLexer;

/// Digits read per step.
const WORD_BYTES: usize = 8;
/// Ids that a prompt gets room for before the first one. A list of lists has no such room, since it may have
/// many short ones.
pub(crate) const INITIAL_TOKENS: usize = 1_024;

/// At a `[`: reads a non-empty flat list of non-negative integers below 2³² and moves behind it. On anything
/// else the lexer stays where it was, and the general parser decides.
pub(crate) fn token_id_list(lexer: &mut JsonLexer<'_>, initial_tokens: usize) -> Option<Vec<u32>> {
    let bytes = lexer.bytes();
    let mut pos = skip_space(bytes, lexer.pos() + 1);
    if !bytes.get(pos)?.is_ascii_digit() {
        return None;
    }
    let mut ids = Vec::with_capacity(initial_tokens);
    loop {
        let (id, behind) = integer(bytes, pos)?;
        ids.push(id);
        pos = behind;
        // The two usual spellings first: "1,2" and "1, 2".
        if bytes.get(pos) == Some(&b',') {
            pos += 1;
            if bytes.get(pos) == Some(&b' ') {
                pos += 1;
            }
            if bytes.get(pos)?.is_ascii_digit() {
                continue;
            }
            pos = skip_space(bytes, pos);
            continue;
        }
        pos = skip_space(bytes, pos);
        match bytes.get(pos)? {
            b',' => pos = skip_space(bytes, pos + 1),
            b']' => {
                lexer.seek(pos + 1);
                return Some(ids);
            }
            _ => return None,
        }
    }
}

/// At a `[`: reads a non-empty list of token-id lists, of which some may be empty.
pub(crate) fn token_id_lists(lexer: &mut JsonLexer<'_>) -> Option<Vec<Vec<u32>>> {
    let mut inner = lexer.clone();
    let mut lists = Vec::new();
    inner.bump();
    loop {
        if inner.peek_token()? != b'[' {
            return None;
        }
        lists.push(match token_id_list(&mut inner, 0) {
            Some(ids) => ids,
            None => {
                inner.bump();
                if inner.peek_token()? != b']' {
                    return None;
                }
                inner.bump();
                Vec::new()
            }
        });
        match inner.peek_token()? {
            b',' => {
                inner.bump();
            }
            b']' => {
                inner.bump();
                lexer.seek(inner.pos());
                return Some(lists);
            }
            _ => return None,
        }
    }
}

fn skip_space(bytes: &[u8], mut pos: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(pos) {
        pos += 1;
    }
    pos
}

/// The integer at `pos` and the position behind it.
fn integer(bytes: &[u8], pos: usize) -> Option<(u32, usize)> {
    if let Some(word) = bytes.get(pos..pos + WORD_BYTES).and_then(|word| word.try_into().ok()) {
        let (value, digits) = leading_digits(u64::from_le_bytes(word));
        if digits < WORD_BYTES {
            let has_leading_zero = digits > 1 && bytes[pos] == b'0';
            return (digits > 0 && !has_leading_zero).then_some((value, pos + digits));
        }
    }
    integer_by_byte(bytes, pos)
}

/// Value and number of the decimal digits that a little-endian word of eight characters begins with.
///
/// All eight bytes are handled at once, after D. Lemire, "Quickly parsing eight digits" (2018): neighbours
/// are combined into pairs, pairs into fours, fours into eight, by one multiplication each.
fn leading_digits(word: u64) -> (u32, usize) {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let values = word ^ 0x3030_3030_3030_3030;
    // A byte above 9 gets its high bit; a carry can only spoil bytes behind one that is already marked.
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & HIGH_BITS;
    let digits = (others.trailing_zeros() / 8) as usize;
    if digits == 0 {
        return (0, 0);
    }
    let values = values << (8 * (WORD_BYTES - digits));
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let low = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let high = ((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    #[allow(clippy::cast_possible_truncation, reason = "eight digits need 27 bits")]
    let value = (low.wrapping_add(high) >> 32) as u32;
    (value, digits)
}

fn integer_by_byte(bytes: &[u8], pos: usize) -> Option<(u32, usize)> {
    let mut value: u32 = 0;
    let mut behind = pos;
    while let Some(digit) = bytes.get(behind).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10)
    {
        value = value.checked_mul(10)?.checked_add(u32::from(digit))?;
        behind += 1;
    }
    let digits = behind - pos;
    let has_leading_zero = digits > 1 && bytes[pos] == b'0';
    (digits > 0 && !has_leading_zero).then_some((value, behind))
}

#[cfg(test)]
mod tests {
    use super::{integer, token_id_list, token_id_lists};
    use crate::json_lexer::JsonLexer;

    fn list(text: &str) -> Option<(Vec<u32>, usize)> {
        let mut lexer = JsonLexer::new(text.as_bytes());
        token_id_list(&mut lexer, 0).map(|ids| (ids, lexer.pos()))
    }

    #[test]
    fn lists() {
        assert_eq!(list("[1]"), Some((vec![1], 3)));
        let text = "[ 1,22 , 333\n,\t4444,55555, 666666,7777777,88888888,999999999,4294967295 ] ";
        let ids = vec![1, 22, 333, 4444, 55555, 666_666, 7_777_777, 88_888_888, 999_999_999, u32::MAX];
        assert_eq!(list(text), Some((ids, text.len() - 1)));
        for text in [
            "[]",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[01]",
            "[-1]",
            "[1.0]",
            "[1e3]",
            "[4294967296]",
            "[99999999999]",
            "[\"1\"]",
            "[1 2]",
            "[true]",
            "[,1]",
            "[1,,2]",
            "[00000001,2]",
        ] {
            assert_eq!(list(text), None, "{text}");
        }
    }

    #[test]
    fn lists_of_lists() {
        let mut lexer = JsonLexer::new(b"[[1,2], [ ] ,[3]] x");
        assert_eq!(token_id_lists(&mut lexer), Some(vec![vec![1, 2], vec![], vec![3]]));
        assert_eq!(lexer.pos(), 17);
        for text in ["[]", "[[1],2]", "[[1]", "[[1],]", "[[\"a\"]]", "[[[1]]]"] {
            assert_eq!(token_id_lists(&mut JsonLexer::new(text.as_bytes())), None, "{text}");
        }
    }

    #[test]
    fn every_length_of_integer() {
        for digits in 1..=10u32 {
            for value in [10u64.pow(digits - 1), 10u64.pow(digits) - 1] {
                for tail in ["", ",", "]", ", 1234567890"] {
                    let text = format!("{value}{tail}");
                    let expected = u32::try_from(value).ok().map(|value| (value, digits as usize));
                    assert_eq!(integer(text.as_bytes(), 0), expected, "{text}");
                }
            }
        }
        assert_eq!(integer("12é45678".as_bytes(), 0), Some((12, 2)));
        assert_eq!(integer(b"1\xff\xff\xff\xff\xff\xff\xff", 0), Some((1, 1)));
    }
}
