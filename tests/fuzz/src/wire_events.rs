//! Events written as engines write them, and msgpack read without regard to what it means.

use rmp::Marker;
use rmp::encode as write;
use warmroute_kv_events::{BlocksRemoved, BlocksStored, EngineHash, ExtraKey, KvEvent, Medium, SpecKind};

/// A batch in the map form of vLLM from 0.24 on.
pub(crate) fn batch(ts: f64, events: &[KvEvent], rank: Option<u32>) -> Vec<u8> {
    let mut out = Vec::new();
    write::write_array_len(&mut out, 3).unwrap();
    write::write_f64(&mut out, ts).unwrap();
    write::write_array_len(&mut out, events.len() as u32).unwrap();
    for event in events {
        match event {
            KvEvent::Cleared => {
                write::write_map_len(&mut out, 1).unwrap();
                text(&mut out, "type");
                text(&mut out, "AllBlocksCleared");
            }
            KvEvent::Removed(removed) => write_removed(&mut out, removed),
            KvEvent::Stored(stored) => write_stored(&mut out, stored),
        }
    }
    optional(&mut out, rank, |out, rank| number(out, rank.into()));
    out
}

fn write_removed(out: &mut Vec<u8>, removed: &BlocksRemoved) {
    write::write_map_len(out, 4).unwrap();
    text(out, "type");
    text(out, "BlockRemoved");
    text(out, "block_hashes");
    hashes(out, &removed.hashes);
    text(out, "medium");
    optional(out, medium(&removed.medium), text);
    text(out, "group_idx");
    optional(out, removed.group, |out, group| number(out, group.into()));
}

fn write_stored(out: &mut Vec<u8>, stored: &BlocksStored) {
    write::write_map_len(out, 14).unwrap();
    text(out, "type");
    text(out, "BlockStored");
    text(out, "block_hashes");
    hashes(out, &stored.hashes);
    text(out, "parent_block_hash");
    optional(out, stored.parent, hash);
    text(out, "token_ids");
    write_tokens(out, stored);
    text(out, "block_size");
    number(out, stored.block_size_tokens.into());
    text(out, "lora_id");
    optional(out, stored.lora_id, number);
    text(out, "medium");
    optional(out, medium(&stored.medium), text);
    text(out, "lora_name");
    optional(out, stored.lora_name.as_deref(), text);
    text(out, "cache_salt");
    optional(out, stored.cache_salt.as_deref(), text);
    text(out, "group_idx");
    optional(out, stored.group, |out, group| number(out, group.into()));
    text(out, "kv_cache_spec_kind");
    optional(out, stored.spec_kind.as_ref().map(kind), text);
    text(out, "kv_cache_spec_sliding_window");
    optional(out, stored.sliding_window_tokens, |out, tokens| number(out, tokens.into()));
    text(out, "extra_keys");
    write::write_array_len(out, stored.extra_keys.len() as u32).unwrap();
    for block in &stored.extra_keys {
        optional(out, block.as_deref(), |out, keys| {
            write::write_array_len(out, keys.len() as u32).unwrap();
            keys.iter().for_each(|key| extra_key(out, key));
        });
    }
}

/// Tokens, or pairs of them if the token after the last one is known; and how far blocks depend on what comes after.
fn write_tokens(out: &mut Vec<u8>, stored: &BlocksStored) {
    let tokens = &stored.token_ids;
    write::write_array_len(out, tokens.len() as u32).unwrap();
    for (at, token) in tokens.iter().enumerate() {
        if let Some(next) = stored.next_token {
            write::write_array_len(out, 2).unwrap();
            number(out, (*token).into());
            number(out, tokens.get(at + 1).copied().unwrap_or(next).into());
        } else {
            number(out, (*token).into());
        }
    }
    text(out, "lookahead_token_ids");
    write::write_array_len(out, 1).unwrap();
    write::write_array_len(out, stored.lookahead_tokens).unwrap();
    (0..stored.lookahead_tokens).for_each(|_| number(out, 0));
}

fn extra_key(out: &mut Vec<u8>, key: &ExtraKey) {
    match key {
        ExtraKey::Text(value) => text(out, value),
        ExtraKey::Int(value) => number(out, *value),
        ExtraKey::Bytes(value) => write::write_bin(out, value).unwrap(),
        ExtraKey::Media { id, offset_tokens } => {
            write::write_array_len(out, 2).unwrap();
            text(out, id);
            number(out, *offset_tokens);
        }
        ExtraKey::Other(raw) => out.extend_from_slice(raw),
    }
}

fn hashes(out: &mut Vec<u8>, hashes: &[EngineHash]) {
    write::write_array_len(out, hashes.len() as u32).unwrap();
    hashes.iter().for_each(|one| hash(out, *one));
}

fn hash(out: &mut Vec<u8>, hash: EngineHash) {
    match hash.as_bytes() {
        Some(digest) => write::write_bin(out, digest).unwrap(),
        None => {
            write::write_uint(out, hash.low_u64()).unwrap();
        }
    }
}

fn medium(medium: &Medium) -> Option<&str> {
    match medium {
        Medium::Unspecified => None,
        Medium::Gpu => Some("GPU"),
        Medium::Cpu => Some("CPU"),
        Medium::Storage => Some("STORAGE"),
        Medium::Other(name) => Some(name),
    }
}

fn kind(kind: &SpecKind) -> &str {
    match kind {
        SpecKind::FullAttention => "full_attention",
        SpecKind::MlaAttention => "mla_attention",
        SpecKind::SinkFullAttention => "sink_full_attention",
        SpecKind::SlidingWindow => "sliding_window",
        SpecKind::SlidingWindowMla => "sliding_window_mla",
        SpecKind::Mamba => "mamba",
        SpecKind::ChunkedLocalAttention => "chunked_local_attention",
        SpecKind::Other(name) => name,
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    write::write_str(out, value).unwrap();
}

fn number(out: &mut Vec<u8>, value: i64) {
    write::write_sint(out, value).unwrap();
}

fn optional<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => write::write_nil(out).unwrap(),
    }
}

/// Lengths of the outer list and of its second element, if `payload` is one msgpack value of that form and nothing
/// else. Strings needn't be UTF-8.
pub(crate) fn outer_lengths(payload: &[u8]) -> Option<(u32, u32)> {
    let mut input = payload;
    let outer = rmp::decode::read_array_len(&mut input).ok()?;
    skip_values(&mut input, 1)?;
    let mut events = input;
    let events = rmp::decode::read_array_len(&mut events).ok()?;
    skip_values(&mut input, u64::from(outer).checked_sub(1)?)?;
    input.is_empty().then_some((outer, events))
}

/// Steps over so many values and what is in them.
fn skip_values(input: &mut &[u8], values: u64) -> Option<()> {
    let mut left = values;
    while left > 0 {
        left -= 1;
        let marker = rmp::decode::read_marker(input).ok()?;
        let mut length = |bytes: usize| -> Option<u64> {
            let (digits, rest) = input.split_at_checked(bytes)?;
            *input = rest;
            Some(digits.iter().fold(0, |length, digit| length << 8 | u64::from(*digit)))
        };
        let (skipped, inner) = match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::FixExt4 => (5, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::FixStr(bytes) => (bytes.into(), 0),
            Marker::Str8 | Marker::Bin8 => (length(1)?, 0),
            Marker::Str16 | Marker::Bin16 => (length(2)?, 0),
            Marker::Str32 | Marker::Bin32 => (length(4)?, 0),
            Marker::Ext8 => (length(1)? + 1, 0),
            Marker::Ext16 => (length(2)? + 1, 0),
            Marker::Ext32 => (length(4)? + 1, 0),
            Marker::FixArray(values) => (0, values.into()),
            Marker::Array16 => (0, length(2)?),
            Marker::Array32 => (0, length(4)?),
            Marker::FixMap(pairs) => (0, u64::from(pairs) * 2),
            Marker::Map16 => (0, length(2)? * 2),
            Marker::Map32 => (0, length(4)? * 2),
            Marker::Reserved => return None,
        };
        *input = input.get(usize::try_from(skipped).ok()?..)?;
        left += inner;
    }
    Some(())
}
