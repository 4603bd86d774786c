//! A payload, decoded.

use warmroute_kv_events::{DecodeLimits, EventBatch, KvEvent, batch_time, decode_batch};

use crate::wire_events;

/// What is decoded is all there and no more than there is, and is decoded again from what an engine would write of it.
pub(crate) fn run(payload: &[u8]) {
    let limits = DecodeLimits { max_payload_bytes: 1 << 16, max_events: 100, max_blocks: 300 };
    let Ok(batch) = decode_batch(payload, &limits) else { return };
    let (_, events) = wire_events::outer_lengths(payload).expect("only well-formed msgpack is taken");
    assert_eq!(batch.events.len() + batch.skipped.count as usize, events as usize, "no event gets lost");
    assert_eq!(batch_time(payload).map(f64::to_bits), Some(batch.ts.to_bits()));
    check_sizes(&batch, payload.len(), &limits);

    let rewritten = wire_events::batch(batch.ts, &batch.events, batch.data_parallel_rank);
    let again = decode_batch(&rewritten, &DecodeLimits::default()).expect("what is decoded can be written");
    assert_eq!(again.skipped.count, 0, "{:?}", again.skipped);
    assert_eq!(again.ts.to_bits(), batch.ts.to_bits());
    assert_eq!((again.events, again.data_parallel_rank), (batch.events, batch.data_parallel_rank));
}

/// Every value takes a byte at least.
fn check_sizes(batch: &EventBatch, payload_bytes: usize, limits: &DecodeLimits) {
    let (mut values, mut blocks) = (0, 0);
    for event in &batch.events {
        values += 1;
        match event {
            KvEvent::Stored(stored) => {
                blocks += stored.hashes.len();
                values += stored.hashes.len() + stored.token_ids.len() + stored.extra_keys.len();
                values += stored.extra_keys.iter().flatten().map(Vec::len).sum::<usize>();
            }
            KvEvent::Removed(removed) => {
                blocks += removed.hashes.len();
                values += removed.hashes.len();
            }
            KvEvent::Cleared => {}
        }
    }
    assert!(values < payload_bytes && batch.events.len() <= limits.max_events && blocks <= limits.max_blocks);
}
