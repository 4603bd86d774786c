//! What is done to the stack, one phase after the other.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use serde_json::{Value, json};
use warmroute_demo::harness::Recipe;

use crate::comparison::Rule;
use crate::conversation::{Api, Conversation, token_ids};
use crate::driver::{Ask, Driver};
use crate::gateway_client::{GatewayClient, Refused};
use crate::say;
use crate::trust_history::{trust_words, unix_ms};
use crate::vllm_engine::{ADAPTER, MODEL, ModelKind};

const APIS: [Api; 3] = [Api::Chat, Api::Text, Api::Tokens];

/// Within this time of an engine's or the picker's restart the view must be exact or partial again.
const TRUST_LIMIT: Duration = Duration::from_secs(10);

/// When waiting for that is given up.
const TRUST_WAIT: Duration = Duration::from_secs(60);

/// All of them.
///
/// # Errors
/// Something fails that must not; what is merely predicted wrong is no error here.
pub(crate) async fn run(driver: &mut Driver) -> anyhow::Result<()> {
    let mut conversations: Vec<Conversation> =
        (0..6).map(|number| Conversation::new(APIS[number as usize % 3], number)).collect();
    conversations_alone(driver, &mut conversations).await?;
    streams_in_full_duplex(driver, &conversations).await?;
    exactly_filled(driver).await?;
    salts(driver).await?;
    if driver.serves(ModelKind::Plain) {
        adapter(driver).await?;
    }
    evictions(driver).await?;
    concurrent(driver).await?;
    again(driver, "after concurrency", &mut conversations).await?;
    counters(driver).await?;
    if driver.serves(ModelKind::Hybrid) {
        return Ok(());
    }
    findings(driver, "before anything was restarted").await?;
    reset(driver, &mut conversations).await?;
    engine_restarted(driver, &mut conversations).await?;
    again(driver, "after the engine's restart", &mut conversations).await?;
    picker_restarted(driver, &mut conversations).await?;
    if driver.reports_fully() {
        full_reports(driver, &mut conversations).await?;
    }
    findings(driver, "at the end").await
}

fn begin(phase: &str) {
    say(&format!("phase: {phase}"));
}

/// Conversations whose turns come one after the other.
async fn conversations_alone(driver: &mut Driver, conversations: &mut [Conversation]) -> anyhow::Result<()> {
    let phase = "conversations";
    begin(phase);
    for _ in 0..4 {
        for conversation in conversations.iter_mut() {
            driver.turn(phase, Some(Rule::Equal), conversation, true).await?;
        }
    }
    Ok(())
}

/// The same prompts once more, streamed, through the Envoy of the other recipe; here the picker reads the usage itself.
async fn streams_in_full_duplex(driver: &mut Driver, conversations: &[Conversation]) -> anyhow::Result<()> {
    let phase = "streams, full duplex";
    begin(phase);
    for conversation in conversations {
        let mut body = conversation.body();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let path = conversation.path();
        let ask = Ask { phase, rule: Some(Rule::Equal), recipe: Recipe::FullDuplex, path, body: &body };
        driver.ask_alone(ask).await?;
    }
    Ok(())
}

/// A completion of one token.
fn completion(model: &str, prompt: &[u64]) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0})
}

/// Prompts that fill their last block, which is computed and stored anew each time.
async fn exactly_filled(driver: &mut Driver) -> anyhow::Result<()> {
    let phase = "exactly filled blocks";
    begin(phase);
    let prompt = token_ids(50, 5);
    for length in [160, 160, 160, 161, 128, 160, 96, 97, 160, 32, 33] {
        driver.ask_alone(Ask::completion(phase, &completion(MODEL, &prompt[..length.min(160)]))).await?;
    }
    Ok(())
}

/// Equal prompts with different salts share nothing.
async fn salts(driver: &mut Driver) -> anyhow::Result<()> {
    let phase = "cache salts";
    begin(phase);
    let prompt = token_ids(60, 4);
    for salt in [None, Some("red"), Some("blau"), Some("red"), None, Some("緑"), Some("blau"), Some("緑")] {
        let mut body = completion(MODEL, &prompt);
        if let Some(salt) = salt {
            body["cache_salt"] = json!(salt);
        }
        driver.ask_alone(Ask::completion(phase, &body)).await?;
    }
    Ok(())
}

/// The model and an adapter of it share nothing.
async fn adapter(driver: &mut Driver) -> anyhow::Result<()> {
    let phase = "adapter";
    begin(phase);
    let prompt = token_ids(70, 4);
    for model in [MODEL, ADAPTER, MODEL, ADAPTER, ADAPTER] {
        driver.ask_alone(Ask::completion(phase, &completion(model, &prompt))).await?;
    }
    Ok(())
}

/// More prompts than both caches hold, and then those again that may be gone in part.
async fn evictions(driver: &mut Driver) -> anyhow::Result<()> {
    let phase = "evictions";
    begin(phase);
    for number in (100..132).chain(116..132).chain(120..132).chain(100..108) {
        let prompt = token_ids(number, 7 + number % 9);
        driver.ask_alone(Ask::completion(phase, &completion(MODEL, &prompt))).await?;
    }
    Ok(())
}

/// Conversations at the same time, more than fit into the caches at once.
async fn concurrent(driver: &mut Driver) -> anyhow::Result<()> {
    let phase = "concurrent conversations";
    begin(phase);
    let talk = async |driver: &Driver, number: u64| {
        let mut conversation = Conversation::new(APIS[number as usize % 3], 200 + number % 8);
        let mut comparisons = Vec::new();
        for _ in 0..5 {
            let (body, path) = (conversation.next(), conversation.path());
            let ask = Ask { phase, rule: Some(Rule::Told), recipe: Recipe::Buffered, path, body: &body };
            let (comparison, answer) = driver.ask(&ask).await?;
            conversation.answered(&answer);
            comparisons.push(comparison);
        }
        anyhow::Ok(comparisons)
    };
    let talks = futures::future::join_all((0..12).map(|number| talk(driver, number))).await;
    for comparison in talks.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten() {
        driver.add(comparison);
    }
    driver.settle_all().await
}

/// The last turn of each conversation once more, and one new one.
async fn again(
    driver: &mut Driver,
    phase: &'static str,
    conversations: &mut [Conversation],
) -> anyhow::Result<()> {
    begin(phase);
    for conversation in conversations.iter_mut() {
        driver.turn(phase, Some(Rule::Equal), conversation, false).await?;
    }
    for conversation in conversations.iter_mut() {
        driver.turn(phase, Some(Rule::Equal), conversation, true).await?;
    }
    Ok(())
}

/// The engines' own counters, which no request of this program's is needed for, tell of the same cached tokens.
async fn counters(driver: &mut Driver) -> anyhow::Result<()> {
    if !driver.serves(ModelKind::Hybrid) {
        let removed =
            driver.metric(driver.stack.admin()?, "llm_d_epp_kv_cache_index_evictions_total").await?;
        driver.check(format!("the engines had to evict: {removed} blocks are gone"), removed >= 100.0);
    }
    for engine in driver.stack.addresses() {
        let counted = driver.metric(engine, "vllm:prefix_cache_hits_total").await?;
        let preemptions = driver.metric(engine, "vllm:num_preemptions_total").await?;
        let address = engine.to_string();
        let told = driver.comparisons.iter().filter(|comparison| comparison.engine.starts_with(&address));
        let told: u64 = told.map(|comparison| comparison.delivered_tokens).sum();
        let what = format!(
            "{engine} counts {counted} cached tokens, its answers tell {told}; {preemptions} preemptions"
        );
        driver.check(what, counted == told as f64);
        for name in driver.engines_at(engine).await? {
            let picked = driver.comparisons.iter().filter(|comparison| comparison.engine == name).count();
            driver.check(format!("{name} gets its share of the requests: {picked}"), picked > 0);
        }
    }
    Ok(())
}

/// `warmroute doctor` has nothing to find.
async fn findings(driver: &mut Driver, when: &str) -> anyhow::Result<()> {
    let findings = driver.stack.doctor().await?["findings"].clone();
    let count = findings.as_array().map_or(0, Vec::len);
    driver.check(format!("`warmroute doctor` finds nothing {when}; findings: {findings}"), count == 0);
    Ok(())
}

/// One engine forgets its cache, and says so with its next request.
async fn reset(driver: &mut Driver, conversations: &mut [Conversation]) -> anyhow::Result<()> {
    let phase = "cache reset";
    begin(phase);
    for engine in driver.stack.addresses() {
        let answer = driver.stack.http.post(engine, "/reset_prefix_cache", Bytes::new()).await?;
        if answer.status != 200 {
            bail!("{engine} answers {} to /reset_prefix_cache: {}", answer.status, answer.text());
        }
        driver.reset.extend(driver.engines_at(engine).await?);
        driver.stack.history.note(format!("the cache of {engine} is reset"));
        for conversation in conversations.iter_mut() {
            driver.turn(phase, Some(Rule::Equal), conversation, false).await?;
        }
    }
    Ok(())
}

/// One engine ends and starts again at the same ports; the other serves meanwhile.
async fn engine_restarted(driver: &mut Driver, conversations: &mut [Conversation]) -> anyhow::Result<()> {
    let phase = "while an engine restarts";
    begin(phase);
    let mut engine = driver.stack.engines.remove(0);
    let address = engine.options.address();
    driver.stack.history.note(format!("{address} is told to end"));
    engine.stop().await?;
    engine.start_again()?;
    driver.stack.history.note(format!("{address} has ended and is started again"));
    let (mut unanswered, mut at, mut asked) = (0, 0, Instant::now());
    let http = driver.stack.http.clone();
    while !engine.is_ready(&http).await? {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if asked.elapsed() < Duration::from_secs(2) {
            continue;
        }
        asked = Instant::now();
        at = (at + 1) % conversations.len();
        let conversation = &mut conversations[at];
        match driver.turn(phase, Some(Rule::Equal), conversation, false).await {
            Ok(()) => {}
            // It was sent to the engine that is away.
            Err(error) if error.is::<Refused>() => unanswered += 1,
            Err(error) => return Err(error),
        }
    }
    let serving_unix_ms = unix_ms();
    driver
        .stack
        .history
        .note(format!("{address} serves again; {unanswered} requests were not answered meanwhile"));
    driver.stack.engines.insert(0, engine);
    // An engine that has had no request has said nothing, and what it holds (nothing) isn't seen.
    let mut numbers = 300..;
    let mut new_prompt = async |driver: &mut Driver| {
        let body = completion(MODEL, &token_ids(numbers.next().unwrap_or_default(), 2));
        driver.ask_alone(Ask::completion("new prompts after the restart", &body)).await.map(drop)
    };
    for engine in driver.engines_at(address).await? {
        let took = trusted_again(driver, &engine, serving_unix_ms, &mut new_prompt).await?;
        judge(driver, &format!("the restart of {engine}"), &took);
    }
    for _ in 0..10 {
        new_prompt(driver).await?;
    }
    Ok(())
}

/// Waits until the view of an engine is exact or partial, doing something meanwhile. Returns the seconds since a time
/// (below 0: it was so before), and the trust; none if it never was.
async fn trusted_again(
    driver: &mut Driver,
    engine: &str,
    since_unix_ms: u64,
    mut meanwhile: impl AsyncFnMut(&mut Driver) -> anyhow::Result<()>,
) -> anyhow::Result<Option<(f64, String)>> {
    let started = Instant::now();
    while started.elapsed() < TRUST_WAIT {
        let events = driver.kv_events(engine).await?;
        if ["exact", "partial"].iter().any(|trust| events["trust"] == **trust) {
            let at = events["trust_since_unix_ms"].as_u64().unwrap_or_default();
            return Ok(Some(((at as f64 - since_unix_ms as f64) / 1e3, trust_words(&events))));
        }
        meanwhile(driver).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(None)
}

fn judge(driver: &mut Driver, what: &str, took: &Option<(f64, String)>) {
    let limit = TRUST_LIMIT.as_secs();
    let (words, is_met) = match took {
        Some((seconds, trust)) if *seconds < 0.0 => {
            (format!("{trust}, already {:.2} s before that", -seconds), true)
        }
        Some((seconds, trust)) => (format!("{trust} after {seconds:.2} s"), *seconds <= limit as f64),
        None => (format!("neither within {TRUST_WAIT:?}"), false),
    };
    driver.check(format!("exact or partial again within {limit} s of {what}: {words}"), is_met);
}

/// Numbers of the prompts that are sent past the picker.
const DIRECT_PROMPTS: Range<u64> = 600..660;

/// Sends prompts to the engines themselves, one after the other at each; returns how many.
async fn direct_traffic(engines: Vec<SocketAddr>) -> anyhow::Result<usize> {
    let client = GatewayClient::default();
    let at_one = async |engine: SocketAddr| {
        for number in DIRECT_PROMPTS {
            let body = completion(MODEL, &token_ids(number, 5));
            client.post(engine, "/v1/completions", &format!("direct-{number}"), &body).await?;
        }
        anyhow::Ok(DIRECT_PROMPTS.count())
    };
    let counts = futures::future::join_all(engines.into_iter().map(at_one)).await;
    counts.into_iter().sum()
}

/// The picker is killed, and another one starts beside engines that have published more than one of them keeps.
async fn picker_restarted(driver: &mut Driver, conversations: &mut [Conversation]) -> anyhow::Result<()> {
    let phase = "after the picker's restart";
    begin(phase);
    driver.stack.history.note("the picker is killed");
    driver.stack.kill_picker().await;
    // The engines work past the picker meanwhile: what they publish while a replay runs has to fall into its place.
    let traffic = direct_traffic(driver.stack.addresses());
    let history = driver.stack.history.clone();
    let start = async {
        driver.stack.start_picker().await?;
        history.note("another picker is ready");
        anyhow::Ok(unix_ms())
    };
    let (ready_unix_ms, served) = futures::future::join(start, traffic).await;
    let ready_unix_ms = ready_unix_ms?;
    driver.settle_all().await?;
    say(&format!("{} prompts were served past the picker meanwhile", served?));
    for address in driver.stack.addresses() {
        for engine in driver.engines_at(address).await? {
            let took = trusted_again(driver, &engine, ready_unix_ms, async |_| Ok(())).await?;
            judge(driver, &format!("the picker's restart, of {engine}"), &took);
        }
    }
    for conversation in conversations.iter_mut() {
        driver.turn(phase, None, conversation, false).await?;
    }
    if driver.serves(ModelKind::Plain) {
        let ask = completion(ADAPTER, &token_ids(70, 4));
        driver.ask_alone(Ask { rule: None, ..Ask::completion(phase, &ask) }).await?;
    }
    for number in DIRECT_PROMPTS.rev().take(6) {
        let ask = completion(MODEL, &token_ids(number, 5));
        driver.ask_alone(Ask { rule: None, ..Ask::completion(phase, &ask) }).await?;
    }
    for number in 400..406 {
        let mut conversation = Conversation::new(Api::Tokens, number);
        for _ in 0..3 {
            driver.turn(phase, None, &mut conversation, true).await?;
        }
    }
    Ok(())
}

/// Asks the engines to announce again what they hold of the prompts, and then evicts everything.
async fn full_reports(driver: &mut Driver, conversations: &mut [Conversation]) -> anyhow::Result<()> {
    let phase = "full reports";
    begin(phase);
    for conversation in conversations.iter() {
        let mut body = conversation.body();
        body["vllm_xargs"] = json!({"kv_cache_report_mode": "full"});
        let ask = Ask { phase, rule: None, recipe: Recipe::Buffered, path: conversation.path(), body: &body };
        driver.ask_alone(ask).await?;
    }
    let phase = "after full reports";
    for conversation in conversations.iter_mut() {
        driver.turn(phase, Some(Rule::Equal), conversation, false).await?;
    }
    let phase = "evictions after full reports";
    begin(phase);
    for number in 500..520 {
        driver.ask_alone(Ask::completion(phase, &completion(MODEL, &token_ids(number, 12)))).await?;
    }
    for conversation in conversations.iter_mut() {
        driver.turn(phase, None, conversation, false).await?;
    }
    Ok(())
}
