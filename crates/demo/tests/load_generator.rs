//! The load generator against a small HTTP server in this process, whose answers wait for the test's word.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warmroute_demo::load::{Failure, LoadGenerator, Outcome, Pace, PlannedRequest, StreamUsage};

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":32}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// What the server does with a request is in its body: a list of steps.
#[derive(Clone)]
struct Server {
    /// `wait` takes one permit.
    gate: Arc<Semaphore>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

type Chunks = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

impl Server {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Chunks>, Infallible> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let steps: Vec<String> =
            String::from_utf8(body.to_vec()).unwrap().lines().map(str::to_owned).collect();
        if let Some(status) = steps.first().and_then(|step| step.strip_prefix("status ")) {
            let response = Response::builder().status(status.parse::<u16>().unwrap());
            return Ok(response.body(StreamBody::new(futures::stream::empty().boxed())).unwrap());
        }
        let gate = self.gate;
        let chunks = futures::stream::iter(steps).then(move |step| {
            let gate = gate.clone();
            async move {
                let bytes = match step.as_str() {
                    "wait" => {
                        gate.acquire().await.unwrap().forget();
                        ""
                    }
                    "role" => ROLE,
                    "word" => WORD,
                    "usage" => USAGE,
                    "done" => DONE,
                    other => panic!("{other}"),
                };
                Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))
            }
        });
        let response = Response::builder().header("x-served-by", "127.0.0.2:8000");
        Ok(response.body(StreamBody::new(chunks.boxed())).unwrap())
    }

    /// Serves until the set is dropped.
    async fn start() -> (Self, SocketAddr, JoinSet<()>) {
        let server =
            Self { gate: Arc::new(Semaphore::new(0)), requests: Arc::default(), connections: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let accepting = server.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let server = accepting.clone();
                let service = service_fn(move |request| server.clone().answer(request));
                connections.spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A connection that the test breaks ends with an error here.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (server, address, tasks)
    }
}

fn plan(due_ms: &[u64], steps: &str) -> Vec<PlannedRequest> {
    let request = |due_ms: &u64| PlannedRequest {
        due: Duration::from_millis(*due_ms),
        path: "/v1/chat/completions",
        body: Bytes::from(steps.to_owned()),
        headers: vec![("x-session-id", "test".to_owned())],
    };
    due_ms.iter().map(request).collect()
}

fn generator(address: SocketAddr) -> LoadGenerator {
    LoadGenerator::new(address, Duration::from_secs(60))
}

async fn one(address: SocketAddr, steps: &str) -> Outcome {
    let outcomes = generator(address).run(&plan(&[0], steps), Pace::Scheduled, |_| {}).await;
    outcomes.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_complete_answer_is_measured() {
    let (_server, address, _tasks) = Server::start().await;
    let outcome = one(address, "role\nword\nword\nusage\ndone").await;
    assert_eq!(outcome.failure, None);
    assert_eq!(
        outcome.usage,
        Some(StreamUsage { prompt_tokens: 40, completion_tokens: 2, cached_tokens: Some(32) })
    );
    assert_eq!(outcome.served_by.as_deref(), Some("127.0.0.2:8000"));
    let ttft = outcome.ttft.unwrap();
    assert!(outcome.lag <= ttft && ttft <= outcome.total, "{outcome:?}");
}

/// A server that sends the beginning of an answer and closes the connection: everything it sent arrives first.
async fn broken_off() -> Outcome {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"the body") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = format!("{head}{:x}\r\n{WORD}\r\n", WORD.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(one(address, "the body"), serve);
    outcome
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (_server, address, _tasks) = Server::start().await;
    assert_eq!(one(address, "status 503").await.failure, Some(Failure::Status(503)));
    let truncated = one(address, "role\nword").await;
    assert_eq!(truncated.failure, Some(Failure::Truncated));
    assert!(truncated.ttft.is_some(), "the first word had come");
    assert_eq!(one(address, "role\ndone").await.failure, Some(Failure::NoContent));
    let broken = broken_off().await;
    assert!(matches!(broken.failure, Some(Failure::Broken(_))), "{broken:?}");
    assert!(broken.ttft.is_some(), "the first word had come");

    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = unused.local_addr().unwrap();
    drop(unused);
    let refused = one(nobody, "done").await;
    assert!(
        matches!(&refused.failure, Some(Failure::NoAnswer(reason)) if reason.contains("refused")),
        "{refused:?}"
    );

    let impatient = LoadGenerator::new(address, Duration::from_millis(1));
    let outcomes = impatient.run(&plan(&[0], "wait"), Pace::Scheduled, |_| {}).await;
    assert_eq!(outcomes[0].failure, Some(Failure::TimedOut));
}

#[tokio::test]
async fn a_stalled_server_does_not_hold_back_later_requests() {
    let (server, address, _tasks) = Server::start().await;
    let plan = plan(&[0, 1, 2, 3, 4, 5, 6, 7], "wait\nword\ndone");
    let release = async {
        // All of them are under way at once, though none has been answered: an open loop.
        while server.requests.load(Ordering::SeqCst) < 8 {
            tokio::task::yield_now().await;
        }
        server.gate.add_permits(8);
    };
    let generator = generator(address);
    let (outcomes, ()) = tokio::join!(generator.run(&plan, Pace::Scheduled, |_| {}), release);
    assert!(outcomes.iter().all(|outcome| outcome.failure.is_none()));
    // Whoever was due earlier waited longer: they were all let go at the same moment, after the last was due.
    let first = outcomes[0].ttft.unwrap();
    assert!(first >= Duration::from_millis(7), "{first:?}");
    assert_eq!(outcomes.iter().map(|outcome| outcome.index).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn latency_counts_from_when_a_request_was_due() {
    let (server, address, _tasks) = Server::start().await;
    server.gate.add_permits(2);
    let plan = plan(&[0, 10], "wait\nword\ndone");
    let generator = generator(address);
    let mut run = std::pin::pin!(generator.run(&plan, Pace::Scheduled, |_| {}));
    // The first poll fixes the schedule. Then the generator is held up on purpose: the second request, due after 10 ms,
    // cannot leave before 60 ms, and the server is not to blame.
    assert!(futures::poll!(&mut run).is_pending());
    std::thread::sleep(Duration::from_millis(60));
    let outcomes = run.await;
    let late = &outcomes[1];
    assert!(late.lag >= Duration::from_millis(50), "{late:?}");
    assert!(late.ttft.unwrap() >= late.lag, "{late:?}");
}

#[tokio::test]
async fn one_by_one_waits_for_the_answer_and_keeps_the_connection() {
    let (server, address, _tasks) = Server::start().await;
    server.gate.add_permits(5);
    let mut seen = Vec::new();
    let plan = plan(&[0; 5], "wait\nword\nusage\ndone");
    let requests = server.requests.clone();
    let observe = |progress: warmroute_demo::load::Progress| {
        seen.push((progress.done, requests.load(Ordering::SeqCst), progress.cached_tokens));
    };
    let outcomes = generator(address).run(&plan, Pace::OneByOne(Duration::from_millis(1)), observe).await;
    assert!(outcomes.iter().all(|outcome| outcome.failure.is_none()));
    assert_eq!(seen, [(1, 1, 32), (2, 2, 64), (3, 3, 96), (4, 4, 128), (5, 5, 160)]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}
