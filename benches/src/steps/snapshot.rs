//! What an index knows of an engine, handed to another index: beside the events that it was made of.

use std::hint::black_box;

use anyhow::ensure;
use warmroute_kv_events::{DecodeLimits, decode_batch};
use warmroute_kv_index::{EngineView, IndexLimits, KvIndex};

use super::events::{BLOCK_SIZE_TOKENS, stored_payload};
use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_time_of};

/// Blocks of each engine.
const BLOCKS: usize = 100_000;
/// Engines that hold the same sequences in part, as replicas of one model do.
const ENGINES: usize = 4;
/// Blocks of a prompt, of which an engine's events are one store each.
const PROMPT_BLOCKS: usize = 64;
/// Leading blocks that each eight prompts share.
const SHARED_BLOCKS: usize = 24;
/// As the picker cuts it.
const PIECE_BYTES: usize = 192 * 1024;

/// Export, import and size per block; what it takes to get the same from a replay of the events, and to copy the bytes.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let payloads = payloads()?;
    let index = KvIndex::new(IndexLimits::default());
    let mut views = (0..ENGINES).map(|_| index.add_engine()).collect::<Result<Vec<_>, _>>()?;
    for view in &mut views {
        replay(view, &payloads)?;
    }
    let Some(view) = views.first() else { return Ok(()) };
    let blocks = view.entries() as f64;
    let (mut exports, mut imports, mut replays, mut copies) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for round in 0..=effort.pairs {
        let (export, snapshot) = cpu_time_of(|| view.export(PIECE_BYTES));
        bytes = snapshot.rows.iter().map(|rows| rows.wire_bytes()).sum::<usize>();
        let (copy, copied) = cpu_time_of(|| black_box(snapshot.rows.clone()));
        let other = KvIndex::new(IndexLimits::default());
        let mut taken = other.add_engine()?;
        let (import, outcome) = cpu_time_of(|| {
            taken.begin_import(&snapshot.outline)?;
            snapshot.rows.iter().try_for_each(|rows| taken.import(rows))?;
            taken.end_import();
            anyhow::Ok(())
        });
        outcome?;
        ensure!(taken.entries() == view.entries(), "not every block was taken over");
        let mut replayed = KvIndex::new(IndexLimits::default()).add_engine()?;
        let (time, outcome) = cpu_time_of(|| replay(&mut replayed, &payloads));
        outcome?;
        drop(copied);
        if round > 0 {
            let per_block = |time: std::time::Duration| time.as_nanos() as f64 / blocks;
            exports.push(per_block(export));
            imports.push(per_block(import));
            replays.push(per_block(time));
            copies.push(per_block(copy));
        }
    }
    let ratios: Vec<f64> = replays.iter().zip(&imports).map(|(replay, import)| replay / import).collect();
    let bytes_per_block = bytes as f64 / blocks;
    report.figure("snapshot/bytes", Spread::of(&[bytes_per_block]), "B/block");
    report.figure("snapshot/export", Spread::of(&exports), "ns/block");
    report.figure("snapshot/copy_of_the_pieces", Spread::of(&copies), "ns/block");
    report.figure("snapshot/import", Spread::of(&imports), "ns/block");
    report.figure("snapshot/replay_of_the_events", Spread::of(&replays), "ns/block");
    report.figure("snapshot/replay_to_import", Spread::of(&ratios), "ratio");
    Ok(())
}

fn replay(view: &mut EngineView, payloads: &[Vec<u8>]) -> anyhow::Result<()> {
    let limits = DecodeLimits::default();
    for payload in payloads {
        view.apply(&decode_batch(payload, &limits)?);
    }
    Ok(())
}

/// Prompts that branch, a store each.
fn payloads() -> anyhow::Result<Vec<Vec<u8>>> {
    let tokens = |seed: u64, blocks: usize| Numbers(seed).token_ids(blocks * BLOCK_SIZE_TOKENS as usize);
    let mut payloads = Vec::new();
    let (mut stored, mut number) = (0, 0_u64);
    while stored < BLOCKS {
        let family = number / 8;
        let first_hash = 1 + family * 1_000_000;
        if number.is_multiple_of(8) {
            payloads.push(stored_payload(first_hash, None, tokens(family, SHARED_BLOCKS))?);
            stored += SHARED_BLOCKS;
        }
        let own = PROMPT_BLOCKS - SHARED_BLOCKS;
        let own_hash = first_hash + 1_000 * (1 + number % 8);
        let parent = Some(first_hash + SHARED_BLOCKS as u64 - 1);
        payloads.push(stored_payload(own_hash, parent, tokens(1 << 40 | number, own))?);
        stored += own;
        number += 1;
    }
    Ok(payloads)
}
