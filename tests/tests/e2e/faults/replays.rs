//! Replays that are late, have holes, begin late, never end or never come.

use futures::future::join_all;
use serde_json::{Value, json};
use warmroute_kv_events::{Trust, TrustReason};

use super::followed::Followed;
use super::publisher::Publisher;
use crate::fixture::run;

/// Loses some batches, and lets the replay that follows go wrong.
async fn after_a_gap(layout: &str, how: Value) -> (Publisher, Followed) {
    let mut publisher = Publisher::start(json!({"layout": layout})).await;
    publisher.random(60, 1).await;
    let followed = Followed::publisher(&publisher);
    publisher.until_subscribed(1).await;
    publisher.random(60, 2).await;
    followed.until_exact(&mut publisher).await;
    publisher.answers(how).await;
    publisher.lose(50..70).await;
    publisher.store(70..75).await;
    (publisher, followed)
}

#[test]
fn a_replay_that_goes_wrong_for_a_while_still_repairs() {
    run(async {
        for layout in ["0.25", "0.32"] {
            let hows = [
                json!({"mode": "never", "times": 1}),
                json!({"mode": "late", "ms": 2300, "times": 1}),
                json!({"mode": "holes", "every": 3, "times": 2}),
                // Asked again when nothing more comes, three times.
                json!({"mode": "no-end"}),
                json!({"mode": "breaks-off", "batches": 5, "times": 2}),
            ];
            join_all(hows.map(async |how| {
                let (mut publisher, followed) = after_a_gap(layout, how.clone()).await;
                let status = followed.until_exact(&mut publisher).await;
                assert_eq!(status.restarts, 0, "{how}");
                assert_eq!(followed.gaps("sequence"), 20, "{how}");
            }))
            .await;
        }
    });
}

#[test]
fn where_the_buffer_begins_later_the_view_is_partial_and_sound() {
    run(async {
        let how = json!({"mode": "starts-late", "batches": 8});
        let (mut publisher, followed) = after_a_gap("0.32", how).await;
        let status = followed.until_partial(&mut publisher).await;
        assert_eq!(status.trust_reason, TrustReason::BufferOverflowed);
        publisher.random(100, 3).await;
        followed.until_partial(&mut publisher).await;
    });
}

#[test]
fn where_replay_fails_the_engine_is_learnt_anew_and_partial() {
    run(async {
        let hows = [
            json!({"mode": "never"}),
            json!({"mode": "garbage"}),
            // A batch amid those lost that never comes.
            json!({"mode": "lacks", "seq": 130}),
        ];
        join_all(hows.map(async |how| {
            let (mut publisher, followed) = after_a_gap("0.32", how.clone()).await;
            let status = followed.until_partial(&mut publisher).await;
            assert_eq!(status.trust_reason, TrustReason::ReplayFailed, "{how}");
            publisher.random(100, 4).await;
            followed.until_partial(&mut publisher).await;
        }))
        .await;
    });
}

/// The ROUTER of a real engine drops silently what its queue for us can't take, and marks the end all the same.
#[test]
fn a_long_replay_that_libzmq_cuts_holes_into_is_exact() {
    run(async {
        join_all([("0.25", 1000), ("0.32", 1000), ("0.32", 300)].map(async |(layout, router_hwm)| {
            let options = json!({"layout": layout, "router_hwm": router_hwm});
            let mut publisher = Publisher::start(options).await;
            publisher.random(9000, 5).await;
            let followed = Followed::publisher(&publisher);
            followed.until_exact(&mut publisher).await;
            publisher.until_subscribed(1).await;
            publisher.random(100, 6).await;
            followed.until_exact(&mut publisher).await;
            assert_eq!(followed.replays("complete"), 1);
            let asked = publisher.replays().await;
            assert!(asked.len() > 1 && asked.is_sorted(), "{asked:?}");
        }))
        .await;
    });
}

#[test]
fn live_batches_come_in_while_a_long_replay_runs() {
    run(async {
        let mut publisher = Publisher::start(json!({})).await;
        // All of them fit into the publisher's buffer, so that a replay that is asked for again finds the beginning.
        publisher.random(6000, 7).await;
        let followed = Followed::publisher(&publisher);
        publisher.step(json!({"do": "await", "subscribers": 1, "replays": 1})).await;
        publisher.random(3000, 8).await;
        followed.until_exact(&mut publisher).await;
    });
}

#[test]
fn a_picker_beside_an_engine_with_a_full_buffer_is_partial_and_never_claims_more() {
    run(async {
        for (layout, replay) in [("0.23", true), ("0.32", true), ("0.32", false)] {
            let mut publisher = Publisher::start(json!({"layout": layout, "buffer_steps": 40})).await;
            publisher.random(500, 9).await;
            let replay_port = if replay { publisher.replay_port() } else { 0 };
            let followed = Followed::start(publisher.port(), replay_port);
            publisher.until_subscribed(1).await;
            publisher.random(200, 10).await;
            let status = followed.until_partial(&mut publisher).await;
            let reason = if replay { TrustReason::BufferOverflowed } else { TrustReason::JoinedLate };
            assert_eq!((status.trust, status.trust_reason), (Trust::Partial, reason));
        }
    });
}
