//! An engine with its cache and publisher, the wires to its follower, and the follower.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use warmroute_kv_events::{
    ApplyFacts, EngineFeed, FeedBatch, FeedEvent, FeedHistory, FeedSettings, FeedSink, Replay, ReplayEnd,
    ReplayLimits, ReplayOrder, ReplayStep, Trust,
};

pub(crate) use warmroute_kv_events::FeedEvent as Event;

/// Blocks that an engine may hold.
const BLOCKS: u32 = 6;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Publish(u8),
    Deliver(u8),
    Drop(u8),
    Duplicate(u8),
    Clear,
    Restart,
    Disconnect,
    Connect,
    AskReplay,
    DeliverReplay(u8),
    FailReplay,
    OverflowQueue,
    Garble,
    Silence,
    Quiet,
    /// The follower ends; its successor waits for what a sibling knows.
    BeginAnew,
    /// The sibling tells what it knows; it arrives later.
    Export,
    Import,
    NoHistory,
    /// The sibling's connection to a process that is gone ends, and the next one is made.
    SiblingNotices,
    /// The sibling misses the next batch.
    SiblingLoses,
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Store(u32),
    Remove(u32),
    Clear,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Payload {
    process: u32,
    changes: Vec<Change>,
    /// The follower can't read it.
    is_garbled: bool,
    facts: ApplyFacts,
}

type Batch = FeedBatch<Payload>;

/// The follower's view: copies per block, as a plain map.
#[derive(Default)]
pub(crate) struct View {
    copies: BTreeMap<u32, u32>,
    last: Option<(u32, u64)>,
    pub(crate) generations: u32,
    events: Vec<FeedEvent>,
}

impl View {
    pub(crate) fn claimed(&self) -> Vec<u32> {
        self.copies.keys().copied().collect()
    }
}

impl FeedSink<Payload> for View {
    fn apply(&mut self, seq: u64, payload: Payload) -> ApplyFacts {
        self.last = Some((payload.process, seq));
        let mut facts = payload.facts;
        if payload.is_garbled {
            facts.undecodable = true;
            return facts;
        }
        for change in payload.changes {
            match change {
                Change::Store(block) => *self.copies.entry(block).or_insert(0) += 1,
                Change::Remove(block) => match self.copies.get_mut(&block) {
                    None => facts.unknown_removals = true,
                    Some(1) => drop(self.copies.remove(&block)),
                    Some(copies) => *copies -= 1,
                },
                Change::Clear => {
                    self.copies.clear();
                    facts.cleared = true;
                }
            }
        }
        facts
    }

    fn start_generation(&mut self) {
        self.copies.clear();
        self.last = None;
        self.generations += 1;
    }

    fn note(&mut self, event: FeedEvent) {
        self.events.push(event);
    }
}

#[derive(Clone, Copy)]
pub(crate) struct WorldOptions {
    pub(crate) can_replay: bool,
    pub(crate) buffer: usize,
    /// Answers to replay requests have holes.
    pub(crate) can_lose_replays: bool,
}

struct RunningReplay {
    epoch: u64,
    machine: Replay,
    /// The process that answers; nothing more comes from it once it is gone.
    process: u32,
    answer: VecDeque<Vec<Bytes>>,
}

/// What a follower knew: its feed's history, its view, and the batch that this is as of.
type Told = (FeedHistory, BTreeMap<u32, u32>, Option<(u32, u64)>);

/// Another follower, on a wire that is nearly good.
struct Sibling {
    feed: EngineFeed<Payload>,
    sink: View,
    process: u32,
    loses_next: bool,
}

pub(crate) struct World {
    options: WorldOptions,
    time_ms: u64,
    random: u64,
    process: u32,
    next_seq: u64,
    cache: BTreeMap<u32, u32>,
    /// What each process held after each of its batches.
    history: HashMap<(u32, u64), BTreeSet<u32>>,
    buffer: VecDeque<Batch>,
    /// All batches ever, as a replayed payload names them.
    batches: Vec<Batch>,
    /// The process at the other end of the live connection, and what is on its way.
    connection: Option<u32>,
    wire: VecDeque<Batch>,
    order: Option<(u64, u64)>,
    replay: Option<RunningReplay>,
    pub(crate) next_facts: ApplyFacts,
    sibling: Sibling,
    /// What the sibling told, on its way.
    snapshot: Option<Told>,
    pub(crate) feed: EngineFeed<Payload>,
    pub(crate) sink: View,
}

impl World {
    pub(crate) fn new(options: WorldOptions) -> Self {
        let mut feed = EngineFeed::new(settings(options.can_replay), 0);
        feed.followed(0);
        let mut sibling = EngineFeed::new(settings(false), 0);
        sibling.followed(0);
        sibling.connected(0);
        Self {
            options,
            sibling: Sibling { feed: sibling, sink: View::default(), process: 0, loses_next: false },
            snapshot: None,
            time_ms: 1_000_000,
            random: 1,
            process: 0,
            next_seq: 0,
            cache: BTreeMap::new(),
            history: HashMap::new(),
            buffer: VecDeque::new(),
            batches: Vec::new(),
            connection: None,
            wire: VecDeque::new(),
            order: None,
            replay: None,
            next_facts: ApplyFacts::default(),
            feed,
            sink: View::default(),
        }
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Publish(changes) => self.publish(changes),
            Step::Deliver(at) => self.deliver(at),
            Step::Drop(at) => self.drop_live(at),
            Step::Duplicate(at) => self.duplicate(at),
            Step::Clear => self.clear(),
            Step::Restart => self.restart(),
            Step::Disconnect => self.disconnect(),
            Step::Connect => self.connect(),
            Step::AskReplay => self.ask_replay(),
            Step::DeliverReplay(count) => (0..count).for_each(|_| self.deliver_replay()),
            Step::FailReplay => self.fail_replay(),
            Step::OverflowQueue => {
                self.wire.pop_back();
                let order = self.feed.lost_live(self.time_ms);
                self.after(order);
            }
            Step::Garble => {
                if let Some(batch) = self.wire.back_mut() {
                    batch.payload.is_garbled = true;
                }
            }
            Step::Silence => self.silence(),
            Step::Quiet => self.quiet(),
            Step::BeginAnew => self.begin_anew(),
            Step::Export => self.export(),
            Step::Import => self.import(),
            Step::NoHistory => self.no_history(),
            Step::SiblingNotices => self.sibling_notices(),
            Step::SiblingLoses => self.sibling.loses_next = true,
        }
    }

    pub(crate) fn begin_anew(&mut self) {
        self.disconnect();
        (self.order, self.replay) = (None, None);
        self.feed = EngineFeed::new(settings(self.options.can_replay), self.time_ms);
        self.feed.await_history();
        self.feed.followed(self.time_ms);
        self.sink = View::default();
    }

    pub(crate) fn export(&mut self) {
        let View { copies, last, .. } = &self.sibling.sink;
        self.snapshot = self.sibling.feed.history().map(|history| (history, copies.clone(), *last));
    }

    pub(crate) fn import(&mut self) {
        let Some((history, copies, last)) = &self.snapshot else { return };
        if self.feed.would_adopt(history) {
            (self.sink.copies, self.sink.last) = (copies.clone(), *last);
            let (is_adopted, order) = self.feed.adopt(self.time_ms, history, &mut self.sink);
            assert!(is_adopted);
            self.after(order);
        }
    }

    pub(crate) fn no_history(&mut self) {
        let order = self.feed.no_history(self.time_ms, &mut self.sink);
        self.after(order);
    }

    pub(crate) fn sibling_notices(&mut self) {
        if self.sibling.process != self.process {
            self.sibling.process = self.process;
            self.sibling.feed.connection_lost(self.time_ms);
            self.sibling.feed.connected(self.time_ms);
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    pub(crate) fn publish(&mut self, changes: u8) {
        let mut made = Vec::new();
        for _ in 0..changes {
            let block = self.random(u64::from(BLOCKS)) as u32;
            if self.random(3) > 0 {
                *self.cache.entry(block).or_insert(0) += 1;
                made.push(Change::Store(block));
            } else if let Some(copies) = self.cache.get_mut(&block) {
                *copies -= 1;
                if *copies == 0 {
                    self.cache.remove(&block);
                }
                made.push(Change::Remove(block));
            }
        }
        self.send(made);
    }

    /// A reset is announced with the next batch, as its first event.
    pub(crate) fn clear(&mut self) {
        self.cache = BTreeMap::from([(0, 1)]);
        self.send(vec![Change::Clear, Change::Store(0)]);
    }

    fn send(&mut self, changes: Vec<Change>) {
        self.time_ms += 1;
        let facts = std::mem::take(&mut self.next_facts);
        let batch = FeedBatch {
            seq: self.next_seq,
            ts: self.time_ms as f64 / 1000.0,
            bytes: 10,
            payload: Payload { process: self.process, changes, is_garbled: false, facts },
        };
        self.history.insert((self.process, self.next_seq), self.cache.keys().copied().collect());
        self.next_seq += 1;
        self.batches.push(batch.clone());
        self.buffer.push_back(batch.clone());
        if self.buffer.len() > self.options.buffer {
            self.buffer.pop_front();
        }
        let sibling = &mut self.sibling;
        if sibling.process == self.process && !std::mem::take(&mut sibling.loses_next) {
            sibling.feed.live(self.time_ms, batch.clone(), &mut sibling.sink);
        }
        if self.connection == Some(self.process) {
            self.wire.push_back(batch);
        }
    }

    pub(crate) fn deliver(&mut self, at: u8) {
        let Some(batch) = self.wire.remove(usize::from(at)).or_else(|| self.wire.pop_front()) else { return };
        let order = self.feed.live(self.time_ms, batch, &mut self.sink);
        self.after(order);
    }

    /// Nothing came for a while.
    pub(crate) fn quiet(&mut self) {
        let order = self.feed.quiet(self.time_ms);
        self.after(order);
    }

    /// Checks that all that the engine has published was applied.
    pub(crate) fn assert_up_to_date(&self) {
        assert_eq!(self.feed.last_seq(), self.next_seq.checked_sub(1));
        assert_eq!(self.feed.trust().trust, Trust::Exact);
    }

    pub(crate) fn drop_live(&mut self, at: u8) {
        self.wire.remove(usize::from(at));
    }

    pub(crate) fn duplicate(&mut self, at: u8) {
        if let Some(batch) = self.wire.get(usize::from(at)).cloned() {
            self.wire.push_back(batch);
        }
    }

    /// Its follower is told later, when it notices.
    pub(crate) fn restart(&mut self) {
        self.process += 1;
        self.time_ms += 1;
        self.next_seq = 0;
        self.cache.clear();
        self.buffer.clear();
    }

    pub(crate) fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            self.wire.clear();
            let order = self.feed.connection_lost(self.time_ms);
            self.after(order);
        }
    }

    pub(crate) fn connect(&mut self) {
        if self.connection.is_none() {
            self.connection = Some(self.process);
            let order = self.feed.connected(self.time_ms);
            self.after(order);
        }
    }

    /// Does as the feed says, and checks what it claims.
    fn after(&mut self, order: Option<ReplayOrder>) {
        match order {
            Some(ReplayOrder::Start { from, epoch }) => {
                (self.order, self.replay) = (Some((from, epoch)), None)
            }
            Some(ReplayOrder::Stop) => (self.order, self.replay) = (None, None),
            None => {}
        }
        self.check();
    }

    fn check(&self) {
        let trust = self.feed.trust().trust;
        if trust > Trust::Partial {
            return;
        }
        let claimed: BTreeSet<u32> = self.sink.copies.keys().copied().collect();
        let held = match (self.feed.last_seq(), self.sink.last) {
            (Some(seq), Some((process, applied))) => {
                assert_eq!(seq, applied);
                self.history[&(process, seq)].clone()
            }
            _ => BTreeSet::new(),
        };
        assert!(claimed.is_subset(&held), "{trust:?} claims {claimed:?} of {held:?}");
        if trust == Trust::Exact {
            assert_eq!(claimed, held);
        }
    }

    fn answer(&mut self, from: u64) -> VecDeque<Vec<Bytes>> {
        let kept: Vec<(u64, usize)> = self
            .buffer
            .iter()
            .filter(|batch| batch.seq >= from)
            .map(|batch| (batch.seq, self.batches.iter().position(|known| known == batch).unwrap()))
            .collect();
        let mut answer = VecDeque::new();
        for (position, (seq, at)) in kept.into_iter().enumerate() {
            // A full queue drops neither the first messages nor the end marker.
            if position > 1 && self.options.can_lose_replays && self.random(4) == 0 {
                continue;
            }
            answer.push_back(frames(seq, &at.to_be_bytes()));
        }
        answer.push_back(frames(u64::MAX, b""));
        answer
    }

    pub(crate) fn ask_replay(&mut self) {
        let Some((from, epoch)) = self.order.take() else { return };
        let answer = self.answer(from);
        let machine = Replay::new(from, ReplayLimits::default(), self.time_ms);
        self.replay = Some(RunningReplay { epoch, machine, process: self.process, answer });
    }

    fn deliver_replay(&mut self) {
        let time_ms = self.time_ms;
        let Some(replay) = &mut self.replay else { return };
        if replay.process != self.process {
            return;
        }
        let Some(frames) = replay.answer.pop_front() else { return };
        let step = replay.machine.take(&frames, time_ms);
        self.replay_step(step);
    }

    fn silence(&mut self) {
        self.time_ms += 2_000;
        let time_ms = self.time_ms;
        if let Some(replay) = &mut self.replay {
            let step = replay.machine.tick(time_ms);
            self.replay_step(step);
        }
    }

    fn replay_step(&mut self, step: ReplayStep) {
        let Some(replay) = &mut self.replay else { return };
        let (epoch, request) = (replay.epoch, u64::from_be_bytes(replay.machine.request()));
        match step {
            ReplayStep::Wait => {}
            ReplayStep::Batch { payload, .. } => {
                let at = usize::from_be_bytes(payload.as_ref().try_into().unwrap());
                let batch = self.batches[at].clone();
                let order = self.feed.replayed(self.time_ms, epoch, batch, &mut self.sink);
                self.after(order);
            }
            ReplayStep::Ask if replay.process == self.process => {
                let more = self.answer(request);
                if let Some(replay) = &mut self.replay {
                    replay.answer.extend(more);
                }
            }
            ReplayStep::Ask => {}
            ReplayStep::End(end) => self.end_replay(epoch, end == ReplayEnd::Complete),
        }
    }

    fn end_replay(&mut self, epoch: u64, is_complete: bool) {
        self.replay = None;
        let order = self.feed.replay_ended(self.time_ms, epoch, is_complete, &mut self.sink);
        self.after(order);
    }

    pub(crate) fn fail_replay(&mut self) {
        let epoch = self.replay.take().map(|replay| replay.epoch).or(self.order.take().map(|order| order.1));
        if let Some(epoch) = epoch {
            self.end_replay(epoch, false);
        }
    }

    /// Lets replays run until none is wanted.
    pub(crate) fn finish_replay(&mut self) {
        for _ in 0..10_000 {
            if self.replay.is_none() {
                self.ask_replay();
            }
            let Some(replay) = &self.replay else { return };
            if replay.answer.is_empty() || replay.process != self.process {
                self.silence();
            } else {
                self.deliver_replay();
            }
        }
        panic!("replays never end: {:?}", self.feed);
    }

    /// The wires are good from now on.
    pub(crate) fn recover(&mut self) {
        self.options.can_lose_replays = false;
        self.no_history();
        if self.connection != Some(self.process) {
            self.disconnect();
        }
        self.connect();
        for _ in 0..3 {
            self.publish(3);
            while !self.wire.is_empty() {
                self.deliver(0);
            }
            self.finish_replay();
        }
    }

    pub(crate) fn events(&self) -> Vec<FeedEvent> {
        self.sink
            .events
            .iter()
            .copied()
            .filter(|event| !matches!(event, FeedEvent::Recovered { .. }))
            .collect()
    }

    pub(crate) fn replay_is_stopped(&self) -> bool {
        self.order.is_none() && self.replay.is_none()
    }
}

fn settings(can_replay: bool) -> FeedSettings {
    FeedSettings { can_replay, max_held_batches: 6, proof_seq: u64::MAX, ..FeedSettings::default() }
}

fn frames(seq: u64, payload: &[u8]) -> Vec<Bytes> {
    vec![Bytes::new(), Bytes::copy_from_slice(&seq.to_be_bytes()), Bytes::copy_from_slice(payload)]
}
