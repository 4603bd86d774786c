//! Wall time of look-ups.

use std::hint::black_box;

use quanta::Clock;

use crate::Reader;
use crate::spread::clock_ns;

/// Times look-ups.
pub struct Stopwatch {
    clock: Clock,
    /// What reading the clock costs, in ns.
    clock_ns: u64,
    batch: usize,
    times_ns: Vec<f64>,
}

impl Stopwatch {
    /// Times so many look-ups together.
    pub fn new(batch: usize) -> Self {
        let clock = Clock::new();
        let clock_ns = clock_ns(&clock);
        Self { clock, clock_ns, batch, times_ns: Vec::new() }
    }

    /// Times a batch of look-ups, from the query of that number on.
    pub fn time<R: Reader>(&mut self, reader: &mut R, queries: &[R::Query], first: usize) {
        let batch = || (first..first + self.batch).map(|at| &queries[at % queries.len()]);
        batch().for_each(|query| {
            black_box(R::touch(query));
        });
        let start = self.clock.raw();
        batch().for_each(|query| reader.look_up(query));
        let time_ns = self.clock.delta_as_nanos(start, self.clock.raw()).saturating_sub(self.clock_ns);
        self.times_ns.push(time_ns.max(1) as f64 / self.batch as f64);
    }

    /// The time of one look-up each, in ns.
    pub fn into_times_ns(self) -> Vec<f64> {
        self.times_ns
    }
}
