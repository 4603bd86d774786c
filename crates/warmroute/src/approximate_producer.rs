//! Producers of approximate prefix matches: what was sent to each endpoint.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use warmroute_config::{ApproximatePrefixSpec, PrefixProducerSpec};
use warmroute_kv_index::{
    ApproximateIndex, BlockKey, EngineSlot, IndexLimits, LookupScratch, Match, SentBlocks,
};
use warmroute_plugin::EndpointId;

use crate::pool::EndpointState;
use crate::prompt::{ApproximateKeys, ApproximateSize};

/// Between a pick and the noting of what was sent lie microseconds; an expectation that outlives this was forgotten.
const SENDING_TAKES_AT_MOST: Duration = Duration::from_secs(1);

/// A producer at work: what was sent to each endpoint that is in the pool.
pub struct ApproximateProducer {
    producer: PrefixProducerSpec,
    spec: ApproximatePrefixSpec,
    index: ApproximateIndex,
    sent: RwLock<HashMap<EndpointId, Sent>>,
}

/// One incarnation of an endpoint.
struct Sent {
    blocks: Arc<SentBlocks>,
    gone: CancellationToken,
}

/// How full a producer is, for the metrics `prefix_indexer_size` and the status page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApproximateStatus {
    /// Name in the configuration.
    pub name: String,
    /// Type in the configuration.
    pub plugin_type: &'static str,
    /// Blocks over all endpoints; one that several were sent counts for each.
    pub blocks: usize,
    /// Endpoints that were sent something.
    pub endpoints: usize,
}

/// Blocks that are expected where a request was just picked for, until they are noted as sent.
pub struct Sending {
    blocks: Arc<SentBlocks>,
    block_size_tokens: u32,
    expected: Vec<warmroute_kv_index::Expectation>,
}

impl ApproximateProducer {
    /// A producer that saw nothing yet; None for one that doesn't count what is sent.
    pub fn new(producer: &PrefixProducerSpec) -> Option<Self> {
        let spec = producer.approximate()?.clone();
        let index = ApproximateIndex::new(IndexLimits::default());
        Some(Self { producer: producer.clone(), spec, index, sent: RwLock::default() })
    }

    /// What it was made from. The same again may go on with its state.
    pub fn producer(&self) -> &PrefixProducerSpec {
        &self.producer
    }

    /// Tokens of the blocks in which an endpoint's cache is counted.
    pub fn block_size_tokens(&self, endpoint: &EndpointState) -> u32 {
        let told = endpoint.block_size_tokens().filter(|_| self.spec.auto_tune);
        told.unwrap_or(self.spec.block_size_tokens).max(self.spec.min_block_size_tokens)
    }

    /// Keys that it needs for such blocks.
    pub fn size(&self, block_size_tokens: u32) -> ApproximateSize {
        ApproximateSize { block_size_tokens, max_blocks: self.spec.limit.blocks(block_size_tokens) }
    }

    /// Blocks that an endpoint has room for: as many as its KV cache, which it may count in blocks of another size.
    fn capacity_blocks(&self, endpoint: &EndpointState, block_size_tokens: u32) -> usize {
        let told = endpoint.of_scrape(|scrape| scrape.metrics).filter(|_| self.spec.auto_tune);
        let told = told.filter(|metrics| metrics.num_gpu_blocks > 0 && metrics.block_size_tokens > 0);
        match told {
            None => self.spec.capacity_blocks as usize,
            Some(metrics) => {
                let tokens = u64::from(metrics.num_gpu_blocks) * u64::from(metrics.block_size_tokens);
                (tokens / u64::from(block_size_tokens.max(1))).max(1) as usize
            }
        }
    }

    /// Adds the place of each endpoint in the index; None for one that was sent nothing.
    pub fn slots<'e>(
        &self,
        endpoints: impl Iterator<Item = &'e EndpointState>,
        slots: &mut Vec<Option<EngineSlot>>,
    ) {
        let sent = self.sent.read();
        slots.extend(endpoints.map(|endpoint| Some(sent.get(&endpoint.endpoint.id)?.blocks.slot())));
    }

    /// See [`ApproximateIndex::lookup`].
    pub fn lookup(
        &self,
        keys: &[BlockKey],
        slots: &[EngineSlot],
        scratch: &mut LookupScratch,
        matches: &mut [Match],
    ) {
        self.index.lookup(keys, slots, scratch, matches);
    }

    /// Expects the prompts at an endpoint that was just picked, so that the next pick sees it: cheap, for under the pool's
    /// lock. `known_blocks` says how many leading blocks of a prompt it was sent already.
    pub fn expect(
        &self,
        endpoint: &EndpointState,
        keys: &ApproximateKeys,
        known_blocks: impl Fn(usize) -> u32,
    ) -> Option<Sending> {
        let set = keys.set(self.block_size_tokens(endpoint))?;
        let max_blocks = self.spec.limit.blocks(set.block_size_tokens);
        let blocks = self.blocks_of(endpoint)?;
        let now = Instant::now();
        let expect = |(at, keys): (usize, &Vec<BlockKey>)| {
            let keys = &keys[..keys.len().min(max_blocks)];
            blocks.expect(keys, known_blocks(at), now, SENDING_TAKES_AT_MOST)
        };
        let expected = set.prompts.iter().enumerate().filter_map(expect).collect();
        Some(Sending { blocks, block_size_tokens: set.block_size_tokens, expected })
    }

    /// Notes the prompts as sent to an endpoint: takes time with their length, so not under the pool's lock. `sending` is
    /// what was [expected](Self::expect) there.
    pub fn send(&self, endpoint: &EndpointState, keys: &ApproximateKeys, sending: Sending) {
        let Sending { blocks, block_size_tokens, expected } = sending;
        if let Some(set) = keys.set(block_size_tokens) {
            let max_blocks = self.spec.limit.blocks(set.block_size_tokens);
            let capacity_blocks = self.capacity_blocks(endpoint, block_size_tokens);
            for keys in &set.prompts {
                blocks.send(&keys[..keys.len().min(max_blocks)], capacity_blocks);
            }
        }
        expected.into_iter().for_each(|expectation| blocks.sent(expectation));
    }

    /// What an endpoint was sent. None if it has left the pool, or if there are too many endpoints.
    fn blocks_of(&self, endpoint: &EndpointState) -> Option<Arc<SentBlocks>> {
        let id = endpoint.endpoint.id;
        if let Some(sent) = self.sent.read().get(&id) {
            return Some(sent.blocks.clone());
        }
        let mut all = self.sent.write();
        if endpoint.gone.is_cancelled() {
            return None;
        }
        if let Some(sent) = all.get(&id) {
            return Some(sent.blocks.clone());
        }
        let blocks = match self.index.add_endpoint() {
            Ok(blocks) => Arc::new(blocks),
            Err(error) => {
                tracing::error!(endpoint = %endpoint.endpoint.address, %error, producer = self.producer.name(),
                    "what is sent to this endpoint is not counted");
                return None;
            }
        };
        all.insert(id, Sent { blocks: blocks.clone(), gone: endpoint.gone.clone() });
        Some(blocks)
    }

    /// Forgets the endpoints that have left the pool.
    pub fn forget_gone(&self) {
        self.sent.write().retain(|_, sent| !sent.gone.is_cancelled());
        self.index.expire(Instant::now());
    }

    /// How full it is.
    pub fn status(&self) -> ApproximateStatus {
        ApproximateStatus {
            name: self.producer.name().to_owned(),
            plugin_type: self.producer.plugin_type(),
            blocks: self.index.stats().entries,
            endpoints: self.sent.read().len(),
        }
    }
}
