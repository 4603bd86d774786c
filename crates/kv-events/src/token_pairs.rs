//! Blocks that depend on tokens after their own.

use crate::DecodeError;
use crate::msgpack::{Kind, Reader};

const WHAT: &str = "token pairs";

/// Reads `count` pairs `[t₀, t₁], [t₁, t₂], …` as SGLang writes them where EAGLE drafts (`bigram` keys in
/// `mem_cache/radix_cache.py`): the block of `count` pairs holds the KV of their first tokens, and is found again only
/// by who has the second token of the last pair too, which is returned.
pub(crate) fn first_of_pairs(
    reader: &mut Reader<'_>,
    count: usize,
    tokens: &mut Vec<u32>,
) -> Result<Option<u32>, DecodeError> {
    let mut next = None;
    for _ in 0..count {
        let offset = reader.position();
        if reader.array(WHAT)? != 2 {
            return Err(DecodeError::TokenPairs { offset });
        }
        let first = reader.u32(WHAT)?;
        if next.is_some_and(|next| next != first) {
            return Err(DecodeError::TokenPairs { offset });
        }
        next = Some(reader.u32(WHAT)?);
        tokens.push(first);
    }
    Ok(next)
}

/// The longest of the lists of tokens after each block that vLLM 0.33 and later add where a draft model reads ahead
/// (`lookahead_token_ids`), in tokens. A block without a list, or nil, depends on none.
pub(crate) fn longest_lookahead(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    const WHAT: &str = "lookahead_token_ids";
    let mut longest = 0;
    if reader.nil() {
        return Ok(0);
    }
    for _ in 0..reader.array(WHAT)? {
        if reader.kind(WHAT)? != Kind::Array {
            reader.skip(WHAT)?;
            continue;
        }
        let count = reader.array(WHAT)?;
        for _ in 0..count {
            reader.skip(WHAT)?;
        }
        longest = longest.max(u32::try_from(count).unwrap_or(u32::MAX));
    }
    Ok(longest)
}
