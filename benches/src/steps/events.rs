//! Payloads of KV events to typed batches, against a serde decoder of the same wire form.

use std::hint::black_box;

use anyhow::ensure;
use warmroute_kv_events::{DecodeLimits, EngineHash, KvEvent, decode_batch};

use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call};
pub(super) use crate::wire::BLOCK_SIZE_TOKENS;
use crate::wire::{WireBatch, WireEvent, WireStored, payload};

/// One batch with one event that stores the blocks of `token_ids`, named `first_hash` and up.
pub(super) fn stored_payload(
    first_hash: u64,
    parent: Option<u64>,
    token_ids: Vec<u32>,
) -> anyhow::Result<Vec<u8>> {
    let blocks = token_ids.len() / BLOCK_SIZE_TOKENS as usize;
    let hashes = (first_hash..).take(blocks).map(engine_hash).collect();
    payload(vec![WireEvent::stored(hashes, parent.map(engine_hash), token_ids)])
}

/// Spreads a number over 64 bits as a digest would be. One to one.
pub(super) fn engine_hash(number: u64) -> u64 {
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
            let _ = black_box(rmp_serde::from_slice::<WireBatch<WireStored<'_>>>(black_box(&payload)));
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
    let (_, events, _) = rmp_serde::from_slice::<WireBatch<WireStored<'_>>>(payload)?;
    ensure!(events[0].token_ids == tokens, "rmp-serde reads other tokens");
    Ok(())
}
