//! KV cache events as vLLM puts them on the wire.

use rmp::encode::{self, ByteBuf};

use crate::block_hash::BlockHash;
use crate::block_pool::CacheEvent;

/// The msgpack form of the events inside a batch. The batch itself is an array in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EventEncoding {
    /// vLLM 0.22 to 0.23: arrays with the tag first, all fields of that version written.
    Array,
    /// vLLM 0.24 and later: maps with a `type` key.
    #[default]
    Map,
}

/// The wire form of a block hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EventHashForm {
    /// The low 64 bits as an integer, vLLM's default.
    #[default]
    Int,
    /// The whole digest (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`).
    Bytes,
}

/// Writes batches. The layout follows vLLM's `vllm/distributed/kv_events.py`, with integers in msgpack's
/// shortest form, as msgspec writes them.
#[derive(Clone, Copy, Debug)]
pub struct BatchEncoder {
    /// How events are written.
    pub encoding: EventEncoding,
    /// How hashes are written.
    pub hash_form: EventHashForm,
    /// Tokens per block, a field of every stored event.
    pub block_size_tokens: u32,
    /// The publisher's data-parallel rank.
    pub rank: u16,
}

const MEDIUM: &str = "GPU";
const HOST_MEDIUM: &str = "CPU";
const SPEC_KIND: &str = "full_attention";

impl BatchEncoder {
    /// The payload of one batch: `[timestamp, [event, …], data parallel rank]`.
    #[must_use]
    pub fn encode(&self, timestamp_seconds: f64, events: &[CacheEvent]) -> Vec<u8> {
        let mut payload = Payload(ByteBuf::new());
        payload.array(3);
        payload.float(timestamp_seconds);
        payload.array(events.len());
        for event in events {
            match self.encoding {
                EventEncoding::Array => self.event_array(&mut payload, event),
                EventEncoding::Map => self.event_map(&mut payload, event),
            }
        }
        payload.uint(self.rank.into());
        payload.0.into_vec()
    }

    fn event_map(&self, payload: &mut Payload, event: &CacheEvent) {
        match event {
            CacheEvent::Stored { hashes, parent, token_ids, cache_salt } => {
                payload.map(11);
                payload.key("type").text("BlockStored");
                payload.key("block_hashes").list(hashes, |payload, hash| self.hash(payload, hash));
                payload
                    .key("parent_block_hash")
                    .option(parent.as_ref(), |payload, hash| self.hash(payload, hash));
                payload.key("token_ids").list(token_ids, |payload, id| payload.uint(u64::from(*id)));
                payload.key("block_size").uint(u64::from(self.block_size_tokens));
                payload.key("lora_id").nil();
                payload.key("medium").text(MEDIUM);
                payload.key("lora_name").nil();
                payload.key("extra_keys").extra_keys(hashes.len(), cache_salt.as_deref());
                payload.key("group_idx").uint(0);
                payload.key("kv_cache_spec_kind").text(SPEC_KIND);
            }
            CacheEvent::Removed { hash } => {
                payload.map(4);
                payload.key("type").text("BlockRemoved");
                payload.key("block_hashes").list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.key("medium").text(MEDIUM);
                payload.key("group_idx").uint(0);
            }
            CacheEvent::Cleared => {
                payload.map(1);
                payload.key("type").text("AllBlocksCleared");
            }
            // Without tokens: whoever reads it knows the block by its hash.
            CacheEvent::HostStored { hash } => {
                payload.map(9);
                payload.key("type").text("BlockStored");
                payload.key("block_hashes").list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.key("parent_block_hash").nil();
                payload.key("token_ids").array(0);
                payload.key("block_size").uint(0);
                payload.key("lora_id").nil();
                payload.key("medium").text(HOST_MEDIUM);
                payload.key("lora_name").nil();
                payload.key("group_idx").uint(0);
            }
            CacheEvent::HostRemoved { hash } => {
                payload.map(4);
                payload.key("type").text("BlockRemoved");
                payload.key("block_hashes").list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.key("medium").text(HOST_MEDIUM);
                payload.key("group_idx").uint(0);
            }
        }
    }

    fn event_array(&self, payload: &mut Payload, event: &CacheEvent) {
        match event {
            CacheEvent::Stored { hashes, parent, token_ids, cache_salt } => {
                payload.array(12);
                payload.text("BlockStored");
                payload.list(hashes, |payload, hash| self.hash(payload, hash));
                payload.option(parent.as_ref(), |payload, hash| self.hash(payload, hash));
                payload.list(token_ids, |payload, id| payload.uint(u64::from(*id)));
                payload.uint(u64::from(self.block_size_tokens));
                payload.nil(); // lora_id
                payload.text(MEDIUM);
                payload.nil(); // lora_name
                payload.extra_keys(hashes.len(), cache_salt.as_deref());
                payload.uint(0); // group_idx
                payload.text(SPEC_KIND);
                payload.nil(); // sliding window
            }
            CacheEvent::Removed { hash } => {
                payload.array(4);
                payload.text("BlockRemoved");
                payload.list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.text(MEDIUM);
                payload.uint(0); // group_idx
            }
            CacheEvent::Cleared => {
                payload.array(1);
                payload.text("AllBlocksCleared");
            }
            CacheEvent::HostStored { hash } => {
                payload.array(12);
                payload.text("BlockStored");
                payload.list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.nil(); // parent
                payload.array(0); // tokens
                payload.uint(0); // block size
                payload.nil(); // lora_id
                payload.text(HOST_MEDIUM);
                payload.nil(); // lora_name
                payload.nil(); // extra keys
                payload.uint(0); // group_idx
                payload.nil(); // kind
                payload.nil(); // sliding window
            }
            CacheEvent::HostRemoved { hash } => {
                payload.array(4);
                payload.text("BlockRemoved");
                payload.list(&[*hash], |payload, hash| self.hash(payload, hash));
                payload.text(HOST_MEDIUM);
                payload.uint(0); // group_idx
            }
        }
    }

    fn hash(&self, payload: &mut Payload, hash: &BlockHash) {
        match self.hash_form {
            EventHashForm::Int => payload.uint(hash.low_u64()),
            EventHashForm::Bytes => payload.binary(&hash.0),
        }
    }
}

/// msgpack in memory. Writing there can't fail, so the results carry nothing.
struct Payload(ByteBuf);

impl Payload {
    fn array(&mut self, len: usize) {
        let _ = encode::write_array_len(&mut self.0, len as u32);
    }

    fn map(&mut self, len: usize) {
        let _ = encode::write_map_len(&mut self.0, len as u32);
    }

    fn key(&mut self, name: &str) -> &mut Self {
        self.text(name);
        self
    }

    fn text(&mut self, text: &str) {
        let _ = encode::write_str(&mut self.0, text);
    }

    fn uint(&mut self, value: u64) {
        let _ = encode::write_uint(&mut self.0, value);
    }

    fn float(&mut self, value: f64) {
        let _ = encode::write_f64(&mut self.0, value);
    }

    fn binary(&mut self, bytes: &[u8]) {
        let _ = encode::write_bin(&mut self.0, bytes);
    }

    fn nil(&mut self) {
        let _ = encode::write_nil(&mut self.0);
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.array(items.len());
        for item in items {
            write(self, item);
        }
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        match value {
            None => self.nil(),
            Some(value) => write(self, value),
        }
    }

    /// One entry per block: nil, or for the first block of a salted request the salt, without the tag that
    /// it has in the hash.
    fn extra_keys(&mut self, blocks: usize, cache_salt: Option<&str>) {
        self.array(blocks);
        for index in 0..blocks {
            match cache_salt.filter(|_| index == 0) {
                None => self.nil(),
                Some(salt) => {
                    self.array(1);
                    self.text(salt);
                }
            }
        }
    }
}
