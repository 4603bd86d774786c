//! Tokens from a vLLM server: what it says is matched exactly, and nothing that it does fails a request.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post as on_post;
use tokio::sync::{Semaphore, mpsc};
use warmroute::prompt::{Renderer, TokenSource};
use warmroute_config::VllmBackendSpec;
use warmroute_ext_proc::EndpointPicker;

use crate::fixture::{Fixture, PREFIX_ONLY, post};

const CHAT: &str = r#"{"model":"client","messages":[{"role":"user","content":"hi"}]}"#;

/// A server whose answers wait for permits.
#[derive(Clone)]
struct Server {
    answer: (StatusCode, &'static str),
    permits: Arc<Semaphore>,
    seen: mpsc::UnboundedSender<(String, String)>,
}

async fn answer(
    State(server): State<Server>,
    Path(path): Path<String>,
    body: String,
) -> (StatusCode, &'static str) {
    server.seen.send((path, body)).unwrap();
    let _permit = server.permits.acquire().await.unwrap();
    server.answer
}

struct Rendering {
    fixture: Fixture,
    permits: Arc<Semaphore>,
    seen: mpsc::UnboundedReceiver<(String, String)>,
    renderer: Renderer,
}

async fn rendering(status: u16, answer_text: &'static str, permits: usize, timeout: Duration) -> Rendering {
    let (seen, all_seen) = mpsc::unbounded_channel();
    let permits = Arc::new(Semaphore::new(permits));
    let answer_with = (StatusCode::from_u16(status).unwrap(), answer_text);
    let state = Server { answer: answer_with, permits: permits.clone(), seen };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/{*path}", on_post(answer)).with_state(state);
    let server = VllmBackendSpec { url, model_name: "base".to_owned(), timeout, mm_timeout: timeout };
    let renderer = Renderer::try_new(&server).unwrap();
    let tokens = TokenSource { renderer: Some(renderer.clone()), ..TokenSource::default() };
    let fixture = Fixture::with_tokens(PREFIX_ONLY, 2, tokens);
    fixture.tasks.spawn("render service", async move { axum::serve(listener, router).await.unwrap() });
    Rendering { fixture, permits, seen: all_seen, renderer }
}

const NO_HURRY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn its_tokens_are_matched_and_it_is_asked_for_its_own_model() {
    let ids = "{\"token_ids\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17],\"features\":null}";
    let mut rendering = rendering(200, ids, 100, NO_HURRY).await;
    rendering.fixture.announce(1, &(0..16).collect::<Vec<u32>>());
    let picked = rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
    assert_eq!(picked.destinations, [rendering.fixture.address(1)]);
    let receipt = rendering.fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.prompt_tokens, receipt.prompt_tokens_estimated), (Some(18), false));
    assert_eq!((receipt.predicted_cached_tokens, receipt.fallbacks.len()), (16, 0));
    let (path, body) = rendering.seen.recv().await.unwrap();
    assert_eq!((path.as_str(), body), ("v1/chat/completions/render", CHAT.replace("client", "base")));
    // Ids aren't asked for again.
    rendering.fixture.picker.pick(post("/v1/completions", r#"{"model":"m","prompt":[1]}"#)).await.unwrap();
    rendering.fixture.picker.pick(post("/v1/completions", r#"{"model":"m","prompt":"x"}"#)).await.unwrap();
    assert_eq!(rendering.seen.recv().await.unwrap().1, r#"{"model":"base","prompt":"x"}"#);
    assert!(rendering.seen.try_recv().is_err());
}

#[tokio::test]
async fn it_says_where_images_begin_and_is_not_asked_for_embeddings() {
    let answer = "{\"token_ids\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31],\
        \"features\":{\"mm_hashes\":{\"image\":[\"a\"]},\"mm_placeholders\":{\"image\":[{\"offset\":20,\"length\":8}]}}}";
    let mut rendering = rendering(200, answer, 100, NO_HURRY).await;
    rendering.fixture.announce(1, &(0..32).collect::<Vec<u32>>());
    rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
    let receipt = rendering.fixture.receipts.find("last").unwrap();
    assert_eq!((receipt.predicted_cached_tokens, receipt.prompt_tokens_estimated), (16, true));
    assert_eq!(receipt.fallbacks[0].kind.as_str(), "matched-up-to-media");
    rendering.seen.recv().await.unwrap();
    let embedded = [
        ("/v1/completions", r#"{"model":"m","prompt":"","prompt_embeds":"AAAA"}"#),
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"prompt_embeds","data":"AAAA"}]}]}"#,
        ),
    ];
    for (path, body) in embedded {
        rendering.fixture.picker.pick(post(path, body)).await.unwrap();
        let receipt = rendering.fixture.receipts.find("last").unwrap();
        assert_eq!((receipt.predicted_cached_tokens, receipt.fallbacks.len()), (0, 1), "{path}");
    }
    assert!(rendering.seen.try_recv().is_err());
}

#[tokio::test]
async fn what_goes_wrong_there_is_a_fallback() {
    for (status, answer, kind) in [
        (500, "", "render-failed"),
        (403, "", "render-failed"),
        (200, "nonsense", "render-failed"),
        (200, "{\"token_ids\":[]}", "render-failed"),
        (400, "", "likely-refused-by-engine"),
        (200, "{\"token_ids\":[1],\"features\":{}}", "not-tokenizable"),
    ] {
        let rendering = rendering(status, answer, 100, NO_HURRY).await;
        rendering.fixture.announce(0, &[7; 16]);
        rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
        let receipt = rendering.fixture.receipts.find("last").unwrap();
        let kinds: Vec<_> = receipt.fallbacks.iter().map(|note| note.kind.as_str()).collect();
        assert_eq!(kinds, [kind], "{status} {answer}");
        assert_eq!((receipt.prompt_tokens, receipt.prompt_tokens_estimated), (Some(2), true));
    }
}

#[tokio::test]
async fn a_slow_server_is_left_at_the_deadline_and_not_piled_up_on() {
    let rendering = rendering(200, "{\"token_ids\":[1]}", 0, Duration::from_millis(20)).await;
    rendering.fixture.announce(0, &[7; 16]);
    rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
    let note = rendering.fixture.receipts.find("last").unwrap().fallbacks[0].clone();
    assert_eq!((note.kind.as_str(), note.detail.as_str()), ("render-failed", "no answer within 20ms"));

    let mut rendering = self::rendering(200, "{\"token_ids\":[1]}", 0, NO_HURRY).await;
    rendering.fixture.announce(0, &[7; 16]);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let picker = rendering.fixture.picker.clone();
        waiting.spawn(async move { picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap() });
    }
    for _ in 0..64 {
        rendering.seen.recv().await.unwrap();
    }
    rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
    let receipt = rendering.fixture.receipts.find("last").unwrap();
    assert_eq!(receipt.fallbacks[0].kind.as_str(), "render-busy");
    rendering.permits.add_permits(64);
    drop(waiting.join_all().await);
    rendering.fixture.picker.pick(post("/v1/chat/completions", CHAT)).await.unwrap();
    assert_eq!(rendering.fixture.receipts.find("last").unwrap().fallbacks, [], "there is room again");
    rendering.fixture.assert_nothing_in_flight();
}

#[tokio::test]
async fn warming_up_ends_with_the_first_tokens() {
    let mut rendering = rendering(200, "[{\"token_ids\":[1]}]", 1, NO_HURRY).await;
    rendering.renderer.clone().warm_up().await;
    let (path, body) = rendering.seen.recv().await.unwrap();
    assert_eq!((path.as_str(), body.contains(r#""model":"base""#)), ("v1/completions/render", true));
    assert!(rendering.seen.try_recv().is_err());
}
