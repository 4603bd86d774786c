//! What a ROUTER answers to a request for replay, and when.

use bytes::Bytes;
use warmroute_kv_events::{Replay, ReplayLimits, ReplayStep};

use crate::bytes_left::BytesLeft;

const LIMITS: ReplayLimits = ReplayLimits {
    max_requests: 6,
    max_fruitless_requests: 3,
    max_bytes: 20_000,
    max_ms: 2_000,
    silence_ms: 100,
};

/// Batches come in order and without a hole, and neither requests nor bytes nor time exceed their limits.
pub(crate) fn run(data: &[u8]) {
    let mut data = BytesLeft(data);
    let from = u64::from(data.below(20));
    let mut replay = Replay::new(from, LIMITS, 0);
    let (mut now_ms, mut requests, mut bytes, mut next) = (0_u64, 1, 0, None::<u64>);
    assert_eq!(replay.request(), from.to_be_bytes());
    while !data.is_empty() {
        let step = if data.below(8) == 0 {
            now_ms += u64::from(data.byte());
            replay.tick(now_ms)
        } else {
            replay.take(&answer(&mut data, next.unwrap_or(from)), now_ms)
        };
        match step {
            ReplayStep::Wait => {}
            ReplayStep::Batch { seq, payload } => {
                bytes += payload.len() as u64;
                assert!(seq >= from && next.is_none_or(|next| seq == next));
                next = Some(seq + 1);
            }
            ReplayStep::Ask => {
                requests += 1;
                assert_eq!(u64::from_be_bytes(replay.request()), next.unwrap_or(from));
            }
            ReplayStep::End(_) => return,
        }
        assert!(
            requests <= LIMITS.max_requests && bytes <= LIMITS.max_bytes && now_ms <= LIMITS.max_ms + 255
        );
    }
    assert!(replay.next_tick_ms() <= now_ms.max(LIMITS.max_ms) + LIMITS.silence_ms);
}

/// Mostly what a ROUTER sends, near the number expected next.
fn answer(data: &mut BytesLeft<'_>, next: u64) -> Vec<Bytes> {
    let what = data.byte();
    let seq = match what & 7 {
        0 => u64::MAX,
        1 => u64::from(data.byte()),
        2 => next.wrapping_sub(1),
        3 => next.wrapping_add(1 + u64::from(data.below(4))),
        4 => u64::MAX - 1,
        _ => next,
    };
    let payload = Bytes::copy_from_slice(data.take(usize::from(what >> 5)));
    let seq = Bytes::copy_from_slice(&seq.to_be_bytes());
    match what >> 3 & 3 {
        0 | 1 => vec![Bytes::new(), Bytes::from_static(b"kv@e@m"), seq, payload],
        2 => vec![Bytes::new(), seq, payload],
        _ => {
            let count = data.below(6);
            (0..count).map(|_| Bytes::copy_from_slice(data.take(count as usize * 3))).collect()
        }
    }
}
