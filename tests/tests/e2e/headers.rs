//! Routing headers are the picker's to set; all other headers pass as they came.

use std::net::SocketAddr;

use warmroute_demo::harness::Recipe;
use warmroute_ext_proc::ROUTING_HEADERS;

use crate::fixture::{
    ExtProcClient, Picker, PickerOptions, Policy, Script, ScriptedEngine, Stack, StackOptions, bytes_body,
    run,
};

in_both_recipes!(
    a_client_cannot_route_and_its_other_headers_pass,
    a_header_asks_for_another_model_than_the_body
);

const DESTINATION: &str = "x-gateway-destination-endpoint";

fn request(method: &str, path: &str, decoy: SocketAddr) -> http::request::Builder {
    let request = http::Request::builder().method(method).uri(path);
    let request =
        request.header("x-dup", "one").header("x-dup", "two").header("x-binary", b"\xff\xfe".as_slice());
    ROUTING_HEADERS.iter().fold(request, |request, name| request.header(*name, decoy.to_string()))
}

async fn a_client_cannot_route_and_its_other_headers_pass(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let decoy = ScriptedEngine::start(Script::Answer).await;
    let stack = Stack::start(StackOptions::least_loaded(recipe, &[engine.address])).await;
    let body = "{\"model\":\"m\",\"prompt\":\"x\"}";
    for (at, (method, path, body)) in
        [("POST", "/v1/completions", body), ("GET", "/v1/models", "")].into_iter().enumerate()
    {
        let request = request(method, path, decoy.address).body(bytes_body(body)).unwrap();
        let answer = stack.gateway.send(request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.values("set-cookie"), ["a=1", "b=2"]);

        let received = &engine.received(at + 1).await[at];
        assert_eq!(received.values("x-dup"), ["one", "two"]);
        assert_eq!(received.headers["x-binary"].as_bytes(), b"\xff\xfe");
        assert_eq!(received.values(DESTINATION), [engine.address.to_string()]);
        for name in &ROUTING_HEADERS[1..] {
            assert!(!received.headers.contains_key(*name), "{method}: {name} reached the engine");
        }
    }
    assert!(decoy.received_so_far().is_empty());
}

async fn a_header_asks_for_another_model_than_the_body(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let stack = Stack::start(StackOptions::least_loaded(recipe, &[engine.address])).await;
    let prompt = "x".repeat(100_000);
    let body = |model: &str| format!("{{\"prompt\":\"{prompt}\",\"model\":\"{model}\",\"n\":1}}");
    let request = http::Request::post("/v1/completions").header("x-llm-d-model-name-rewrite", "an-adapter");
    let answer = stack.gateway.send(request.body(bytes_body(body("m"))).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let received = &engine.received(1).await[0];
    assert_eq!(received.body, body("an-adapter"));
    assert!(!received.headers.contains_key("x-llm-d-model-name-rewrite"));
    stack.picker.until_idle().await;
}

/// Gateways that don't remove a client's routing headers themselves.
#[test]
fn the_picker_removes_them_too() {
    run(async {
        let engine = ScriptedEngine::start(Script::Answer).await;
        let picker = Picker::start(&PickerOptions {
            endpoints: vec![engine.address],
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let mut client = ExtProcClient::connect(&picker).await;
        let client_sent = ROUTING_HEADERS.map(|name| (name, "192.0.2.1:1"));
        let body = b"{\"model\":\"m\",\"prompt\":\"x\"}";
        let answer = client.pick("/v1/completions", "direct", &client_sent, body.to_vec()).await;
        assert!(answer.clear_route_cache);
        let mutation = answer.header_mutation.unwrap();
        let set: Vec<_> = mutation.set_headers.into_iter().map(|set| set.header.unwrap()).collect();
        assert_eq!((set[0].key.as_str(), set.len()), (DESTINATION, 1));
        assert_eq!(set[0].raw_value, engine.address.to_string().into_bytes());
        let mut removed = mutation.remove_headers;
        removed.sort();
        let mut expected = ROUTING_HEADERS[1..].to_vec();
        expected.sort_unstable();
        assert_eq!(removed, expected);
    });
}
