//! Hashes of KV blocks, as vLLM makes them.

use std::fmt;

use warmroute_kv_index::vllm_hash::{self, ExtraValue};

/// The full digest of one block: its tokens, its extra keys and, through the parent, its whole history.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The integer that vLLM publishes by default: the low 64 bits.
    #[must_use]
    pub fn low_u64(&self) -> u64 {
        vllm_hash::wire_int(&self.0)
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHash({:016x})", self.low_u64())
    }
}

/// How an engine hashes its blocks: SHA-256 over canonical CBOR, vLLM's `--prefix-caching-hash-algo sha256_cbor`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HashScheme {
    /// The value of `PYTHONHASHSEED`; `None` is the fixed start text of vLLM 0.29 and later.
    pub seed: Option<String>,
    /// Whether extra keys are hashed as vLLM before 0.31 did, without a tag in front of each.
    pub untagged_extra_keys: bool,
}

impl HashScheme {
    /// The parent of every first block.
    #[must_use]
    pub fn none_hash(&self) -> BlockHash {
        BlockHash(vllm_hash::none_hash(self.seed.as_deref().unwrap_or(vllm_hash::DEFAULT_SEED)))
    }

    /// The hash of one full block. `cache_salt` is given for the first block of a salted request only.
    #[must_use]
    pub fn block_hash(&self, parent: &BlockHash, token_ids: &[u32], cache_salt: Option<&str>) -> BlockHash {
        let extras: &[ExtraValue] = match cache_salt.map(|salt| ExtraValue::Text(salt.to_owned())) {
            None => &[],
            Some(salt) if self.untagged_extra_keys => &[salt],
            Some(salt) => &[ExtraValue::List(vec![ExtraValue::Text("cache_salt".to_owned()), salt])],
        };
        BlockHash(vllm_hash::block_hash(&parent.0, token_ids, extras))
    }
}
