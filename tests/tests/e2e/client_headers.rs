//! Whatever a client sends, it reaches none but the engine that the picker chose: in every body mode, where the pick
//! fails, and where there is no picker.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmroute_demo::harness::{EnvoyConfig, EnvoyProxy, FreePorts, PickerTransport, Recipe};
use warmroute_ext_proc::ROUTING_HEADERS;

use crate::fixture::{
    Answer, Client, Picker, PickerOptions, Policy, Script, ScriptedEngine, Stack, StackOptions, bytes_body,
    chunked_body, log_name, run, tools,
};

in_both_recipes!(without_a_picker_a_client_reaches_nobody);

const COMPLETIONS: &str = "/v1/completions";
const BODY: &str = "{\"model\":\"m\",\"prompt\":\"x\"}";

/// Largest body that the pickers of these tests take.
const LIMIT_BYTES: usize = 100_000;

/// Every mode in which Envoy 1.40 sends request bodies, as its configuration spells it.
const BODY_MODES: [&str; 5] = ["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"];

/// A picker before `endpoints`.
async fn picker_before(endpoints: &[SocketAddr]) -> Picker {
    Picker::start(&PickerOptions {
        endpoints: endpoints.to_vec(),
        extra_args: vec![format!("--max-request-body-bytes={LIMIT_BYTES}")],
        ..PickerOptions::new(Policy::LeastLoaded)
    })
    .await
}

/// Envoy in that body mode, which leaves it to the picker what becomes of a client's routing headers.
async fn trusting_envoy(mode: &str, picker: &Picker) -> (EnvoyProxy, Client) {
    let recipe = if mode == "FULL_DUPLEX_STREAMED" { Recipe::FullDuplex } else { Recipe::Buffered };
    let mut ports = FreePorts::default();
    let config = EnvoyConfig {
        recipe,
        listener: (Ipv4Addr::LOCALHOST, ports.on_loopback().unwrap()).into(),
        admin_port: ports.on_loopback().unwrap(),
        pickers: vec![picker.grpc],
        transport: PickerTransport::Plaintext,
    };
    let change = |text: String| {
        let (before, rest) = text.split_once("          early_header_mutation_extensions:\n").unwrap();
        let (_, after) = rest.split_once("          http_protocol_options:").unwrap();
        let text = format!("{before}          http_protocol_options:{after}");
        text.replace("request_body_mode: BUFFERED\n", &format!("request_body_mode: {mode}\n"))
    };
    let name = log_name(&format!("envoy-{mode}"));
    let envoy = EnvoyProxy::start_changed(&tools(), &name, &config, change).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
    let client = Client::new(envoy.listener);
    (envoy, client)
}

/// A request that would go to the decoy, by whatever reads these headers.
fn lured(method: &str, path: &str, decoy: SocketAddr) -> http::request::Builder {
    let request = http::Request::builder().method(method).uri(path).header("x-request-id", "lured");
    ROUTING_HEADERS.iter().fold(request, |request, name| request.header(*name, decoy.to_string()))
}

/// A request of headers and trailers, without a body between them. Returns the answer's status line.
async fn lured_without_body(listener: SocketAddr, decoy: SocketAddr) -> String {
    let mut connection = TcpStream::connect(listener).await.unwrap();
    let routing: String = ROUTING_HEADERS.iter().map(|name| format!("{name}: {decoy}\r\n")).collect();
    let request = format!(
        "GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nx-request-id: lured\r\n{routing}\
         transfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n0\r\nx-checksum: 17\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn in_no_body_mode_can_a_client_route() {
    run(async {
        let decoy = ScriptedEngine::start(Script::Answer).await;
        let engine = ScriptedEngine::start(Script::Answer).await;
        let picker = picker_before(&[engine.address]).await;
        for mode in BODY_MODES {
            let (envoy, client) = trusting_envoy(mode, &picker).await;
            let before = engine.received_so_far().len();
            for (method, path, body) in [("POST", COMPLETIONS, BODY), ("GET", "/v1/models", "")] {
                let request = lured(method, path, decoy.address).body(bytes_body(body)).unwrap();
                let answer = client.send(request).await;
                assert_eq!(answer.status, 200, "{mode} {method}: {}", answer.text());
            }
            for received in &engine.received(before + 2).await[before..] {
                let kept = ROUTING_HEADERS.iter().filter(|name| received.headers.contains_key(**name));
                assert_eq!(kept.collect::<Vec<_>>(), [&ROUTING_HEADERS[0]], "{mode}: what the picker sets");
                assert_eq!(received.values(ROUTING_HEADERS[0]), [engine.address.to_string()]);
            }
            // Broken JSON is refused where the body is seen, and picked by load elsewhere.
            let request = lured("POST", COMPLETIONS, decoy.address).body(bytes_body("no json")).unwrap();
            let answer = client.send(request).await;
            let is_blind = ["NONE", "STREAMED"].contains(&mode);
            assert_eq!(answer.status, if is_blind { 200 } else { 400 }, "{mode}: {}", answer.text());
            // Where the body is waited for, the destination of this one can only be told as metadata, which the recipe's
            // cluster doesn't read.
            let status = lured_without_body(envoy.listener, decoy.address).await;
            let expected = if mode.starts_with("BUFFERED") { "HTTP/1.1 503" } else { "HTTP/1.1 200" };
            assert!(status.starts_with(expected), "{mode}: {status}");
        }
        assert!(decoy.received_so_far().is_empty(), "{:?}", decoy.received_so_far());
    });
}

#[test]
fn where_nothing_can_be_picked_a_client_reaches_nobody() {
    run(async {
        let decoy = ScriptedEngine::start(Script::Answer).await;
        let picker = picker_before(&[]).await;
        for mode in BODY_MODES {
            let (envoy, client) = trusting_envoy(mode, &picker).await;
            for (method, body) in [("POST", BODY), ("GET", "")] {
                let request = lured(method, COMPLETIONS, decoy.address).body(bytes_body(body)).unwrap();
                let answer = client.send(request).await;
                assert_eq!(answer.status, 503, "{mode} {method}: {}", answer.text());
            }
            let status = lured_without_body(envoy.listener, decoy.address).await;
            assert!(status.starts_with("HTTP/1.1 503"), "{mode}: {status}");
        }
        assert!(decoy.received_so_far().is_empty(), "{:?}", decoy.received_so_far());
    });
}

/// Fail-open, and nobody to ask: the recipes themselves remove what a client sent.
async fn without_a_picker_a_client_reaches_nobody(recipe: Recipe) {
    let decoy = ScriptedEngine::start(Script::Answer).await;
    let mut stack = Stack::start(StackOptions::least_loaded(recipe, &[])).await;
    stack.picker.process.kill();
    for round in 0..3 {
        for (method, body) in [("GET", ""), ("POST", BODY)] {
            let request = lured(method, COMPLETIONS, decoy.address).body(bytes_body(body)).unwrap();
            let answer = stack.gateway.send(request).await;
            // In full duplex Envoy doesn't fail open any more once it has handed out a chunk.
            let expected: &[u16] =
                if (recipe, method) == (Recipe::FullDuplex, "POST") { &[500, 503] } else { &[503] };
            assert!(
                expected.contains(&answer.status),
                "{round} {method}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    assert!(decoy.received_so_far().is_empty(), "{:?}", decoy.received_so_far());
}

/// What these tests would see, and why no recipe may lack the removal.
#[test]
fn a_recipe_without_the_removal_would_let_clients_choose_once_the_picker_is_gone() {
    run(async {
        let decoy = ScriptedEngine::start(Script::Answer).await;
        let mut picker = picker_before(&[]).await;
        let (_envoy, client) = trusting_envoy("BUFFERED", &picker).await;
        picker.process.kill();
        let request = lured("GET", "/v1/models", decoy.address).body(bytes_body("")).unwrap();
        assert_eq!(client.send(request).await.status, 200);
        assert_eq!(decoy.received(1).await.len(), 1);
    });
}

fn assert_too_large(mode: &str, answer: &Answer) {
    assert_eq!(answer.status, 413, "{mode}: {}", answer.text());
    assert_eq!(answer.values("content-type"), ["application/json"], "{mode}");
    let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("100000 bytes") && message.contains("--max-request-body-bytes"), "{message}");
    assert_eq!(error["error"]["code"], "request_too_large");
}

#[test]
fn bodies_over_the_limit_get_413_in_every_body_mode() {
    run(async {
        let engine = ScriptedEngine::start(Script::Answer).await;
        let picker = picker_before(&[engine.address]).await;
        let prompt = "x".repeat(LIMIT_BYTES);
        let body = Bytes::from(format!("{{\"model\":\"m\",\"prompt\":\"{prompt}\"}}"));
        for mode in BODY_MODES {
            let (_envoy, client) = trusting_envoy(mode, &picker).await;
            let post = || http::Request::post(COMPLETIONS).header("x-request-id", "large");
            let answer = client.send(post().body(bytes_body(body.clone())).unwrap()).await;
            assert_too_large(mode, &answer);
            let before = engine.received_so_far().len();
            let pieces = body.chunks(30_000).map(Bytes::copy_from_slice).collect();
            let answer = client.send(post().body(chunked_body(pieces)).unwrap()).await;
            if ["NONE", "STREAMED"].contains(&mode) {
                // Nobody says how long it is, and the picker holds none of it.
                assert_eq!(answer.status, 200, "{mode}: {}", answer.text());
                assert_eq!(engine.received(before + 1).await[before].body, body);
            } else {
                assert_too_large(mode, &answer);
                assert_eq!(engine.received_so_far().len(), before);
            }
        }
    });
}

#[test]
fn the_cap_of_messages_holds_for_a_body_in_one_message() {
    run(async {
        let engine = ScriptedEngine::start(Script::Answer).await;
        let picker = Picker::start(&PickerOptions {
            endpoints: vec![engine.address],
            extra_args: vec!["--grpc-max-recv-msg-size=64Ki".to_owned()],
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let prompt = "x".repeat(70_000);
        let body = Bytes::from(format!("{{\"model\":\"m\",\"prompt\":\"{prompt}\"}}"));
        let (_envoy, client) = trusting_envoy("BUFFERED", &picker).await;
        let answer = client.send(http::Request::post(COMPLETIONS).body(bytes_body(body)).unwrap()).await;
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert!(
            answer.text().contains("65536 bytes in one message, which --grpc-max-recv-msg-size"),
            "{}",
            answer.text()
        );
    });
}
