//! vLLM's own block hash in its documented form (`--prefix-caching-hash-algo sha256_cbor`): SHA-256 over the
//! canonical CBOR of `[parent digest, [token, …], extra keys or null]`.
//!
//! Formula: `hash_block_tokens` in vLLM's `v1/core/kv_cache_utils.py`; CBOR: RFC 8949 §4.2. The index doesn't need it
//! (engine hashes are opaque); it serves to check what an engine announces, and to index events without tokens.

use sha2::{Digest as _, Sha256};

/// A whole digest; the next block's parent.
pub type Digest = [u8; 32];

/// The seed text that vLLM 0.29 and later use when `PYTHONHASHSEED` isn't set.
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// A value among a block's extra keys.
#[derive(Debug, Clone, PartialEq)]
pub enum ExtraValue {
    /// A string.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An integer.
    Int(i64),
    /// A tuple, as vLLM 0.31 and later tag them: `("lora", name, path)`.
    List(Vec<ExtraValue>),
}

/// The parent of every first block, from the text of `PYTHONHASHSEED` (or [`DEFAULT_SEED`]).
pub fn none_hash(seed: &str) -> Digest {
    let mut cbor = Vec::with_capacity(9 + seed.len());
    put_text(&mut cbor, seed);
    Sha256::digest(&cbor).into()
}

/// The digest of one block. Without extra keys `extras` is empty.
pub fn block_hash<T: Copy + Into<u64>>(parent: &Digest, tokens: &[T], extras: &[ExtraValue]) -> Digest {
    let mut cbor = Vec::with_capacity(64 + 5 * tokens.len());
    put_head(&mut cbor, 4, 3);
    put_bytes(&mut cbor, parent);
    put_head(&mut cbor, 4, tokens.len() as u64);
    for token in tokens {
        put_head(&mut cbor, 0, (*token).into());
    }
    if extras.is_empty() {
        cbor.push(0xf6); // null
    } else {
        put_list(&mut cbor, extras);
    }
    Sha256::digest(&cbor).into()
}

/// The integer that vLLM publishes for a digest by default: its low 64 bits.
pub fn wire_int(digest: &Digest) -> u64 {
    digest[24..].iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

/// The shortest head: major type and value or length.
fn put_head(cbor: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => cbor.push(major | value as u8),
        24..=0xff => cbor.extend([major | 24, value as u8]),
        0x100..=0xffff => {
            cbor.push(major | 25);
            cbor.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            cbor.push(major | 26);
            cbor.extend((value as u32).to_be_bytes());
        }
        _ => {
            cbor.push(major | 27);
            cbor.extend(value.to_be_bytes());
        }
    }
}

fn put_text(cbor: &mut Vec<u8>, text: &str) {
    put_head(cbor, 3, text.len() as u64);
    cbor.extend(text.as_bytes());
}

fn put_bytes(cbor: &mut Vec<u8>, bytes: &[u8]) {
    put_head(cbor, 2, bytes.len() as u64);
    cbor.extend(bytes);
}

fn put_list(cbor: &mut Vec<u8>, values: &[ExtraValue]) {
    put_head(cbor, 4, values.len() as u64);
    for value in values {
        match value {
            ExtraValue::Text(text) => put_text(cbor, text),
            ExtraValue::Bytes(bytes) => put_bytes(cbor, bytes),
            ExtraValue::Int(number) => match u64::try_from(*number) {
                Ok(number) => put_head(cbor, 0, number),
                Err(_) => put_head(cbor, 1, (-1 - *number) as u64),
            },
            ExtraValue::List(values) => put_list(cbor, values),
        }
    }
}
