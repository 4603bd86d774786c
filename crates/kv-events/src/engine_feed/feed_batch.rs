use crate::trust::ApplyFacts;

/// A batch on its way to an engine's view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedBatch<B> {
    /// Its number.
    pub seq: u64,
    /// When the engine made it, Unix time in seconds by the engine's clock; NaN if that can't be read.
    pub ts: f64,
    /// Length of its payload in bytes.
    pub bytes: usize,
    /// What the sink gets.
    pub payload: B,
}

impl<B> FeedBatch<B> {
    pub(super) fn identity(&self) -> Identity {
        Identity { ts_bits: self.ts.to_bits(), bytes: self.bytes }
    }
}

/// What tells one process's batch from another's of the same number: they weren't made in the same microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) ts_bits: u64,
    pub(super) bytes: usize,
}

/// What a feed has to say besides batches to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// The engine had published before it was followed.
    JoinedLate {
        /// Batches before the first one seen.
        missed: u64,
    },
    /// Batches are missing.
    Gap {
        /// How many.
        missed: u64,
    },
    /// Missing batches came after all.
    Recovered {
        /// How many.
        batches: u64,
    },
    /// Another process publishes under the same address.
    Restart {
        /// Batches of it that were missed.
        missed: u64,
    },
    /// A batch was seen already, or came too late to be applied.
    Duplicate,
    /// Batches that waited for a replay were pushed out by later ones.
    HeldDropped {
        /// How many.
        batches: u64,
    },
}

/// Where batches go: the view of one engine.
pub trait FeedSink<B> {
    /// Applies one batch and says what that showed.
    fn apply(&mut self, seq: u64, payload: B) -> ApplyFacts;
    /// Forgets all that the engine was known to hold.
    fn start_generation(&mut self);
    /// Is told what happened.
    fn note(&mut self, event: FeedEvent);
}

/// What the caller is to do about replays. A new order takes the place of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayOrder {
    /// Ask for everything from a number on, and pass on the answers with `epoch`.
    Start {
        /// The first number asked for.
        from: u64,
        /// Names this order in [`EngineFeed::replayed`](super::EngineFeed::replayed) and
        /// [`EngineFeed::replay_ended`](super::EngineFeed::replay_ended).
        epoch: u64,
    },
    /// The running replay isn't needed any more.
    Stop,
}

/// How a feed behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedSettings {
    /// Whether the engine may be asked for a replay.
    pub can_replay: bool,
    /// Live batches that may wait for a replay.
    pub max_held_batches: usize,
    /// Their bytes.
    pub max_held_bytes: usize,
    /// Without replay: a new connection that goes on at this number or later proves that the process is the same, for
    /// another one would have had to publish exactly as many batches before the connection was back.
    pub proof_seq: u64,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self { can_replay: false, max_held_batches: 4096, max_held_bytes: 64 << 20, proof_seq: 1000 }
    }
}
