//! What is sent where: writing and look-ups of the approximate index.

use std::hint::black_box;

use anyhow::ensure;
use warmroute_kv_index::{
    ApproximateExtras, ApproximateIndex, BlockKey, EngineSlot, IndexLimits, LookupScratch, Match, SentBlocks,
    approximate_keys,
};

use super::events::BLOCK_SIZE_TOKENS;
use super::index::scaled;
use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call, cpu_time_of};

const ENDPOINTS: usize = 64;
/// Blocks that each endpoint has room for: the peer's default.
const CAPACITY_BLOCKS: usize = 31_250;
/// Blocks of every prompt.
const PROMPT_BLOCKS: usize = 512;
/// Prompts that fill an endpoint.
const PROMPTS: usize = CAPACITY_BLOCKS / PROMPT_BLOCKS + 1;

/// Writing to endpoints that are full, and look-ups over all of them.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let index = ApproximateIndex::new(IndexLimits::default());
    let endpoints = (0..ENDPOINTS).map(|_| index.add_endpoint()).collect::<Result<Vec<_>, _>>()?;
    let prompts: Vec<Vec<BlockKey>> = (0..2 * PROMPTS as u64).map(prompt).collect();
    for endpoint in &endpoints {
        prompts.iter().take(PROMPTS).for_each(|keys| endpoint.send(keys, CAPACITY_BLOCKS));
    }
    ensure!(index.stats().entries == ENDPOINTS * CAPACITY_BLOCKS, "endpoints aren't full");
    let [first, ..] = &*endpoints else { return Ok(()) };

    // Twice as many prompts as there is room for, so that each block is new and takes the place of another.
    let mut costs = Vec::new();
    for round in 0..=effort.pairs {
        let (time, ()) =
            cpu_time_of(|| prompts.iter().rev().for_each(|keys| first.send(keys, CAPACITY_BLOCKS)));
        if round > 0 {
            costs.push(time.as_nanos() as f64 / (prompts.len() * PROMPT_BLOCKS) as f64);
        }
    }
    report.figure("index/send_new_blocks", Spread::of(&costs), "ns/block");
    let Some(newest) = prompts.first() else { return Ok(()) };
    let cost = cpu_ns_per_call(effort, || first.send(black_box(newest), CAPACITY_BLOCKS));
    report.figure("index/send_known_blocks", scaled(cost, PROMPT_BLOCKS as f64), "ns/block");
    lookup(&index, &endpoints, newest, effort, report)
}

fn prompt(seed: u64) -> Vec<BlockKey> {
    let tokens = Numbers(seed).token_ids(PROMPT_BLOCKS * BLOCK_SIZE_TOKENS as usize);
    let mut keys = Vec::new();
    approximate_keys(&tokens, BLOCK_SIZE_TOKENS, &ApproximateExtras::default(), usize::MAX, &mut keys);
    keys
}

fn lookup(
    index: &ApproximateIndex,
    endpoints: &[SentBlocks],
    keys: &[BlockKey],
    effort: Effort,
    report: &mut Report,
) -> anyhow::Result<()> {
    let slots: Vec<EngineSlot> = endpoints.iter().map(SentBlocks::slot).collect();
    let (mut scratch, mut matches) = (LookupScratch::default(), vec![Match::default(); slots.len()]);
    index.lookup(keys, &slots, &mut scratch, &mut matches);
    ensure!(matches[0].known_blocks == PROMPT_BLOCKS as u32, "what was sent isn't found");
    let cost = cpu_ns_per_call(effort, || {
        index.lookup(black_box(keys), &slots, &mut scratch, &mut matches);
        black_box(&matches);
    });
    let name = format!("index/lookup_sent_{PROMPT_BLOCKS}_blocks_{ENDPOINTS}_endpoints");
    report.figure(name, scaled(cost, 1000.0), "us");
    Ok(())
}
