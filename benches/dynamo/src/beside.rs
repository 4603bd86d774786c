//! Look-ups beside a writer at full speed, and how much of what that costs is the machine's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Subject;
use crate::duel::queries;
use crate::queries::Cell;
use crate::spread::Percentiles;
use crate::stopwatch::Stopwatch;
use crate::workload::{Event, Group, interleaved};

/// Look-ups in four states of the machine. They take turns of a millisecond or two, so that other load on it hits all
/// four alike.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// No other thread of ours runs.
    pub quiet: Percentiles,
    /// A thread turns in a loop and touches no memory: what a busy neighbouring core costs.
    pub spinning: Percentiles,
    /// The writer writes to another index: what sharing caches and memory costs besides.
    pub elsewhere: Percentiles,
    /// The writer writes to the same index: what sharing the index costs besides.
    pub same: Percentiles,
}

/// Events that the writer applies in one turn.
const TURN_EVENTS: usize = 4_000;
/// Time of a turn in which it applies none.
const TURN: Duration = Duration::from_millis(2);
/// Look-ups between two looks at whether a turn is over.
const LOOK_UPS: usize = 32;

impl Beside {
    /// What the writer stores is removed again.
    ///
    /// # Errors
    /// A writer is gone.
    pub fn measure<S: Subject>(
        subject: &S,
        elsewhere: &S,
        cell: &Cell,
        written: &Group,
    ) -> anyhow::Result<Self> {
        let mut reader = subject.reader();
        let queries = queries(&reader, cell);
        let mut stopwatches = [(); 4].map(|()| Stopwatch::new(1));
        let mut first = 0;
        let events = interleaved(written.stores(1)).into_iter().chain(interleaved(written.removals(1)));
        let events: Vec<Event> = events.collect();
        for (turn, events) in events.chunks(TURN_EVENTS).enumerate() {
            for state in (0..4).map(|at| (turn + at) % 4) {
                let stopwatch = &mut stopwatches[state];
                let mut look_up = || {
                    (first..first + LOOK_UPS).for_each(|at| stopwatch.time(&mut reader, &queries, at));
                    first += LOOK_UPS;
                };
                match state {
                    0 => until_over(look_up),
                    1 => beside_a_loop(look_up),
                    _ => {
                        let writer = if state == 2 { elsewhere } else { subject };
                        writer.apply(events.iter().map(S::prepare).collect(), &mut look_up)?;
                    }
                }
            }
        }
        let [quiet, spinning, elsewhere, same] =
            stopwatches.map(|stopwatch| Percentiles::of(stopwatch.into_times_ns()));
        Ok(Self { quiet, spinning, elsewhere, same })
    }
}

fn until_over(mut look_up: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < TURN {
        look_up();
    }
}

fn beside_a_loop(look_up: impl FnMut()) {
    let (is_running, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            is_running.store(true, Ordering::Relaxed);
            while !is_over.load(Ordering::Relaxed) {
                std::hint::black_box(());
            }
        });
        while !is_running.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        until_over(look_up);
        is_over.store(true, Ordering::Relaxed);
    });
}
