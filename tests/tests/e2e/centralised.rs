//! Engines that connect to the picker to publish their KV events, which subscribes to none.

use std::net::SocketAddr;

use serde_json::{Value, json};
use warmroute_demo::harness::FreePorts;
use warmroute_engine_sim::{Engine, EngineOptions, KvEventOptions, RunningEngine};

use crate::fixture::{
    Client, ExtProcClient, MODEL, Picker, PickerOptions, Policy, clear_cache, log_name, run, send_new_prompt,
    tools, until,
};

const COMPLETIONS: &str = "/v1/completions";

fn config(listen: SocketAddr) -> String {
    format!(
        "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters:
    kvEventsConfig: {{zmqEndpoint: 'tcp://{listen}', discoverPods: false, topicFilter: kv@}}
- type: prefix-cache-scorer
  parameters: {{prefixMatchInfoProducerName: precise-prefix-cache-producer}}
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: prefix-cache-scorer}}]
"
    )
}

async fn engine(address: SocketAddr, picker: SocketAddr) -> RunningEngine {
    let mut options = EngineOptions::new(MODEL);
    (options.host, options.port) = (address.ip(), address.port());
    options.kv_events = Some(KvEventOptions { connect: Some(picker), ..KvEventOptions::default() });
    Engine::start(options).await.unwrap()
}

/// Makes an engine publish until the picker has heard it from its last reset on.
async fn until_exact(address: SocketAddr, picker: &Picker) {
    let direct = Client::new(address);
    until("an exact view", async || {
        clear_cache(&direct).await;
        send_new_prompt(&direct).await;
        let status = picker.status().await;
        let events = status.kv_events(address);
        (events["trust"] == "exact" && events["blocks"] == 1).then_some(())
    })
    .await;
}

#[test]
fn engines_that_connect_are_followed_and_lost_with_their_connection() {
    run(async {
        let mut ports = FreePorts::default();
        let mut free = || SocketAddr::from(([127, 0, 0, 1], ports.on_loopback().unwrap()));
        let (listen, addresses) = (free(), [free(), free()]);
        let config_file = tools().logs.join(format!("{}.yaml", log_name("config")));
        std::fs::create_dir_all(&tools().logs).unwrap();
        std::fs::write(&config_file, config(listen)).unwrap();
        let picker = Picker::start(&PickerOptions {
            config_file: Some(config_file),
            endpoints: addresses.to_vec(),
            ..PickerOptions::new(Policy::Precise)
        })
        .await;
        let mut engines = Vec::new();
        for address in addresses {
            engines.push(engine(address, listen).await);
        }
        for address in addresses {
            until_exact(address, &picker).await;
        }
        let mut client = ExtProcClient::connect(&picker).await;
        for (at, address) in addresses.into_iter().enumerate() {
            let first = 5000 * (1 + at as u64);
            let prompt: Vec<u64> = (first..first + 100).collect();
            let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1});
            let before = picker.status().await.blocks(address);
            assert_eq!(Client::new(address).post(COMPLETIONS, "direct", &body).await.status, 200);
            picker.until("the prompt's blocks", |status| status.blocks(address) == before + 6).await;
            let id = format!("warm-{at}");
            client.pick(COMPLETIONS, &id, &[], body.to_string().into()).await;
            let receipt = picker.receipt(&id).await;
            assert_eq!(receipt.candidates[0].endpoint.to_string(), address.to_string());
            assert_eq!(receipt.predicted_cached_tokens, 96);
        }
        // An engine whose topic names nobody is told of, and changes nothing.
        let stranger = engine(free(), listen).await;
        send_new_prompt(&Client::new(stranger.http_address())).await;
        let topic = format!("kv@{}@{MODEL}", stranger.http_address());
        picker
            .until("the stranger", |status| {
                let unknown = &status.event_listener()["unknown_publishers"];
                unknown.as_array().unwrap().iter().any(|unknown| unknown["topic"] == topic.as_str())
            })
            .await;
        stranger.stop().await;

        engines.remove(0).stop().await;
        let is_blind = |events: &Value| events["trust"] == "blind";
        picker.until("the loss", |status| is_blind(status.kv_events(addresses[0]))).await;
        assert!(!is_blind(picker.status().await.kv_events(addresses[1])));
        let _again = engine(addresses[0], listen).await;
        until_exact(addresses[0], &picker).await;
    });
}
