//! How much of the prompt every candidate holds, as each producer sees it.

use std::sync::Arc;
use std::time::Instant;

use warmroute_kv_events::Trust;
use warmroute_kv_index::{
    BlockKey, EngineSlot, KvIndex, LookupScratch, Match, OffloadedBlocks, predicted_cached_tokens,
};
use warmroute_plugin::PrefixMatch;

use super::trusted_match::{MatchWeights, TrustedMatch, trust_in};
use crate::approximate_producer::ApproximateProducer;
use crate::metrics::Metrics;
use crate::pool::{EndpointState, PoolSnapshot};
use crate::prefix_plan::{MatchSource, PrefixPlan};
use crate::prompt::{ApproximateKeys, KeySet, PromptKeys};

/// What a look-up needs.
pub(super) struct PrefixLookup<'a> {
    pub(super) index: &'a KvIndex,
    pub(super) approximate: &'a [Arc<ApproximateProducer>],
    pub(super) plan: &'a PrefixPlan,
    pub(super) snapshot: &'a PoolSnapshot,
    /// Which row of the pool each row is.
    pub(super) rows: &'a [u32],
    pub(super) prompt: Option<&'a PromptKeys>,
    pub(super) sent: Option<&'a ApproximateKeys>,
    /// The model that the engine is asked for, as deliveries are counted.
    pub(super) model: &'a str,
    pub(super) metrics: &'a Metrics,
}

/// What one producer says of one row, over all prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// With the blocks that are expected soon; each counts by where it is and how far that can be trusted.
    pub(super) matched: PrefixMatch,
    /// Blocks that are known, whatever each counts.
    pub(super) known_blocks: u32,
    /// Those of them that the engine has to load first.
    pub(super) offloaded: OffloadedBlocks,
    /// Blocks that are known or expected soon.
    pub(super) expected_blocks: u32,
    /// Prompt tokens that should be served from the cache by what is known.
    pub(super) known_tokens: u32,
    /// The same with what is expected soon.
    pub(super) expected_tokens: u32,
    /// Whether it is what was sent there, not what the engine said.
    pub(super) is_approximate: bool,
}

/// The columns of all producers, reused for the next decision.
#[derive(Debug, Default)]
pub(super) struct PrefixSignals {
    /// By the engines' events.
    events: Found,
    /// By what was sent, per producer of the plan.
    sent: Vec<Found>,
    /// The scheduler's columns, one after the other.
    columns: Vec<PrefixMatch>,
    /// What each producer of the plan says of every row, one after the other.
    producers: Vec<Held>,
    /// Rows, and the place of the main producer.
    rows: usize,
    main: Option<usize>,
    reads_events: bool,
    scratch: FoundScratch,
}

/// What one index says.
#[derive(Debug, Default)]
struct Found {
    /// Per prompt, then per row.
    matches: Vec<Match>,
    /// Per row.
    held: Vec<Held>,
}

/// What is looked up: tokens and keys of every prompt, and how many of the keys count by their block size.
struct Prompts<'a, M> {
    tokens: &'a [u32],
    sets: &'a [KeySet],
    max_blocks: M,
}

/// Working memory.
#[derive(Debug, Default)]
struct FoundScratch {
    lookup: LookupScratch,
    /// Block size and place in the index of each row.
    sizes: Vec<u32>,
    slots: Vec<Option<EngineSlot>>,
    /// Row and place of every further rank that a request to the row may come to.
    further: Vec<(u32, EngineSlot)>,
    /// How far each row can be trusted; empty where there are no events to lose.
    trusts: Vec<Trust>,
    /// How much matches count.
    weights: MatchWeights,
    /// The rows of one block size that have a place, and their places.
    asked_rows: Vec<u32>,
    asked: Vec<EngineSlot>,
    matches: Vec<Match>,
}

impl PrefixSignals {
    pub(super) fn clear(&mut self) {
        self.events.clear(0, 0);
        self.sent.iter_mut().for_each(|found| found.clear(0, 0));
        self.columns.clear();
        self.producers.clear();
        (self.rows, self.main, self.reads_events) = (0, None, false);
    }

    /// Asks every index that the plan needs, and fills the scheduler's columns. Returns the most blocks that one
    /// candidate's engine is known to hold by its events.
    pub(super) fn look_up(&mut self, from: &PrefixLookup<'_>) -> u32 {
        if from.plan.reads_events() {
            self.look_up_events(from);
        }
        self.sent.resize_with(from.approximate.len().max(self.sent.len()), Found::default);
        if let Some(keys) = from.sent {
            self.look_up_sent(from, keys);
        }
        (self.rows, self.main) = (from.rows.len(), from.plan.main);
        self.reads_events = from.plan.reads_events();
        for producer in &from.plan.producers {
            for row in 0..self.rows {
                let held = self.held(from, producer.source, row);
                self.producers.push(held);
            }
        }
        for producer in &from.plan.columns {
            let held = &self.producers[producer * self.rows..][..self.rows];
            self.columns.extend(held.iter().map(|held| held.matched));
        }
        self.events.held.iter().map(|held| held.known_blocks).max().unwrap_or(0)
    }

    fn look_up_events(&mut self, from: &PrefixLookup<'_>) {
        let Some(prompt) = from.prompt else { return };
        let started = Instant::now();
        let states = || states(from);
        let scratch = &mut self.scratch;
        scratch.sizes.clear();
        scratch.sizes.extend(states().map(|state| state.block_size_tokens().unwrap_or(0)));
        scratch.slots.clear();
        scratch.slots.extend(states().map(|state| state.engine.slot()));
        scratch.further.clear();
        for (row, state) in (0u32..).zip(states()) {
            for rank in state.engine.further_ranks() {
                match rank.slot() {
                    Some(slot) => scratch.further.push((row, slot)),
                    None => scratch.slots[row as usize] = None,
                }
            }
        }
        scratch.trusts.clear();
        scratch.trusts.extend(states().map(|state| trust_in(state, from.model)));
        scratch.weights =
            MatchWeights { tiers: from.plan.tier_weights, doubtful: from.plan.doubtful_match_weight };
        self.events.clear(from.rows.len(), prompt.prompt_tokens.len());
        let prompts =
            Prompts { tokens: &prompt.prompt_tokens, sets: &prompt.sets, max_blocks: |_| usize::MAX };
        self.events.look_up(prompts, scratch, |keys, reusable_blocks, slots, scratch, matches| {
            from.index.lookup_reusable(keys, reusable_blocks, slots, scratch, matches);
        });
        from.metrics.index.looked_up(started.elapsed());
        from.metrics.index.matched(self.events.held.iter().map(|held| held.known_blocks).max().unwrap_or(0));
    }

    fn look_up_sent(&mut self, from: &PrefixLookup<'_>, keys: &ApproximateKeys) {
        for (producer, found) in from.approximate.iter().zip(&mut self.sent) {
            let scratch = &mut self.scratch;
            scratch.sizes.clear();
            scratch.sizes.extend(states(from).map(|state| producer.block_size_tokens(state)));
            scratch.trusts.clear();
            scratch.weights = MatchWeights::default();
            scratch.slots.clear();
            scratch.further.clear();
            producer.slots(states(from), &mut scratch.slots);
            found.clear(from.rows.len(), keys.prompt_tokens.len());
            let max_blocks = |size| producer.size(size).max_blocks;
            let prompts = Prompts { tokens: &keys.prompt_tokens, sets: &keys.sets, max_blocks };
            found.look_up(prompts, scratch, |keys, _, slots, scratch, matches| {
                producer.lookup(keys, slots, scratch, matches);
            });
            found.held.iter_mut().for_each(|held| held.is_approximate = true);
        }
    }

    /// What a producer says of a row.
    fn held(&self, from: &PrefixLookup<'_>, source: MatchSource, row: usize) -> Held {
        let of = |found: &Found| found.held.get(row).copied().unwrap_or_default();
        let sent = |at: usize| self.sent.get(at).map(of).unwrap_or_default();
        match source {
            MatchSource::Events => of(&self.events),
            MatchSource::Sent(at) => sent(at),
            MatchSource::EventsElseSent(at) => {
                let state = &from.snapshot.states[from.rows[row] as usize];
                let (events, sent) = (of(&self.events), sent(at));
                let is_more = events.matched.matched_tokens() > sent.matched.matched_tokens();
                match from.prompt.filter(|_| state.engine.is_seen()) {
                    Some(prompt) if !prompt.is_up_to_media || is_more => events,
                    // Behind an image events tell nothing that could be looked up: that counts as expected, not as known.
                    Some(_) => Held { is_approximate: false, ..sent.known_as(events) },
                    // What the engine last told doesn't count, but what is expected there does, if it is more.
                    None if is_more => events,
                    None => sent,
                }
            }
        }
    }

    /// Whether the last look-up was by events too.
    pub(super) fn reads_events(&self) -> bool {
        self.reads_events
    }

    pub(super) fn columns(&self) -> &[PrefixMatch] {
        &self.columns
    }

    /// What the main producer says of a row.
    pub(super) fn main(&self, row: usize) -> Held {
        self.main.map(|main| self.by_producer(main, row)).unwrap_or_default()
    }

    /// What a producer of the plan says of a row.
    pub(super) fn by_producer(&self, producer: usize, row: usize) -> Held {
        self.producers.get(producer * self.rows + row).copied().unwrap_or_default()
    }

    /// Leading blocks of one prompt that a row's engine is known to hold by its events.
    pub(super) fn known_by_events(&self, row: usize, prompt: usize) -> u32 {
        self.events.known_blocks(row, prompt)
    }

    /// Leading blocks of one prompt that were sent to a row's endpoint, by a producer of the plan.
    pub(super) fn known_by_sending(&self, producer: usize, row: usize, prompt: usize) -> u32 {
        self.sent.get(producer).map_or(0, |found| found.known_blocks(row, prompt))
    }
}

fn states<'a>(from: &PrefixLookup<'a>) -> impl Iterator<Item = &'a EndpointState> + use<'a> {
    let (snapshot, rows) = (from.snapshot, from.rows);
    rows.iter().map(|row| &*snapshot.states[*row as usize])
}

impl Found {
    fn clear(&mut self, rows: usize, prompts: usize) {
        self.matches.clear();
        self.matches.resize(rows * prompts, Match::default());
        self.held.clear();
        self.held.resize(rows, Held::default());
    }

    /// One look-up per prompt and block size; usually one. `scratch` holds the rows' block sizes and places. `lookup` is
    /// told how many blocks of the prompt can be reused: the last token is always computed.
    fn look_up(
        &mut self,
        prompts: Prompts<'_, impl Fn(u32) -> usize>,
        scratch: &mut FoundScratch,
        lookup: impl Fn(&[BlockKey], u32, &[EngineSlot], &mut LookupScratch, &mut [Match]),
    ) {
        let rows = self.held.len();
        let FoundScratch {
            lookup: working,
            sizes,
            slots,
            further,
            trusts,
            weights,
            asked_rows,
            asked,
            matches,
        } = scratch;
        for set in prompts.sets {
            let max_blocks = (prompts.max_blocks)(set.block_size_tokens);
            asked_rows.clear();
            asked.clear();
            for (row, (size, slot)) in (0u32..).zip(sizes.iter().zip(&*slots)) {
                if *size != set.block_size_tokens {
                    continue;
                }
                // Of a prompt with media more tokens are guessed than there are keys for.
                let blocks = |(keys, tokens): (&Vec<BlockKey>, &u32)| {
                    keys.len().max((tokens / size.max(&1)) as usize).min(max_blocks) as u32
                };
                let matched = &mut self.held[row as usize].matched;
                matched.total_blocks = set.prompts.iter().zip(prompts.tokens).map(blocks).sum();
                matched.block_size_tokens = set.block_size_tokens;
                if let Some(slot) = slot {
                    asked_rows.push(row);
                    asked.push(*slot);
                }
            }
            let firsts = asked_rows.len();
            for (row, slot) in further.iter() {
                if asked_rows[..firsts].binary_search(row).is_ok() {
                    asked_rows.push(*row);
                    asked.push(*slot);
                }
            }
            for (at, (keys, tokens)) in set.prompts.iter().zip(prompts.tokens).enumerate() {
                let keys = &keys[..keys.len().min(max_blocks)];
                matches.clear();
                matches.resize(asked.len(), Match::default());
                let reusable_blocks = tokens.saturating_sub(1) / set.block_size_tokens.max(1);
                lookup(keys, reusable_blocks, asked, working, matches);
                least_of_ranks(asked_rows, firsts, matches);
                for (asked, (row, found)) in asked_rows[..firsts].iter().zip(&*matches).enumerate() {
                    let row = *row as usize;
                    let trust = trusts.get(row).copied().unwrap_or(Trust::Exact);
                    let trusted = TrustedMatch::new(*found, working.offloaded(asked, found), trust, weights);
                    self.matches[at * rows + row] = trusted.found;
                    self.held[row].add(&trusted, *tokens, set.block_size_tokens);
                }
            }
        }
    }

    fn known_blocks(&self, row: usize, prompt: usize) -> u32 {
        self.matches.get(prompt * self.held.len() + row).map_or(0, |found| found.known_blocks)
    }
}

/// Leaves of each row what all of its ranks hold. The first so many matches are of the rows' first ranks; their rows
/// ascend.
fn least_of_ranks(rows: &[u32], firsts: usize, matches: &mut [Match]) {
    let (first, further) = matches.split_at_mut(firsts);
    for (row, found) in rows[firsts..].iter().zip(&*further) {
        if let Ok(at) = rows[..firsts].binary_search(row) {
            first[at].known_blocks = first[at].known_blocks.min(found.known_blocks);
            first[at].expected_blocks = first[at].expected_blocks.min(found.expected_blocks);
        }
    }
}

impl Held {
    /// The same with what another one says is known.
    fn known_as(self, other: Self) -> Self {
        let Self { known_blocks, known_tokens, offloaded, .. } = other;
        let expected_tokens = self.expected_tokens.max(known_tokens);
        let expected_blocks = self.expected_blocks.max(known_blocks);
        Self { known_blocks, known_tokens, offloaded, expected_tokens, expected_blocks, ..self }
    }

    /// Adds what was found of one prompt.
    fn add(&mut self, trusted: &TrustedMatch, prompt_tokens: u32, block_size_tokens: u32) {
        let TrustedMatch { found, offloaded, counted_blocks } = trusted;
        self.matched.matched_blocks += counted_blocks;
        self.known_blocks += found.known_blocks;
        self.expected_blocks += found.expected_blocks;
        self.offloaded += *offloaded;
        self.known_tokens += predicted_cached_tokens(found.known_blocks, prompt_tokens, block_size_tokens);
        self.expected_tokens +=
            predicted_cached_tokens(found.expected_blocks, prompt_tokens, block_size_tokens);
    }
}
