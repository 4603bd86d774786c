//! Whatever batches come, in whatever order, live or replayed, amid lost connections: what two engines are said to hold
//! is what the index has entries for, and nothing stays when they go.

use std::sync::Arc;

use rmp::encode as write;
use warmroute_kv_events::{
    ApplyFacts, DecodeLimits, EngineFeed, FeedBatch, FeedEvent, FeedSettings, FeedSink, ReplayOrder, Trust,
    decode_batch,
};
use warmroute_kv_index::{
    BlockKey, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
};

use crate::bytes_left::BytesLeft;

/// Of the index: few enough to fill it.
const MAX_ENTRIES: usize = 40;

struct Sink(EngineView);

impl FeedSink<Vec<u8>> for Sink {
    fn apply(&mut self, _: u64, payload: Vec<u8>) -> ApplyFacts {
        match decode_batch(&payload, &DecodeLimits::default()) {
            Ok(batch) => self.0.apply(&batch).facts(),
            Err(_) => ApplyFacts { undecodable: true, ..ApplyFacts::default() },
        }
    }

    fn start_generation(&mut self) {
        self.0.clear();
        assert_eq!(self.0.held_blocks(), 0);
    }

    fn note(&mut self, _: FeedEvent) {}
}

struct Engine {
    feed: EngineFeed<Vec<u8>>,
    sink: Sink,
    is_connected: bool,
    epoch: u64,
    /// What its publisher numbers next.
    seq: u64,
    ts: f64,
}

impl Engine {
    fn new(index: &Arc<KvIndex>, can_replay: bool) -> Self {
        let settings = FeedSettings { can_replay, max_held_batches: 4, max_held_bytes: 400, proof_seq: 10 };
        let mut feed = EngineFeed::new(settings, 0);
        feed.followed(0);
        let sink = Sink(index.add_engine().unwrap());
        Self { feed, sink, is_connected: false, epoch: 0, seq: 0, ts: 1.0 }
    }

    fn step(&mut self, data: &mut BytesLeft<'_>, now_ms: u64) {
        let Self { feed, sink, .. } = self;
        let order = match data.below(16) {
            0 => {
                self.is_connected = true;
                feed.connected(now_ms)
            }
            1 => {
                self.is_connected = false;
                feed.connection_lost(now_ms)
            }
            2 => feed.lost_live(now_ms),
            3 => feed.quiet(now_ms),
            4 => feed.replay_ended(now_ms, self.epoch, data.below(2) == 0, sink),
            5..8 => {
                let epoch = self.epoch - u64::from(data.below(4) == 0).min(self.epoch);
                let batch = self.batch(data);
                self.feed.replayed(now_ms, epoch, batch, &mut self.sink)
            }
            _ => {
                let batch = self.batch(data);
                self.feed.live(now_ms, batch, &mut self.sink)
            }
        };
        if let Some(ReplayOrder::Start { epoch, .. }) = order {
            assert!(epoch > self.epoch, "an order has a number of its own");
            self.epoch = epoch;
        }
        let trust = self.feed.trust();
        assert!(self.is_connected || trust.trust == Trust::Blind, "{trust:?}");
    }

    /// The next one, mostly.
    fn batch(&mut self, data: &mut BytesLeft<'_>) -> FeedBatch<Vec<u8>> {
        match data.below(12) {
            0 => self.seq = 0,
            1 => self.seq = self.seq.saturating_sub(1 + u64::from(data.below(4))),
            2 => self.seq = self.seq.saturating_add(1 + u64::from(data.below(4))),
            3 => self.seq = u64::MAX - u64::from(data.below(3)),
            4 => self.ts -= 1.0,
            _ => self.ts += 0.25,
        }
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        let ts = if data.below(32) == 0 { f64::NAN } else { self.ts };
        let payload = payload(data, ts);
        FeedBatch { seq, ts, bytes: payload.len(), payload }
    }
}

/// Steps of two engines in one index.
pub(crate) fn run(data: &[u8]) {
    let mut data = BytesLeft(data);
    let index = KvIndex::new(IndexLimits { max_entries: MAX_ENTRIES, ..IndexLimits::default() });
    let kind = data.byte();
    let mut engines = [Engine::new(&index, kind & 1 == 0), Engine::new(&index, kind & 2 == 0)];
    let mut now_ms = 0;
    while !data.is_empty() {
        now_ms += 1;
        let at = data.below(2) as usize;
        engines[at].step(&mut data, now_ms);
        let held = engines.each_ref().map(|engine| engine.sink.0.entries());
        assert_eq!(index.stats().entries, held[0] + held[1]);
        check_claims(&index, &engines, held);
    }
    let [first, second] = engines;
    let left = second.sink.0.entries();
    drop(first);
    assert_eq!(index.stats().entries, left);
    drop(second);
    let stats = index.stats();
    assert_eq!((stats.entries, stats.keys, stats.engines), (0, 0, 0));
}

/// No engine is said to hold more blocks of a prompt than it holds at all.
fn check_claims(index: &KvIndex, engines: &[Engine; 2], held: [usize; 2]) {
    let slots = engines.each_ref().map(|engine| engine.sink.0.slot());
    for block_size in [1, 2] {
        let mut keys: Vec<BlockKey> = Vec::new();
        block_keys(&[0; 12], block_size, &KeyExtras::default(), &mut keys);
        let mut found = [Match::default(); 2];
        index.lookup(&keys, &slots, &mut LookupScratch::default(), &mut found);
        for (found, held) in found.iter().zip(held) {
            assert!(found.known_blocks as usize <= held, "{found:?}, {held} held");
        }
    }
}

/// Up to three events over a handful of names and tokens, so that they have to do with each other; now and then what no
/// engine writes.
fn payload(data: &mut BytesLeft<'_>, ts: f64) -> Vec<u8> {
    if data.below(24) == 0 {
        return data.take(20).to_vec();
    }
    let mut out = Vec::new();
    write::write_array_len(&mut out, 2).unwrap();
    write::write_f64(&mut out, ts).unwrap();
    let events = data.below(4);
    write::write_array_len(&mut out, events).unwrap();
    for _ in 0..events {
        match data.below(16) {
            0 => {
                write::write_array_len(&mut out, 1).unwrap();
                write::write_str(&mut out, "AllBlocksCleared").unwrap();
            }
            1..6 => write_removed(&mut out, data),
            _ => write_stored(&mut out, data),
        }
    }
    out
}

fn write_removed(out: &mut Vec<u8>, data: &mut BytesLeft<'_>) {
    write::write_array_len(out, 4).unwrap();
    write::write_str(out, "BlockRemoved").unwrap();
    let blocks = data.below(4);
    write_hashes(out, data, blocks);
    write_tail(out, data);
}

/// The array form: hashes, parent, tokens, block size, LoRA number, medium, LoRA name, extra keys, group.
fn write_stored(out: &mut Vec<u8>, data: &mut BytesLeft<'_>) {
    write::write_array_len(out, 10).unwrap();
    write::write_str(out, "BlockStored").unwrap();
    let (blocks, odd) = (data.below(5), data.byte());
    write_hashes(out, data, blocks);
    match data.below(16) {
        0 => write::write_nil(out).unwrap(),
        parent => number(out, parent),
    }
    let block_size = if odd & 0x0f == 1 { 2 } else { 1 };
    let tokens = if odd & 0xf0 == 0x10 { blocks } else { blocks * block_size };
    write::write_array_len(out, tokens).unwrap();
    // Mostly the same token, so that equal blocks have several names.
    for _ in 0..tokens {
        let token = data.below(8).saturating_sub(5);
        number(out, token);
    }
    number(out, block_size);
    match data.below(16) {
        lora @ 1..3 => number(out, lora),
        _ => write::write_nil(out).unwrap(),
    }
    let (medium, group) = tail(data);
    write_medium(out, medium);
    match data.below(16) {
        1 => write::write_str(out, "adapter").unwrap(),
        _ => write::write_nil(out).unwrap(),
    }
    if data.below(8) == 1 {
        write::write_array_len(out, blocks).unwrap();
        for _ in 0..blocks {
            write::write_array_len(out, 1).unwrap();
            write::write_str(out, ["adapter", "salt"][data.below(2) as usize]).unwrap();
        }
    } else {
        write::write_nil(out).unwrap();
    }
    write_group(out, group);
}

fn write_hashes(out: &mut Vec<u8>, data: &mut BytesLeft<'_>, count: u32) {
    write::write_array_len(out, count).unwrap();
    for _ in 0..count {
        let name = 1 + data.below(16);
        if data.below(32) == 1 {
            // The same name as bytes.
            write::write_bin(out, &[0, 0, 0, 0, 0, 0, 0, name as u8]).unwrap();
        } else {
            number(out, name);
        }
    }
}

fn tail(data: &mut BytesLeft<'_>) -> (u8, u8) {
    (data.byte(), data.byte())
}

fn write_tail(out: &mut Vec<u8>, data: &mut BytesLeft<'_>) {
    let (medium, group) = tail(data);
    write_medium(out, medium);
    write_group(out, group);
}

fn write_medium(out: &mut Vec<u8>, medium: u8) {
    write::write_str(out, if medium % 32 == 1 { "CPU" } else { "GPU" }).unwrap();
}

fn write_group(out: &mut Vec<u8>, group: u8) {
    number(out, u32::from(group == 1));
}

fn number(out: &mut Vec<u8>, value: u32) {
    write::write_uint(out, value.into()).unwrap();
}
