//! Dynamo's index, by its public interface only.

use std::hint::black_box;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, RouterEvent, WorkerWithDpRank,
    compute_block_hash_for_seq,
};
use dynamo_kv_router::zmq_wire::{ZmqEventNormalizer, decode_event_batch};

use crate::workload::{BLOCK_SIZE_TOKENS, Block, Event, What, tokens};
use crate::{Reader, Subject, lane};

/// [`ConcurrentRadixTreeCompressed`], written by one of its own worker loops.
pub struct Theirs {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    engines: usize,
    lane: Option<flume::Sender<WorkerTask>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A reader of [`Theirs`].
pub struct TheirReader {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    engines: usize,
}

impl Subject for Theirs {
    type Prepared = RouterEvent;
    type Reader = TheirReader;

    fn try_new(engines: usize) -> anyhow::Result<Self> {
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (lane, tasks) = flume::unbounded();
        let writer = Arc::clone(&tree);
        let thread = std::thread::Builder::new()
            .name("theirs".to_owned())
            .spawn(move || writer.worker(tasks, None))?;
        Ok(Self { tree, engines, lane: Some(lane), thread: Some(thread) })
    }

    fn prepare(event: &Event) -> Self::Prepared {
        let data = match &event.what {
            What::Stored { parent, blocks } => KvCacheEventData::Stored(KvCacheStoreData {
                parent_hash: parent.map(name),
                start_position: None,
                blocks: blocks
                    .iter()
                    .zip(TheirReader::query(&tokens(blocks)))
                    .map(|(block, tokens_hash)| KvCacheStoredBlockData {
                        block_hash: name(*block),
                        tokens_hash,
                        mm_extra_info: None,
                    })
                    .collect(),
            }),
            What::Removed(blocks) => KvCacheEventData::Removed(KvCacheRemoveData {
                block_hashes: blocks.iter().map(|block| name(*block)).collect(),
            }),
        };
        RouterEvent::new(event.engine as u64, KvCacheEvent { event_id: 0, data, dp_rank: 0 })
    }

    fn apply(&self, events: Vec<Self::Prepared>, meanwhile: impl FnMut()) -> anyhow::Result<Duration> {
        let lane = self.lane.as_ref().context("the writer is gone")?;
        lane::measure(lane, events.into_iter().map(WorkerTask::Event), WorkerTask::Flush, meanwhile)
    }

    fn decode(payloads: &[(usize, Vec<u8>)]) -> anyhow::Result<Vec<Self::Prepared>> {
        let mut normalizer = ZmqEventNormalizer::new(BLOCK_SIZE_TOKENS as u32);
        let mut events = Vec::with_capacity(payloads.len());
        for (number, (engine, payload)) in payloads.iter().enumerate() {
            let worker = WorkerWithDpRank::new(*engine as u64, 0);
            for raw in decode_event_batch(payload)?.events {
                let placed =
                    normalizer.normalize(raw, number as u64, worker).context("an event was left out")?;
                events.push(placed.into_router_event().context("an event of no worker")?);
            }
        }
        Ok(events)
    }

    fn tidy(&self) -> anyhow::Result<()> {
        let lane = self.lane.as_ref().context("the writer is gone")?;
        lane::measure(lane, std::iter::once(WorkerTask::CleanupStaleChildren), WorkerTask::Flush, || ())
            .map(|_| ())
    }

    fn reader(&self) -> TheirReader {
        TheirReader { tree: Arc::clone(&self.tree), engines: self.engines }
    }
}

impl Reader for TheirReader {
    type Query = Vec<LocalBlockHash>;

    fn query(tokens: &[u32]) -> Self::Query {
        compute_block_hash_for_seq(tokens, BLOCK_SIZE_TOKENS as u32, BlockHashOptions::default())
    }

    fn touch(query: &Self::Query) -> u64 {
        query.iter().fold(0, |sum, hash| sum ^ hash.0)
    }

    fn look_up(&mut self, query: &Self::Query) {
        drop(black_box(self.tree.find_matches(black_box(query), false)));
    }

    fn depths_blocks(&mut self, query: &Self::Query) -> Vec<u32> {
        let found = self.tree.find_matches(query, false);
        let depth = |engine: usize| found.scores.get(&WorkerWithDpRank::new(engine as u64, 0)).copied();
        (0..self.engines).map(|engine| depth(engine).unwrap_or_default()).collect()
    }
}

fn name(block: Block) -> ExternalSequenceBlockHash {
    ExternalSequenceBlockHash(block.engine_hash())
}

impl Drop for Theirs {
    fn drop(&mut self) {
        self.lane = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(matches!(ended, Ok(Ok(()))), "the writer failed");
        }
    }
}
