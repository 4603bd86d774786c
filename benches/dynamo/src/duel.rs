//! Filling both indexes alike, and measuring them in interleaved pairs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::ensure;
use quanta::Clock;

use crate::lane::thread_time;
use crate::ours::Ours;
use crate::queries::Cell;
use crate::spread::{Percentiles, clock_ns};
use crate::theirs::Theirs;
use crate::wire::stored_payload;
use crate::workload::{Event, Group, interleaved};
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

/// Look-ups beside a writer at full speed.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// Without it.
    pub quiet: Percentiles,
    /// While it writes to another index: what sharing the machine costs.
    pub elsewhere: Percentiles,
    /// While it writes to the same index.
    pub same: Percentiles,
}

impl Beside {
    /// What the writer stores is removed again.
    fn measure<S: Subject>(subject: &S, elsewhere: &S, cell: &Cell, written: &Group) -> anyhow::Result<Self> {
        let mut reader = subject.reader();
        let queries = queries(&reader, cell);
        round(&mut reader, &queries, 2_000, 1);
        let quiet = Percentiles::of(round(&mut reader, &queries, 50_000, 1));
        let mut beside = |writer: &S| {
            let (mut stopwatch, mut turn) = (Stopwatch::new(1), 0);
            for events in [written.stores(1), written.removals(1)] {
                let prepared = interleaved(events).iter().map(S::prepare).collect();
                writer.apply(prepared, || {
                    // Several between two looks at whether the writer is done.
                    (turn..turn + 32).for_each(|at| stopwatch.time(&mut reader, &queries, at));
                    turn += 32;
                })?;
            }
            anyhow::Ok(Percentiles::of(stopwatch.times_ns))
        };
        Ok(Self { quiet, elsewhere: beside(elsewhere)?, same: beside(subject)? })
    }
}

fn decode_and_apply<S: Subject>(subject: &S, payloads: &[(usize, Vec<u8>)]) -> anyhow::Result<Duration> {
    let start = thread_time();
    let decoded = S::decode(payloads)?;
    let decoding = thread_time().saturating_sub(start);
    Ok(decoding + subject.apply(decoded, || ())?)
}

fn queries<R: Reader>(_reader: &R, cell: &Cell) -> Vec<R::Query> {
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
    stopwatch.times_ns
}

struct Stopwatch {
    clock: Clock,
    /// What reading the clock costs, in ns.
    clock_ns: u64,
    batch: usize,
    times_ns: Vec<f64>,
}

impl Stopwatch {
    fn new(batch: usize) -> Self {
        let clock = Clock::new();
        let clock_ns = clock_ns(&clock);
        Self { clock, clock_ns, batch, times_ns: Vec::new() }
    }

    /// Times a batch of look-ups, from the query of that number on.
    fn time<R: Reader>(&mut self, reader: &mut R, queries: &[R::Query], first: usize) {
        let batch = || (first..first + self.batch).map(|at| &queries[at % queries.len()]);
        batch().for_each(|query| {
            black_box(R::touch(query));
        });
        let start = self.clock.raw();
        batch().for_each(|query| reader.look_up(query));
        let time_ns = self.clock.delta_as_nanos(start, self.clock.raw()).saturating_sub(self.clock_ns);
        self.times_ns.push(time_ns.max(1) as f64 / self.batch as f64);
    }
}
