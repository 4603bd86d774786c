//! The slice decoder against `rmp-serde` as the writer and as a second reader, and against hostile bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use serde::de::IgnoredAny;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, SerializeTuple, Serializer};
use warmroute_kv_events::{
    BatchDecoder, BlocksRemoved, BlocksStored, DecodeError, DecodeLimits, EngineHash, EventBatch, ExtraKey,
    KvEvent, Medium, SkippedEvent, SkippedEvents, SpecKind, decode_batch,
};

fn decode(payload: &[u8]) -> Result<EventBatch, DecodeError> {
    decode_batch(payload, &DecodeLimits::default())
}

/// Bytes as msgpack `bin`.
struct Bin<'a>(&'a [u8]);

impl Serialize for Bin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct WireHash<'a>(&'a EngineHash);

impl Serialize for WireHash<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0.as_u64(), self.0.as_bytes()) {
            // SGLang's form of the same bits, for half of them.
            (Some(value), _) if value % 2 == 1 => (value as i64).serialize(serializer),
            (Some(value), _) => value.serialize(serializer),
            (_, bytes) => Bin(bytes.unwrap()).serialize(serializer),
        }
    }
}

struct WireExtra<'a>(&'a ExtraKey);

impl Serialize for WireExtra<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ExtraKey::Text(text) => text.serialize(serializer),
            ExtraKey::Int(number) => number.serialize(serializer),
            ExtraKey::Bytes(bytes) => Bin(bytes).serialize(serializer),
            ExtraKey::Media { id, offset_tokens } => (&**id, offset_tokens).serialize(serializer),
            ExtraKey::Other(_) => unreachable!(),
        }
    }
}

struct List<'a, T, W>(&'a [T], fn(&'a T) -> W);

impl<'a, T, W: Serialize> Serialize for List<'a, T, W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            list.serialize_element(&(self.1)(item))?;
        }
        list.end()
    }
}

fn medium_name(medium: &Medium) -> Option<&str> {
    match medium {
        Medium::Unspecified => None,
        Medium::Gpu => Some("GPU"),
        Medium::Cpu => Some("CPU"),
        Medium::Storage => Some("STORAGE"),
        Medium::Other(name) => Some(name),
    }
}

fn kind_name(kind: &SpecKind) -> &str {
    match kind {
        SpecKind::FullAttention => "full_attention",
        SpecKind::SlidingWindow => "sliding_window",
        SpecKind::Mamba => "mamba",
        SpecKind::Other(name) => name,
        _ => unreachable!(),
    }
}

/// One event in one of the two encodings.
struct WireEvent<'a> {
    event: &'a KvEvent,
    as_map: bool,
}

fn extra_lists(stored: &BlocksStored) -> Option<impl Serialize> {
    fn keys_of(block: &Option<Vec<ExtraKey>>) -> Option<List<'_, ExtraKey, WireExtra<'_>>> {
        block.as_ref().map(|keys| List(keys.as_slice(), WireExtra))
    }
    (!stored.extra_keys.is_empty()).then(|| List(&stored.extra_keys, keys_of))
}

impl Serialize for WireEvent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.event, self.as_map) {
            (KvEvent::Cleared, true) => {
                [("type", "AllBlocksCleared")].into_iter().collect::<BTreeMap<_, _>>().serialize(serializer)
            }
            (KvEvent::Cleared, false) => ["AllBlocksCleared"].serialize(serializer),
            (KvEvent::Removed(removed), true) => removed_map(removed, serializer),
            (KvEvent::Removed(BlocksRemoved { hashes, medium, group }), false) => {
                ("BlockRemoved", List(hashes, WireHash), medium_name(medium), group).serialize(serializer)
            }
            (KvEvent::Stored(stored), true) => stored_map(stored, serializer),
            (KvEvent::Stored(stored), false) => stored_array(stored, serializer),
        }
    }
}

fn removed_map<S: Serializer>(removed: &BlocksRemoved, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(5))?;
    map.serialize_entry("block_hashes", &List(&removed.hashes, WireHash))?;
    map.serialize_entry("unheard of", &[[1], [2]])?;
    map.serialize_entry("medium", &medium_name(&removed.medium))?;
    map.serialize_entry("group_idx", &removed.group)?;
    map.serialize_entry("type", "BlockRemoved")?;
    map.end()
}

/// Only maps have them.
const LOOKAHEAD_TOKENS: u32 = 2;

fn stored_map<S: Serializer>(stored: &BlocksStored, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(13))?;
    map.serialize_entry("type", "BlockStored")?;
    map.serialize_entry("token_ids", &stored.token_ids)?;
    map.serialize_entry("block_hashes", &List(&stored.hashes, WireHash))?;
    map.serialize_entry("parent_block_hash", &stored.parent.as_ref().map(WireHash))?;
    map.serialize_entry("lookahead_token_ids", &[[1; LOOKAHEAD_TOKENS as usize]; 2])?;
    map.serialize_entry("block_size", &stored.block_size_tokens)?;
    map.serialize_entry("lora_id", &stored.lora_id)?;
    map.serialize_entry("medium", &medium_name(&stored.medium))?;
    map.serialize_entry("lora_name", &stored.lora_name.as_deref())?;
    map.serialize_entry("extra_keys", &extra_lists(stored))?;
    map.serialize_entry("group_idx", &stored.group)?;
    map.serialize_entry("kv_cache_spec_kind", &stored.spec_kind.as_ref().map(kind_name))?;
    map.serialize_entry("kv_cache_spec_sliding_window", &stored.sliding_window_tokens)?;
    map.end()
}

fn stored_array<S: Serializer>(stored: &BlocksStored, serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_tuple(13)?;
    list.serialize_element("BlockStored")?;
    list.serialize_element(&List(&stored.hashes, WireHash))?;
    list.serialize_element(&stored.parent.as_ref().map(WireHash))?;
    list.serialize_element(&stored.token_ids)?;
    list.serialize_element(&stored.block_size_tokens)?;
    list.serialize_element(&stored.lora_id)?;
    list.serialize_element(&medium_name(&stored.medium))?;
    list.serialize_element(&stored.lora_name.as_deref())?;
    list.serialize_element(&extra_lists(stored))?;
    list.serialize_element(&stored.group)?;
    list.serialize_element(&stored.spec_kind.as_ref().map(kind_name))?;
    list.serialize_element(&stored.sliding_window_tokens)?;
    list.serialize_element("an element of the future")?;
    list.end()
}

fn encode(batch: &EventBatch, as_map: bool) -> Vec<u8> {
    let events: Vec<WireEvent<'_>> = batch.events.iter().map(|event| WireEvent { event, as_map }).collect();
    rmp_serde::to_vec(&(batch.ts, events, batch.data_parallel_rank)).unwrap()
}

fn a_hash() -> impl Strategy<Value = EngineHash> {
    prop_oneof![
        any::<u64>().prop_map(EngineHash::from_u64),
        (0..300_u64).prop_map(EngineHash::from_u64),
        vec(any::<u8>(), 1..=32).prop_map(|bytes| EngineHash::from_bytes(&bytes).unwrap()),
    ]
}

fn an_extra_key() -> impl Strategy<Value = ExtraKey> {
    prop_oneof![
        "[a-zü漢 ]{0,40}".prop_map(|text| ExtraKey::Text(text.into())),
        any::<i64>().prop_map(ExtraKey::Int),
        vec(any::<u8>(), 0..40).prop_map(|bytes| ExtraKey::Bytes(bytes.into())),
        ("[a-f0-9]{0,64}", any::<i64>())
            .prop_map(|(id, offset_tokens)| ExtraKey::Media { id: id.into(), offset_tokens }),
    ]
}

fn a_medium() -> impl Strategy<Value = Medium> {
    prop_oneof![
        Just(Medium::Unspecified),
        Just(Medium::Gpu),
        Just(Medium::Cpu),
        Just(Medium::Storage),
        "EXTERNAL|x{300}".prop_map(|name| Medium::Other(name.into())),
    ]
}

fn a_kind() -> impl Strategy<Value = SpecKind> {
    prop_oneof![
        Just(SpecKind::FullAttention),
        Just(SpecKind::SlidingWindow),
        Just(SpecKind::Mamba),
        Just(SpecKind::Other("encoder_only_attention".into())),
    ]
}

fn a_stored() -> impl Strategy<Value = BlocksStored> {
    let tokens = vec(prop_oneof![0..128_u32, 0..70_000_u32, any::<u32>()], 0..80);
    let extras = vec(option::of(vec(an_extra_key(), 0..4)), 0..4);
    (
        (
            vec(a_hash(), 0..20),
            option::of(a_hash()),
            tokens,
            any::<u32>(),
            option::of(any::<i64>()),
            a_medium(),
        ),
        (
            option::of("[a-z/.]{0,40}"),
            extras,
            option::of(any::<u32>()),
            option::of(a_kind()),
            option::of(any::<u32>()),
        ),
    )
        .prop_map(|((hashes, parent, token_ids, block_size_tokens, lora_id, medium), rest)| {
            let (lora_name, extra_keys, group, spec_kind, sliding_window_tokens) = rest;
            let has_extras = extra_keys.iter().any(Option::is_some);
            BlocksStored {
                hashes,
                parent,
                token_ids,
                block_size_tokens,
                lora_name: lora_name.map(Into::into),
                lora_id,
                medium,
                group,
                spec_kind,
                sliding_window_tokens,
                extra_keys: if has_extras { extra_keys } else { Vec::new() },
                cache_salt: None,
                ..BlocksStored::default()
            }
        })
}

fn an_event() -> impl Strategy<Value = KvEvent> {
    prop_oneof![
        4 => a_stored().prop_map(KvEvent::Stored),
        2 => (vec(a_hash(), 0..20), a_medium(), option::of(any::<u32>()))
            .prop_map(|(hashes, medium, group)| KvEvent::Removed(BlocksRemoved { hashes, medium, group })),
        1 => Just(KvEvent::Cleared),
    ]
}

fn a_batch() -> impl Strategy<Value = EventBatch> {
    (0.0..4e9_f64, vec(an_event(), 0..20), option::of(any::<u32>())).prop_map(
        |(ts, events, data_parallel_rank)| EventBatch {
            ts,
            events,
            data_parallel_rank,
            skipped: Default::default(),
        },
    )
}

proptest! {
    #[test]
    fn reads_what_rmp_serde_writes(batch in a_batch(), as_map in any::<bool>()) {
        let mut batch = batch;
        for event in &mut batch.events {
            if let KvEvent::Stored(stored) = event {
                stored.lookahead_tokens = if as_map { LOOKAHEAD_TOKENS } else { 0 };
            }
        }
        prop_assert_eq!(decode(&encode(&batch, as_map)), Ok(batch));
    }

    /// Nothing of one batch shows in the next, damaged ones among them.
    #[test]
    fn a_decoder_that_is_used_again_reads_like_a_new_one(
        batches in vec((a_batch(), any::<bool>(), option::of((any::<usize>(), any::<u8>()))), 1..6),
    ) {
        let mut decoder = BatchDecoder::new(DecodeLimits::default());
        for (batch, as_map, damage) in batches {
            let mut payload = encode(&batch, as_map);
            if let Some((place, byte)) = damage {
                let place = place % payload.len();
                payload[place] = byte;
            }
            // As text, since a damaged time may be NaN.
            prop_assert_eq!(format!("{:?}", decoder.decode(&payload)), format!("{:?}", decode(&payload).as_ref()));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    /// Bytes that look like a batch with events in it.
    #[test]
    fn random_events_never_panic(body in vec(any::<u8>(), 0..200), count in 0..16_u8) {
        let _ = decode(&[&[0x92, 0x01, 0x90 | count][..], &body].concat());
    }

    /// What is accepted after damage is still well-formed msgpack by the other reader, of the same length.
    #[test]
    fn damaged_batches_agree_with_rmp_serde(
        batch in a_batch(), as_map in any::<bool>(), place in any::<usize>(), byte in any::<u8>(),
    ) {
        let mut payload = encode(&batch, as_map);
        let place = place % payload.len();
        payload[place] = byte;
        if decode(&payload).is_ok() {
            let mut rest = payload.as_slice();
            let read: Result<IgnoredAny, _> =
                serde::Deserialize::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
            prop_assert!(read.is_ok(), "{:?} at {} of {:02x?}", read.err(), place, payload);
            prop_assert!(rest.is_empty());
        }
    }
}

fn batch_of(events: &[&[u8]]) -> Vec<u8> {
    let mut payload = vec![0x93, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0x90 | events.len() as u8];
    payload.extend(events.concat());
    payload.push(0);
    payload
}

fn pack(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

const CLEARED: &[u8] = b"\x91\xb0AllBlocksCleared";

/// The error for an offset.
type Reason<'r> = &'r dyn Fn(usize) -> DecodeError;

/// Each malformed event stands between two good ones; the reason's offset is relative to the event.
#[test]
fn a_malformed_event_does_not_cost_the_others() {
    let range =
        |offset, value| DecodeError::OutOfRange { what: "token id", offset, value, expected: "0..2^32" };
    let wrong = |what, offset, marker, expected| DecodeError::WrongType { what, offset, marker, expected };
    let missing = |field| move |offset| DecodeError::MissingField { offset, field };
    let cases: [(Vec<u8>, usize, Reason<'_>); 12] = [
        (pack(&("BlockMoved", 1)), 0, &|offset| DecodeError::UnknownEvent { offset }),
        (pack(&("BlockRemoved",)), 0, &missing("block_hashes")),
        (pack(&("BlockStored", [1], (), [1])), 0, &missing("block_size")),
        (vec![0x80], 0, &missing("type")),
        (vec![0x90], 0, &missing("type")),
        (vec![0xc0], 0, &|offset| wrong("event", offset, 0xc0, "an array")),
        (pack(&("BlockRemoved", ["x"])), 15, &|offset| wrong("block hash", offset, 0xa1, "an integer")),
        (pack(&("BlockStored", [1], (), [(1, 2), (3, 4)], 2)), 20, &|offset| DecodeError::TokenPairs {
            offset,
        }),
        (pack(&("BlockStored", [1], (), [1_u64 << 32], 1)), 17, &|offset| range(offset, 1 << 32)),
        (pack(&("BlockStored", [1], (), [-1], 1)), 17, &|offset| range(offset, -1)),
        (pack(&("BlockRemoved", [Bin(&[0; 33])])), 15, &|offset| DecodeError::HashLength { offset, len: 33 }),
        (b"\x91\xa1\xff".to_vec(), 0, &|offset| DecodeError::UnknownEvent { offset }),
    ];
    for (event, place, reason) in &cases {
        let batch = decode(&batch_of(&[CLEARED, event, CLEARED])).unwrap();
        assert_eq!(batch.events, [KvEvent::Cleared, KvEvent::Cleared]);
        let reason = reason(11 + CLEARED.len() + place);
        assert_eq!(
            batch.skipped,
            SkippedEvents { count: 1, reasons: vec![SkippedEvent { index: 1, reason }] }
        );
    }
    let all: Vec<&[u8]> = cases.iter().map(|(event, ..)| event.as_slice()).collect();
    let skipped = decode(&batch_of(&all)).unwrap().skipped;
    assert_eq!((skipped.count, skipped.reasons.len()), (12, SkippedEvents::MAX_REASONS));
}

#[test]
fn sglang_forms() {
    let salted = pack(&(
        "BlockStored",
        [-5_i64, i64::MIN],
        -7_i64,
        [1, 2, 3, 4],
        2,
        (),
        "CPU_PINNED",
        serde_json::json!({"other": [1, 2], "cache_salt": "s"}),
    ));
    let short = pack(&("BlockStored", [1], (), [1, 2], 2, ()));
    for tail in [&b""[..], b"\x00", b"\xc0\x01\x02"] {
        let mut payload = vec![0x92 + tail.len() as u8, 0x01, 0x92];
        payload.extend([&salted[..], &short, tail].concat());
        let batch = decode(&payload).unwrap();
        let [KvEvent::Stored(salted), KvEvent::Stored(short)] = &batch.events[..] else {
            panic!("{batch:?}")
        };
        assert_eq!(salted.hashes, [EngineHash::from_u64(-5_i64 as u64), EngineHash::from_u64(1 << 63)]);
        assert_eq!(salted.parent, Some(EngineHash::from_u64(-7_i64 as u64)));
        assert_eq!((salted.medium.clone(), salted.cache_salt.as_deref()), (Medium::Cpu, Some("s")));
        assert_eq!((short.token_ids.clone(), short.medium.clone()), (vec![1, 2], Medium::Unspecified));
        assert_eq!(batch.data_parallel_rank, (tail == b"\x00").then_some(0));
    }
}

#[test]
fn unknown_extra_keys_are_kept_raw() {
    let stored = pack(&("BlockStored", [1], (), [1], 1, (), (), (), [[("lora", "name", "path")]]));
    let batch = decode(&batch_of(&[&stored])).unwrap();
    let [KvEvent::Stored(stored)] = &batch.events[..] else { panic!("{batch:?}") };
    assert_eq!(stored.extra_keys, [Some(vec![ExtraKey::Other(pack(&("lora", "name", "path")).into())])]);
}

/// Claims of lengths that aren't there are errors at the place of the claim, made before anything is reserved.
#[test]
fn false_claims_are_errors() {
    let huge = [0xff, 0xff, 0xff, 0xff];
    let claims: [(&str, Vec<u8>); 7] = [
        ("batch", [&[0xdd][..], &huge].concat()),
        ("events", [&[0x92, 0x01, 0xdd][..], &huge].concat()),
        ("hashes", [&b"\x92\x01\x91\x92\xacBlockRemoved\xdd"[..], &huge].concat()),
        ("bin hash", [&b"\x92\x01\x91\x92\xacBlockRemoved\x91\xc6"[..], &huge].concat()),
        ("tokens", [&b"\x92\x01\x91\x95\xabBlockStored\x90\xc0\xdd"[..], &huge].concat()),
        ("map", [&b"\x92\x01\x91\xdf"[..], &huge].concat()),
        ("text", [&b"\x92\x01\x91\x81\xdb"[..], &huge].concat()),
    ];
    for (what, payload) in claims {
        let error = decode(&payload).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { .. }), "{what}: {error}");
    }
}

#[test]
fn deep_nesting_is_stepped_over_without_recursion() {
    let depth = 1_000_000;
    let mut payload = vec![0x93, 0x01, 0x90, 0xc0];
    payload[0] = 0x94;
    payload.extend(std::iter::repeat_n(0x91, depth));
    payload.push(0xc0);
    assert_eq!(decode(&payload).unwrap().events, []);
    payload.pop();
    assert!(decode(&payload).is_err());
    // Nested claims of many elements each fail at once.
    let mut wide = vec![0x94, 0x01, 0x90, 0xc0];
    wide.extend([0xdd, 0, 0, 0, 8].repeat(100_000));
    assert!(decode(&wide).is_err());
}

#[test]
fn limits_hold() {
    let limits = DecodeLimits { max_payload_bytes: 200, max_events: 2, max_blocks: 3 };
    let too_many = |payload: &[u8]| match decode_batch(payload, &limits) {
        Err(DecodeError::TooMany { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(too_many(&[0; 201]), "payload bytes");
    assert_eq!(too_many(&batch_of(&[CLEARED; 3])), "events");
    let two = pack(&("BlockRemoved", [1, 2]));
    assert_eq!(too_many(&batch_of(&[&two, &two])), "block hashes");
    assert!(decode_batch(&batch_of(&[&two]), &limits).is_ok());
}

#[test]
fn a_batch_that_is_none_is_an_error() {
    for payload in
        [&b""[..], b"\xc0", b"\x90", b"\x91\x01", b"\x92\xa0\x90", b"\x92\x01\xc0", b"\x93\x01\x90\xa1x"]
    {
        assert!(decode(payload).is_err(), "{payload:02x?}");
    }
    assert_eq!(decode(b"\x92\x01\x90\x00"), Err(DecodeError::TrailingBytes { offset: 3, left: 1 }));
}
