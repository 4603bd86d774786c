use crate::decode::decode_into;
use crate::{DecodeError, DecodeLimits, EngineHash, EventBatch, KvEvent};

/// Decodes one batch after the other into the same memory, so that the usual batch costs no allocation.
#[derive(Debug, Default)]
pub struct BatchDecoder {
    limits: DecodeLimits,
    batch: EventBatch,
    spares: Spares,
}

/// More events than an engine sends at once; room for so many is kept.
const MOST_KEPT_EVENTS: usize = 1024;

impl BatchDecoder {
    /// A decoder with these limits.
    pub fn new(limits: DecodeLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Decodes one payload as [`decode_batch`](crate::decode_batch) does. The batch stays until the next one.
    ///
    /// # Errors
    /// Those of [`decode_batch`](crate::decode_batch).
    pub fn decode(&mut self, payload: &[u8]) -> Result<&EventBatch, DecodeError> {
        let Self { limits, batch, spares } = self;
        batch.events.drain(..).for_each(|event| spares.keep(event));
        batch.events.shrink_to(MOST_KEPT_EVENTS);
        decode_into(payload, limits, batch, spares)?;
        Ok(batch)
    }
}

/// Emptied lists of events that are over.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    hashes: Vec<Vec<EngineHash>>,
    token_ids: Vec<Vec<u32>>,
}

/// Most lists that are kept of a kind, and the most bytes of each: far more than engines need as a rule.
const MOST_SPARES: usize = 64;
const MOST_SPARE_BYTES: usize = 16 << 10;

impl Spares {
    /// An empty list.
    pub(crate) fn hashes(&mut self) -> Vec<EngineHash> {
        self.hashes.pop().unwrap_or_default()
    }

    /// An empty list.
    pub(crate) fn token_ids(&mut self) -> Vec<u32> {
        self.token_ids.pop().unwrap_or_default()
    }

    fn keep(&mut self, event: KvEvent) {
        match event {
            KvEvent::Stored(stored) => {
                keep(&mut self.hashes, stored.hashes);
                keep(&mut self.token_ids, stored.token_ids);
            }
            KvEvent::Removed(removed) => keep(&mut self.hashes, removed.hashes),
            KvEvent::Cleared => {}
        }
    }
}

fn keep<T>(spares: &mut Vec<Vec<T>>, mut list: Vec<T>) {
    let bytes = list.capacity() * size_of::<T>();
    if spares.len() < MOST_SPARES && (1..=MOST_SPARE_BYTES).contains(&bytes) {
        list.clear();
        spares.push(list);
    }
}
