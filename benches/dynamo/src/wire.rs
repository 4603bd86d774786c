//! Events as vLLM 0.32 puts them on the wire.

use serde::Serialize;

use crate::workload::{BLOCK_SIZE_TOKENS, Event, What, tokens};

#[derive(Serialize)]
struct WireStored<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    block_hashes: Vec<u64>,
    parent_block_hash: Option<u64>,
    token_ids: Vec<u32>,
    block_size: u32,
    lora_id: Option<i64>,
    medium: Option<&'a str>,
    lora_name: Option<&'a str>,
    extra_keys: Vec<Option<u64>>,
    group_idx: u32,
    kv_cache_spec_kind: &'a str,
}

/// `[time, events, data-parallel rank]`
type WireBatch<'a> = (f64, Vec<WireStored<'a>>, Option<u32>);

/// One batch with one event that stores blocks; `None` for other events.
///
/// # Errors
/// It can't be encoded.
pub fn stored_payload(event: &Event) -> anyhow::Result<Option<Vec<u8>>> {
    let What::Stored { parent, blocks } = &event.what else { return Ok(None) };
    let stored = WireStored {
        kind: "BlockStored",
        block_hashes: blocks.iter().map(|block| block.engine_hash()).collect(),
        parent_block_hash: parent.map(|parent| parent.engine_hash()),
        token_ids: tokens(blocks),
        block_size: BLOCK_SIZE_TOKENS as u32,
        lora_id: None,
        medium: Some("GPU"),
        lora_name: None,
        extra_keys: vec![None; blocks.len()],
        group_idx: 0,
        kv_cache_spec_kind: "full_attention",
    };
    let batch: WireBatch<'_> = (1_795_168_818.25, vec![stored], Some(0));
    let mut payload = Vec::new();
    batch.serialize(&mut rmp_serde::Serializer::new(&mut payload).with_struct_map())?;
    Ok(Some(payload))
}
