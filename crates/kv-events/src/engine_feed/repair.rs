//! What becomes of a replay; see the tables of [`crate::engine_feed`].

use super::feed_batch::Identity;
use super::knowledge::Knowledge;
use super::{EngineFeed, FeedBatch, FeedEvent, FeedSink, ReplayOrder};
use crate::trust::TrustReason;

/// A replay that was ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct OrderedReplay {
    /// The last batch applied, which the answer has to start with; None if asked for from 0.
    pub(super) after: Option<(u64, Identity)>,
    /// Whether the answer has begun as hoped.
    pub(super) has_begun: bool,
    /// What was expected next when it was ordered.
    pub(super) next_then: Option<u64>,
    pub(super) is_same_connection: bool,
}

impl<B> EngineFeed<B> {
    /// The first answer.
    pub(super) fn begin_replay(
        &mut self,
        replay: &OrderedReplay,
        batch: FeedBatch<B>,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        let (seq, next) = (batch.seq, self.next.unwrap_or(0));
        if let Some((last, identity)) = replay.after {
            if seq == last && batch.identity() == identity {
                self.has_begun();
                return None;
            }
            if seq <= last {
                return self.other_process(sink);
            }
            self.forget(sink);
            self.begin_late(batch, sink);
        } else if seq < next {
            // Late batches closed a part of the gap by themselves.
            if !self.is_known(&batch) {
                return self.other_process(sink);
            }
            self.has_begun();
        } else if seq > next {
            if self.next.is_none() {
                sink.note(FeedEvent::JoinedLate { missed: seq });
            }
            self.forget(sink);
            self.begin_late(batch, sink);
        } else {
            self.has_begun();
            self.recover(batch, sink);
        }
        None
    }

    fn begin_late(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) {
        self.has_begun();
        self.repairing = Some(TrustReason::CatchingUp);
        self.knowledge = Knowledge::lacking(TrustReason::BufferOverflowed);
        self.recover(batch, sink);
    }

    fn has_begun(&mut self) {
        self.is_fresh = false;
        if let Some(replay) = &mut self.replay {
            replay.has_begun = true;
        }
    }

    fn other_process(&mut self, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        sink.note(FeedEvent::Restart { missed: 0 });
        self.forget(sink);
        Some(self.order_replay(Some(TrustReason::CatchingUp)))
    }

    pub(super) fn complete(
        &mut self,
        replay: &OrderedReplay,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        if !replay.has_begun {
            if replay.after.is_some() {
                return self.other_process(sink);
            }
            if self.held.first().is_some_and(|held| held.seq > 0) {
                // It sent batches and keeps none.
                return self.give_up(replay, sink);
            }
            self.next = Some(0);
        }
        (self.is_fresh, self.replay, self.repairing) = (false, None, None);
        if std::mem::take(&mut self.has_lost_more) {
            return Some(self.order_replay(Some(TrustReason::QueueOverflow)));
        }
        if self.release(sink) {
            return None;
        }
        // Still a gap: batches were dropped meanwhile, or were never kept.
        if replay.next_then.is_some() && replay.next_then == self.next {
            return self.give_up(replay, sink);
        }
        Some(self.order_replay(Some(TrustReason::Gap)))
    }

    /// Applies what waited, as far as it goes on; false if a gap is left.
    fn release(&mut self, sink: &mut impl FeedSink<B>) -> bool {
        while let (Some(first), Some(next)) = (self.held.first(), self.next) {
            // What was made before the last replayed batch and wasn't replayed is of another process.
            let is_old = first.seq < next || self.is_older(first);
            if first.seq > next && !is_old {
                return false;
            }
            if let Some(batch) = self.held.pop()
                && !is_old
            {
                self.apply(batch, sink);
            }
        }
        true
    }

    pub(super) fn give_up(
        &mut self,
        replay: &OrderedReplay,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        self.replay = None;
        // A check that fails changes nothing.
        self.repairing.take()?;
        let goes_on = |held: &FeedBatch<B>| self.next.is_some_and(|next| held.seq <= next);
        if replay.has_begun && !self.has_lost_more && self.held.first().is_some_and(goes_on) {
            // The end was never heard of, but all of it came.
            self.release(sink);
        } else if replay.after.is_some() && !replay.has_begun && !replay.is_same_connection {
            // Whether it goes on is for the next live batch to tell.
            self.repairing = Some(TrustReason::Reconnected);
            self.is_fresh = true;
        } else {
            self.forget(sink);
        }
        self.has_lost_more = false;
        while let Some(batch) = self.held.pop() {
            let was_fresh = std::mem::replace(&mut self.is_fresh, false);
            match self.next {
                None => self.join(batch, TrustReason::ReplayFailed, sink),
                Some(next) if was_fresh => self.go_on(next, batch, sink),
                Some(next) if batch.seq < next || self.is_older(&batch) => {}
                // Some were lost, or pushed out while they waited.
                Some(next) if batch.seq > next => {
                    self.forget(sink);
                    self.join(batch, TrustReason::ReplayFailed, sink);
                }
                Some(_) => self.apply(batch, sink),
            }
        }
        None
    }

    /// A replay from the last batch applied, or from 0 if none is; `reason` is None if it only checks for a lost tail.
    pub(super) fn order_replay(&mut self, reason: Option<TrustReason>) -> ReplayOrder {
        self.epoch += 1;
        self.repairing = reason;
        let last = self.recent.back().filter(|(seq, _)| self.last_seq() == Some(*seq)).copied();
        self.replay = Some(OrderedReplay {
            after: last,
            has_begun: false,
            next_then: self.next,
            is_same_connection: !self.is_fresh,
        });
        ReplayOrder::Start { from: last.map_or(0, |(seq, _)| seq), epoch: self.epoch }
    }

    pub(super) fn recover(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) {
        sink.note(FeedEvent::Recovered { batches: 1 });
        self.apply(batch, sink);
    }
}
