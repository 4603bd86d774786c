//! Look-ups of engines that hold blocks in several layers: tiers beside the accelerator's memory, or several groups.

use std::ops::AddAssign;
use std::sync::Arc;

use crate::layers::{EngineSlots, GroupSlots, Tier};
use crate::lookup::common_blocks;
use crate::spans::Spans;
use crate::{BlockKey, EngineSlot, KvIndex, LookupScratch, Match};

/// How many of the blocks that a look-up found ([`Match::known_blocks`]) aren't in GPU memory, but in a tier from which
/// the engine loads them. Each counts in the best tier that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct OffloadedBlocks {
    /// Blocks in the host's memory.
    pub cpu: u32,
    /// Blocks in storage.
    pub storage: u32,
    /// Blocks in tiers of other names.
    pub other: u32,
}

impl OffloadedBlocks {
    /// All of them.
    pub fn total(self) -> u32 {
        self.cpu + self.storage + self.other
    }

    /// Without the last so many blocks of the match, where the slowest are taken for the last.
    fn without_last(self, blocks: u32) -> Self {
        let (other, left) = (self.other.saturating_sub(blocks), blocks.saturating_sub(self.other));
        let (storage, left) = (self.storage.saturating_sub(left), left.saturating_sub(self.storage));
        Self { cpu: self.cpu.saturating_sub(left), storage, other }
    }

    /// Those of one tier; none for [`Tier::Gpu`].
    pub fn of(self, tier: Tier) -> u32 {
        match tier {
            Tier::Gpu => 0,
            Tier::Cpu => self.cpu,
            Tier::Storage => self.storage,
            Tier::Other => self.other,
        }
    }
}

impl AddAssign for OffloadedBlocks {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.storage += other.storage;
        self.other += other.other;
    }
}

/// Working memory of look-ups of engines with several layers, and what the last one found.
#[derive(Debug, Default)]
pub(crate) struct LayeredScratch {
    /// Blocks of the prompt that can be reused at all; `None`: all.
    reusable_blocks: Option<u32>,
    /// By row, ascending.
    rows: Vec<LayeredRow>,
    /// What each of their slots holds.
    held: Vec<(u32, Spans)>,
    /// Of one group, what all its tiers hold.
    merged: Vec<Spans>,
}

#[derive(Debug)]
struct LayeredRow {
    row: usize,
    slots: Arc<EngineSlots>,
    known_blocks: u32,
    offloaded: OffloadedBlocks,
}

impl LookupScratch {
    /// Where the blocks are that the last look-up found in a row. `found` is that row's match.
    pub fn offloaded(&self, row: usize, found: &Match) -> OffloadedBlocks {
        let rows = &self.layered.rows;
        if found.known_blocks == 0 || rows.is_empty() {
            return OffloadedBlocks::default();
        }
        let Ok(at) = rows.binary_search_by_key(&row, |known| known.row) else {
            return OffloadedBlocks::default();
        };
        // What was taken off the end of the match since is off these.
        let LayeredRow { known_blocks, offloaded, .. } = &rows[at];
        offloaded.without_last(known_blocks.saturating_sub(found.known_blocks))
    }
}

impl KvIndex {
    /// [`Self::lookup`] of a prompt of which only the first `reusable_blocks` blocks can be reused, because the engine
    /// computes the last token always. That matters for engines whose groups need only the end of a prefix: what they
    /// hold of all blocks says nothing of one block less.
    pub fn lookup_reusable(
        &self,
        keys: &[BlockKey],
        reusable_blocks: u32,
        slots: &[EngineSlot],
        scratch: &mut LookupScratch,
        matches: &mut [Match],
    ) {
        scratch.layered.reusable_blocks = Some(reusable_blocks);
        self.lookup(keys, slots, scratch, matches);
        scratch.layered.reusable_blocks = None;
    }

    /// Finds what engines with several layers hold. Nothing to do where there are none.
    pub(crate) fn find_layered(&self, keys: &[BlockKey], slots: &[EngineSlot], scratch: &mut LayeredScratch) {
        scratch.rows.clear();
        if self.layers.is_empty() {
            return;
        }
        self.find_rows(slots, scratch);
        if !scratch.rows.is_empty() {
            self.find_spans(keys, scratch);
            scratch.reuse(keys.len() as u32);
        }
    }

    fn find_rows(&self, slots: &[EngineSlot], scratch: &mut LayeredScratch) {
        let LayeredScratch { rows, held, .. } = scratch;
        let mut used = 0;
        for (row, slot) in slots.iter().enumerate() {
            let Some(slots) = self.layers.of_slot(slot.index) else { continue };
            for slot in slots.groups.iter().flat_map(GroupSlots::slots) {
                match held.get_mut(used) {
                    Some((known, spans)) => {
                        *known = slot;
                        spans.clear();
                    }
                    None => held.push((slot, Spans::default())),
                }
                used += 1;
            }
            rows.push(LayeredRow { row, slots, known_blocks: 0, offloaded: OffloadedBlocks::default() });
        }
        held.truncate(used);
    }

    fn find_spans(&self, keys: &[BlockKey], scratch: &mut LayeredScratch) {
        let mut depth = 0;
        while let Some(run) = keys.get(depth).and_then(|key| self.runs.beginning_with(*key)) {
            let alike = common_blocks(&run.keys, &keys[depth..], 0);
            for (slot, spans) in &mut scratch.held {
                spans.push_held(&run, *slot, depth as u32, alike);
            }
            depth += alike;
            if alike < run.len() {
                break;
            }
        }
    }

    /// Replaces what was told of the engines with several layers.
    #[cold]
    pub(crate) fn tell_layered(
        &self,
        slots: &[EngineSlot],
        scratch: &LayeredScratch,
        matches: &mut [Match],
        expected_blocks: impl Fn(u32, u32) -> u32,
        counts: impl Fn(EngineSlot, usize) -> bool,
    ) {
        for LayeredRow { row, known_blocks, .. } in &scratch.rows {
            let (Some(slot), Some(found)) = (slots.get(*row), matches.get_mut(*row)) else { continue };
            let expected_blocks = expected_blocks(slot.index, *known_blocks);
            *found = Match { known_blocks: *known_blocks, expected_blocks };
            if expected_blocks == 0 || !counts(*slot, *row) {
                *found = Match::default();
            }
        }
    }
}

impl GroupSlots {
    /// In the order in which [`LayeredScratch`] has what they hold.
    fn slots(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.gpu).chain(self.offloaded.iter().map(|(_, slot)| *slot))
    }
}

impl LayeredScratch {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the engine of a row needs more of a prefix than its blocks of one group.
    pub(crate) fn has_several_groups(&self, row: usize) -> bool {
        let at = self.rows.binary_search_by_key(&row, |known| known.row);
        at.is_ok_and(|at| self.rows[at].slots.groups.len() > 1)
    }

    /// Works out what each engine reuses of a prompt of so many blocks.
    fn reuse(&mut self, prompt_blocks: u32) {
        let Self { reusable_blocks, rows, held, merged } = self;
        let reusable_blocks = reusable_blocks.unwrap_or(prompt_blocks).min(prompt_blocks);
        let mut rest = &held[..];
        for row in rows {
            let layers: usize = row.slots.groups.iter().map(|group| 1 + group.offloaded.len()).sum();
            let (mine, others) = rest.split_at(layers.min(rest.len()));
            rest = others;
            // A single group needs every block of a prefix, so that one block less is there too.
            let is_single = row.slots.groups.len() == 1;
            let most = if is_single { prompt_blocks } else { reusable_blocks };
            (row.known_blocks, row.offloaded) = reused(&row.slots, mine, most, merged);
        }
    }
}

/// How many leading blocks an engine reuses of at most `most`, and how many of them it has to load. `held` is what its
/// slots hold.
///
/// What vLLM 0.32 does (`v1/core/sched/scheduler.py`): first the longest prefix that every group has in GPU memory; then
/// the connector's blocks from there on (`offloading/scheduler.py`), as far as they follow each other in any of its tiers
/// and every other group has what it needs at their end. Blocks in GPU memory behind a gap aren't used.
fn reused(
    slots: &EngineSlots,
    held: &[(u32, Spans)],
    most: u32,
    merged: &mut Vec<Spans>,
) -> (u32, OffloadedBlocks) {
    let mut at = 0;
    let firsts: smallvec::SmallVec<[usize; 4]> = slots
        .groups
        .iter()
        .map(|group| {
            at += 1 + group.offloaded.len();
            at - 1 - group.offloaded.len()
        })
        .collect();
    let spans = |at: usize| held.get(at).map(|(_, spans)| spans);
    let in_gpu = common_prefix(slots, most, |group| spans(firsts[group]));
    if slots.groups.iter().all(|group| group.offloaded.is_empty()) {
        return (in_gpu, OffloadedBlocks::default());
    }
    merged.clear();
    for (group, first) in slots.groups.iter().zip(&firsts) {
        let mut all = Spans::default();
        (1..=group.offloaded.len()).filter_map(|tier| spans(first + tier)).for_each(|tier| all.merge(tier));
        merged.push(all);
    }
    let end = merged.first().map_or(in_gpu, |main| main.end_of_row(in_gpu)).min(most);
    // The main group has what follows; the others need the end of it.
    let end = common_prefix(slots, end, |group| if group == 0 { None } else { merged.get(group) });
    if end <= in_gpu {
        return (in_gpu, OffloadedBlocks::default());
    }
    let mut better = Spans::default();
    let mut counted = 0;
    let mut in_tier = |tier: Tier| {
        let main = slots.groups.first().into_iter().flat_map(|group| group.offloaded.iter().enumerate());
        main.filter(|(_, (known, _))| *known == tier)
            .filter_map(|(place, _)| spans(1 + place))
            .for_each(|tier| better.merge(tier));
        let so_far = better.count_in(in_gpu, end);
        let here = so_far - counted;
        counted = so_far;
        here
    };
    let [cpu, storage, other] = Tier::OFFLOADED.map(&mut in_tier);
    (end, OffloadedBlocks { cpu, storage, other })
}

/// The longest prefix of at most `most` blocks of which every group has what it needs; a group without spans needs
/// nothing.
fn common_prefix<'s>(slots: &EngineSlots, most: u32, spans: impl Fn(usize) -> Option<&'s Spans>) -> u32 {
    let mut end = most;
    loop {
        let before = end;
        for (at, group) in slots.groups.iter().enumerate() {
            end = spans(at).map_or(end, |spans| spans.longest_prefix(end, group.window_blocks));
        }
        if end == before {
            return end;
        }
    }
}
