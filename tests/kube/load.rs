//! [`Load`]: requests at a steady rate, each answer of which is held against what was ready.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use warmroute_demo::load::{AnswerPart, SseAnswer};

use crate::engine_pod::{BLOCK_TOKENS, MODEL};
use crate::ready_log::{ReadyLog, Standing};

/// A request that takes longer has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long after the API server was told that a pod is no longer ready it may still be picked: the news travels, and
/// the machine is busy. Its engine still serves then, as under a preStop hook.
pub(crate) const NEWS_LIMIT: Duration = Duration::from_secs(1);

/// Failures that are told with their words.
const FAILURES_TOLD: usize = 20;

/// Conversations that share the beginning of their prompts.
const CONVERSATIONS: u64 = 24;

/// Blocks of that beginning.
const SHARED_BLOCKS: u32 = 24;

/// What the requests are like.
#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    pub(crate) gateway: SocketAddr,
    pub(crate) per_second: u32,
    /// The model that they ask for.
    pub(crate) model: &'static str,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

impl LoadOptions {
    /// Requests for the engines' own model.
    pub(crate) fn new(gateway: SocketAddr, per_second: u32) -> Self {
        Self { gateway, per_second, model: MODEL, headers: Vec::new() }
    }
}

/// What came of the requests.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) streamed: u64,
    /// By the address that served them.
    pub(crate) picks: BTreeMap<SocketAddr, u64>,
    /// Picks of a pod that had stopped being ready before, though not for longer than the news may travel.
    pub(crate) picks_before_news: u64,
    /// The longest of these, in ms.
    pub(crate) longest_news_ms: u128,
    /// Picks of a pod that was not ready, whatever the reason.
    pub(crate) wrong_picks: u64,
    /// From sending to the end of the answer, in ms, of every answer.
    #[serde(skip)]
    latencies_ms: Vec<u32>,
    /// The first failures and wrong picks, in words.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// A latency in ms that this share of the answers keeps below.
    pub(crate) fn latency_ms(&self, share: f64) -> u32 {
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * share) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
    }

    fn tell(&mut self, words: String) {
        if self.failures.len() < FAILURES_TOLD {
            self.failures.push(words);
        }
    }

    fn note(
        &mut self,
        answer: anyhow::Result<Answer>,
        ready_log: &ReadyLog,
        started: Instant,
        sent: Instant,
    ) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.failed += 1;
                return self.tell(format!("{:.2} s: {error:#}", (sent - started).as_secs_f64()));
            }
        };
        self.answered += 1;
        self.streamed += u64::from(answer.is_stream);
        self.latencies_ms.push(u32::try_from(sent.elapsed().as_millis()).unwrap_or(u32::MAX));
        *self.picks.entry(answer.served_by).or_insert(0) += 1;
        match ready_log.standing(answer.served_by, sent, answer.answered) {
            Standing::Ready => {}
            Standing::Past(past) if past <= NEWS_LIMIT => {
                self.picks_before_news += 1;
                self.longest_news_ms = self.longest_news_ms.max(past.as_millis());
            }
            standing => {
                self.wrong_picks += 1;
                let at = (sent - started).as_secs_f64();
                self.tell(format!("{at:.2} s: picked {}, which was {standing:?}", answer.served_by));
            }
        }
    }
}

/// A complete answer.
struct Answer {
    served_by: SocketAddr,
    /// When its headers came.
    answered: Instant,
    is_stream: bool,
}

/// A running load.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    tally: Arc<Mutex<Tally>>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts sending.
    pub(crate) fn start(options: LoadOptions, ready_log: ReadyLog) -> Self {
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(send_all(options, ready_log, tally.clone(), stopped));
        Self { stop, tally, tasks }
    }

    /// Waits until so many more requests have been answered or have failed.
    pub(crate) async fn until_more(&self, requests: u64) {
        let done = || {
            let tally = self.tally.lock();
            tally.answered + tally.failed
        };
        let wanted = done() + requests;
        while done() < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What came of the requests so far; it goes on being counted.
    pub(crate) fn tally(&self) -> Arc<Mutex<Tally>> {
        self.tally.clone()
    }

    /// How many requests have failed so far.
    pub(crate) fn failed(&self) -> u64 {
        self.tally.lock().failed
    }

    /// Waits until each of these addresses has been picked again.
    ///
    /// # Errors
    /// One isn't in time.
    pub(crate) async fn until_picked(&self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        let before = self.tally.lock().picks.clone();
        let started = Instant::now();
        loop {
            let picks = self.tally.lock().picks.clone();
            let missing = addresses.iter().find(|address| picks.get(address) <= before.get(address));
            match missing {
                None => return Ok(()),
                Some(address) if started.elapsed() > ANSWER_LIMIT => {
                    bail!("{address} wasn't picked within {ANSWER_LIMIT:?}")
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Stops sending, waits for all answers and says what came of them.
    pub(crate) async fn finish(mut self) -> Tally {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        self.tally.lock().clone()
    }
}

async fn send_all(
    options: LoadOptions,
    ready_log: ReadyLog,
    tally: Arc<Mutex<Tally>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.per_second.max(1));
    // Open loop: what was missed is sent late, not left out.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let started = Instant::now();
    let mut under_way = JoinSet::new();
    for number in 0_u64.. {
        loop {
            tokio::select! {
                _ = ticks.tick() => break,
                Some(_) = under_way.join_next() => {}
                _ = stopped.changed() => {
                    while under_way.join_next().await.is_some() {}
                    return;
                }
            }
        }
        tally.lock().sent += 1;
        let (client, options, ready_log, tally) =
            (client.clone(), options.clone(), ready_log.clone(), tally.clone());
        under_way.spawn(async move {
            let sent = Instant::now();
            let answer = tokio::time::timeout(ANSWER_LIMIT, send(&client, &options, number)).await;
            let answer = answer.unwrap_or_else(|_| bail!("no whole answer within {ANSWER_LIMIT:?}"));
            tally.lock().note(answer.with_context(|| format!("request {number}")), &ready_log, started, sent);
        });
    }
}

/// POSTs one completion and reads the answer, whatever it is: its status, and who served it.
///
/// # Errors
/// There is none.
pub(crate) async fn post(
    gateway: SocketAddr,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<(u16, Option<SocketAddr>)> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = http::Request::post(format!("http://{gateway}/v1/completions"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header("content-type", "application/json").body(Full::new(body))?;
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.request(request)).await??;
    let status = answer.status().as_u16();
    let served_by = answer.headers().get("x-served-by").and_then(|value| value.to_str().ok()?.parse().ok());
    answer.into_body().collect().await?;
    Ok((status, served_by))
}

/// A prompt of token ids: its conversation's beginning, then one block of its own. A third of the prompts share nothing, so
/// that they go where there is room, and an engine with an empty cache gets its part.
fn body(number: u64, model: &str) -> Value {
    let conversation = u32::try_from(number % CONVERSATIONS).unwrap_or(0);
    let own = u32::try_from(number % 50_000).unwrap_or(0);
    let begin = if number.is_multiple_of(3) { 200_000 + own * 2 } else { 1_000 + conversation * 4_000 };
    let shared = begin..begin + SHARED_BLOCKS * BLOCK_TOKENS;
    let prompt: Vec<u32> = shared.chain((0..BLOCK_TOKENS).map(|at| 100_000 + own + at)).collect();
    // Most answers are short, some take a second, so that something runs whenever anything ends.
    let max_tokens = if number % 40 == 7 { 250 } else { 8 };
    json!({"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": number.is_multiple_of(2)})
}

async fn send(
    client: &Client<HttpConnector, Full<Bytes>>,
    options: &LoadOptions,
    number: u64,
) -> anyhow::Result<Answer> {
    let body = body(number, options.model);
    let mut request = http::Request::post(format!("http://{}/v1/completions", options.gateway))
        .header("content-type", "application/json")
        .header("x-request-id", format!("load-{number}"));
    for (name, value) in &options.headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string())))?;
    let (head, answer) = client.request(request).await?.into_parts();
    let answered = Instant::now();
    let served_by =
        head.headers.get("x-served-by").and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let answer = answer.collect().await.with_context(|| format!("the answer of {served_by} broke off"))?;
    let text = String::from_utf8_lossy(&answer.to_bytes()).into_owned();
    if head.status != 200 {
        bail!(
            "status {} by {served_by}: {}",
            head.status.as_u16(),
            text.chars().take(200).collect::<String>()
        );
    }
    let is_stream = body["stream"] == true;
    if is_stream {
        let (mut is_done, mut has_content) = (false, false);
        SseAnswer::default().feed(text.as_bytes(), |part| {
            is_done |= part == AnswerPart::Done;
            has_content |= part == AnswerPart::Content;
        });
        if !is_done || !has_content {
            bail!("the stream of {served_by} is not whole: {} bytes", text.len());
        }
    } else {
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("the answer of {served_by} is not whole"))?;
        if answer["choices"][0]["text"].as_str().is_none_or(str::is_empty) {
            bail!("the answer of {served_by} has no text");
        }
    }
    Ok(Answer { served_by: served_by.parse().context("no engine is named")?, answered, is_stream })
}
