use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};
use warmroute_demo::harness::FreePorts;

use super::python_peer::PythonPeer;

/// An engine's publisher of KV events by libzmq, a process of its own.
pub(super) struct Publisher {
    peer: PythonPeer,
    options: Value,
}

/// What the engine holds.
#[derive(Debug, Deserialize)]
pub(super) struct Held {
    /// Number of the last batch published, -1 if none was.
    pub(super) last_seq: i64,
    /// Blocks in all.
    pub(super) blocks: u64,
    /// Leading blocks by prompt.
    pub(super) prompts: BTreeMap<u32, u32>,
}

impl Publisher {
    /// One on free ports of 127.0.0.1; `options` are those of `kv_publisher.py`.
    pub(super) async fn start(options: Value) -> Self {
        Self::start_on("127.0.0.1", options).await
    }

    pub(super) async fn start_on(host: &str, mut options: Value) -> Self {
        let address: IpAddr = host.parse().unwrap();
        let mut ports = FreePorts::default();
        for name in ["port", "replay_port"] {
            if options[name].is_null() {
                options[name] = ports.on_all(&[address]).unwrap().into();
            }
        }
        options["host"] = match address {
            IpAddr::V4(_) => host.to_owned(),
            IpAddr::V6(_) => format!("[{host}]"),
        }
        .into();
        let (peer, _) = PythonPeer::start("kv_publisher.py", &options).await;
        Self { peer, options }
    }

    pub(super) fn port(&self) -> u16 {
        self.options["port"].as_u64().unwrap() as u16
    }

    pub(super) fn replay_port(&self) -> u16 {
        self.options["replay_port"].as_u64().unwrap() as u16
    }

    /// Ends it with SIGKILL, and starts another one for the same ports, which doesn't bind them yet.
    pub(super) async fn kill_and_start_another(self) -> Self {
        let Self { peer, mut options } = self;
        peer.kill().await;
        options["bind"] = false.into();
        let (peer, _) = PythonPeer::start("kv_publisher.py", &options).await;
        Self { peer, options }
    }

    pub(super) async fn step(&mut self, step: Value) -> Value {
        self.peer.step(step).await
    }

    pub(super) async fn begin(&mut self, step: Value) {
        self.peer.begin(&step).await;
    }

    pub(super) async fn bind(&mut self) {
        self.step(json!({"do": "bind"})).await;
    }

    /// Waits until it has read as many subscriptions that still hold.
    pub(super) async fn until_subscribed(&mut self, subscribers: u64) {
        self.step(json!({"do": "await", "subscribers": subscribers})).await;
    }

    /// Stores two blocks of each prompt, a batch each.
    pub(super) async fn store(&mut self, prompts: std::ops::Range<u32>) {
        self.step(json!({"do": "store", "prompts": prompts.collect::<Vec<_>>()})).await;
    }

    /// The same, but what it publishes gets lost.
    pub(super) async fn lose(&mut self, prompts: std::ops::Range<u32>) {
        self.step(json!({"do": "store", "prompts": prompts.collect::<Vec<_>>(), "lose": true})).await;
    }

    /// Publishes batches of prompts that come, grow, are held twice and go.
    pub(super) async fn random(&mut self, batches: u32, seed: u32) {
        self.step(json!({"do": "random", "batches": batches, "seed": seed})).await;
    }

    /// How it answers requests for replay: `well`, or with one of the faults of `kv_publisher.py`.
    pub(super) async fn answers(&mut self, mut how: Value) {
        how["do"] = "answers".into();
        self.step(how).await;
    }

    pub(super) async fn held(&mut self) -> Held {
        serde_json::from_value(self.step(json!({"do": "held"})).await).unwrap()
    }

    /// The numbers that replays were asked for from.
    pub(super) async fn replays(&mut self) -> Vec<u64> {
        serde_json::from_value(self.step(json!({"do": "stats"})).await["replays"].clone()).unwrap()
    }
}

/// The tokens of a prompt's leading blocks, as `kv_publisher.py` has them.
pub(super) fn prompt_tokens(prompt: u32, blocks: u32) -> Vec<u32> {
    let first = |block| if block == 0 { prompt % 7 } else { 7 + prompt * 64 + block } * 16;
    (0..blocks).flat_map(|block| first(block)..first(block) + 16).collect()
}
