//! One engine's batches in the right order, and how far what they add up to can be trusted.
//!
//! A publisher numbers its batches from 0 per process, sends each once, and drops silently for a subscriber that is
//! slow or absent. It may keep the newest batches for replay. [`EngineFeed`] is told of connections, live batches and
//! replayed ones, hands what is to be applied to a [`FeedSink`], and says when to ask for a replay. It has no clock:
//! every input comes with the caller's, in milliseconds.
//!
//! # States
//!
//! | Trust | While |
//! | --- | --- |
//! | blind | not followed, never connected, connection lost, or nothing heard yet |
//! | doubtful | several connections publish as the engine; a replay is due or running; without replay: batches were lost, or a lost connection came back and nothing proves that none was missed. In both cases: a batch or an event could not be decoded |
//! | partial | sound, but the engine's first batches weren't seen, a replay could not help, or stores were left out |
//! | exact | every batch since the engine's start or its last reset was applied |
//!
//! # What becomes of a live batch
//!
//! `n` is the number expected next; "replay" means that the engine answers replay requests as far as is known.
//!
//! | Batch | With replay | Without |
//! | --- | --- | --- |
//! | a replay is running | waits, bounded; one that fills the gap by itself ends the replay | |
//! | first one, number 0 | apply: exact | same |
//! | first one, later number | asked for from 0 at the connection already | apply: partial |
//! | `n` | apply | same |
//! | `n`, but made before the last one | replay from `n`−1 | made over 1 s before: new generation, else apply |
//! | over `n` | doubtful, replay from `n`−1 | doubtful, apply |
//! | under `n`, seen lately | drop: a duplicate | same |
//! | under `n`, made before the last one | drop: late | same |
//! | under `n`, made since | restart: new generation, replay from 0 unless it is 0 | restart: new generation, apply |
//! | first of a new connection, `n` | asked for from `n`−1 at the connection already | apply; doubtful unless `n` is at least [`FeedSettings::proof_seq`] |
//! | first of a new connection, another | the same | restart: new generation, apply |
//!
//! [`EngineFeed::quiet`] has the same asked once per silence, since a lost tail leaves no gap; if that fails, nothing
//! changes. While nothing proves that a new connection goes on it asks each time, because an idle engine may send
//! nothing that would tell.
//!
//! The batch after a failed replay is judged as without one, but where that would be doubtful for good, a new
//! generation begins.
//!
//! # What another feed knows
//!
//! A feed may wait for the history of another feed of the same engine ([`EngineFeed::await_history`]), such as another
//! process's. What it then holds is as if it had followed the engine so far and its connection had been lost and made
//! again: the same tables tell the process followed from another one.
//!
//! # What becomes of a replay
//!
//! A replay is asked for from the last batch applied, not from the next one: if the first answer is that very batch
//! (number, time and length), the process is the one followed, and nothing was missed but what follows.
//!
//! | Answer | Then |
//! | --- | --- |
//! | starts with the last batch, goes on without a hole | missing ones are applied, then those that waited: as exact as before |
//! | starts with another batch of that number, or is empty | another process: new generation, replay from 0 |
//! | starts later | the buffer overflowed: new generation, apply what came: partial |
//! | asked for from 0, starts at 0, or is empty | exact |
//! | asked for from 0, starts later | partial |
//! | none, or given up within | on a new connection of a followed engine: as without replay. Else new generation, apply what waited: partial |

mod feed_batch;
mod held_batches;
mod history;
mod knowledge;
mod repair;

use std::collections::VecDeque;

pub use feed_batch::{FeedBatch, FeedEvent, FeedSettings, FeedSink, ReplayOrder};
pub use history::{FeedHistory, KnownBatch};

use crate::trust::{Trust, TrustReason, TrustState};
use feed_batch::Identity;
use held_batches::HeldBatches;
use knowledge::Knowledge;
use repair::OrderedReplay;

/// Batches remembered to tell a duplicate from a restart.
const REMEMBERED_BATCHES: usize = 64;
/// Without replay: how far a clock may go back between batches of one process, in seconds.
const CLOCK_STEP_SECONDS: f64 = 1.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    NotFollowed,
    NeverConnected,
    Open,
    Lost,
}

/// The state machine of one engine's batches; see the module's tables.
#[derive(Debug)]
pub struct EngineFeed<B> {
    settings: FeedSettings,
    connection: Connection,
    /// No live batch has been taken from this connection, nor has a replay proven that it goes on.
    is_fresh: bool,
    /// The number expected next; None until something of this generation is known.
    next: Option<u64>,
    last_ts: f64,
    recent: VecDeque<(u64, Identity)>,
    knowledge: Knowledge,
    /// Set while a replay is due or running, or nothing proves yet that a new connection goes on.
    repairing: Option<TrustReason>,
    replay: Option<OrderedReplay>,
    epoch: u64,
    held: HeldBatches<B>,
    /// More live batches were dropped while a replay ran, maybe after it was answered.
    has_lost_more: bool,
    /// Another feed's history may come.
    is_awaiting: bool,
    /// Several connections publish as this engine.
    is_contested: bool,
    /// No live batch has come since the last check for a lost tail.
    is_checked: bool,
    trust: TrustState,
}

impl<B> EngineFeed<B> {
    /// An engine that nobody follows yet.
    pub fn new(settings: FeedSettings, now_ms: u64) -> Self {
        let trust = TrustState { since_ms: now_ms, ..TrustState::default() };
        Self {
            connection: Connection::NotFollowed,
            is_fresh: true,
            next: None,
            last_ts: f64::NAN,
            recent: VecDeque::with_capacity(REMEMBERED_BATCHES),
            knowledge: Knowledge::default(),
            repairing: None,
            replay: None,
            epoch: 0,
            held: HeldBatches::new(settings.max_held_batches, settings.max_held_bytes),
            has_lost_more: false,
            is_awaiting: false,
            is_contested: false,
            is_checked: false,
            trust,
            settings,
        }
    }

    /// How far the view can be trusted, as of the last batch applied.
    pub fn trust(&self) -> TrustState {
        self.trust
    }

    /// The number of the last batch applied in this generation.
    pub fn last_seq(&self) -> Option<u64> {
        self.next?.checked_sub(1)
    }

    /// Attempts to connect begin.
    pub fn followed(&mut self, now_ms: u64) {
        if self.connection == Connection::NotFollowed {
            self.connection = Connection::NeverConnected;
        }
        self.refresh(now_ms);
    }

    /// A connection was made.
    pub fn connected(&mut self, now_ms: u64) -> Option<ReplayOrder> {
        self.connection = Connection::Open;
        (self.is_fresh, self.is_checked) = (true, false);
        let reason = if self.next.is_some() { TrustReason::Reconnected } else { TrustReason::CatchingUp };
        let order = if self.is_awaiting {
            None
        } else if self.settings.can_replay {
            Some(self.order_replay(Some(reason)))
        } else {
            self.repairing = self.next.map(|_| reason);
            None
        };
        self.refresh(now_ms);
        order
    }

    /// The connection was lost. What was known stays known as of the last batch applied.
    pub fn connection_lost(&mut self, now_ms: u64) -> Option<ReplayOrder> {
        self.connection = Connection::Lost;
        self.held.clear();
        self.has_lost_more = false;
        self.repairing = None;
        let order = self.replay.take().map(|_| ReplayOrder::Stop);
        self.refresh(now_ms);
        order
    }

    /// Several connections publish as this engine, or no longer: as long as they do, nobody knows whose cache it is.
    pub fn contested(&mut self, now_ms: u64, is_contested: bool) {
        self.is_contested = is_contested;
        self.refresh(now_ms);
    }

    /// Live batches after the last one passed on were dropped before they came here.
    pub fn lost_live(&mut self, now_ms: u64) -> Option<ReplayOrder> {
        let order = if self.connection != Connection::Open {
            None
        } else if self.replay.is_some() || self.is_awaiting {
            self.has_lost_more = true;
            None
        } else if self.settings.can_replay {
            Some(self.order_replay(Some(TrustReason::QueueOverflow)))
        } else {
            self.knowledge.doubt(TrustReason::QueueOverflow);
            None
        };
        self.refresh(now_ms);
        order
    }

    /// Nothing has come for a while. Lost batches that nothing follows leave no gap, so the engine is asked once whether
    /// it has published since; the view is trusted meanwhile. One whose new connection is in doubt is asked every time:
    /// whoever carries the order out sees to it that an engine that doesn't answer is left alone.
    pub fn quiet(&mut self, now_ms: u64) -> Option<ReplayOrder> {
        let can_check =
            self.connection == Connection::Open && self.settings.can_replay && self.next.is_some();
        if !can_check || self.replay.is_some() || self.is_awaiting {
            return None;
        }
        let was_checked = std::mem::replace(&mut self.is_checked, true);
        if was_checked && self.repairing.is_none() {
            return None;
        }
        let order = self.order_replay(self.repairing);
        self.refresh(now_ms);
        Some(order)
    }

    /// A batch came live.
    pub fn live(
        &mut self,
        now_ms: u64,
        batch: FeedBatch<B>,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        self.is_checked = false;
        let order = if self.is_awaiting {
            let dropped = self.held.push(batch);
            if dropped > 0 {
                sink.note(FeedEvent::HeldDropped { batches: dropped });
            }
            None
        } else if self.replay.is_some() {
            self.hold(batch, sink)
        } else {
            self.follow(batch, sink)
        };
        self.refresh(now_ms);
        order
    }

    /// An answer to a replay request.
    pub fn replayed(
        &mut self,
        now_ms: u64,
        epoch: u64,
        batch: FeedBatch<B>,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        let replay = self.replay.filter(|_| epoch == self.epoch)?;
        let order = if replay.has_begun {
            // Whoever reads the answers lets no hole pass.
            if Some(batch.seq) == self.next {
                self.recover(batch, sink);
            }
            None
        } else {
            self.begin_replay(&replay, batch, sink)
        };
        self.refresh(now_ms);
        order
    }

    /// A replay is over: all of the answer came, or it was given up.
    pub fn replay_ended(
        &mut self,
        now_ms: u64,
        epoch: u64,
        is_complete: bool,
        sink: &mut impl FeedSink<B>,
    ) -> Option<ReplayOrder> {
        let replay = self.replay.filter(|_| epoch == self.epoch)?;
        let order = if is_complete { self.complete(&replay, sink) } else { self.give_up(&replay, sink) };
        self.refresh(now_ms);
        order
    }

    /// While a replay runs. A late batch may close the gap by itself.
    fn hold(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        if self.is_known(&batch) {
            sink.note(FeedEvent::Duplicate);
            return None;
        }
        if self.repairing.is_none() {
            if self.next == Some(batch.seq) && !self.is_older(&batch) {
                // The check isn't needed any more.
                self.replay = None;
                self.apply(batch, sink);
                return Some(ReplayOrder::Stop);
            }
            let missed = self.next.map_or(0, |next| batch.seq.saturating_sub(next));
            if missed > 0 {
                sink.note(FeedEvent::Gap { missed });
            }
            self.repairing = Some(if missed > 0 { TrustReason::Gap } else { TrustReason::Reconnected });
        }
        let closes = self.repairing == Some(TrustReason::Gap)
            && self.next == Some(batch.seq)
            && !self.is_older(&batch);
        let dropped = self.held.push(batch);
        if dropped > 0 {
            sink.note(FeedEvent::HeldDropped { batches: dropped });
        }
        if !closes {
            return None;
        }
        while let (Some(first), Some(next)) = (self.held.first(), self.next)
            && first.seq == next
            && !self.is_older(first)
            && let Some(batch) = self.held.pop()
        {
            self.apply(batch, sink);
        }
        if self.held.first().is_some() {
            return None;
        }
        (self.replay, self.repairing) = (None, None);
        Some(ReplayOrder::Stop)
    }

    /// While no replay runs.
    fn follow(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        let was_fresh = std::mem::replace(&mut self.is_fresh, false);
        let Some(next) = self.next else {
            self.repairing = None;
            self.join(batch, TrustReason::JoinedLate, sink);
            return None;
        };
        if was_fresh {
            self.go_on(next, batch, sink);
            return None;
        }
        let (seq, is_older) = (batch.seq, self.is_older(&batch));
        if seq > next {
            sink.note(FeedEvent::Gap { missed: seq - next });
            return self.gap(batch, sink);
        }
        if seq == next {
            if is_older && self.settings.can_replay {
                let order = self.order_replay(Some(TrustReason::Reconnected));
                self.held.push(batch);
                return Some(order);
            }
            if !is_older || self.last_ts - batch.ts <= CLOCK_STEP_SECONDS {
                self.apply(batch, sink);
                return None;
            }
        } else if self.is_known(&batch) || is_older {
            sink.note(FeedEvent::Duplicate);
            return None;
        }
        self.restart(batch, sink)
    }

    /// The first batch of a new connection to an engine that was followed, when no replay could tell whether it goes
    /// on.
    fn go_on(&mut self, next: u64, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) {
        self.repairing = None;
        if batch.seq != next || self.is_older(&batch) {
            sink.note(FeedEvent::Restart { missed: batch.seq });
            self.forget(sink);
            self.join(batch, TrustReason::RestartSeenLate, sink);
            return;
        }
        if next > 0 && next < self.settings.proof_seq {
            if self.settings.can_replay {
                self.forget(sink);
                self.join(batch, TrustReason::ReplayFailed, sink);
                return;
            }
            self.knowledge.doubt(TrustReason::Reconnected);
        }
        self.apply(batch, sink);
    }

    /// The first batch of a generation; `late` says why it isn't number 0, if it isn't.
    fn join(&mut self, batch: FeedBatch<B>, late: TrustReason, sink: &mut impl FeedSink<B>) {
        self.knowledge = if batch.seq == 0 { Knowledge::default() } else { Knowledge::lacking(late) };
        if batch.seq > 0 && late == TrustReason::JoinedLate {
            sink.note(FeedEvent::JoinedLate { missed: batch.seq });
        }
        self.apply(batch, sink);
    }

    fn gap(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        if self.settings.can_replay {
            let order = self.order_replay(Some(TrustReason::Gap));
            self.held.push(batch);
            return Some(order);
        }
        self.knowledge.doubt(TrustReason::Gap);
        self.apply(batch, sink);
        None
    }

    /// A live batch of another process than the one followed.
    fn restart(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) -> Option<ReplayOrder> {
        sink.note(FeedEvent::Restart { missed: batch.seq });
        self.forget(sink);
        if batch.seq > 0 && self.settings.can_replay {
            let order = self.order_replay(Some(TrustReason::CatchingUp));
            self.held.push(batch);
            return Some(order);
        }
        self.join(batch, TrustReason::RestartSeenLate, sink);
        None
    }

    fn apply(&mut self, batch: FeedBatch<B>, sink: &mut impl FeedSink<B>) {
        if self.recent.len() == REMEMBERED_BATCHES {
            self.recent.pop_front();
        }
        self.recent.push_back((batch.seq, batch.identity()));
        self.next = batch.seq.checked_add(1);
        self.last_ts = batch.ts;
        let facts = sink.apply(batch.seq, batch.payload);
        self.knowledge.applied(&facts);
    }

    fn forget(&mut self, sink: &mut impl FeedSink<B>) {
        sink.start_generation();
        self.recent.clear();
        self.next = None;
        self.last_ts = f64::NAN;
        self.knowledge = Knowledge::default();
    }

    /// Whether a batch was made before the last one applied.
    fn is_older(&self, batch: &FeedBatch<B>) -> bool {
        batch.ts < self.last_ts
    }

    fn is_known(&self, batch: &FeedBatch<B>) -> bool {
        let identity = batch.identity();
        self.next.is_some_and(|next| batch.seq < next)
            && self.recent.iter().any(|known| *known == (batch.seq, identity))
    }

    fn refresh(&mut self, now_ms: u64) {
        let (trust, reason) = match self.connection {
            Connection::NotFollowed => (Trust::Blind, TrustReason::NotFollowed),
            Connection::NeverConnected => (Trust::Blind, TrustReason::NeverConnected),
            Connection::Lost => (Trust::Blind, TrustReason::ConnectionLost),
            Connection::Open => match (self.next, self.repairing) {
                (None, _) => (Trust::Blind, TrustReason::NothingHeard),
                (Some(_), _) if self.is_contested => (Trust::Doubtful, TrustReason::Contested),
                (Some(_), Some(reason)) => (Trust::Doubtful, reason),
                (Some(_), None) => self.knowledge.trust(),
            },
        };
        if (trust, reason) != (self.trust.trust, self.trust.reason) {
            self.trust = TrustState { trust, reason, since_ms: now_ms };
        }
    }
}
