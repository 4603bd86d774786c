//! Our index.

use std::hint::black_box;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use warmroute_kv_events::{
    BlocksRemoved, BlocksStored, DecodeLimits, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents,
    decode_batch,
};
use warmroute_kv_index::{
    Applied, BlockKey, EngineSlot, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match,
    block_keys,
};

use crate::workload::{BLOCK_SIZE_TOKENS, Event, What, tokens};
use crate::{Reader, Subject, lane};

/// [`KvIndex`], written by a thread that owns all engines' views.
pub struct Ours {
    /// The index.
    pub index: Arc<KvIndex>,
    slots: Vec<EngineSlot>,
    lane: Option<flume::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

/// A reader of [`Ours`].
pub struct OurReader {
    index: Arc<KvIndex>,
    slots: Vec<EngineSlot>,
    scratch: LookupScratch,
    matches: Vec<Match>,
}

enum Task {
    Batch(usize, EventBatch),
    Flush(oneshot::Sender<()>),
}

impl Subject for Ours {
    type Prepared = (usize, EventBatch);
    type Reader = OurReader;

    fn try_new(engines: usize) -> anyhow::Result<Self> {
        let index = KvIndex::new(IndexLimits { max_entries: 40_000_000, ..IndexLimits::default() });
        let views = (0..engines).map(|_| index.add_engine()).collect::<Result<Vec<_>, _>>()?;
        let slots = views.iter().map(EngineView::slot).collect();
        let (lane, tasks) = flume::unbounded();
        let thread =
            std::thread::Builder::new().name("ours".to_owned()).spawn(move || write(views, &tasks))?;
        Ok(Self { index, slots, lane: Some(lane), thread: Some(thread) })
    }

    fn prepare(event: &Event) -> Self::Prepared {
        let what = match &event.what {
            What::Stored { parent, blocks } => KvEvent::Stored(BlocksStored {
                hashes: blocks.iter().map(|block| EngineHash::from_u64(block.engine_hash())).collect(),
                parent: parent.map(|parent| EngineHash::from_u64(parent.engine_hash())),
                token_ids: tokens(blocks),
                block_size_tokens: BLOCK_SIZE_TOKENS as u32,
                medium: Medium::Gpu,
                group: Some(0),
                ..BlocksStored::default()
            }),
            What::Removed(blocks) => KvEvent::Removed(BlocksRemoved {
                hashes: blocks.iter().map(|block| EngineHash::from_u64(block.engine_hash())).collect(),
                medium: Medium::Gpu,
                group: Some(0),
            }),
        };
        let batch = EventBatch {
            ts: 0.0,
            data_parallel_rank: None,
            events: vec![what],
            skipped: SkippedEvents::default(),
        };
        (event.engine, batch)
    }

    fn apply(&self, events: Vec<Self::Prepared>, meanwhile: impl FnMut()) -> anyhow::Result<Duration> {
        let Some(lane) = &self.lane else { anyhow::bail!("the writer is gone") };
        let tasks = events.into_iter().map(|(engine, batch)| Task::Batch(engine, batch));
        lane::measure(lane, tasks, Task::Flush, meanwhile)
    }

    fn decode(payloads: &[(usize, Vec<u8>)]) -> anyhow::Result<Vec<Self::Prepared>> {
        let limits = DecodeLimits::default();
        payloads.iter().map(|(engine, payload)| Ok((*engine, decode_batch(payload, &limits)?))).collect()
    }

    fn tidy(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn reader(&self) -> OurReader {
        OurReader {
            index: Arc::clone(&self.index),
            slots: self.slots.clone(),
            scratch: LookupScratch::default(),
            matches: vec![Match::default(); self.slots.len()],
        }
    }
}

impl Reader for OurReader {
    type Query = Vec<BlockKey>;

    fn query(tokens: &[u32]) -> Self::Query {
        let mut keys = Vec::new();
        block_keys(tokens, BLOCK_SIZE_TOKENS as u32, &KeyExtras::default(), &mut keys);
        keys
    }

    fn touch(query: &Self::Query) -> u64 {
        query.iter().fold(0, |sum, key| sum ^ key.0)
    }

    fn look_up(&mut self, query: &Self::Query) {
        self.index.lookup(black_box(query), &self.slots, &mut self.scratch, &mut self.matches);
        black_box(&self.matches);
    }

    fn depths_blocks(&mut self, query: &Self::Query) -> Vec<u32> {
        self.look_up(query);
        self.matches.iter().map(|found| found.known_blocks).collect()
    }
}

/// Ends when the channel does.
fn write(mut views: Vec<EngineView>, tasks: &flume::Receiver<Task>) {
    let mut applied = Applied::default();
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Batch(engine, batch) => applied += views[engine].apply(&batch),
            Task::Flush(answer) => {
                let _ = answer.send(());
            }
        }
    }
    let Applied { stored_blocks, removed_blocks, .. } = applied;
    let expected = Applied { stored_blocks, removed_blocks, ..Applied::default() };
    assert_eq!(applied, expected, "every block is stored once and removed at most once");
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.lane = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok(), "the writer panicked");
        }
    }
}
