//! The memory that decisions are made in.

use warmroute_plugin::{
    AdapterState, Candidates, ColumnMismatch, InFlight, InferenceRequest, MetricsState, PrefixMatch,
};

use std::time::Duration;

use crate::{Clock, Profile, Verdict};

/// The memory that decisions are made in, reused from one to the next: once it has grown to the size of
/// the pool, a decision allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Per stage of the plan: what its profile did, if it ran.
    pub(crate) runs: Vec<Run>,
    /// Per stage of the plan: what became of it.
    pub(crate) outcomes: Vec<Outcome>,
    clock: Option<Clock>,
}

/// What became of one stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Place of its profile.
    pub(crate) profile: usize,
    /// What its decider said, if it has one; if that was no, it didn't run.
    pub(crate) verdict: Option<Verdict>,
    /// Why it ran and picked nothing.
    pub(crate) failure: Option<RunError>,
}

impl Scratch {
    /// Empty memory, which grows with the first decisions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty memory in which the plugins' times are taken too.
    pub fn timed(clock: Clock) -> Self {
        Self { clock: Some(clock), ..Self::default() }
    }

    /// Takes times from the next decision on by this clock, or none.
    pub fn set_clock(&mut self, clock: Option<Clock>) {
        self.clock = clock;
    }

    #[inline]
    pub(crate) fn run(&mut self, index: usize) -> &mut Run {
        if self.runs.len() <= index {
            self.runs.resize_with(index + 1, Run::default);
        }
        let run = &mut self.runs[index];
        run.clock = self.clock;
        run
    }
}

/// What one profile did with one request. A kept row is a number into `rows`.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The table's row that was picked before.
    pub(crate) peer: Option<u32>,
    /// The table's rows that all filters kept.
    pub(crate) rows: Vec<u32>,
    /// Per row of the table: the number of the filter that took it out.
    pub(crate) removed_by: Vec<Option<u32>>,
    /// Whether a filter took a row out, so that the columns below are in use.
    compacted: bool,
    metrics: Vec<MetricsState>,
    in_flight: Vec<InFlight>,
    prefix_matches: Vec<PrefixMatch>,
    attributes: Vec<Option<f64>>,
    adapters: Vec<AdapterState>,
    keep: Vec<bool>,
    /// One scorer after the other: its score of every kept row, clamped.
    pub(crate) scores: Vec<f64>,
    /// Per scorer: rows for which it said NaN.
    pub(crate) not_a_number: Vec<u32>,
    /// Per kept row: the weighted sum.
    pub(crate) totals: Vec<f64>,
    /// The picked rows, best first.
    pub(crate) order: Vec<u32>,
    /// Rows that the picker named twice or that don't exist.
    pub(crate) invalid_picks: u32,
    clock: Option<Clock>,
    /// When the run began, then when each plugin was done, in the order of the profile; empty without a clock.
    pub(crate) marks: Vec<Duration>,
}

/// Why a run ended early.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunError {
    FilteredOut { filter: usize },
    NoPick,
}

impl Run {
    /// The kept rows as plugins see them.
    pub(crate) fn candidates<'a>(&'a self, table: &Candidates<'a>) -> Candidates<'a> {
        if !self.compacted {
            return *table;
        }
        self.compacted_of(table).unwrap_or(*table)
    }

    fn compacted_of<'a>(&'a self, table: &Candidates<'a>) -> Result<Candidates<'a>, ColumnMismatch> {
        let columns = table.select(&self.rows).metrics(&self.metrics).in_flight(&self.in_flight);
        let columns = columns.prefix_matches(&self.prefix_matches);
        columns.attributes(&self.attributes).adapters(&self.adapters).build()
    }

    /// Filters, scores and picks; gives the table's row that is picked first. `peer` is the row that an earlier
    /// profile picked.
    // Inlined into its caller's loop over stages it is a tenth slower for a thousand rows.
    #[inline(never)]
    pub(crate) fn decide(
        &mut self,
        profile: &Profile,
        request: &InferenceRequest,
        table: &Candidates<'_>,
        peer: Option<u32>,
    ) -> Result<u32, RunError> {
        self.marks.clear();
        self.mark();
        self.peer = peer;
        let with_peer;
        let table = match peer {
            None => table,
            Some(_) => {
                with_peer = self.with_peer(table);
                &with_peer
            }
        };
        self.filter(profile, request, table).inspect_err(|_| self.clear_picks())?;
        self.score(profile, request, table);
        self.pick(profile, request, table)?;
        let first = self.order.first().and_then(|&row| self.rows.get(row as usize));
        first.copied().ok_or(RunError::NoPick)
    }

    /// The table as this profile's plugins see it.
    pub(crate) fn with_peer<'a>(&self, table: &Candidates<'a>) -> Candidates<'a> {
        match self.peer {
            Some(row) => table.with_peer(Some(table.endpoint(row as usize))),
            None => *table,
        }
    }

    /// Forgets the last run.
    pub(crate) fn clear(&mut self) {
        self.marks.clear();
        self.peer = None;
        self.compacted = false;
        self.rows.clear();
        self.removed_by.clear();
        self.clear_picks();
    }

    /// Forgets what the last run said of rows that were kept.
    fn clear_picks(&mut self) {
        self.scores.clear();
        self.not_a_number.clear();
        self.totals.clear();
        self.order.clear();
        self.invalid_picks = 0;
    }

    fn mark(&mut self) {
        if let Some(clock) = self.clock {
            self.marks.push(clock());
        }
    }

    fn filter(
        &mut self,
        profile: &Profile,
        request: &InferenceRequest,
        table: &Candidates<'_>,
    ) -> Result<(), RunError> {
        self.compacted = false;
        self.rows.clear();
        self.rows.extend((0u32..).take(table.len()));
        self.removed_by.clear();
        self.removed_by.resize(table.len(), None);
        for (index, filter) in profile.filters.iter().enumerate() {
            let mut keep = std::mem::take(&mut self.keep);
            keep.clear();
            keep.resize(self.rows.len(), true);
            filter.filter.filter(request, &self.candidates(table), &mut keep);
            if keep.contains(&false) {
                self.compact(table, &keep, index as u32);
            }
            self.keep = keep;
            self.mark();
            if self.rows.is_empty() {
                return Err(RunError::FilteredOut { filter: index });
            }
        }
        Ok(())
    }

    /// Drops the rows that a filter doesn't keep, and copies the columns of the others.
    fn compact(&mut self, table: &Candidates<'_>, keep: &[bool], filter: u32) {
        let Self { rows, removed_by, .. } = self;
        let mut verdicts = keep.iter();
        rows.retain(|&row| {
            let kept = verdicts.next().copied().unwrap_or(true);
            if !kept {
                removed_by[row as usize] = Some(filter);
            }
            kept
        });
        self.compacted = true;
        let rows = self.rows.iter().map(|&row| row as usize);
        self.metrics.clear();
        self.metrics.extend(rows.clone().map(|row| table.metrics()[row]));
        self.in_flight.clear();
        self.in_flight.extend(rows.clone().map(|row| table.in_flight()[row]));
        self.prefix_matches.clear();
        for column in 0..table.prefix_columns() {
            let column = table.prefix_column(column);
            self.prefix_matches.extend(rows.clone().map(|row| column[row]));
        }
        self.attributes.clear();
        for column in 0..table.attribute_columns() {
            let column = table.attribute_column(column);
            self.attributes.extend(rows.clone().map(|row| column[row]));
        }
        self.adapters.clear();
        let adapters = table.adapter_column();
        if !adapters.is_empty() {
            self.adapters.extend(rows.map(|row| adapters[row]));
        }
    }

    fn score(&mut self, profile: &Profile, request: &InferenceRequest, table: &Candidates<'_>) {
        let kept = self.rows.len();
        let mut scores = std::mem::take(&mut self.scores);
        let mut totals = std::mem::take(&mut self.totals);
        let mut not_a_number = std::mem::take(&mut self.not_a_number);
        scores.clear();
        scores.resize(kept * profile.scorers.len(), 0.0);
        totals.clear();
        totals.resize(kept, 0.0);
        not_a_number.clear();
        let (clock, mut marks) = (self.clock, std::mem::take(&mut self.marks));
        let candidates = self.candidates(table);
        for (scorer, scores) in profile.scorers.iter().zip(scores.chunks_exact_mut(kept)) {
            scorer.scorer.score(request, &candidates, scores);
            let mut strange = 0;
            for (score, total) in scores.iter_mut().zip(&mut totals) {
                if score.is_nan() {
                    strange += 1;
                    *score = 0.0;
                }
                *score = score.clamp(0.0, 1.0);
                *total += *score * scorer.weight;
            }
            not_a_number.push(strange);
            marks.extend(clock.map(|clock| clock()));
        }
        self.marks = marks;
        self.scores = scores;
        self.totals = totals;
        self.not_a_number = not_a_number;
    }

    fn pick(
        &mut self,
        profile: &Profile,
        request: &InferenceRequest,
        table: &Candidates<'_>,
    ) -> Result<(), RunError> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        profile.picker.picker.pick(request, &self.candidates(table), &self.totals, &mut order);
        let named = order.len();
        // The mask of the filters is free now; here it says which rows are still to be named.
        self.keep.clear();
        self.keep.resize(self.rows.len(), true);
        let free = &mut self.keep;
        order.retain(|&row| free.get_mut(row as usize).is_some_and(std::mem::take));
        self.invalid_picks = (named - order.len()) as u32;
        self.order = order;
        self.mark();
        if self.order.is_empty() { Err(RunError::NoPick) } else { Ok(()) }
    }
}
