//! Replays: what publishers answer, and what they shouldn't.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

use bytes::Bytes;
use warmroute_kv_events::{Replay, ReplayEnd, ReplayLimits, ReplayStep};

const END: u64 = u64::MAX;

fn message(seq: u64, with_topic: bool) -> Vec<Bytes> {
    let payload = if seq == END { Bytes::new() } else { Bytes::from_static(b"batch") };
    let mut frames = vec![Bytes::new(), Bytes::copy_from_slice(&seq.to_be_bytes()), payload];
    if with_topic {
        frames.insert(1, if seq == END { Bytes::new() } else { Bytes::from_static(b"kv@e@m") });
    }
    frames
}

/// Feeds one answer. Returns the batches in it and the last step, unless that was a batch.
fn answer(replay: &mut Replay, seqs: impl IntoIterator<Item = u64>) -> (Vec<u64>, ReplayStep) {
    let (mut batches, mut last) = (Vec::new(), ReplayStep::Wait);
    for seq in seqs {
        last = replay.take(&message(seq, true), 0);
        if let ReplayStep::Batch { seq, .. } = &last {
            batches.push(*seq);
        }
    }
    (batches, last)
}

fn asked(replay: &Replay) -> u64 {
    u64::from_be_bytes(replay.request())
}

#[test]
fn both_layouts_and_an_answer_that_starts_late() {
    for with_topic in [true, false] {
        let mut replay = Replay::new(3, ReplayLimits::default(), 0);
        assert_eq!(asked(&replay), 3);
        let payload = Bytes::from_static(b"batch");
        assert_eq!(
            replay.take(&message(7, with_topic), 0),
            ReplayStep::Batch { seq: 7, payload: payload.clone() }
        );
        assert_eq!(replay.take(&message(8, with_topic), 0), ReplayStep::Batch { seq: 8, payload });
        assert_eq!(replay.take(&message(END, with_topic), 0), ReplayStep::End(ReplayEnd::Complete));
    }
    let mut replay = Replay::new(3, ReplayLimits::default(), 0);
    assert_eq!(answer(&mut replay, [END]).1, ReplayStep::End(ReplayEnd::Complete));
}

#[test]
fn holes_are_asked_for_from_the_first_one() {
    let mut replay = Replay::new(0, ReplayLimits::default(), 0);
    assert_eq!(answer(&mut replay, [0, 1, 2, 5, 6, 8, END]), (vec![0, 1, 2], ReplayStep::Ask));
    assert_eq!(asked(&replay), 3);
    assert_eq!(answer(&mut replay, [3, 4, 5, 7, END]), (vec![3, 4, 5], ReplayStep::Ask));
    assert_eq!(asked(&replay), 6);
    assert_eq!(
        answer(&mut replay, [6, 7, 8, 9, END]),
        (vec![6, 7, 8, 9], ReplayStep::End(ReplayEnd::Complete))
    );
}

#[test]
fn a_hole_that_has_left_the_buffer_ends_it() {
    let mut replay = Replay::new(0, ReplayLimits::default(), 0);
    assert_eq!(answer(&mut replay, [0, 1, 4, END]).1, ReplayStep::Ask);
    assert_eq!(answer(&mut replay, [3]).1, ReplayStep::End(ReplayEnd::Overtaken));
}

#[test]
fn a_long_answer_may_have_lost_its_tail_so_it_is_asked_for() {
    let mut replay = Replay::new(0, ReplayLimits::default(), 0);
    let (batches, step) = answer(&mut replay, (0..1500).chain([END]));
    assert_eq!((batches.len(), step, asked(&replay)), (1500, ReplayStep::Ask, 1500));
    assert_eq!(answer(&mut replay, [END]).1, ReplayStep::End(ReplayEnd::Complete));
}

#[test]
fn silence_is_asked_again_and_then_given_up() {
    let mut replay = Replay::new(5, ReplayLimits::default(), 0);
    assert_eq!(replay.next_tick_ms(), 2000);
    assert_eq!(replay.tick(1999), ReplayStep::Wait);
    assert_eq!(replay.tick(2000), ReplayStep::Ask);
    assert_eq!(asked(&replay), 5);
    // The answer comes late, and that to the second request too.
    assert!(matches!(replay.take(&message(5, true), 2500), ReplayStep::Batch { seq: 5, .. }));
    assert_eq!(replay.tick(4500), ReplayStep::Ask, "it never ends");
    assert_eq!(asked(&replay), 6);
    assert_eq!(replay.take(&message(5, true), 4600), ReplayStep::Wait);
    assert_eq!(replay.tick(6600), ReplayStep::Ask);
    assert_eq!(replay.tick(8600), ReplayStep::Ask);
    assert_eq!(replay.tick(10_600), ReplayStep::End(ReplayEnd::Silent));
}

#[test]
fn what_never_ends_meets_a_limit() {
    let limits = ReplayLimits { max_bytes: 1000, ..ReplayLimits::default() };
    let mut replay = Replay::new(0, limits, 0);
    let (batches, step) = answer(&mut replay, 0..100);
    assert_eq!((batches.len(), step), (14, ReplayStep::End(ReplayEnd::Limit)));
    let mut replay = Replay::new(0, ReplayLimits::default(), 0);
    assert_eq!(replay.take(&message(0, true), 120_000), ReplayStep::End(ReplayEnd::Limit));
    // Holes without end.
    let mut replay = Replay::new(0, ReplayLimits { max_requests: 5, ..ReplayLimits::default() }, 0);
    let ends = (0..5).map(|at| answer(&mut replay, [at, at + 2, END]).1).last();
    assert_eq!(ends, Some(ReplayStep::End(ReplayEnd::Limit)));
    let mut replay = Replay::new(0, ReplayLimits::default(), 0);
    answer(&mut replay, [0, 1, 3, END]);
    let fruitless = |replay: &mut Replay| answer(replay, [1, 3, END]).1;
    assert_eq!((fruitless(&mut replay), fruitless(&mut replay)), (ReplayStep::Ask, ReplayStep::Ask));
    assert_eq!(fruitless(&mut replay), ReplayStep::End(ReplayEnd::Holes));
}

#[test]
fn what_is_no_answer_ends_it() {
    let frame = |bytes: &'static [u8]| Bytes::from_static(bytes);
    let malformed = [
        vec![],
        vec![frame(b""), frame(&[0; 8])],
        vec![frame(b"x"), frame(&[0; 8]), frame(b"p")],
        vec![frame(b""), frame(&[0; 7]), frame(b"p")],
        vec![frame(b""), frame(b"t"), frame(b"t"), frame(&[0; 8]), frame(b"p")],
    ];
    for frames in malformed {
        let mut replay = Replay::new(0, ReplayLimits::default(), 0);
        assert_eq!(replay.take(&frames, 0), ReplayStep::End(ReplayEnd::Malformed));
    }
}
