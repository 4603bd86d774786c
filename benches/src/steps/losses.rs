//! What it costs per decision to say where cached tokens are lost.

use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use warmroute::delivered::{LossAccount, PrefixReach};
use warmroute_kv_index::{BlockKey, KeyExtras, block_keys};

use super::events::BLOCK_SIZE_TOKENS;
use super::index::scaled;
use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call, cpu_time_of};

/// Blocks of every prompt.
const PROMPT_BLOCKS: usize = 512;
/// Prompts of which no block is like another's: 2 million blocks, so that one in 32 is sampled in the end.
const PROMPTS: u64 = 4096;

/// New prompts into an account that has seen two million blocks, and one that it has seen.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let account = LossAccount::default();
    let reach = PrefixReach { block_size_tokens: BLOCK_SIZE_TOKENS, ..PrefixReach::default() };
    let now = Instant::now();
    let count = |keys: &[BlockKey]| {
        let tokens = PROMPT_BLOCKS as u32 * BLOCK_SIZE_TOKENS;
        account.decided(now, [(tokens, black_box(keys))].into_iter(), reach);
    };
    (0..PROMPTS).for_each(|seed| count(&prompt(seed)));
    let mut costs = Vec::new();
    for round in 1..=effort.pairs as u64 {
        let new: Vec<Vec<BlockKey>> = (0..64).map(|at| prompt(PROMPTS + 64 * round + at)).collect();
        let (time, ()) = cpu_time_of(|| new.iter().for_each(|keys| count(keys)));
        costs.push(time.as_nanos() as f64 / new.len() as f64 / 1000.0);
    }
    report.figure(format!("losses/new_{PROMPT_BLOCKS}_blocks"), Spread::of(&costs), "us");
    let known = prompt(0);
    let cost = cpu_ns_per_call(effort, || count(&known));
    report.figure(format!("losses/seen_{PROMPT_BLOCKS}_blocks"), scaled(cost, 1000.0), "us");
    ensure!(account.report(now).all.seen_tokens > 0, "nothing was seen");
    Ok(())
}

fn prompt(seed: u64) -> Vec<BlockKey> {
    let tokens = Numbers(seed).token_ids(PROMPT_BLOCKS * BLOCK_SIZE_TOKENS as usize);
    let mut keys = Vec::new();
    block_keys(&tokens, BLOCK_SIZE_TOKENS, &KeyExtras::default(), &mut keys);
    keys
}
