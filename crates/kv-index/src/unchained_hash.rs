//! Engines whose names of blocks don't say what comes before them.

use warmroute_kv_events::BlocksStored;

/// Whether a store's first block is named by its own tokens alone, as SGLang did before 0.5.6 (`_record_store_event` in
/// its `mem_cache/radix_cache.py`): by Python's `hash(tuple(tokens))`.
///
/// Equal tokens at two places of two prompts then have one name, and 0.5.2 to 0.5.5 don't even say which block comes
/// before a store. So nothing of such an engine can be claimed.
pub(crate) fn is_unchained(stored: &BlocksStored) -> bool {
    let size = stored.block_size_tokens as usize;
    let Some(block) = stored.token_ids.get(..size) else { return false };
    let tokens = || block.iter().copied().map(u64::from);
    let own = match stored.token_ids.get(size).copied().or(stored.next_token) {
        Some(next) if stored.next_token.is_some() => {
            let second = |at: usize| u64::from(block.get(at + 1).copied().unwrap_or(next));
            let pairs =
                tokens().enumerate().map(|(at, first)| python_tuple_hash([first, second(at)].into_iter()));
            python_tuple_hash(pairs)
        }
        _ => python_tuple_hash(tokens()),
    };
    stored.hashes.first().and_then(|hash| hash.as_u64()) == Some(own)
}

/// `hash((t₀, t₁, …))` of CPython 3.8 and later, by the hashes of its elements, all as the bits of a signed value.
/// Formula: `tuple_hash` in CPython's `Objects/tupleobject.c` (a form of xxHash); the hash of an integer below 2³² is
/// itself.
fn python_tuple_hash(elements: impl ExactSizeIterator<Item = u64>) -> u64 {
    const PRIMES: [u64; 3] =
        [11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 2_870_177_450_012_600_261];
    let length = elements.len() as u64;
    let mixed = elements.fold(PRIMES[2], |sum, element| {
        sum.wrapping_add(element.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
    });
    let sum = mixed.wrapping_add(length ^ (PRIMES[2] ^ 3_527_539));
    // -1 is Python's word for an error.
    if sum == u64::MAX { 1_546_275_796 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::python_tuple_hash;

    #[test]
    fn tuples_hash_as_python_says() {
        let hash = |elements: &[u64]| python_tuple_hash(elements.iter().copied()) as i64;
        assert_eq!(hash(&[]), 5_740_354_900_026_072_187);
        assert_eq!(hash(&[0]), -8_753_497_827_991_233_192);
        assert_eq!(hash(&[1, 2, 151_643, u64::from(u32::MAX)]), 5_265_480_393_991_667_806);
    }
}
