//! Filling both indexes alike, and measuring them in interleaved pairs.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::beside::Beside;
use crate::lane::thread_time;
use crate::ours::Ours;
use crate::queries::Cell;
use crate::spread::Percentiles;
use crate::stopwatch::Stopwatch;
use crate::theirs::Theirs;
use crate::workload::{Event, Group, interleaved, stored_payload};
use crate::{Reader, Subject};

/// Events that are made and applied at once, so that they needn't all be in memory.
const SLICE: usize = 100_000;
/// Time of all look-ups of one side in one pair.
const ROUND: Duration = Duration::from_millis(80);

/// What both sides took, pair by pair.
#[derive(Debug, Clone, Default)]
pub struct Pairs<T> {
    /// Our side.
    pub ours: Vec<T>,
    /// The other.
    pub theirs: Vec<T>,
}

impl<T> Pairs<T> {
    fn new() -> Self {
        Self { ours: Vec::new(), theirs: Vec::new() }
    }
}

/// Both indexes.
pub struct Duel {
    /// Ours.
    pub ours: Ours,
    /// Dynamo's.
    pub theirs: Theirs,
}

impl Duel {
    /// Two empty indexes for so many engines.
    ///
    /// # Errors
    /// One can't be made.
    pub fn try_new(engines: usize) -> anyhow::Result<Self> {
        Ok(Self { ours: Ours::try_new(engines)?, theirs: Theirs::try_new(engines)? })
    }

    /// Applies events to both, in slices that take turns; returns the CPU times.
    ///
    /// # Errors
    /// A writer is gone.
    pub fn apply(&self, events: Vec<Event>) -> anyhow::Result<(Duration, Duration)> {
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for (number, slice) in interleaved(events).chunks(SLICE).enumerate() {
            let our_turn = || self.ours.apply(slice.iter().map(Ours::prepare).collect(), || ());
            let their_turn = || self.theirs.apply(slice.iter().map(Theirs::prepare).collect(), || ());
            if number % 2 == 0 {
                ours += our_turn()?;
                theirs += their_turn()?;
            } else {
                theirs += their_turn()?;
                ours += our_turn()?;
            }
        }
        Ok((ours, theirs))
    }

    /// The same for stores from their bytes; decoding is counted.
    ///
    /// # Errors
    /// A writer is gone, or a payload isn't understood.
    pub fn apply_wire(&self, events: Vec<Event>) -> anyhow::Result<(Duration, Duration)> {
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for slice in interleaved(events).chunks(SLICE) {
            let mut payloads = Vec::new();
            for event in slice {
                payloads.extend(stored_payload(event)?.map(|payload| (event.engine, payload)));
            }
            ours += decode_and_apply(&self.ours, &payloads)?;
            theirs += decode_and_apply(&self.theirs, &payloads)?;
        }
        Ok((ours, theirs))
    }

    /// Fills both, whole groups at a time.
    ///
    /// # Errors
    /// A writer is gone.
    pub fn fill(&self, groups: &[Group]) -> anyhow::Result<()> {
        for some in groups.chunks(64) {
            self.apply(some.iter().flat_map(|group| group.stores(128)).collect())?;
        }
        Ok(())
    }

    /// Looks up the prompts of a cell in both: times by pair.
    ///
    /// # Errors
    /// The answers aren't the same.
    pub fn look_up(&self, cell: &Cell, pairs: usize) -> anyhow::Result<Pairs<Percentiles>> {
        let (mut ours, mut theirs) = (self.ours.reader(), self.theirs.reader());
        let (our_queries, their_queries) = (queries(&ours, cell), queries(&theirs, cell));
        for (one, other) in our_queries.iter().zip(&their_queries) {
            ensure!(
                ours.depths_blocks(one) == theirs.depths_blocks(other),
                "{}: different answers",
                cell.name
            );
        }
        let (our_count, their_count) =
            (lookups(&mut ours, &our_queries, cell.batch), lookups(&mut theirs, &their_queries, cell.batch));
        let mut found = Pairs::new();
        for pair in 0..=pairs {
            let mut our_turn = || Percentiles::of(round(&mut ours, &our_queries, our_count, cell.batch));
            let mut their_turn =
                || Percentiles::of(round(&mut theirs, &their_queries, their_count, cell.batch));
            let (one, other) = if pair % 2 == 0 {
                let one = our_turn();
                (one, their_turn())
            } else {
                let other = their_turn();
                (our_turn(), other)
            };
            // The first one warms up.
            if pair > 0 {
                found.ours.push(one);
                found.theirs.push(other);
            }
        }
        Ok(found)
    }

    /// Looks up the prompts of a cell in both with and without a writer beside.
    ///
    /// # Errors
    /// A writer is gone.
    pub fn look_up_beside_writer(
        &self,
        cell: &Cell,
        elsewhere: &Self,
        written: &Group,
        pairs: usize,
    ) -> anyhow::Result<Pairs<Beside>> {
        let mut found = Pairs::new();
        for _ in 0..pairs {
            found.ours.push(Beside::measure(&self.ours, &elsewhere.ours, cell, written)?);
            found.theirs.push(Beside::measure(&self.theirs, &elsewhere.theirs, cell, written)?);
        }
        Ok(found)
    }
}

fn decode_and_apply<S: Subject>(subject: &S, payloads: &[(usize, Vec<u8>)]) -> anyhow::Result<Duration> {
    let start = thread_time();
    let decoded = S::decode(payloads)?;
    let decoding = thread_time().saturating_sub(start);
    Ok(decoding + subject.apply(decoded, || ())?)
}

pub(crate) fn queries<R: Reader>(_reader: &R, cell: &Cell) -> Vec<R::Query> {
    cell.prompts.iter().map(|tokens| R::query(tokens)).collect()
}

/// How many look-ups make a round, enough for a 99th percentile.
fn lookups<R: Reader>(reader: &mut R, queries: &[R::Query], batch: usize) -> usize {
    let (count, start) = (2_000, Instant::now());
    round(reader, queries, count, batch);
    let each = start.elapsed().max(Duration::from_micros(1)) / count as u32;
    ((ROUND.as_nanos() / each.as_nanos().max(1)) as usize).clamp(10_000, 200_000) * batch
}

/// Times of so many look-ups, in ns.
fn round<R: Reader>(reader: &mut R, queries: &[R::Query], count: usize, batch: usize) -> Vec<f64> {
    let mut stopwatch = Stopwatch::new(batch);
    for at in 0..count / batch {
        stopwatch.time(reader, queries, at * batch);
    }
    stopwatch.into_times_ns()
}
