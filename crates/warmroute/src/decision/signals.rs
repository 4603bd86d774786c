//! The columns of one decision: what is known of every candidate at its moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute_kv_index::{EngineSlot, KvIndex, LookupScratch, Match, predicted_cached_tokens};
use warmroute_plugin::{
    AdapterState, Candidates, ColumnMismatch, Endpoint, InFlight, MetricsState, PrefixMatch,
};

use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::pool::{EndpointState, PoolSnapshot};
use crate::prompt::PromptKeys;

/// One value per row, in the order of the pool's rows that take part.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Which row of the pool each row is.
    rows: Vec<u32>,
    pub(super) metrics: Vec<MetricsState>,
    pub(super) in_flight: Vec<InFlight>,
    /// One column after the other; all are the same as long as there is one producer.
    prefix: Vec<PrefixMatch>,
    /// One column after the other, in the scheduler's order.
    attributes: Vec<Option<f64>>,
    /// Empty unless a plugin reads it.
    adapters: Vec<AdapterState>,
    /// Per prompt, then per row: what the look-up found.
    found: Vec<Match>,
    lookup: LookupColumns,
}

/// Scratch of the look-up.
#[derive(Debug, Default)]
struct LookupColumns {
    scratch: LookupScratch,
    sizes: Vec<u32>,
    rows: Vec<u32>,
    slots: Vec<EngineSlot>,
    matches: Vec<Match>,
}

impl Signals {
    /// Reads metrics and load of all endpoints, or of the given rows of the pool.
    pub(super) fn read(
        &mut self,
        snapshot: &PoolSnapshot,
        rows: Option<&[u32]>,
        now: Instant,
        stale_after: Duration,
    ) {
        self.rows.clear();
        match rows {
            Some(rows) => self.rows.extend_from_slice(rows),
            None => self.rows.extend(0..snapshot.states.len() as u32),
        }
        let states = || self.rows.iter().map(|row| &snapshot.states[*row as usize]);
        self.metrics.clear();
        self.metrics.extend(states().map(|state| state.metrics_state(now, stale_after)));
        self.in_flight.clear();
        self.in_flight.extend(states().map(|state| state.load.in_flight()));
        self.prefix.clear();
        self.found.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row of the pool that a row is.
    pub(super) fn pool_row(&self, row: usize) -> usize {
        self.rows[row] as usize
    }

    /// Fills `columns` prefix columns. Returns the most blocks that one candidate is known to hold.
    pub(super) fn look_up(
        &mut self,
        index: &KvIndex,
        snapshot: &PoolSnapshot,
        prompt: Option<&PromptKeys>,
        columns: usize,
        metrics: &Metrics,
    ) -> u32 {
        let rows = self.rows.len();
        self.prefix.resize(rows, PrefixMatch::default());
        let mut best = 0;
        if let Some(prompt) = prompt {
            let started = Instant::now();
            self.found.resize(rows * prompt.prompt_tokens.len(), Match::default());
            self.look_up_sizes(index, snapshot, prompt);
            best = self.known_blocks_at_best(prompt.prompt_tokens.len());
            metrics.index.looked_up(started.elapsed());
        }
        for _ in 1..columns {
            self.prefix.extend_from_within(..rows);
        }
        best
    }

    /// One look-up per prompt and block size in use; usually one.
    fn look_up_sizes(&mut self, index: &KvIndex, snapshot: &PoolSnapshot, prompt: &PromptKeys) {
        let LookupColumns { scratch, sizes, rows, slots, matches } = &mut self.lookup;
        sizes.clear();
        sizes.extend(
            self.rows.iter().map(|row| snapshot.states[*row as usize].block_size_tokens().unwrap_or(0)),
        );
        for set in &prompt.sets {
            rows.clear();
            slots.clear();
            for (row, size) in (0u32..).zip(&*sizes) {
                let state = &snapshot.states[self.rows[row as usize] as usize];
                if *size == set.block_size_tokens
                    && let Some(slot) = state.engine.slot()
                {
                    rows.push(row);
                    slots.push(slot);
                }
            }
            for (at, keys) in set.prompts.iter().enumerate() {
                matches.clear();
                matches.resize(slots.len(), Match::default());
                index.lookup(keys, slots, scratch, matches);
                for (row, found) in rows.iter().zip(&*matches) {
                    self.found[at * self.rows.len() + *row as usize] = *found;
                    let prefix = &mut self.prefix[*row as usize];
                    prefix.matched_blocks += found.expected_blocks;
                    prefix.total_blocks += keys.len() as u32;
                    prefix.block_size_tokens = set.block_size_tokens;
                }
            }
        }
    }

    /// Fills the columns that plugins asked for beside prefix matches. Where metrics aren't fresh nothing is known.
    pub(super) fn read_attributes(&mut self, snapshot: &PoolSnapshot, policy: &Policy, model: &str) {
        let fresh = || {
            let rows = self.rows.iter().zip(&self.metrics);
            rows.map(|(row, state)| state.fresh().map(|_| &snapshot.states[*row as usize]))
        };
        self.attributes.clear();
        for attribute in &policy.attributes {
            self.attributes
                .extend(fresh().map(|state| state?.of_scrape(|scrape| attribute.of(scrape)).flatten()));
        }
        self.adapters.clear();
        if policy.scheduler.reads_adapters() {
            let state_of = |state: Option<&Arc<EndpointState>>| state.map(|state| state.adapter_state(model));
            self.adapters.extend(fresh().map(|state| state_of(state).unwrap_or_default()));
        }
    }

    fn known_blocks_at_best(&self, prompts: usize) -> u32 {
        (0..self.rows.len())
            .map(|row| self.blocks(row, prompts, |found| found.known_blocks))
            .max()
            .unwrap_or(0)
    }

    fn blocks(&self, row: usize, prompts: usize, blocks: impl Fn(&Match) -> u32) -> u32 {
        (0..prompts).filter_map(|at| self.found.get(at * self.rows.len() + row)).map(blocks).sum()
    }

    /// Leading blocks that a row's engine holds, and holds or is expected to hold, over all prompts.
    pub(super) fn held_blocks(&self, row: usize) -> (u32, u32) {
        let prompts = self.found.len().checked_div(self.rows.len()).unwrap_or(0);
        let known = self.blocks(row, prompts, |found| found.known_blocks);
        (known, self.blocks(row, prompts, |found| found.expected_blocks))
    }

    /// Leading blocks of one prompt that a row's engine is known to hold.
    pub(super) fn known_blocks(&self, row: usize, prompt: usize) -> u32 {
        self.found.get(prompt * self.rows.len() + row).map_or(0, |found| found.known_blocks)
    }

    /// Prompt tokens that a row's engine should serve from its cache: by what it is known to hold, and with what it
    /// is expected to hold soon.
    pub(super) fn cached_tokens(
        &self,
        row: usize,
        prompt_tokens: &[u32],
        block_size_tokens: u32,
    ) -> (u32, u32) {
        let (mut known, mut expected) = (0, 0);
        for (at, tokens) in prompt_tokens.iter().enumerate() {
            let Some(found) = self.found.get(at * self.rows.len() + row) else { continue };
            known += predicted_cached_tokens(found.known_blocks, *tokens, block_size_tokens);
            expected += predicted_cached_tokens(found.expected_blocks, *tokens, block_size_tokens);
        }
        (known, expected)
    }

    /// The table that plugins see.
    ///
    /// # Errors
    /// The columns don't fit each other, which would be a mistake here.
    pub(super) fn candidates<'a>(
        &'a self,
        endpoints: &'a [Arc<Endpoint>],
    ) -> Result<Candidates<'a>, ColumnMismatch> {
        Candidates::builder(endpoints)
            .rows(&self.rows)
            .metrics(&self.metrics)
            .in_flight(&self.in_flight)
            .prefix_matches(&self.prefix)
            .attributes(&self.attributes)
            .adapters(&self.adapters)
            .build()
    }
}
