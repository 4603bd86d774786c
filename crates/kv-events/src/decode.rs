use crate::batch_decoder::Spares;
use crate::event_batch::{
    BlocksRemoved, BlocksStored, EventBatch, ExtraKey, KvEvent, Medium, SkippedEvents, SpecKind,
};
use crate::msgpack::{Kind, Reader};
use crate::token_pairs::{first_of_pairs, longest_lookahead};
use crate::{DecodeError, EngineHash};

/// What a batch may contain. The defaults are far above what engines send; they bound the memory that a hostile
/// payload can make us take to a few times its own size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Longest payload, in bytes.
    pub max_payload_bytes: usize,
    /// Most events in a batch.
    pub max_events: usize,
    /// Most block hashes in one batch, over all events.
    pub max_blocks: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_payload_bytes: 64 << 20, max_events: 1 << 18, max_blocks: 1 << 20 }
    }
}

/// Decodes one payload: `[ts, [event, …], data_parallel_rank, …]` in msgpack.
///
/// Understood are the events of vLLM 0.10.0 to 0.33 (arrays up to 0.23, maps from 0.24 on) and of SGLang 0.4.6 to
/// 0.5.23 (arrays, later maps), told apart per event; nobody has to say which engine it is. Fields of array events go by position, those of map events by name; what is unknown or added
/// later is stepped over. Layouts: `distributed/kv_events.py` in vLLM's wheels, `disaggregation/kv_events.py` in
/// SGLang.
///
/// An event that can't be understood is left out and counted in [`EventBatch::skipped`], as long as the msgpack around
/// it can be followed.
///
/// # Errors
/// If the batch itself is malformed, truncated or over a limit; the error names the place.
pub fn decode_batch(payload: &[u8], limits: &DecodeLimits) -> Result<EventBatch, DecodeError> {
    let mut batch = EventBatch::default();
    decode_into(payload, limits, &mut batch, &mut Spares::default())?;
    Ok(batch)
}

/// The same into a batch without events. What is in it after an error means nothing.
pub(crate) fn decode_into(
    payload: &[u8],
    limits: &DecodeLimits,
    batch: &mut EventBatch,
    spares: &mut Spares,
) -> Result<(), DecodeError> {
    if payload.len() > limits.max_payload_bytes {
        return Err(DecodeError::TooMany {
            what: "payload bytes",
            offset: 0,
            count: payload.len() as u64,
            limit: limits.max_payload_bytes,
        });
    }
    let mut reader = Reader::new(payload);
    let elements = reader.array("batch")?;
    if elements < 2 {
        return Err(DecodeError::MissingField { offset: 0, field: "events" });
    }
    batch.ts = reader.f64("batch time")?;
    (batch.data_parallel_rank, batch.skipped) = (None, SkippedEvents::default());
    decode_events(&mut reader, limits, batch, spares)?;
    if elements > 2 && !reader.nil() {
        batch.data_parallel_rank = Some(reader.u32("data-parallel rank")?);
    }
    for _ in 3..elements {
        reader.skip("batch element")?;
    }
    match reader.left() {
        0 => Ok(()),
        left => Err(DecodeError::TrailingBytes { offset: reader.position(), left }),
    }
}

/// When a batch was made, Unix time in seconds by the engine's clock, without decoding the rest; None if it isn't there.
pub fn batch_time(payload: &[u8]) -> Option<f64> {
    let mut reader = Reader::new(payload);
    reader.array("batch").ok().filter(|elements| *elements > 0)?;
    reader.f64("batch time").ok()
}

/// The data-parallel rank of a batch's publisher, without decoding the events; None if it isn't there.
pub fn batch_rank(payload: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(payload);
    reader.array("batch").ok().filter(|elements| *elements > 2)?;
    reader.skip("batch time").and_then(|()| reader.skip("events")).ok()?;
    reader.u32("data-parallel rank").ok()
}

fn decode_events(
    reader: &mut Reader<'_>,
    limits: &DecodeLimits,
    batch: &mut EventBatch,
    spares: &mut Spares,
) -> Result<(), DecodeError> {
    let offset = reader.position();
    let count = reader.array("events")?;
    check_limit("events", offset, count, limits.max_events)?;
    // A hostile claim is already bounded by the bytes left; the first reservation is modest all the same.
    batch.events.reserve(count.min(64));
    let mut room = Room { blocks_left: limits.max_blocks, spares };
    for index in 0..count {
        let start = reader.clone();
        match decode_event(reader, &mut room) {
            Ok(event) => batch.events.push(event),
            Err(error @ DecodeError::TooMany { .. }) => return Err(error),
            Err(reason) => {
                *reader = start;
                // If the msgpack can't be followed, the reason the event gave is the more telling one.
                reader.skip("event").map_err(|_| reason.clone())?;
                batch.skipped.push(index as u32, reason);
            }
        }
    }
    Ok(())
}

fn check_limit(what: &'static str, offset: usize, count: usize, limit: usize) -> Result<(), DecodeError> {
    if count > limit {
        return Err(DecodeError::TooMany { what, offset, count: count as u64, limit });
    }
    Ok(())
}

fn decode_event(reader: &mut Reader<'_>, room: &mut Room<'_>) -> Result<KvEvent, DecodeError> {
    let offset = reader.position();
    match reader.kind("event")? {
        Kind::Map => decode_map_event(reader, room, offset),
        _ => decode_array_event(reader, room, offset),
    }
}

/// What is left for the events of a batch.
struct Room<'s> {
    blocks_left: usize,
    spares: &'s mut Spares,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Stored,
    Removed,
    Cleared,
}

fn decode_tag(reader: &mut Reader<'_>, event_offset: usize) -> Result<Tag, DecodeError> {
    match reader.text_bytes("event type")? {
        b"BlockStored" => Ok(Tag::Stored),
        b"BlockRemoved" => Ok(Tag::Removed),
        b"AllBlocksCleared" => Ok(Tag::Cleared),
        _ => Err(DecodeError::UnknownEvent { offset: event_offset }),
    }
}

/// The fields of both kinds of event, as far as they have been met.
#[derive(Default)]
struct Fields {
    hashes: Option<Vec<EngineHash>>,
    parent: Option<EngineHash>,
    token_ids: Option<Vec<u32>>,
    block_size_tokens: Option<u32>,
    lora_id: Option<i64>,
    medium: Medium,
    lora_name: Option<std::sync::Arc<str>>,
    cache_salt: Option<std::sync::Arc<str>>,
    extra_keys: Vec<Option<Vec<ExtraKey>>>,
    group: Option<u32>,
    spec_kind: Option<SpecKind>,
    sliding_window_tokens: Option<u32>,
    lookahead_tokens: u32,
    next_token: Option<u32>,
}

impl Fields {
    fn into_event(self, tag: Tag, offset: usize) -> Result<KvEvent, DecodeError> {
        let missing = |field| DecodeError::MissingField { offset, field };
        if tag == Tag::Cleared {
            return Ok(KvEvent::Cleared);
        }
        let hashes = self.hashes.ok_or(missing("block_hashes"))?;
        if tag == Tag::Removed {
            return Ok(KvEvent::Removed(BlocksRemoved { hashes, medium: self.medium, group: self.group }));
        }
        Ok(KvEvent::Stored(BlocksStored {
            hashes,
            parent: self.parent,
            token_ids: self.token_ids.ok_or(missing("token_ids"))?,
            block_size_tokens: self.block_size_tokens.ok_or(missing("block_size"))?,
            lora_name: self.lora_name,
            lora_id: self.lora_id,
            medium: self.medium,
            group: self.group,
            spec_kind: self.spec_kind,
            sliding_window_tokens: self.sliding_window_tokens,
            extra_keys: self.extra_keys,
            cache_salt: self.cache_salt,
            lookahead_tokens: self.lookahead_tokens,
            next_token: self.next_token,
        }))
    }

    /// The field at `position` (the tag is at 0) of an array event.
    fn read_at(
        &mut self,
        tag: Tag,
        position: usize,
        reader: &mut Reader<'_>,
        room: &mut Room<'_>,
    ) -> Result<(), DecodeError> {
        match (tag, position) {
            (Tag::Stored | Tag::Removed, 1) => self.hashes = Some(read_hashes(reader, room)?),
            (Tag::Stored, 2) => self.parent = read_parent(reader)?,
            (Tag::Stored, 3) => self.read_token_ids(reader, room)?,
            (Tag::Stored, 4) => self.block_size_tokens = Some(reader.u32("block_size")?),
            (Tag::Stored, 5) => self.lora_id = read_optional(reader, |reader| reader.i64("lora_id"))?,
            (Tag::Stored, 6) | (Tag::Removed, 2) => self.medium = read_medium(reader)?,
            // SGLang has a map of metadata where vLLM has the LoRA name.
            (Tag::Stored, 7) if reader.kind("lora_name")? == Kind::Map => self.read_metadata(reader)?,
            (Tag::Stored, 7) => self.lora_name = read_text(reader, "lora_name")?,
            (Tag::Stored, 8) => self.extra_keys = read_extra_keys(reader)?,
            (Tag::Stored, 9) | (Tag::Removed, 3) => {
                self.group = read_optional(reader, |reader| reader.u32("group_idx"))?;
            }
            (Tag::Stored, 10) => self.spec_kind = read_spec_kind(reader)?,
            (Tag::Stored, 11) => self.sliding_window_tokens = read_sliding_window(reader)?,
            _ => reader.skip("event field")?,
        }
        Ok(())
    }

    fn read_metadata(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        for _ in 0..reader.map("metadata")? {
            match reader.text_bytes("metadata key")? {
                b"cache_salt" => self.cache_salt = read_text(reader, "cache_salt")?,
                _ => reader.skip("metadata value")?,
            }
        }
        Ok(())
    }

    /// The field `name` of a map event.
    fn read_named(
        &mut self,
        name: &[u8],
        reader: &mut Reader<'_>,
        room: &mut Room<'_>,
    ) -> Result<(), DecodeError> {
        match name {
            b"block_hashes" => self.hashes = Some(read_hashes(reader, room)?),
            b"parent_block_hash" => self.parent = read_parent(reader)?,
            b"token_ids" => self.read_token_ids(reader, room)?,
            b"block_size" => self.block_size_tokens = Some(reader.u32("block_size")?),
            b"lora_id" => self.lora_id = read_optional(reader, |reader| reader.i64("lora_id"))?,
            b"medium" => self.medium = read_medium(reader)?,
            b"lora_name" => self.lora_name = read_text(reader, "lora_name")?,
            b"cache_salt" => self.cache_salt = read_text(reader, "cache_salt")?,
            b"extra_keys" => self.extra_keys = read_extra_keys(reader)?,
            b"group_idx" => self.group = read_optional(reader, |reader| reader.u32("group_idx"))?,
            b"kv_cache_spec_kind" => self.spec_kind = read_spec_kind(reader)?,
            b"kv_cache_spec_sliding_window" => self.sliding_window_tokens = read_sliding_window(reader)?,
            b"lookahead_token_ids" => {
                self.lookahead_tokens = self.lookahead_tokens.max(longest_lookahead(reader)?);
            }
            _ => reader.skip("event field")?,
        }
        Ok(())
    }

    fn read_token_ids(&mut self, reader: &mut Reader<'_>, room: &mut Room<'_>) -> Result<(), DecodeError> {
        let count = reader.array("token_ids")?;
        let mut tokens = room.spares.token_ids();
        if count > 0 && reader.kind("token id")? == Kind::Array {
            self.next_token = first_of_pairs(reader, count, &mut tokens)?;
            self.lookahead_tokens = self.lookahead_tokens.max(1);
        } else {
            reader.token_ids(count, &mut tokens)?;
            self.next_token = None;
        }
        self.token_ids = Some(tokens);
        Ok(())
    }
}

fn decode_array_event(
    reader: &mut Reader<'_>,
    room: &mut Room<'_>,
    offset: usize,
) -> Result<KvEvent, DecodeError> {
    let elements = reader.array("event")?;
    if elements == 0 {
        return Err(DecodeError::MissingField { offset, field: "type" });
    }
    let tag = decode_tag(reader, offset)?;
    let mut fields = Fields::default();
    for position in 1..elements {
        fields.read_at(tag, position, reader, room)?;
    }
    fields.into_event(tag, offset)
}

fn decode_map_event(
    reader: &mut Reader<'_>,
    room: &mut Room<'_>,
    offset: usize,
) -> Result<KvEvent, DecodeError> {
    let mut tag = None;
    let mut fields = Fields::default();
    for _ in 0..reader.map("event")? {
        match reader.text_bytes("event key")? {
            b"type" => tag = Some(decode_tag(reader, offset)?),
            name => fields.read_named(name, reader, room)?,
        }
    }
    fields.into_event(tag.ok_or(DecodeError::MissingField { offset, field: "type" })?, offset)
}

fn read_optional<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if reader.nil() { Ok(None) } else { read(reader).map(Some) }
}

fn read_text(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<Option<std::sync::Arc<str>>, DecodeError> {
    read_optional(reader, |reader| Ok(reader.text(what)?.into()))
}

fn read_medium(reader: &mut Reader<'_>) -> Result<Medium, DecodeError> {
    Ok(read_optional(reader, |reader| Ok(Medium::from_name(reader.text("medium")?)))?.unwrap_or_default())
}

fn read_spec_kind(reader: &mut Reader<'_>) -> Result<Option<SpecKind>, DecodeError> {
    read_optional(reader, |reader| Ok(SpecKind::from_name(reader.text("kv_cache_spec_kind")?)))
}

fn read_sliding_window(reader: &mut Reader<'_>) -> Result<Option<u32>, DecodeError> {
    read_optional(reader, |reader| reader.u32("kv_cache_spec_sliding_window"))
}

fn read_hash(reader: &mut Reader<'_>) -> Result<EngineHash, DecodeError> {
    const WHAT: &str = "block hash";
    let offset = reader.position();
    if reader.kind(WHAT)? == Kind::Binary {
        let digest = reader.binary(WHAT)?;
        return EngineHash::from_bytes(digest).ok_or(DecodeError::HashLength { offset, len: digest.len() });
    }
    Ok(EngineHash::from_u64(reader.int(WHAT)?.bits()))
}

fn read_hashes(reader: &mut Reader<'_>, room: &mut Room<'_>) -> Result<Vec<EngineHash>, DecodeError> {
    let offset = reader.position();
    let count = reader.array("block_hashes")?;
    check_limit("block hashes", offset, count, room.blocks_left)?;
    room.blocks_left -= count;
    let mut hashes = room.spares.hashes();
    hashes.reserve(count);
    for _ in 0..count {
        hashes.push(read_hash(reader)?);
    }
    Ok(hashes)
}

fn read_parent(reader: &mut Reader<'_>) -> Result<Option<EngineHash>, DecodeError> {
    read_optional(reader, read_hash)
}

/// Empty if nil or if every entry is nil, so that the usual event costs no allocation.
fn read_extra_keys(reader: &mut Reader<'_>) -> Result<Vec<Option<Vec<ExtraKey>>>, DecodeError> {
    if reader.nil() {
        return Ok(Vec::new());
    }
    let blocks = reader.array("extra_keys")?;
    let mut extra_keys = Vec::new();
    for block in 0..blocks {
        if reader.nil() {
            if !extra_keys.is_empty() {
                extra_keys.push(None);
            }
            continue;
        }
        if extra_keys.is_empty() {
            extra_keys.resize_with(block, || None);
        }
        let count = reader.array("extra keys of a block")?;
        let mut keys = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            keys.push(read_extra_key(reader)?);
        }
        extra_keys.push(Some(keys));
    }
    Ok(extra_keys)
}

fn read_extra_key(reader: &mut Reader<'_>) -> Result<ExtraKey, DecodeError> {
    const WHAT: &str = "extra key";
    match reader.kind(WHAT)? {
        Kind::Text => Ok(ExtraKey::Text(reader.text(WHAT)?.into())),
        Kind::Binary => Ok(ExtraKey::Bytes(reader.binary(WHAT)?.into())),
        Kind::Int => Ok(ExtraKey::Int(reader.i64(WHAT)?)),
        _ => {
            let start = reader.position();
            reader.skip(WHAT)?;
            let raw = reader.since(start);
            Ok(read_media(raw).unwrap_or_else(|| ExtraKey::Other(raw.into())))
        }
    }
}

/// `[id, offset]`.
fn read_media(raw: &[u8]) -> Option<ExtraKey> {
    let mut reader = Reader::new(raw);
    if reader.kind("").ok()? != Kind::Array || reader.array("").ok()? != 2 {
        return None;
    }
    let id = reader.text("").ok()?.into();
    Some(ExtraKey::Media { id, offset_tokens: reader.i64("").ok()? })
}
