//! Request bodies of every shape arrive as they were sent, or are refused for what is wrong with them.

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmroute::receipt::Fallback;
use warmroute_demo::harness::Recipe;

use crate::fixture::{Script, ScriptedEngine, Stack, StackOptions, bytes_body, chunked_body};

const COMPLETIONS: &str = "/v1/completions";

/// The largest body that the pickers of these tests take.
const LIMIT_BYTES: usize = 20_000_000;

in_both_recipes!(chunked_and_absent_bodies, a_body_with_trailers, bodies_up_to_the_limit_and_over_it);

async fn start(recipe: Recipe) -> (ScriptedEngine, Stack) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let options = StackOptions {
        picker_args: vec![format!("--max-request-body-bytes={LIMIT_BYTES}")],
        ..StackOptions::least_loaded(recipe, &[engine.address])
    };
    let stack = Stack::start(options).await;
    (engine, stack)
}

/// A completion request of exactly so many bytes.
fn completion(bytes: usize) -> Bytes {
    let (start, end) = ("{\"model\":\"m\",\"prompt\":\"", "\"}");
    let prompt = "never twice ".bytes().cycle().take(bytes - start.len() - end.len());
    start.bytes().chain(prompt).chain(end.bytes()).collect()
}

async fn chunked_and_absent_bodies(recipe: Recipe) {
    let (engine, stack) = start(recipe).await;
    let body = completion(300_000);
    let pieces = body.chunks(70_000).map(Bytes::copy_from_slice).collect();
    let chunked = http::Request::post(COMPLETIONS).header("x-request-id", "chunked");
    let answer = stack.gateway.send(chunked.body(chunked_body(pieces)).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(engine.received(1).await[0].body == body, "the body came changed");
    assert_eq!(stack.picker.receipt("chunked").await.body_bytes, body.len());

    let models = http::Request::get("/v1/models").header("x-request-id", "models");
    let answer = stack.gateway.send(models.body(bytes_body("")).unwrap()).await;
    assert_eq!(answer.json(), json!({"ok": true}));
    let received = &engine.received(2).await[1];
    assert_eq!((received.method.as_str(), received.path.as_str()), ("GET", "/v1/models"));
    let receipt = stack.picker.receipt("models").await;
    assert_eq!(receipt.pick.as_deref(), Some(engine.address.to_string().as_str()));
    assert_eq!(receipt.fallbacks[0].kind, Fallback::NoBody);
    assert_eq!(stack.picker.status().await.fallbacks(Fallback::NoBody), 1);

    let empty = http::Request::post(COMPLETIONS).header("x-request-id", "empty");
    let answer = stack.gateway.send(empty.body(bytes_body("")).unwrap()).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().starts_with("inference error: BadRequest - "), "{}", answer.text());
    assert_eq!(engine.received_so_far().len(), 2);
    stack.picker.until_idle().await;
}

async fn a_body_with_trailers(recipe: Recipe) {
    let (engine, stack) = start(recipe).await;
    let body = completion(100);
    let mut connection = TcpStream::connect(stack.envoy.listener).await.unwrap();
    let (first, second) = body.split_at(40);
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-type: application/json\r\n\
         x-request-id: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n"
    );
    for piece in
        [head.as_bytes(), b"28\r\n", first, b"\r\n3c\r\n", second, b"\r\n0\r\nx-checksum: 17\r\n\r\n"]
    {
        connection.write_all(piece).await.unwrap();
    }
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let received = &engine.received(1).await[0];
    assert_eq!(received.body, body);
    assert_eq!(received.trailers.as_ref().unwrap()["x-checksum"], "17");
    assert_eq!(stack.picker.receipt("trailers").await.body_bytes, body.len());
    stack.picker.until_idle().await;
}

async fn bodies_up_to_the_limit_and_over_it(recipe: Recipe) {
    let (engine, stack) = start(recipe).await;
    let body = completion(LIMIT_BYTES);
    let post = |body: &Bytes| http::Request::post(COMPLETIONS).body(bytes_body(body.clone())).unwrap();
    let answer = stack.gateway.send(post(&body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(engine.received(1).await[0].body == body, "the body came changed");

    let answer = stack.gateway.send(post(&completion(LIMIT_BYTES + 1))).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    let words = format!("request body exceeds the limit of {LIMIT_BYTES} bytes");
    assert!(answer.text().contains(&words), "{}", answer.text());
    assert_eq!(engine.received_so_far().len(), 1);
    stack.picker.until_idle().await;
}
