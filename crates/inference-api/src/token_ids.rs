//! Token-id lists, read by a tight digit loop.

use memchr::memchr;

use crate::json_lexer::JsonLexer;

/// Digits read per step.
const WORD_BYTES: usize = 8;
/// Lists from this length on are read in two lanes.
const TWO_LANES_BYTES: usize = 2_048;
/// Bytes of text per id that room is made for: an id of a long prompt mostly has more, with its comma.
const BYTES_PER_ID: usize = 4;
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
    let end = pos + memchr(b']', &bytes[pos..])?;
    let mut ids = Vec::new();
    if end - pos < TWO_LANES_BYTES {
        ids.reserve(initial_tokens);
    } else {
        ids.reserve(initial_tokens.max((end - pos) / BYTES_PER_ID));
        pos = skip_space(bytes, two_lanes(&bytes[..end], pos, &mut ids));
    }
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

/// Reads ids of a long list, from its first id at `start` up to its `]`, for as long as all of them have the
/// same of the two usual spellings. Returns where the id behind the last one read begins, or the space before it.
fn two_lanes(list: &[u8], start: usize, ids: &mut Vec<u32>) -> usize {
    match memchr(b',', &list[start..]).and_then(|comma| list.get(start + comma + 1)) {
        Some(b' ') => two_lanes_of::<2>(list, start, ids),
        Some(_) => two_lanes_of::<1>(list, start, ids),
        None => start,
    }
}

/// Where an id begins is known only once the one before has been read, so that a single chain of ids waits on
/// itself. Two chains fill each other's pauses: one from the start, one from behind a comma near the middle.
fn two_lanes_of<const SEPARATOR_BYTES: usize>(list: &[u8], start: usize, ids: &mut Vec<u32>) -> usize {
    let middle = start + (list.len() - start) / 2;
    let Some(comma) = memchr(b',', &list[middle..]) else { return start };
    let cut = middle + comma + SEPARATOR_BYTES;
    let mut second_ids = Vec::with_capacity(list.len().saturating_sub(cut) / BYTES_PER_ID);
    let (mut first, mut second) = (start, cut);
    while first < cut {
        let Some((first_id, behind_first)) = id_and_separator::<SEPARATOR_BYTES>(list, first) else { break };
        let Some((second_id, behind_second)) = id_and_separator::<SEPARATOR_BYTES>(list, second) else {
            break;
        };
        ids.push(first_id);
        second_ids.push(second_id);
        (first, second) = (behind_first, behind_second);
    }
    first = one_lane::<SEPARATOR_BYTES>(list, first, cut, ids);
    if first != cut {
        return first;
    }
    second = one_lane::<SEPARATOR_BYTES>(list, second, list.len(), &mut second_ids);
    ids.append(&mut second_ids);
    second
}

fn one_lane<const SEPARATOR_BYTES: usize>(
    list: &[u8],
    mut pos: usize,
    end: usize,
    ids: &mut Vec<u32>,
) -> usize {
    while pos < end
        && let Some((id, behind)) = id_and_separator::<SEPARATOR_BYTES>(list, pos)
    {
        ids.push(id);
        pos = behind;
    }
    pos
}

/// The id at `pos` and the position behind its separator: `,` if `SEPARATOR_BYTES` is 1, `, ` if it is 2.
/// `None` also for an id that is right but doesn't fit into eight bytes with its separator.
#[inline]
fn id_and_separator<const SEPARATOR_BYTES: usize>(list: &[u8], pos: usize) -> Option<(u32, usize)> {
    let word = u64::from_le_bytes(list.get(pos..pos + WORD_BYTES)?.try_into().ok()?);
    let (id, digits) = leading_digits(word);
    if digits == 0 || digits + SEPARATOR_BYTES > WORD_BYTES || (digits > 1 && word.to_le_bytes()[0] == b'0') {
        return None;
    }
    let behind = (word >> (8 * digits)).to_le_bytes();
    (behind[..SEPARATOR_BYTES] == b", "[..SEPARATOR_BYTES]).then_some((id, pos + digits + SEPARATOR_BYTES))
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
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};
    use proptest::sample::{Index, select};

    use super::{TWO_LANES_BYTES, id_and_separator, integer, skip_space, token_id_list, token_id_lists};
    use super::{two_lanes, two_lanes_of};
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

    /// What `token_id_list` has to give: the list read by a single chain, and the position behind it.
    fn one_chain(bytes: &[u8]) -> Option<(Vec<u32>, usize)> {
        let mut pos = skip_space(bytes, 1);
        let mut ids = Vec::new();
        loop {
            let (id, behind) = integer(bytes, pos)?;
            ids.push(id);
            pos = skip_space(bytes, behind);
            match bytes.get(pos)? {
                b',' => pos = skip_space(bytes, pos + 1),
                b']' => return Some((ids, pos + 1)),
                _ => return None,
            }
        }
    }

    fn list_of(bytes: &[u8]) -> Option<(Vec<u32>, usize)> {
        let mut lexer = JsonLexer::new(bytes);
        let ids = token_id_list(&mut lexer, 0);
        assert_eq!(lexer.pos() == 0, ids.is_none(), "the lexer moves exactly if there is a list");
        ids.map(|ids| (ids, lexer.pos()))
    }

    /// Up to 1,500 ids of 1 to 7 digits, all with the same separator.
    fn plain_list() -> impl Strategy<Value = String> {
        let id = (0u32..8, any::<u32>()).prop_map(|(digits, value)| value % 10u32.pow(digits));
        let separator = select(vec![",", ", ", ",", ", ", " , ", ",\n  ", ",\t", ",  "]);
        (vec(id, 1..1_500), separator).prop_map(|(ids, separator)| {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            format!("[{}], \"n\": [1]", ids.join(separator))
        })
    }

    /// What is put into a list in place of its bytes behind some comma.
    const ODDITIES: &[&str] = &[
        " ",
        "  ",
        "\n",
        " 7 , ",
        "7,\t",
        "7 ,",
        "7,",
        "7, ",
        "4294967295,",
        "4294967296,",
        "12345678, ",
        "123456789,",
        "99999999999999999999999,",
        "007,",
        "00,",
        "0,",
        "-1,",
        "1.5, ",
        "1e3,",
        "[2],",
        "[",
        "]",
        "\"]\",",
        "\"",
        ",",
        "null,",
        "\u{e9}",
        "x",
    ];

    proptest! {
        #[test]
        fn plain_lists_read_as_by_one_chain(text in plain_list()) {
            let expected = one_chain(text.as_bytes());
            assert!(expected.is_some(), "{text}");
            prop_assert_eq!(list_of(text.as_bytes()), expected);
        }

        #[test]
        fn odd_lists_read_as_by_one_chain(
            text in plain_list(),
            oddities in vec((any::<Index>(), select(ODDITIES)), 1..4),
        ) {
            let mut text = text;
            for (place, oddity) in oddities {
                let commas: Vec<usize> = text.match_indices(',').map(|(at, _)| at + 1).collect();
                text.insert_str(*place.get(&commas), oddity);
            }
            prop_assert_eq!(list_of(text.as_bytes()), one_chain(text.as_bytes()), "{}", text);
        }

        #[test]
        fn damaged_lists_read_as_by_one_chain(
            text in plain_list(),
            damages in vec((any::<Index>(), select(b"0123456789,,,]] [\n.-e\"{\x00\xff\x80".to_vec())), 1..4),
            cut in proptest::option::of(any::<Index>()),
        ) {
            let mut bytes = text.into_bytes();
            for (place, byte) in damages {
                let at = 1 + place.index(bytes.len() - 1);
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(1 + cut.index(bytes.len()));
            }
            prop_assert_eq!(list_of(&bytes), one_chain(&bytes), "{}", bytes.escape_ascii());
        }

        #[test]
        fn lanes_stop_at_the_start_of_an_id(
            bytes in vec(select(b"00123456789999,, ".to_vec()), 0..80),
            has_space in any::<bool>(),
        ) {
            // Short lists too: the two lanes don't rely on the length from which they pay off.
            let mut ids = Vec::new();
            let behind = if has_space {
                two_lanes_of::<2>(&bytes, 0, &mut ids)
            } else {
                two_lanes_of::<1>(&bytes, 0, &mut ids)
            };
            if behind > 0 {
                let mut read = vec![b'['];
                read.extend_from_slice(&bytes[..behind]);
                read.extend_from_slice(b"5]");
                ids.push(5);
                prop_assert_eq!(one_chain(&read), Some((ids, read.len())));
            } else {
                prop_assert_eq!(ids, Vec::new());
            }
        }
    }

    /// 400 KB of ids below the size of a usual vocabulary, each value by a linear congruential generator.
    fn long_list(separator: &str) -> (Vec<u32>, String) {
        let mut state = 99u64;
        let (mut ids, mut text) = (Vec::new(), String::from("["));
        while text.len() < 400_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = u32::try_from((state >> 33) % 151_643).expect("below 151643");
            if !ids.is_empty() {
                text += separator;
            }
            text += &id.to_string();
            ids.push(id);
        }
        text += "]";
        (ids, text)
    }

    #[test]
    fn long_lists() {
        for separator in [",", ", ", " ,", ",\n    "] {
            let (ids, text) = long_list(separator);
            let length = text.len();
            assert_eq!(list_of(text.as_bytes()), Some((ids.clone(), length)), "{separator:?}");
            assert_eq!(list_of(&text.as_bytes()[..length - 1]), None, "{separator:?} without end");
            let mut lexer = JsonLexer::new(text.as_bytes());
            let capacity = token_id_list(&mut lexer, 0).map(|ids| ids.capacity());
            assert!(capacity.is_some_and(|capacity| capacity <= length), "{capacity:?} for {length} bytes");
        }
    }

    #[test]
    fn two_lanes_read_all_but_the_last_id() {
        for separator in [",", ", "] {
            let (ids, text) = long_list(separator);
            let list = &text.as_bytes()[..text.len() - 1];
            assert!(list.len() >= TWO_LANES_BYTES);
            let mut read = Vec::new();
            let behind = two_lanes(list, 1, &mut read);
            assert!(list.len() - behind < 16, "{separator:?}: stopped at {behind}");
            assert_eq!(read, ids[..read.len()]);
        }
    }

    #[test]
    fn ids_with_their_separators() {
        assert_eq!(id_and_separator::<1>(b"1234567,", 0), Some((1_234_567, 8)));
        assert_eq!(id_and_separator::<2>(b"123456, ", 0), Some((123_456, 8)));
        assert_eq!(id_and_separator::<1>(b"0,234567", 0), Some((0, 2)));
        for text in ["12345678,", "01,34567", "1 ,34567", ",1234567", "1234567", "1]345678"] {
            assert_eq!(id_and_separator::<1>(text.as_bytes(), 0), None, "{text}");
        }
        for text in ["1234567, ", "1,345678", "1,\t45678", "1 ,45678"] {
            assert_eq!(id_and_separator::<2>(text.as_bytes(), 0), None, "{text}");
        }
    }
}
