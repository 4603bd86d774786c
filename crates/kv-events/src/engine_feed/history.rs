//! What another feed of the same engine knows, taken over instead of a replay from the start.

use super::feed_batch::Identity;
use super::knowledge::Knowledge;
use super::{Connection, EngineFeed, FeedSink, REMEMBERED_BATCHES, ReplayOrder};
use crate::trust::TrustReason;

/// Batches that an engine keeps for replays unless it is told otherwise (vLLM's `buffer_steps`).
const USUAL_BUFFER_BATCHES: u64 = 10_000;

/// What a feed knows of the batches behind a view: enough for another one to go on with a copy of the view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedHistory {
    /// The number expected next.
    pub next: u64,
    /// When the last batch was made, by the engine's clock.
    pub last_ts: f64,
    /// The newest batches, which tell the process that published them from any other.
    pub recent: Vec<KnownBatch>,
    /// Why the view may claim what is gone, if so.
    pub doubt: Option<TrustReason>,
    /// Why the view lacks something until the engine clears its cache, if so.
    pub lack: Option<TrustReason>,
    /// Why the view lacks something whatever the engine clears, if so.
    pub lasting_lack: Option<TrustReason>,
    /// Whether the engine has cleared its cache.
    pub is_cleared: bool,
}

/// A batch that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownBatch {
    /// Its number.
    pub seq: u64,
    /// The bits of its time as a 64-bit float.
    pub ts_bits: u64,
    /// Length of its payload in bytes.
    pub bytes: u64,
}

impl FeedHistory {
    /// Whether the view behind it is sound and complete.
    pub fn is_exact(&self) -> bool {
        self.doubt.is_none() && self.lack.is_none() && self.lasting_lack.is_none()
    }
}

impl<B> EngineFeed<B> {
    /// Waits for another feed's history before it asks for a replay: live batches wait meanwhile. For a feed that nothing
    /// has come to yet.
    pub fn await_history(&mut self) {
        self.is_awaiting = self.next.is_none() && self.connection != Connection::Open;
    }

    /// Whether it waits for another feed's history.
    pub fn is_awaiting_history(&self) -> bool {
        self.is_awaiting
    }

    /// What is known, for another feed of the same engine. `None` if that is nothing, or if nobody knows whose batches
    /// they are.
    pub fn history(&self) -> Option<FeedHistory> {
        let next = self.next.filter(|_| !self.is_contested && !self.is_awaiting)?;
        let known = |(seq, identity): &(u64, Identity)| KnownBatch {
            seq: *seq,
            ts_bits: identity.ts_bits,
            bytes: identity.bytes as u64,
        };
        let Knowledge { doubt, lack, lasting_lack, is_cleared } = self.knowledge;
        Some(FeedHistory {
            next,
            last_ts: self.last_ts,
            recent: self.recent.iter().map(known).collect(),
            doubt,
            lack,
            lasting_lack,
            is_cleared,
        })
    }

    /// Whether this feed would go on with that history. Not if a replay is likely to give a better view: one of an engine
    /// whose view isn't exact there, and that answers replays, if all that it has published may still be in its buffer or
    /// the view may claim what is gone.
    pub fn would_adopt(&self, history: &FeedHistory) -> bool {
        let is_worse = history.doubt.is_some() || !history.is_exact() && history.next <= USUAL_BUFFER_BATCHES;
        // A history without its last batch can't be told from that of another process.
        let has_last = history.recent.last().map(|last| last.seq.checked_add(1)) == Some(Some(history.next));
        self.is_awaiting && self.next.is_none() && has_last && !(self.settings.can_replay && is_worse)
    }

    /// Goes on with another feed's history, whose view the sink has taken over, as after a connection that was lost and
    /// made again: what has been published since is replayed, and until it is proven that the same process publishes, the
    /// view is doubtful. Batches that waited prove it if one of them is in the history. Returns whether it was adopted;
    /// if not, nothing has changed.
    pub fn adopt(
        &mut self,
        now_ms: u64,
        history: &FeedHistory,
        sink: &mut impl FeedSink<B>,
    ) -> (bool, Option<ReplayOrder>) {
        if !self.would_adopt(history) {
            return (false, None);
        }
        self.is_awaiting = false;
        (self.next, self.last_ts) = (Some(history.next), history.last_ts);
        let known = |batch: &KnownBatch| {
            (batch.seq, Identity { ts_bits: batch.ts_bits, bytes: batch.bytes as usize })
        };
        let skipped = history.recent.len().saturating_sub(REMEMBERED_BATCHES);
        self.recent = history.recent.iter().skip(skipped).map(known).collect();
        self.knowledge = Knowledge {
            doubt: history.doubt,
            lack: history.lack,
            lasting_lack: history.lasting_lack,
            is_cleared: history.is_cleared,
        };
        let order = if self.connection == Connection::Open { self.join_history(sink) } else { None };
        self.refresh(now_ms);
        (true, order)
    }

    /// Nobody's history comes: everything begins as without the wait.
    pub fn no_history(&mut self, now_ms: u64, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        if !std::mem::take(&mut self.is_awaiting) || self.connection != Connection::Open {
            return None;
        }
        let order = if self.settings.can_replay {
            Some(self.order_replay(Some(TrustReason::CatchingUp)))
        } else {
            self.follow_held(sink)
        };
        self.refresh(now_ms);
        order
    }

    /// On an open connection: what has come through it so far is laid beside the history.
    fn join_history(&mut self, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        let mut is_proven = false;
        while let Some(first) = self.held.first()
            && self.next.is_some_and(|next| first.seq < next)
        {
            let is_known = self.is_known(first);
            if !is_known && !self.is_older(first) {
                // Made since by a process that is not so far: another one.
                break;
            }
            is_proven |= is_known;
            let _ = self.held.pop();
        }
        self.is_fresh = !is_proven;
        let goes_on = self.held.first().is_none_or(|first| self.next == Some(first.seq));
        if is_proven && goes_on && !self.has_lost_more {
            return self.follow_held(sink);
        }
        if self.settings.can_replay {
            return Some(self.order_replay(Some(TrustReason::Reconnected)));
        }
        self.repairing = (!is_proven).then_some(TrustReason::Reconnected);
        self.follow_held(sink)
    }

    /// Takes what waited as if it came now.
    fn follow_held(&mut self, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        let has_lost_more = std::mem::take(&mut self.has_lost_more);
        while let Some(batch) = self.held.pop() {
            let order = self.follow(batch, sink);
            if order.is_some() {
                return order;
            }
        }
        if has_lost_more {
            self.knowledge.doubt(TrustReason::QueueOverflow);
        }
        None
    }
}
