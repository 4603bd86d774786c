//! Prefill and decode at endpoints of their own: the pool is a file with role labels, and what the decode endpoint's
//! sidecar gets is the picker's word alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use warmroute::receipt::Fallback;
use warmroute_demo::harness::{EnvoyProxy, PickerTransport, Recipe};

use crate::fixture::{
    Client, MODEL, Picker, PickerOptions, Policy, Script, ScriptedEngine, SimulatedEngines, bytes_body,
    log_name, tools, until,
};

in_both_recipes!(decode_is_told_of_its_prefill_endpoint, what_decode_holds_is_not_prefilled_elsewhere);

const COMPLETIONS: &str = "/v1/completions";
const PREFILLER: &str = "x-prefiller-host-port";
const ENCODERS: &str = "x-encoder-hosts-ports";

/// Two profiles over the endpoints in `endpoints.yaml` of the folder.
fn config(folder: &Path, decider: &str) -> PathBuf {
    let endpoints = folder.join("endpoints.yaml");
    let text = format!(
        "apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- {{type: file-discovery, parameters: {{path: {}, watchFile: true}}}}
- type: precise-prefix-cache-producer
- {{type: disagg-profile-handler, parameters: {{deciders: {{prefill: decider}}}}}}
- {{name: decider, {decider}}}
- type: decode-filter
- type: prefill-filter
- {{type: prefix-cache-scorer, parameters: {{prefixMatchInfoProducerName: precise-prefix-cache-producer}}}}
- type: max-score-picker
dataLayer:
  discovery: {{endpoints: {{pluginRef: file-discovery}}}}
schedulingProfiles:
- name: prefill
  plugins: [{{pluginRef: prefill-filter}}, {{pluginRef: prefix-cache-scorer}}, {{pluginRef: max-score-picker}}]
- name: decode
  plugins: [{{pluginRef: decode-filter}}, {{pluginRef: prefix-cache-scorer}}, {{pluginRef: max-score-picker}}]
",
        endpoints.display()
    );
    let path = folder.join("config.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Puts the endpoints in the file at once.
fn publish(folder: &Path, endpoints: &[(&str, SocketAddr)]) {
    let mut text = "endpoints:\n".to_owned();
    for (role, address) in endpoints {
        let (ip, port) = (address.ip(), address.port());
        text.push_str(&format!(
            "- {{name: {role}, address: {ip}, port: {port}, labels: {{llm-d.ai/role: {role}}}}}\n"
        ));
    }
    let next = folder.join("next.yaml");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, folder.join("endpoints.yaml")).unwrap();
}

async fn start(recipe: Recipe, config_file: PathBuf, kv_events_port: u16) -> (Picker, EnvoyProxy, Client) {
    let options = PickerOptions {
        config_file: Some(config_file),
        kv_events_port: Some(kv_events_port),
        ..PickerOptions::new(Policy::Precise)
    };
    let picker = Picker::start(&options).await;
    let name = log_name("envoy");
    let envoy =
        EnvoyProxy::start(&tools(), &name, recipe, &[picker.grpc], PickerTransport::Plaintext, None).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
    let gateway = Client::new(envoy.listener);
    (picker, envoy, gateway)
}

async fn decode_is_told_of_its_prefill_endpoint(recipe: Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let decode = ScriptedEngine::start(Script::HeldAnswer).await;
    let prefill = ScriptedEngine::start(Script::Answer).await;
    publish(folder.path(), &[("prefill", prefill.address), ("decode", decode.address)]);
    let config_file = config(folder.path(), "type: always-disagg-pd-decider");
    let (picker, _envoy, gateway) = start(recipe, config_file, 1).await;
    let send = async |id: &str| {
        let request = http::Request::post(COMPLETIONS)
            .header("x-request-id", id)
            .header(PREFILLER, "192.0.2.1:1")
            .header(ENCODERS, "192.0.2.1:2,192.0.2.1:3")
            .body(bytes_body(json!({"model": MODEL, "prompt": [1, 2, 3]}).to_string()));
        gateway.send(request.unwrap()).await
    };
    let answered = async {
        let received = decode.received(1).await;
        assert_eq!(received[0].values(PREFILLER), [prefill.address.to_string()]);
        assert!(!received[0].headers.contains_key(ENCODERS), "a client's word reached the engine");
        let status = picker.status().await;
        assert_eq!((status.in_flight(prefill.address), status.in_flight(decode.address)), (1, 1));
        assert_eq!(status.endpoint(decode.address)["in_flight_prompt_tokens"], 0);
        assert_eq!(status.endpoint(prefill.address)["in_flight_prompt_tokens"], 3);
        decode.release(1);
    };
    let (answer, ()) = futures::future::join(send("apart"), answered).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    picker.until_idle().await;
    let explained = picker.explain("apart").await;
    assert!(
        explained.contains("prefill-decode (disagg-profile-handler): profile decode decides"),
        "{explained}"
    );

    // Without a prefill endpoint decode does it all, and says so.
    publish(folder.path(), &[("decode", decode.address)]);
    picker.until("the smaller pool", |status| status.endpoints().count() == 1).await;
    decode.release(1);
    let answer = send("together").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let received = decode.received(2).await;
    assert!(!received[1].headers.contains_key(PREFILLER) && !received[1].headers.contains_key(ENCODERS));
    let receipt = picker.receipt("together").await;
    assert!(receipt.fallbacks.iter().any(|note| note.kind == Fallback::NoPrefillEndpoint), "{receipt:?}");
    assert_eq!(picker.status().await.fallbacks(Fallback::NoPrefillEndpoint), 1);
    picker.until_idle().await;
    assert!(prefill.received_so_far().is_empty(), "the gateway sends to decode only");
}

async fn what_decode_holds_is_not_prefilled_elsewhere(recipe: Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let engines = SimulatedEngines::start(2, false).await;
    let addresses = engines.addresses();
    publish(folder.path(), &[("prefill", addresses[0]), ("decode", addresses[1])]);
    let config_file =
        config(folder.path(), "type: prefix-based-pd-decider, parameters: {nonCachedTokens: 64}");
    let (picker, _envoy, gateway) = start(recipe, config_file, engines.kv_events_port).await;
    engines.until_heard_by(&picker).await;
    let prompt: Vec<u32> = (0..200).collect();
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1});
    let decision = async |id: &str| {
        let answer = gateway.post(COMPLETIONS, id, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let receipt = picker.receipt(id).await;
        assert_eq!(receipt.pick.as_deref(), Some(addresses[1].to_string().as_str()));
        (receipt.handler.unwrap().decision, receipt.predicted_cached_tokens)
    };
    assert_eq!(decision("first").await, ("prefill-decode".to_owned(), 0));
    // The simulated engine computed it at decode, as its events say: 12 blocks beside the one of the hello.
    picker.until("the blocks being known", |status| status.blocks(addresses[1]) == 13).await;
    assert_eq!(decision("second").await, ("decode-only".to_owned(), 192));
    picker.until_idle().await;
    until("both decisions being counted", async || {
        let counted = picker.metric("llm_d_epp_disagg_decision_total").await;
        (counted == Some(2.0)).then_some(())
    })
    .await;
}
