//! KV events as vLLM 0.32 puts them on the wire, names and order included.
//!
//! `benches/dynamo`, a workspace of its own, includes this file too, so that both write the same bytes.

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Tokens of a block.
pub const BLOCK_SIZE_TOKENS: u32 = 16;

/// A `BlockStored`.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireStored<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    block_hashes: Vec<u64>,
    parent_block_hash: Option<u64>,
    /// The blocks' tokens.
    pub token_ids: Vec<u32>,
    block_size: u32,
    lora_id: Option<i64>,
    medium: Option<&'a str>,
    lora_name: Option<&'a str>,
    extra_keys: Vec<Option<u64>>,
    group_idx: u32,
    kv_cache_spec_kind: &'a str,
}

/// A `BlockRemoved`.
#[derive(Debug, Serialize)]
pub struct WireRemoved<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    block_hashes: Vec<u64>,
    medium: Option<&'a str>,
    group_idx: u32,
}

/// One of the two.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum WireEvent<'a> {
    /// Blocks are there.
    Stored(WireStored<'a>),
    /// Blocks are gone.
    Removed(WireRemoved<'a>),
}

/// `[time, events, data-parallel rank]`
pub type WireBatch<E> = (f64, Vec<E>, Option<u32>);

impl WireEvent<'_> {
    /// Successive blocks by the engine's hashes, with [`BLOCK_SIZE_TOKENS`] tokens each, after `parent`.
    pub fn stored(block_hashes: Vec<u64>, parent_block_hash: Option<u64>, token_ids: Vec<u32>) -> Self {
        Self::Stored(WireStored {
            kind: "BlockStored",
            parent_block_hash,
            token_ids,
            block_size: BLOCK_SIZE_TOKENS,
            lora_id: None,
            medium: Some("GPU"),
            lora_name: None,
            extra_keys: vec![None; block_hashes.len()],
            block_hashes,
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        })
    }

    /// Blocks that are evicted.
    pub fn removed(block_hashes: Vec<u64>) -> Self {
        Self::Removed(WireRemoved { kind: "BlockRemoved", block_hashes, medium: Some("GPU"), group_idx: 0 })
    }
}

/// A batch of events.
///
/// # Errors
/// It can't be encoded.
pub fn payload(events: Vec<WireEvent<'_>>) -> anyhow::Result<Vec<u8>> {
    let batch: WireBatch<WireEvent<'_>> = (1_795_168_818.25, events, Some(0));
    let mut payload = Vec::new();
    let mut serializer = rmp_serde::Serializer::new(&mut payload).with_struct_map();
    batch.serialize(&mut serializer).context("an event batch")?;
    Ok(payload)
}
