//! The live stream: what gets lost, doubled, swapped, cut or stalled on its way.

use futures::future::join_all;
use serde_json::json;
use warmroute_kv_events::{Trust, TrustReason};

use super::followed::Followed;
use super::publisher::Publisher;
use super::python_peer::Proxy;
use crate::fixture::run;

#[test]
fn libzmq_is_followed_exactly_in_every_layout() {
    run(async {
        join_all(["0.23", "0.25", "0.32"].map(async |layout| {
            for with_replay in [true, false] {
                let mut publisher = Publisher::start(json!({"layout": layout})).await;
                let replay_port = if with_replay { publisher.replay_port() } else { 0 };
                let followed = Followed::start(publisher.port(), replay_port);
                publisher.until_subscribed(1).await;
                publisher.step(json!({"do": "random", "batches": 400, "seed": 1, "clears": true})).await;
                let status = followed.until_exact(&mut publisher).await;
                assert_eq!((status.batches, status.restarts, status.undecodable_messages), (400, 0, 0));
            }
        }))
        .await;
    });
}

/// A PUB socket doesn't tell when it has read a subscription, so what comes before that is found missing afterwards.
#[test]
fn what_a_pub_socket_published_too_early_is_replayed() {
    run(async {
        let mut publisher = Publisher::start(json!({"socket": "PUB"})).await;
        let followed = Followed::publisher(&publisher);
        followed.until("connected", |status| status.connected).await;
        publisher.random(300, 2).await;
        followed.until_exact(&mut publisher).await;
    });
}

#[test]
fn frames_lost_doubled_and_swapped_on_the_way_are_repaired() {
    run(async {
        let mut publisher = Publisher::start(json!({})).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, publisher.replay_port());
        publisher.until_subscribed(1).await;
        publisher.random(50, 3).await;
        followed.until_exact(&mut publisher).await;
        for (round, fault) in ["drop", "double", "swap"].into_iter().enumerate() {
            let lost = followed.gaps("sequence");
            proxy.harm(&["", fault, "", "", fault, fault, fault, "", fault]).await;
            publisher.random(100, 4 + round as u32).await;
            let status = followed.until_exact(&mut publisher).await;
            assert_eq!(status.restarts, 0);
            match fault {
                "double" => assert_eq!(followed.gaps("sequence"), lost),
                _ => assert!(followed.gaps("sequence") > lost),
            }
        }
        let mixed: Vec<&str> =
            (0..200_u32).map(|at| ["drop", "", "double", "swap", ""][(at * at / 3) as usize % 5]).collect();
        proxy.harm(&mixed).await;
        publisher.random(400, 9).await;
        assert_eq!(followed.until_exact(&mut publisher).await.restarts, 0);
    });
}

#[test]
fn without_replay_every_lost_frame_is_counted_until_the_cache_is_cleared() {
    run(async {
        let mut publisher = Publisher::start(json!({"layout": "0.23"})).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, 0);
        publisher.until_subscribed(1).await;
        publisher.store(0..20).await;
        followed.until_exact(&mut publisher).await;
        proxy.harm(&["", "drop", "drop", "", "drop", "double", "", ""]).await;
        publisher.store(20..30).await;
        let status = followed.until("told", |status| status.last_seq == Some(29)).await;
        assert_eq!((status.trust, status.trust_reason), (Trust::Doubtful, TrustReason::Gap));
        assert_eq!((status.missed_batches, followed.gaps("sequence"), status.restarts), (3, 3, 0));
        publisher.step(json!({"do": "clear"})).await;
        publisher.store(30..40).await;
        let status = followed.until_exact(&mut publisher).await;
        assert_eq!(status.trust_reason, TrustReason::Cleared);
    });
}

#[test]
fn a_connection_cut_amid_a_frame_or_reset_goes_on_where_it_was() {
    run(async {
        let mut publisher = Publisher::start(json!({})).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, publisher.replay_port());
        publisher.until_subscribed(1).await;
        publisher.random(100, 5).await;
        followed.until_exact(&mut publisher).await;
        proxy.harm(&["", "", "cut"]).await;
        publisher.random(100, 6).await;
        followed.until("connected again", |status| status.connected && followed.reconnects() == 1).await;
        followed.until_exact(&mut publisher).await;
        proxy.now("reset").await;
        publisher.random(100, 7).await;
        followed.until("connected again", |status| status.connected && followed.reconnects() == 2).await;
        let status = followed.until_exact(&mut publisher).await;
        assert_eq!(status.restarts, 0, "{status:?}");
    });
}

#[test]
fn a_half_open_connection_is_left_and_what_it_swallowed_is_replayed() {
    run(async {
        let mut publisher = Publisher::start(json!({})).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, publisher.replay_port());
        publisher.until_subscribed(1).await;
        publisher.random(50, 8).await;
        followed.until_exact(&mut publisher).await;
        // Silence means something only after a heartbeat has been answered.
        proxy.until("pongs_to_subscriber", 1).await;
        proxy.now("freeze").await;
        publisher.random(50, 9).await;
        followed.until("left", |_| followed.errors("heartbeat") == 1).await;
        let status = followed.until_exact(&mut publisher).await;
        assert_eq!((status.restarts, followed.reconnects()), (0, 1));
    });
}

/// What libzmq can't send it drops beyond its high-water mark; it is never held up.
#[test]
fn a_reader_that_stalls_holds_nobody_up_and_its_loss_is_counted() {
    run(async {
        let options = json!({"hwm": 50, "send_buffer_bytes": 16384, "layout": "0.25"});
        let mut publisher = Publisher::start(options).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, 0);
        publisher.until_subscribed(1).await;
        publisher.random(20, 10).await;
        followed.until_exact(&mut publisher).await;
        proxy.now("pause").await;
        publisher.random(5000, 11).await;
        proxy.now("resume").await;
        // It goes on with what it had queued; the next one shows that there was more.
        let mut more = 40;
        while followed.status().last_seq < Some(5020) {
            publisher.store(more..more + 1).await;
            more += 1;
        }
        assert!(followed.gaps("sequence") > 1000);
        let status = followed.until("doubtful", |status| status.trust == Trust::Doubtful).await;
        assert_eq!((status.trust_reason, status.restarts), (TrustReason::Gap, 0));
        assert_eq!(status.missed_batches, followed.gaps("sequence"));
        publisher.step(json!({"do": "clear"})).await;
        publisher.store(100..101).await;
        followed.until_exact(&mut publisher).await;
    });
}

#[test]
fn heartbeats_go_both_ways() {
    run(async {
        let mut publisher = Publisher::start(json!({"heartbeat_ms": 200})).await;
        let mut proxy = Proxy::start(publisher.port()).await;
        let followed = Followed::start(proxy.port, publisher.replay_port());
        publisher.until_subscribed(1).await;
        publisher.store(0..5).await;
        proxy.until("pongs_to_publisher", 8).await;
        proxy.until("pongs_to_subscriber", 2).await;
        followed.until_exact(&mut publisher).await;
        assert_eq!(followed.reconnects(), 0);
    });
}

/// Some of those close the connection on a PING. They may send one themselves.
#[test]
fn a_publisher_of_zmtp_3_0_is_answered_and_not_asked() {
    run(async {
        let mut publisher = Publisher::start(json!({"heartbeat_ms": 500})).await;
        let options = json!({"host": "127.0.0.1", "port": publisher.port(), "minor": 0});
        let mut proxy = Proxy::with(options).await;
        let followed = Followed::start(proxy.port, 0);
        publisher.until_subscribed(1).await;
        publisher.store(0..5).await;
        followed.until_exact(&mut publisher).await;
        // More than one interval of our own heartbeats.
        let counts = proxy.until("pongs_to_publisher", 9).await;
        assert_eq!(
            (counts["pongs_to_subscriber"].as_u64(), counts["connections"].as_u64()),
            (Some(0), Some(1))
        );
    });
}

#[test]
fn messages_that_are_no_events_lose_nothing() {
    run(async {
        let mut publisher = Publisher::start(json!({})).await;
        let followed = Followed::publisher(&publisher);
        publisher.until_subscribed(1).await;
        publisher.store(0..5).await;
        let topic = "6b7640";
        for frames in [
            vec![topic],
            vec![topic, "00"],
            vec![topic, "0000000000000000", "93", "ff"],
            // A number of 9 bytes.
            vec![topic, "000000000000000009", "93"],
            vec![topic, "", ""],
        ] {
            publisher.step(json!({"do": "raw", "frames": frames})).await;
        }
        followed.until("counted", |status| status.undecodable_messages == 5).await;
        publisher.store(5..10).await;
        followed.until_exact(&mut publisher).await;
    });
}
