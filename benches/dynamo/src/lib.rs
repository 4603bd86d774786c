//! Our KV index beside the compressed concurrent radix tree of NVIDIA Dynamo's KV router, in one process: the same
//! announcements into both, the same look-ups from both, and the same answers, or there is no figure.

pub mod beside;
pub mod duel;
pub mod lane;
pub mod ours;
pub mod queries;
pub mod spread;
pub mod stopwatch;
pub mod theirs;
pub mod workload;

/// The same bytes as in the benches of the main workspace.
#[path = "../../src/wire.rs"]
pub mod wire;

use std::time::Duration;

use workload::Event;

/// One of the two indexes, with the thread that writes to it.
pub trait Subject: Sized {
    /// An event in the form in which the index takes it.
    type Prepared;
    /// What looks up.
    type Reader: Reader;

    /// An empty index for so many engines.
    ///
    /// # Errors
    /// It can't be made.
    fn try_new(engines: usize) -> anyhow::Result<Self>;

    /// Makes what the index is given for an event. None of this is measured.
    fn prepare(event: &Event) -> Self::Prepared;

    /// Decodes payloads to what [`Self::apply`] takes.
    ///
    /// # Errors
    /// One can't be decoded.
    fn decode(payloads: &[(usize, Vec<u8>)]) -> anyhow::Result<Vec<Self::Prepared>>;

    /// Puts the events into the index; returns the CPU time of the thread that took them from its channel and applied
    /// them. `meanwhile` is called again and again until that is over.
    ///
    /// # Errors
    /// That thread is gone.
    fn apply(&self, events: Vec<Self::Prepared>, meanwhile: impl FnMut()) -> anyhow::Result<Duration>;

    /// Lets the index do what it does now and then, of its own accord, to free memory.
    ///
    /// # Errors
    /// Its thread is gone.
    fn tidy(&self) -> anyhow::Result<()>;

    /// A reader of this index.
    fn reader(&self) -> Self::Reader;
}

/// The read side of an index.
pub trait Reader {
    /// A look-up's input.
    type Query;

    /// A look-up's input for a prompt. It isn't measured.
    fn query(tokens: &[u32]) -> Self::Query;

    /// Reads the whole input, as whoever made it just before the look-up has.
    fn touch(query: &Self::Query) -> u64;

    /// One look-up; what it found stays in the reader or is dropped, as the index would have it.
    fn look_up(&mut self, query: &Self::Query);

    /// One look-up's answer: leading blocks by engine.
    fn depths_blocks(&mut self, query: &Self::Query) -> Vec<u32>;
}
