//! Many subscriptions at once.

use serde_json::json;
use warmroute_kv_events::Trust;

use super::followed::Followed;
use super::publisher::Publisher;
use crate::fixture::{run, until};

/// As many as a large pool has.
const ENGINES: u8 = 200;

#[test]
fn two_hundred_subscriptions_to_one_libzmq_process_come_back_together() {
    run(async {
        // On every address of the machine, so that one process is two hundred engines.
        let mut publisher = Publisher::start_on("0.0.0.0", json!({})).await;
        let hosts = (1..=ENGINES).map(|at| format!("127.0.0.{at}"));
        let followed = Followed::hosts(hosts, publisher.port(), publisher.replay_port());
        for round in 0..2 {
            publisher.until_subscribed(ENGINES.into()).await;
            publisher.random(50, round).await;
            let last = publisher.held().await.last_seq as u64;
            until("all exact", async || {
                let all = followed.endpoints();
                let is_exact = |status: warmroute::engine_events::EngineStatus| {
                    status.trust == Trust::Exact && status.last_seq == Some(last)
                };
                all.iter().all(|endpoint| is_exact(endpoint.engine.status(None))).then_some(())
            })
            .await;
            followed.until_exact(&mut publisher).await;
            let stats = publisher.step(json!({"do": "stats"})).await;
            // Eight at once, and those of which libzmq hasn't noticed the end yet.
            assert!(stats["most_replayers"].as_u64().unwrap() <= 16, "{stats}");
            if round == 0 {
                publisher = publisher.kill_and_start_another().await;
                publisher.random(50, 7).await;
                publisher.bind().await;
            }
        }
        assert_eq!(followed.reconnects(), u64::from(ENGINES));
    });
}
