//! [`LoadGenerator`]: sends a plan and measures the answers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{AnswerPart, Failure, Outcome, PlannedRequest, SseAnswer, StreamUsage};

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each at its time, however many are under way.
    Scheduled,
    /// Each when the one before it has ended and this much time has passed.
    OneByOne(Duration),
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that have ended, well or badly.
    pub done: usize,
    /// Requests of the plan.
    pub total: usize,
    /// Those of `done` that failed.
    pub failed: usize,
    /// Prompt tokens of the answers so far.
    pub prompt_tokens: u64,
    /// Those of `prompt_tokens` that the engines had cached.
    pub cached_tokens: u64,
}

/// Sends requests over a pool of kept-alive HTTP/1.1 connections.
#[derive(Debug, Clone)]
pub struct LoadGenerator {
    client: Client<HttpConnector, Full<Bytes>>,
    target: SocketAddr,
    timeout: Duration,
}

impl LoadGenerator {
    /// A generator for the gateway at `target`. A request that takes longer than `timeout` has failed.
    pub fn new(target: SocketAddr, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        // Small writes must leave at once, or Nagle's algorithm would be measured too.
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        Self { client, target, timeout }
    }

    /// Sends the plan and waits for all answers; outcomes are in the order of the plan. `observe` is called after each.
    pub async fn run(
        &self,
        plan: &[PlannedRequest],
        pace: Pace,
        mut observe: impl FnMut(Progress),
    ) -> Vec<Outcome> {
        let mut progress = Progress { total: plan.len(), ..Progress::default() };
        let mut outcomes = Vec::with_capacity(plan.len());
        let mut collect = |outcome: Outcome| {
            progress.done += 1;
            progress.failed += usize::from(outcome.failure.is_some());
            if let Some(usage) = outcome.usage {
                progress.prompt_tokens += usage.prompt_tokens;
                progress.cached_tokens += usage.cached_tokens.unwrap_or(0);
            }
            observe(progress);
            outcomes.push(outcome);
        };
        match pace {
            Pace::OneByOne(gap) => {
                for (index, request) in plan.iter().enumerate() {
                    if index > 0 {
                        tokio::time::sleep(gap).await;
                    }
                    collect(self.clone().send(index, request.clone(), Instant::now()).await);
                }
            }
            Pace::Scheduled => self.run_scheduled(plan, &mut collect).await,
        }
        outcomes.sort_unstable_by_key(|outcome| outcome.index);
        outcomes
    }

    async fn run_scheduled(&self, plan: &[PlannedRequest], collect: &mut impl FnMut(Outcome)) {
        let start = Instant::now();
        let mut under_way = JoinSet::new();
        for (index, request) in plan.iter().enumerate() {
            let due = start + request.due;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    Some(Ok(outcome)) = under_way.join_next() => collect(outcome),
                }
            }
            under_way.spawn(self.clone().send(index, request.clone(), due));
        }
        while let Some(joined) = under_way.join_next().await {
            // A task here can neither panic nor be aborted.
            joined.into_iter().for_each(&mut *collect);
        }
    }

    /// Sends one request; all times count from `due`.
    async fn send(self, index: usize, request: PlannedRequest, due: Instant) -> Outcome {
        let lag = due.elapsed();
        let mut outcome =
            Outcome { index, lag, ttft: None, total: lag, usage: None, served_by: None, failure: None };
        let exchange = self.exchange(&request, due, &mut outcome);
        let failure = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::TimedOut),
        };
        outcome.failure = failure;
        outcome.total = due.elapsed();
        outcome
    }

    async fn exchange(
        &self,
        planned: &PlannedRequest,
        due: Instant,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let mut request = http::Request::post(format!("http://{}{}", self.target, planned.path))
            .header(http::header::CONTENT_TYPE, "application/json");
        for (name, value) in &planned.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(planned.body.clone()))
            .map_err(|error| Failure::NoAnswer(error.to_string()))?;
        let response =
            self.client.request(request).await.map_err(|error| Failure::NoAnswer(chain(&error)))?;
        let served_by = response.headers().get("x-served-by").and_then(|value| value.to_str().ok());
        outcome.served_by = served_by.map(str::to_owned);
        let status = response.status().as_u16();
        if status != 200 {
            return Err(Failure::Status(status));
        }
        let mut body = response.into_body();
        let mut answer = SseAnswer::default();
        let mut seen = Seen::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::Broken(chain(&error)))?;
            let elapsed = due.elapsed();
            if let Some(data) = frame.data_ref() {
                answer.feed(data, |part| seen.note(part));
            }
            if seen.content && outcome.ttft.is_none() {
                outcome.ttft = Some(elapsed);
            }
        }
        outcome.usage = seen.usage;
        seen.verdict()
    }
}

/// What a stream has held so far.
#[derive(Debug, Default)]
struct Seen {
    content: bool,
    done: bool,
    error: bool,
    usage: Option<StreamUsage>,
}

impl Seen {
    fn note(&mut self, part: AnswerPart) {
        match part {
            AnswerPart::Content => self.content = true,
            AnswerPart::Done => self.done = true,
            AnswerPart::Error => self.error = true,
            AnswerPart::Usage(usage) => self.usage = Some(usage),
            AnswerPart::Other => {}
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        if self.error {
            Err(Failure::InStream)
        } else if !self.done {
            Err(Failure::Truncated)
        } else if !self.content {
            Err(Failure::NoContent)
        } else {
            Ok(())
        }
    }
}

/// An error with its causes: hyper's own words are often only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}
