//! Publishers that are killed and come back under the same address.

use futures::future::join_all;
use serde_json::json;
use warmroute_kv_events::{Trust, TrustReason};

use super::followed::Followed;
use super::publisher::Publisher;
use crate::fixture::run;

/// How many batches the next process has published when the picker is back.
#[derive(Clone, Copy, Debug)]
enum Already {
    None,
    Fewer,
    AsMany,
    More,
}

impl Already {
    fn batches(self, before: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::Fewer => before / 2,
            Self::AsMany => before,
            Self::More => before * 3,
        }
    }
}

#[test]
fn a_killed_publisher_is_exact_again_whatever_its_numbers_are() {
    run(async {
        let all = [Already::None, Already::Fewer, Already::AsMany, Already::More];
        join_all(all.map(async |already| {
            let mut publisher = Publisher::start(json!({})).await;
            let followed = Followed::publisher(&publisher);
            publisher.until_subscribed(1).await;
            publisher.random(100, 1).await;
            let before = followed.until_exact(&mut publisher).await;
            assert_eq!(before.trust_reason, TrustReason::FollowedFromStart);

            let mut publisher = publisher.kill_and_start_another().await;
            followed.until_trust(Trust::Blind, TrustReason::ConnectionLost).await;
            publisher.random(already.batches(100), 2).await;
            publisher.bind().await;
            publisher.until_subscribed(1).await;
            publisher.random(20, 3).await;
            let status = followed.until_exact(&mut publisher).await;
            assert_eq!(status.restarts, 1, "{already:?}");
            assert_eq!(followed.gaps("sequence"), 0, "a restart is no gap: {already:?}");
        }))
        .await;
    });
}

#[test]
fn a_publisher_killed_again_and_again_amid_a_burst_is_never_claimed_to_hold_more() {
    run(async {
        let mut publisher = Publisher::start(json!({"layout": "0.25"})).await;
        let followed = Followed::publisher(&publisher);
        for round in 0..6 {
            publisher.until_subscribed(1).await;
            let before = followed.status().batches;
            publisher.begin(json!({"do": "random", "batches": 5000, "seed": round})).await;
            followed.until("some of it", |status| status.batches >= before + 50).await;
            publisher = publisher.kill_and_start_another().await;
            publisher.random(round * 40, 100 + round).await;
            publisher.bind().await;
        }
        // Idle from now on: the replays that were cut off make the next ones rest, and nothing else tells where it stands.
        publisher.until_subscribed(1).await;
        followed.until_exact(&mut publisher).await;
        assert_eq!(followed.reconnects(), 6);
    });
}

#[test]
fn without_replay_a_killed_publisher_is_relearnt() {
    run(async {
        let all = [
            // The process can't be told from the one before.
            (Already::AsMany, Trust::Doubtful, TrustReason::Reconnected),
            (Already::None, Trust::Exact, TrustReason::FollowedFromStart),
            (Already::Fewer, Trust::Partial, TrustReason::RestartSeenLate),
            (Already::More, Trust::Partial, TrustReason::RestartSeenLate),
        ];
        join_all(all.map(async |(already, trust, reason)| {
            let mut publisher = Publisher::start(json!({})).await;
            let followed = Followed::start(publisher.port(), 0);
            publisher.until_subscribed(1).await;
            publisher.random(100, 4).await;
            followed.until_exact(&mut publisher).await;
            let mut publisher = publisher.kill_and_start_another().await;
            followed.until_trust(Trust::Blind, TrustReason::ConnectionLost).await;
            publisher.random(already.batches(100), 5).await;
            publisher.bind().await;
            publisher.until_subscribed(1).await;
            publisher.store(50..60).await;
            followed.until_trust(trust, reason).await;
            match trust {
                Trust::Exact => {
                    followed.until_exact(&mut publisher).await;
                }
                Trust::Partial => {
                    followed.until_partial(&mut publisher).await;
                }
                _ => {
                    publisher.step(json!({"do": "clear"})).await;
                    publisher.store(60..70).await;
                    followed.until_exact(&mut publisher).await;
                }
            }
        }))
        .await;
    });
}

#[test]
fn a_publisher_that_binds_later_is_found() {
    run(async {
        let mut publisher = Publisher::start(json!({"bind": false})).await;
        let followed = Followed::publisher(&publisher);
        followed.until("several attempts", |_| followed.errors("connect") >= 3).await;
        assert_eq!(followed.status().trust_reason, TrustReason::NeverConnected);
        publisher.random(30, 6).await;
        publisher.bind().await;
        publisher.until_subscribed(1).await;
        publisher.random(30, 7).await;
        followed.until_exact(&mut publisher).await;
    });
}

#[test]
fn an_engine_with_an_ipv6_address_is_followed_and_replayed() {
    run(async {
        let mut publisher = Publisher::start_on("::1", json!({})).await;
        publisher.random(50, 8).await;
        let followed = Followed::hosts(["::1".to_owned()], publisher.port(), publisher.replay_port());
        publisher.until_subscribed(1).await;
        publisher.random(50, 9).await;
        followed.until_exact(&mut publisher).await;
    });
}
