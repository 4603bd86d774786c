//! The feed of one engine against a slow and obviously right model of the engine, its publisher and the wires between.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

#[path = "engine_feed/world.rs"]
mod world;

use proptest::prelude::*;
use warmroute_kv_events::{Trust, TrustReason};
use world::{Event, Step, World, WorldOptions};

fn world(can_replay: bool) -> World {
    World::new(WorldOptions { can_replay, buffer: 1000, can_lose_replays: false })
}

fn trust(world: &World) -> (Trust, TrustReason) {
    (world.feed.trust().trust, world.feed.trust().reason)
}

/// Publishes and delivers.
fn hear(world: &mut World, batches: usize) {
    for _ in 0..batches {
        world.publish(3);
        world.deliver(0);
    }
}

fn lose(world: &mut World, batches: usize) {
    for _ in 0..batches {
        world.publish(3);
        world.drop_live(0);
    }
}

#[test]
fn from_the_first_batch_on_it_is_exact() {
    let mut world = world(false);
    assert_eq!(trust(&world), (Trust::Blind, TrustReason::NeverConnected));
    world.connect();
    assert_eq!(trust(&world), (Trust::Blind, TrustReason::NothingHeard));
    hear(&mut world, 5);
    assert_eq!(trust(&world), (Trust::Exact, TrustReason::FollowedFromStart));
    world.disconnect();
    assert_eq!(trust(&world), (Trust::Blind, TrustReason::ConnectionLost));
}

#[test]
fn without_replay_a_gap_is_doubtful_until_the_cache_is_cleared() {
    let mut world = world(false);
    world.connect();
    hear(&mut world, 3);
    lose(&mut world, 2);
    hear(&mut world, 2);
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Gap));
    assert_eq!(world.events(), [Event::Gap { missed: 2 }]);
    world.clear();
    world.deliver(0);
    assert_eq!(trust(&world), (Trust::Exact, TrustReason::Cleared));
}

#[test]
fn a_gap_is_replayed_and_live_batches_wait_for_it() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 3);
    lose(&mut world, 2);
    hear(&mut world, 1);
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Gap));
    assert_eq!(world.feed.last_seq(), Some(2));
    hear(&mut world, 2);
    world.finish_replay();
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(7)));
    assert_eq!(world.sink.generations, 0);
}

#[test]
fn a_late_batch_closes_its_gap_without_the_replay() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 1);
    world.publish(3);
    world.publish(3);
    world.deliver(1);
    assert_eq!(trust(&world).0, Trust::Doubtful);
    world.deliver(0);
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(2)));
    assert!(world.replay_is_stopped());
}

#[test]
fn a_restarted_engine_that_is_already_ahead_is_no_gap() {
    for can_replay in [true, false] {
        let mut world = world(can_replay);
        world.connect();
        world.finish_replay();
        hear(&mut world, 3);
        world.restart();
        lose(&mut world, 5);
        world.disconnect();
        world.connect();
        hear(&mut world, 1);
        world.finish_replay();
        assert!(world.events().iter().any(|event| matches!(event, Event::Restart { .. })));
        assert!(!world.events().iter().any(|event| matches!(event, Event::Gap { .. })));
        assert_eq!(world.sink.generations, 1);
        let expected = if can_replay { Trust::Exact } else { Trust::Partial };
        assert_eq!((trust(&world).0, world.feed.last_seq()), (expected, Some(5)), "replay: {can_replay}");
    }
}

/// The new process has published exactly as many batches as the old one: only a replay can tell.
#[test]
fn a_restarted_engine_that_goes_on_with_the_next_number_is_not_taken_for_the_old_one() {
    for can_replay in [true, false] {
        let mut world = world(can_replay);
        world.connect();
        world.finish_replay();
        hear(&mut world, 3);
        world.restart();
        lose(&mut world, 3);
        world.disconnect();
        world.connect();
        hear(&mut world, 1);
        world.finish_replay();
        let expected = if can_replay { Trust::Exact } else { Trust::Doubtful };
        assert_eq!(trust(&world).0, expected, "replay: {can_replay}");
    }
}

#[test]
fn a_restarted_engine_that_has_published_nothing_yet_holds_nothing() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 3);
    world.restart();
    world.disconnect();
    world.connect();
    world.finish_replay();
    assert_eq!((trust(&world).0, world.sink.generations), (Trust::Exact, 1));
    assert_eq!(world.sink.claimed(), []);
    hear(&mut world, 1);
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(0)));
}

#[test]
fn a_lost_connection_proves_by_replay_that_nothing_was_missed() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 3);
    world.disconnect();
    lose(&mut world, 2);
    world.connect();
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Reconnected));
    world.finish_replay();
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(4)));
    assert_eq!(world.sink.generations, 0);
}

#[test]
fn beside_an_engine_whose_buffer_has_overflowed_it_joins_as_partial() {
    let mut world = World::new(WorldOptions { can_replay: true, buffer: 4, can_lose_replays: false });
    for _ in 0..20 {
        world.publish(3);
    }
    world.connect();
    world.finish_replay();
    assert_eq!(trust(&world), (Trust::Partial, TrustReason::BufferOverflowed));
    hear(&mut world, 3);
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Partial, Some(22)));
    // So it is when the buffer has moved on since the connection was lost.
    world.disconnect();
    lose(&mut world, 9);
    world.connect();
    world.finish_replay();
    assert_eq!(trust(&world), (Trust::Partial, TrustReason::BufferOverflowed));
    assert_eq!(world.sink.generations, 2);
}

#[test]
fn where_replay_fails_a_new_generation_begins() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 3);
    lose(&mut world, 1);
    hear(&mut world, 2);
    world.fail_replay();
    assert_eq!(trust(&world), (Trust::Partial, TrustReason::ReplayFailed));
    assert_eq!((world.sink.generations, world.feed.last_seq()), (1, Some(5)));
}

#[test]
fn what_cannot_be_decoded_is_doubtful_and_what_is_left_out_partial() {
    let mut world = world(false);
    world.connect();
    hear(&mut world, 2);
    world.next_facts.unknown_parents = true;
    hear(&mut world, 1);
    assert_eq!(trust(&world), (Trust::Partial, TrustReason::UnknownParents));
    world.next_facts.other_tiers = true;
    hear(&mut world, 1);
    assert_eq!(trust(&world), (Trust::Partial, TrustReason::OtherTiers));
    world.next_facts.undecodable_events = true;
    hear(&mut world, 1);
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::UndecodableEvent));
    world.clear();
    world.deliver(0);
    assert_eq!(
        trust(&world),
        (Trust::Partial, TrustReason::OtherTiers),
        "a reset changes nothing about tiers"
    );
}

#[test]
fn a_lost_tail_is_found_when_it_gets_quiet_and_trust_does_not_flicker() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 2);
    lose(&mut world, 2);
    world.quiet();
    assert_eq!(trust(&world).0, Trust::Exact);
    world.finish_replay();
    world.assert_up_to_date();
    // Once per silence; and a live batch makes it needless.
    world.quiet();
    assert!(world.replay_is_stopped());
    hear(&mut world, 1);
    world.quiet();
    assert!(!world.replay_is_stopped());
    hear(&mut world, 1);
    assert!(world.replay_is_stopped());
    // An engine that doesn't answer is no worse for it.
    world.quiet();
    world.fail_replay();
    world.assert_up_to_date();
    // A restart shows too.
    world.restart();
    hear(&mut world, 1);
    world.quiet();
    assert!(world.replay_is_stopped(), "it was checked in this silence");
}

#[test]
fn an_idle_engine_whose_new_connection_is_in_doubt_is_asked_again() {
    let mut world = world(true);
    world.connect();
    world.finish_replay();
    hear(&mut world, 3);
    world.disconnect();
    world.connect();
    for _ in 0..3 {
        world.fail_replay();
        assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Reconnected));
        assert!(world.replay_is_stopped());
        world.quiet();
    }
    world.finish_replay();
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(2)));
    assert_eq!(world.sink.generations, 0);
}

#[test]
fn duplicates_and_late_batches_are_dropped() {
    let mut world = world(false);
    world.connect();
    hear(&mut world, 3);
    world.publish(3);
    world.duplicate(0);
    world.deliver(0);
    world.deliver(0);
    assert_eq!(world.events(), [Event::Duplicate]);
    assert_eq!((trust(&world).0, world.feed.last_seq()), (Trust::Exact, Some(3)));
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..6).prop_map(Step::Publish),
        8 => (0u8..2).prop_map(Step::Deliver),
        2 => (0u8..3).prop_map(Step::Drop),
        2 => (0u8..3).prop_map(Step::Duplicate),
        1 => Just(Step::Clear),
        1 => Just(Step::Restart),
        1 => Just(Step::Disconnect),
        3 => Just(Step::Connect),
        2 => Just(Step::AskReplay),
        6 => (1u8..9).prop_map(Step::DeliverReplay),
        1 => Just(Step::FailReplay),
        1 => Just(Step::OverflowQueue),
        1 => Just(Step::Garble),
        1 => Just(Step::Silence),
        1 => Just(Step::Quiet),
    ]
}

/// The same with a sibling from whom a new follower gets what it knows.
fn step_beside_a_sibling() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => step(),
        1 => Just(Step::BeginAnew),
        3 => Just(Step::Export),
        3 => Just(Step::Import),
        1 => Just(Step::NoHistory),
        1 => Just(Step::SiblingNotices),
        1 => Just(Step::SiblingLoses),
    ]
}

/// A follower that begins late, beside a sibling that has heard everything.
fn beside_a_sibling(can_replay: bool) -> World {
    let mut world = world(can_replay);
    (0..5).for_each(|_| world.publish(3));
    world.begin_anew();
    world.connect();
    world
}

#[test]
fn a_history_is_gone_on_with_and_proven_by_a_batch_that_waited() {
    for can_replay in [true, false] {
        let mut world = beside_a_sibling(can_replay);
        hear(&mut world, 1);
        assert_eq!(trust(&world), (Trust::Blind, TrustReason::NothingHeard), "it waits");
        world.export();
        hear(&mut world, 2);
        world.import();
        assert_eq!(trust(&world).0, Trust::Exact, "replay: {can_replay}");
        assert!(world.replay_is_stopped(), "none is needed");
        hear(&mut world, 1);
        world.assert_up_to_date();
    }
}

#[test]
fn a_history_of_an_idle_engine_is_proven_by_a_replay() {
    let mut world = beside_a_sibling(true);
    world.export();
    world.import();
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Reconnected));
    world.finish_replay();
    world.assert_up_to_date();
    assert_eq!(world.sink.generations, 0);
}

#[test]
fn what_was_published_between_a_history_and_the_connection_is_replayed() {
    let mut world = world(true);
    (0..5).for_each(|_| world.publish(3));
    world.export();
    (0..3).for_each(|_| world.publish(3));
    world.begin_anew();
    world.connect();
    hear(&mut world, 1);
    world.import();
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Reconnected));
    world.finish_replay();
    world.assert_up_to_date();
    assert_eq!(world.sink.generations, 0);
}

#[test]
fn a_history_of_a_process_that_is_gone_is_dropped() {
    for can_replay in [true, false] {
        let mut world = world(can_replay);
        (0..5).for_each(|_| world.publish(3));
        world.export();
        world.restart();
        // As many as before: only a replay can tell, or the doubt stays.
        (0..5).for_each(|_| world.publish(3));
        world.begin_anew();
        world.connect();
        world.import();
        hear(&mut world, 1);
        if can_replay {
            world.finish_replay();
            world.assert_up_to_date();
            assert_eq!(world.sink.generations, 1);
        } else {
            assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Reconnected));
        }
    }
}

#[test]
fn a_history_does_not_take_the_place_of_a_better_view() {
    // It may claim what is gone, and the engine answers replays.
    let mut world = world(true);
    (0..3).for_each(|_| world.publish(3));
    world.take(Step::SiblingLoses);
    (0..2).for_each(|_| world.publish(3));
    world.begin_anew();
    world.connect();
    world.export();
    world.import();
    assert_eq!(trust(&world), (Trust::Blind, TrustReason::NothingHeard));
    world.no_history();
    world.finish_replay();
    world.assert_up_to_date();
    // Nor is it taken where something is known already.
    world.import();
    world.assert_up_to_date();
}

#[test]
fn a_doubtful_history_is_doubtful() {
    let mut world = world(false);
    (0..3).for_each(|_| world.publish(3));
    world.take(Step::SiblingLoses);
    (0..2).for_each(|_| world.publish(3));
    world.begin_anew();
    world.connect();
    hear(&mut world, 1);
    world.export();
    world.import();
    assert_eq!(trust(&world), (Trust::Doubtful, TrustReason::Gap));
}

#[test]
fn who_waits_in_vain_begins_as_ever() {
    for (can_replay, expected) in [(true, Trust::Exact), (false, Trust::Partial)] {
        let mut world = beside_a_sibling(can_replay);
        hear(&mut world, 2);
        world.no_history();
        world.finish_replay();
        assert_eq!((trust(&world).0, world.feed.last_seq()), (expected, Some(6)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// `World` checks after every step: what is claimed of a sound engine had been announced and not withdrawn as of
    /// the last batch applied, and of an exact one nothing is missing.
    #[test]
    fn trust_never_promises_too_much(
        can_replay: bool,
        buffer in 1usize..12,
        can_lose_replays: bool,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(WorldOptions { can_replay, buffer, can_lose_replays });
        for step in steps {
            world.take(step);
        }
    }

    /// The same where followers begin with what a sibling knows, whenever it told it.
    #[test]
    fn trust_in_a_siblings_view_never_promises_too_much(
        can_replay: bool,
        buffer in 1usize..12,
        can_lose_replays: bool,
        steps in prop::collection::vec(step_beside_a_sibling(), 1..150),
    ) {
        let mut world = World::new(WorldOptions { can_replay, buffer, can_lose_replays });
        for step in steps {
            world.take(step);
        }
    }

    /// Once the wires are good again, everything that can be repaired is.
    #[test]
    fn in_the_end_it_is_sound_again(
        buffer in 2usize..12,
        steps in prop::collection::vec(step_beside_a_sibling(), 1..80),
    ) {
        let mut world = World::new(WorldOptions { can_replay: true, buffer, can_lose_replays: true });
        for step in steps {
            world.take(step);
        }
        world.recover();
        let trust = world.feed.trust();
        prop_assert!(
            trust.trust <= Trust::Partial || trust.reason == TrustReason::UndecodableBatch,
            "{trust:?}"
        );
        world.clear();
        world.deliver(0);
        prop_assert_eq!(world.feed.trust().trust, Trust::Exact);
        // Nor does a lost tail go unnoticed.
        world.publish(3);
        world.drop_live(0);
        world.quiet();
        world.finish_replay();
        world.assert_up_to_date();
    }
}
