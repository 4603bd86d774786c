//! Block keys, ingest and look-ups.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::ensure;
use warmroute_kv_events::{DecodeLimits, decode_batch};
use warmroute_kv_index::{
    BlockKey, EngineSlot, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

use super::events::{BLOCK_SIZE_TOKENS, stored_payload};
use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call, cpu_time_of};

/// (Block, engine) pairs that an index holds before it is measured.
const ENTRIES: usize = 200_000;
/// Leading blocks that every sequence shares and every engine holds, like a system prompt.
const SHARED_BLOCKS: usize = 32;
/// Blocks that one round of ingest stores.
const INGEST_BLOCKS: usize = 51_200;

/// Keys, ingest, then the table of look-ups, then the same for what is sent.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let tokens = Numbers(5).token_ids(512 * BLOCK_SIZE_TOKENS as usize);
    let mut keys = Vec::with_capacity(512);
    let cost = cpu_ns_per_call(effort, || {
        keys.clear();
        block_keys(black_box(&tokens), BLOCK_SIZE_TOKENS, &KeyExtras::default(), &mut keys);
        black_box(&keys);
    });
    report.figure("index/block_keys", scaled(cost, 512.0), "ns/block");
    ingest(effort, report)?;
    for engines in [8, 64, 256] {
        for blocks in [64, 512, 4096] {
            lookups(blocks, engines, effort, report)?;
        }
    }
    super::approximate_index::run(effort, report)
}

pub(super) fn scaled(cost: Spread, by: f64) -> Spread {
    Spread { median: cost.median / by, low: cost.low / by, high: cost.high / by }
}

/// Decoding and applying, into an index that holds other blocks.
fn ingest(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let filled = Filled::new(512, 8)?;
    for event_blocks in [1, 128] {
        let payloads = chain_payloads(event_blocks)?;
        let limits = DecodeLimits::default();
        let mut costs = Vec::new();
        for round in 0..=effort.pairs {
            let mut view = filled.index.add_engine()?;
            let (time, stored) = cpu_time_of(|| {
                payloads.iter().try_fold(0, |stored, payload| {
                    decode_batch(payload, &limits).map(|batch| stored + view.apply(&batch).stored_blocks)
                })
            });
            ensure!(stored? == INGEST_BLOCKS as u64, "not every block was taken in");
            if round > 0 {
                costs.push(time.as_nanos() as f64 / INGEST_BLOCKS as f64);
            }
        }
        let (name, unit) = (format!("index/ingest_{event_blocks}_block_events"), "ns/block");
        report.figure(name, Spread::of(&costs), unit);
    }
    Ok(())
}

/// One long sequence, announced so many blocks at a time, a batch each.
fn chain_payloads(event_blocks: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut numbers = Numbers(23);
    (0..INGEST_BLOCKS / event_blocks)
        .map(|event| {
            let first = 1 + (event * event_blocks) as u64;
            let parent = (event > 0).then_some(first - 1);
            stored_payload(first, parent, numbers.token_ids(event_blocks * BLOCK_SIZE_TOKENS as usize))
        })
        .collect()
}

fn lookups(blocks: usize, engines: usize, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let filled = Filled::new(blocks, engines)?;
    let unknown: Vec<Vec<BlockKey>> =
        (0..64).map(|seed| keys(&Numbers(1 << 40 | seed).token_ids(blocks * 16))).collect();
    let mut scratch = LookupScratch::default();
    let mut matches = vec![Match::default(); engines];
    filled.index.lookup(&filled.sequences[0], &filled.slots, &mut scratch, &mut matches);
    let best = matches.iter().map(|found| found.known_blocks).max();
    ensure!(best == Some(blocks as u32), "a sequence that is held isn't found");
    for (what, sequences) in [("hit", &filled.sequences), ("miss", &unknown)] {
        let mut turn = sequences.iter().cycle();
        let cost = cpu_ns_per_call(effort, || {
            let Some(keys) = turn.next() else { return };
            filled.index.lookup(black_box(keys), &filled.slots, &mut scratch, &mut matches);
            black_box(&matches);
        });
        report.figure(
            format!("index/lookup_{what}_{blocks}_blocks_{engines}_engines"),
            scaled(cost, 1000.0),
            "us",
        );
    }
    Ok(())
}

fn keys(tokens: &[u32]) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    block_keys(tokens, BLOCK_SIZE_TOKENS, &KeyExtras::default(), &mut keys);
    keys
}

/// An index with about [`ENTRIES`] entries: sequences of one length, each held wholly by two of the engines.
pub(super) struct Filled {
    pub(super) index: Arc<KvIndex>,
    /// Dropping a view would empty it.
    pub(super) views: Vec<EngineView>,
    slots: Vec<EngineSlot>,
    /// Keys of every sequence.
    sequences: Vec<Vec<BlockKey>>,
}

impl Filled {
    pub(super) fn new(blocks: usize, engines: usize) -> anyhow::Result<Self> {
        let index = KvIndex::new(IndexLimits::default());
        let mut views = (0..engines).map(|_| index.add_engine()).collect::<Result<Vec<_>, _>>()?;
        let shared = Numbers(1).token_ids(SHARED_BLOCKS * BLOCK_SIZE_TOKENS as usize);
        let shared_payload = stored_payload(1, None, shared.clone())?;
        let shared_batch = decode_batch(&shared_payload, &DecodeLimits::default())?;
        for view in &mut views {
            view.apply(&shared_batch);
        }
        let own_blocks = blocks - SHARED_BLOCKS;
        let count = (ENTRIES / (2 * own_blocks)).max(2);
        let mut sequences = Vec::with_capacity(count);
        for number in 0..count {
            let own = Numbers(1000 + number as u64).token_ids(own_blocks * BLOCK_SIZE_TOKENS as usize);
            let first_hash = 1 + SHARED_BLOCKS as u64 + (number * own_blocks) as u64;
            let payload = stored_payload(first_hash, Some(SHARED_BLOCKS as u64), own.clone())?;
            let batch = decode_batch(&payload, &DecodeLimits::default())?;
            for holder in [number % engines, (number + 1 + number / engines % (engines - 1)) % engines] {
                let applied = views[holder].apply(&batch);
                ensure!(applied.stored_blocks == own_blocks as u64, "blocks were left out: {applied:?}");
            }
            sequences.push(keys(&[shared.as_slice(), own.as_slice()].concat()));
        }
        let slots = views.iter().map(EngineView::slot).collect();
        Ok(Self { index, views, slots, sequences })
    }
}
