//! Payloads of KV events to typed batches, against a serde decoder of the same wire form.

use std::hint::black_box;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use warmroute_kv_events::{DecodeLimits, EngineHash, KvEvent, decode_batch};

use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call};

/// A `BlockStored` of vLLM 0.32 as it stands on the wire, names and order included.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireStored<'a> {
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

pub(super) const BLOCK_SIZE_TOKENS: u32 = 16;

/// One batch with one event that stores the blocks of `token_ids`, named `first_hash` and up.
pub(super) fn stored_payload(
    first_hash: u64,
    parent: Option<u64>,
    token_ids: Vec<u32>,
) -> anyhow::Result<Vec<u8>> {
    let blocks = token_ids.len() / BLOCK_SIZE_TOKENS as usize;
    let stored = WireStored {
        kind: "BlockStored",
        block_hashes: (first_hash..).take(blocks).map(engine_hash).collect(),
        parent_block_hash: parent.map(engine_hash),
        token_ids,
        block_size: BLOCK_SIZE_TOKENS,
        lora_id: None,
        medium: Some("GPU"),
        lora_name: None,
        extra_keys: vec![None; blocks],
        group_idx: 0,
        kv_cache_spec_kind: "full_attention",
    };
    let batch: WireBatch<'_> = (1_795_168_818.25, vec![stored], Some(0));
    let mut payload = Vec::new();
    let mut serializer = rmp_serde::Serializer::new(&mut payload).with_struct_map();
    batch.serialize(&mut serializer).context("an event batch")?;
    Ok(payload)
}

/// Spreads a number over 64 bits as a digest would be. One to one.
fn engine_hash(number: u64) -> u64 {
    Numbers(number).draw()
}

/// Cost per event of 1 block and per block of 128.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for blocks in [1, 128] {
        let tokens = Numbers(11).token_ids(blocks * BLOCK_SIZE_TOKENS as usize);
        let payload = stored_payload(1, None, tokens.clone())?;
        check(&payload, &tokens)?;
        let limits = DecodeLimits::default();
        let ours = cpu_ns_per_call(effort, || {
            let _ = black_box(decode_batch(black_box(&payload), &limits));
        });
        let serde = cpu_ns_per_call(effort, || {
            let _ = black_box(rmp_serde::from_slice::<WireBatch<'_>>(black_box(&payload)));
        });
        let unit = if blocks == 1 { "ns/event" } else { "ns/block" };
        report.figure(format!("events/{blocks}_block_event"), per(ours, blocks), unit);
        report.figure(format!("events/{blocks}_block_event_rmp_serde"), per(serde, blocks), unit);
    }
    Ok(())
}

fn per(cost: Spread, blocks: usize) -> Spread {
    let by = blocks as f64;
    Spread { median: cost.median / by, low: cost.low / by, high: cost.high / by }
}

/// Both decoders see what was written.
fn check(payload: &[u8], tokens: &[u32]) -> anyhow::Result<()> {
    let batch = decode_batch(payload, &DecodeLimits::default())?;
    let [KvEvent::Stored(stored)] = batch.events.as_slice() else {
        anyhow::bail!("one stored event was written, something else read");
    };
    ensure!(stored.token_ids == tokens, "other tokens were read than written");
    ensure!(stored.hashes[0] == EngineHash::from_u64(engine_hash(1)), "another hash was read than written");
    let (_, events, _) = rmp_serde::from_slice::<WireBatch<'_>>(payload)?;
    ensure!(events[0].token_ids == tokens, "rmp-serde reads other tokens");
    Ok(())
}
