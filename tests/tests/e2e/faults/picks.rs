//! What a whole picker does meanwhile: it picks.

use std::net::{IpAddr, SocketAddr};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use warmroute_demo::harness::FreePorts;

use super::publisher::{Publisher, prompt_tokens};
use crate::fixture::{ExtProcClient, MODEL, Picker, PickerOptions, Policy, Status, run};

const MISSED: &str = "warmroute_kv_event_batches_missed_total";

/// A picker over two engines that only publish.
struct Bench {
    addresses: [SocketAddr; 2],
    publishers: [Publisher; 2],
    picker: Picker,
    client: ExtProcClient,
    asked: u32,
}

impl Bench {
    async fn start() -> Self {
        let hosts = ["127.0.0.2", "127.0.0.3"].map(|host| host.parse::<IpAddr>().unwrap());
        let mut ports = FreePorts::default();
        let (port, replay_port) = (ports.on_all(&hosts).unwrap(), ports.on_all(&hosts).unwrap());
        let addresses = hosts.map(|host| SocketAddr::new(host, 9));
        let options = json!({
            "port": port, "replay_port": replay_port, "hwm": 50, "send_buffer_bytes": 16384
        });
        let mut publishers = Vec::new();
        for host in hosts {
            publishers.push(Publisher::start_on(&host.to_string(), options.clone()).await);
        }
        let picker = Picker::start(&PickerOptions {
            endpoints: addresses.to_vec(),
            kv_events_port: Some(port),
            extra_args: vec![format!("--kv-replay-port={replay_port}")],
            ..PickerOptions::new(Policy::Precise)
        })
        .await;
        let client = ExtProcClient::connect(&picker).await;
        let Ok(publishers) = publishers.try_into() else { unreachable!("there are two") };
        Self { addresses, publishers, picker, client, asked: 0 }
    }

    /// Picks for a prompt of three blocks; returns where and how many tokens are predicted to be cached there.
    async fn pick(&mut self, prompt: u32) -> (usize, u32) {
        self.asked += 1;
        let id = format!("pick-{}", self.asked);
        let body = json!({"model": MODEL, "prompt": prompt_tokens(prompt, 3), "max_tokens": 1});
        self.client.pick("/v1/completions", &id, &[], body.to_string().into_bytes()).await;
        let receipt = self.picker.receipt(&id).await;
        let pick: SocketAddr = receipt.pick.unwrap().parse().unwrap();
        let at = self.addresses.iter().position(|address| *address == pick).unwrap();
        (at, receipt.predicted_cached_tokens)
    }

    async fn until_exact(&mut self, at: usize) -> Status {
        let held = self.publishers[at].held().await;
        let address = self.addresses[at];
        let is_exact = |status: &Status| {
            let events = status.kv_events(address);
            events["trust"] == "exact"
                && events["last_seq"].as_i64().unwrap_or(-1) == held.last_seq
                && status.blocks(address) == held.blocks
        };
        self.picker.until("exact", is_exact).await
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.picker.process.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[test]
fn picks_go_on_while_publishers_die_and_the_picker_stalls() {
    run(async {
        let mut bench = Bench::start().await;
        for at in 0..2 {
            bench.publishers[at].until_subscribed(1).await;
            bench.publishers[at].store(at as u32 * 10..at as u32 * 10 + 5).await;
            bench.until_exact(at).await;
        }
        assert_eq!(bench.pick(1).await, (0, 32));
        assert_eq!(bench.pick(11).await, (1, 32));

        // The picker stands still, and an engine publishes more than what is on the wires can hold.
        bench.signal(Signal::STOP);
        bench.publishers[0].random(4000, 1).await;
        bench.signal(Signal::CONT);
        bench.pick(1).await;
        assert_eq!(bench.pick(11).await, (1, 32));
        while bench.picker.metric(MISSED).await.unwrap_or(0.0) == 0.0 {
            bench.publishers[0].random(1, 2).await;
        }
        bench.until_exact(0).await;

        // An engine's publisher is killed: what it held isn't claimed any more.
        let [dead, alive] = bench.publishers;
        let dead = dead.kill_and_start_another().await;
        bench.publishers = [dead, alive];
        let address = bench.addresses[0];
        bench.picker.until("blind", |status| status.kv_events(address)["trust"] == "blind").await;
        for prompt in 0..5 {
            let (at, predicted) = bench.pick(prompt).await;
            assert!(at == 1 || predicted == 0, "a blind engine's blocks count");
        }
        assert_eq!(bench.pick(12).await, (1, 32));
        bench.publishers[0].bind().await;
        bench.publishers[0].until_subscribed(1).await;
        bench.publishers[0].store(20..25).await;
        bench.until_exact(0).await;
        assert_eq!(bench.pick(21).await, (0, 32));
    });
}
