use std::collections::VecDeque;

use super::FeedBatch;

/// Live batches that wait for a replay, in the order of their numbers. What doesn't fit pushes the oldest out: a replay
/// that is still to come brings those too.
#[derive(Debug)]
pub(super) struct HeldBatches<B> {
    batches: VecDeque<FeedBatch<B>>,
    bytes: usize,
    max_batches: usize,
    max_bytes: usize,
}

impl<B> HeldBatches<B> {
    pub(super) fn new(max_batches: usize, max_bytes: usize) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, max_batches, max_bytes }
    }

    /// Takes a batch; returns how many were pushed out. One that is held already is left out.
    pub(super) fn push(&mut self, batch: FeedBatch<B>) -> u64 {
        let at = self.batches.partition_point(|held| held.seq < batch.seq);
        if self.batches.get(at).is_some_and(|held| held.seq == batch.seq) {
            return 0;
        }
        self.bytes += batch.bytes;
        self.batches.insert(at, batch);
        let mut dropped = 0;
        while self.batches.len() > self.max_batches || self.bytes > self.max_bytes {
            if self.pop().is_none() {
                break;
            }
            dropped += 1;
        }
        dropped
    }

    /// The one with the lowest number.
    pub(super) fn first(&self) -> Option<&FeedBatch<B>> {
        self.batches.front()
    }

    pub(super) fn pop(&mut self) -> Option<FeedBatch<B>> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes;
        Some(batch)
    }

    pub(super) fn clear(&mut self) {
        self.batches = VecDeque::new();
        self.bytes = 0;
    }
}
