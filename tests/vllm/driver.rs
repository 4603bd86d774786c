//! [`Driver`]: sends requests through the gateway and lays what was predicted of each beside what was delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use warmroute::receipt::Receipt;
use warmroute_demo::harness::Recipe;
use warmroute_demo::scrape::MetricsText;

use crate::comparison::{Comparison, Rule};
use crate::conversation::Conversation;
use crate::gateway_client::GatewayClient;
use crate::say;
use crate::stack::{Stack, endpoints};
use crate::vllm_engine::{BLOCK_TOKENS, ModelKind};

/// How often the status page is read while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// So many looks in a row without a new batch of events end the wait after a request.
const QUIET_LOOKS: u32 = 4;

/// Events that aren't there by then are told as late.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);

/// One request to send.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) phase: &'static str,
    /// None: as far as the view of the picked engine is trusted.
    pub(crate) rule: Option<Rule>,
    pub(crate) recipe: Recipe,
    pub(crate) path: &'a str,
    pub(crate) body: &'a Value,
}

impl<'a> Ask<'a> {
    /// A completion that comes alone, through the recommended recipe.
    pub(crate) fn completion(phase: &'static str, body: &'a Value) -> Self {
        Self { phase, rule: Some(Rule::Equal), recipe: Recipe::Buffered, path: "/v1/completions", body }
    }
}

/// Something else that must hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) is_met: bool,
}

/// The stack and what came out so far.
pub(crate) struct Driver {
    pub(crate) stack: Stack,
    pub(crate) comparisons: Vec<Comparison>,
    pub(crate) checks: Vec<Check>,
    /// Requests after which the events came late or not at all.
    pub(crate) late_events: Vec<String>,
    /// Engines, as receipts call them, that have reset their cache and had no request since.
    pub(crate) reset: BTreeSet<String>,
    kind: ModelKind,
    version: (u32, u32),
    client: GatewayClient,
    asked: AtomicU64,
}

impl Driver {
    pub(crate) fn new(stack: Stack, kind: ModelKind, version: &str) -> Self {
        let mut numbers = version.split('.').map_while(|part| part.parse().ok());
        Self {
            stack,
            comparisons: Vec::new(),
            checks: Vec::new(),
            late_events: Vec::new(),
            reset: BTreeSet::new(),
            kind,
            version: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
            client: GatewayClient::default(),
            asked: AtomicU64::new(0),
        }
    }

    /// Notes whether something holds.
    pub(crate) fn check(&mut self, what: String, is_met: bool) {
        say(&format!("{}: {what}", if is_met { "as it must be" } else { "NOT AS IT MUST BE" }));
        self.checks.push(Check { what, is_met });
    }

    /// The picker's status page.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let page = self.stack.http.get_ok(self.stack.admin()?, "/status").await?;
        Ok(serde_json::from_slice(&page.body)?)
    }

    /// What the status says of one engine's events.
    ///
    /// # Errors
    /// As [`Driver::status`]; the engine isn't there.
    pub(crate) async fn kv_events(&self, engine: &str) -> anyhow::Result<Value> {
        let status = self.status().await?;
        let found = endpoints(&status).find(|(name, _)| name == engine);
        Ok(found.with_context(|| format!("the status has no endpoint {engine}"))?.1["kv_events"].clone())
    }

    /// The engines behind an address, as receipts call them: the address, or one name per rank.
    ///
    /// # Errors
    /// As [`Driver::status`].
    pub(crate) async fn engines_at(&self, address: SocketAddr) -> anyhow::Result<Vec<String>> {
        let (status, address) = (self.status().await?, address.to_string());
        Ok(endpoints(&status).filter(|(_, line)| line["address"] == *address).map(|(name, _)| name).collect())
    }

    /// The sum of a metric's samples on a page; 0 if it has none.
    ///
    /// # Errors
    /// There is no page, or it can't be read.
    pub(crate) async fn metric(&self, address: SocketAddr, name: &str) -> anyhow::Result<f64> {
        let page = self.stack.http.get_ok(address, "/metrics").await?;
        Ok(MetricsText::parse(&page.text())?.sum(name, &[]).unwrap_or(0.0))
    }

    /// Sends one request; others may be under way.
    ///
    /// # Errors
    /// It isn't answered by 200, or there is no receipt.
    pub(crate) async fn ask(&self, ask: &Ask<'_>) -> anyhow::Result<(Comparison, Value)> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("{}-{number}", ask.phase.replace(' ', "-"));
        let gateway = self.stack.gateway(ask.recipe)?;
        let answer = self.client.post(gateway, ask.path, &request_id, ask.body).await?;
        let page =
            self.stack.http.get_ok(self.stack.admin()?, &format!("/debug/decisions/{request_id}")).await?;
        let receipt: Receipt = serde_json::from_slice(&page.body)?;
        let usage = &answer["usage"];
        let tokens =
            |name: &str| usage[name].as_u64().with_context(|| format!("{request_id}: no {name} in {usage}"));
        let picked = receipt.pick.as_deref().context("the receipt has no pick")?;
        let trust =
            receipt.candidates.iter().find(|line| *line.endpoint == *picked).and_then(|line| line.trust);
        let by_trust = match trust.map(|note| note.trust.as_str()) {
            None => Rule::Equal,
            Some("partial") => Rule::NotMore,
            Some(_) => Rule::Told,
        };
        let comparison = Comparison {
            phase: ask.phase,
            engine: picked.to_owned(),
            trust: trust.map(|note| format!("{} ({})", note.trust.as_str(), note.reason.as_str())),
            rule: self.rule(ask.rule.unwrap_or(by_trust)),
            excuse: None,
            counted_tokens: receipt.prompt_tokens.map(u64::from),
            prompt_tokens: tokens("prompt_tokens")?,
            predicted_tokens: receipt.predicted_cached_tokens.into(),
            expected_tokens: receipt.expected_cached_tokens.into(),
            // vLLM leaves a zero out.
            delivered_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
            completion_tokens: tokens("completion_tokens")?,
            fallbacks: receipt.fallbacks.iter().map(|note| note.kind.as_str().to_owned()).collect(),
            request_id,
        };
        Ok((comparison, answer))
    }

    /// What is demanded of this kind of model: of a hybrid one, that no more is predicted than delivered.
    fn rule(&self, demanded: Rule) -> Rule {
        match (demanded, self.kind) {
            (Rule::Equal, ModelKind::Hybrid) => Rule::NotMore,
            _ => demanded,
        }
    }

    /// Whether this vLLM announces again what it holds of a prompt if a request asks for that.
    pub(crate) fn reports_fully(&self) -> bool {
        self.version >= (0, 26)
    }

    /// Whether the engines serve such a model.
    pub(crate) fn serves(&self, kind: ModelKind) -> bool {
        self.kind == kind
    }

    /// Sends one request alone: returns when its events have been applied, too.
    ///
    /// # Errors
    /// As [`Driver::ask`].
    pub(crate) async fn ask_alone(&mut self, ask: Ask<'_>) -> anyhow::Result<Value> {
        let before = self.batches().await?;
        let (mut comparison, answer) = self.ask(&ask).await?;
        let engine = comparison.engine.clone();
        if self.reset.remove(&engine) {
            comparison.excuse = Some("first request after a reset, which is announced with it");
        }
        // What a hybrid model stores in which step isn't foreseen: there the events must only have stopped.
        let new_batches = if self.kind == ModelKind::Hybrid { 0 } else { batches_of(&comparison) };
        let batches = before.get(&engine).copied().unwrap_or(0) + new_batches;
        let wanted = BTreeMap::from([(engine, batches)]);
        if !self.settle(&wanted).await? {
            self.late_events.push(comparison.line());
        }
        self.add(comparison);
        Ok(answer)
    }

    /// Sends the last or the next turn of a conversation alone.
    ///
    /// # Errors
    /// As [`Driver::ask`].
    pub(crate) async fn turn(
        &mut self,
        phase: &'static str,
        rule: Option<Rule>,
        conversation: &mut Conversation,
        is_next: bool,
    ) -> anyhow::Result<()> {
        let body = if is_next { conversation.next() } else { conversation.body() };
        let ask = Ask { phase, rule, recipe: Recipe::Buffered, path: conversation.path(), body: &body };
        let answer = self.ask_alone(ask).await?;
        if is_next {
            conversation.answered(&answer);
        }
        Ok(())
    }

    /// Keeps a comparison, and says so at once if it is wrong.
    pub(crate) fn add(&mut self, comparison: Comparison) {
        if comparison.is_wrong() {
            say(&format!("WRONG: {}", comparison.line()));
        }
        self.comparisons.push(comparison);
    }

    /// Waits until no engine's events come any more.
    ///
    /// # Errors
    /// They never stop; the status can't be read.
    pub(crate) async fn settle_all(&self) -> anyhow::Result<()> {
        if !self.settle(&BTreeMap::new()).await? {
            bail!("events come without end");
        }
        Ok(())
    }

    /// Waits until each engine has published at least so many batches, and no more come. False if they don't come.
    async fn settle(&self, wanted: &BTreeMap<String, u64>) -> anyhow::Result<bool> {
        let (started, mut last, mut quiet) = (Instant::now(), BTreeMap::new(), 0);
        while quiet < QUIET_LOOKS {
            if started.elapsed() > EVENTS_LIMIT {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.batches().await?;
            let reached =
                wanted.iter().all(|(engine, batches)| now.get(engine).is_some_and(|now| now >= batches));
            quiet = if reached && now == last { quiet + 1 } else { 0 };
            last = now;
        }
        Ok(true)
    }

    /// Batches applied so far, per engine.
    async fn batches(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let status = self.status().await?;
        let of = |(name, line): (String, &Value)| Some((name, line["kv_events"]["batches"].as_u64()?));
        Ok(endpoints(&status).filter_map(of).collect())
    }
}

/// Batches of events that a request causes at least: one step of the engine for the prompt, if that fills blocks that
/// weren't cached, and one for each block that the answer fills. The last token of the answer is never computed on.
fn batches_of(comparison: &Comparison) -> u64 {
    let prompt_blocks = comparison.prompt_tokens / BLOCK_TOKENS;
    let computed = comparison.prompt_tokens + comparison.completion_tokens.saturating_sub(1);
    let answer_blocks = computed / BLOCK_TOKENS - prompt_blocks;
    u64::from(prompt_blocks > comparison.delivered_tokens / BLOCK_TOKENS) + answer_blocks
}
