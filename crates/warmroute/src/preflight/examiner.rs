//! Sends the probes, from those that cost nothing to those that cost something, and notes what came of each.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use warmroute_ext_proc::{PROBE_HEADER, ProbeAnswer, ProbeOrder, ROUTING_HEADERS};

use super::diagnosis::ORDINARY_DELAY_MS;
use super::gateway_client::{GatewayClient, HttpVersion, Outgoing};
use super::observation::{AddressTrial, DelayTrial, Failures, Generation, Observation, SizeTrial};
use super::picker_desks::PickerDesks;
use super::{Exchange, GatewayFlags};

const MODELS: &str = "/v1/models";
const COMPLETIONS: &str = "/v1/completions";
/// Asked for where no model is known: engines refuse it at once.
const NO_MODEL: &str = "warmroute-preflight";
/// Nobody has this address (RFC 5737, TEST-NET-1).
const NOBODY: &str = "192.0.2.1:9";

/// How often a probe is sent that no asked picker sees: another replica may have got it.
const TRIES: usize = 4;
/// Requests by which it is told whether a gateway with a choice of its own follows a pick.
const TRIALS: usize = 6;
/// Requests by which the round trip is measured.
const ROUND_TRIPS: usize = 9;

/// Sizes of bodies, in bytes: around the buffer limits that gateways have by default.
const SIZES: [usize; 4] = [30_000, 300_000, 1_200_000, 5_000_000];
/// Those that are tried thoroughly only; the picker's own limit ends the list.
const LARGE_SIZES: [usize; 3] = [20_000_000, 30_000_000, 60_000_000];
/// How long the picker takes, in milliseconds: above Envoy's default of 200, and above what a busy picker takes.
const DELAYS: [u32; 2] = [300, ORDINARY_DELAY_MS];

/// Tokens of the response amid which the lease is looked at.
const GENERATED_TOKENS: u32 = 96;
/// Those of the one that is to last.
const LONG_GENERATED_TOKENS: u32 = 8_192;

struct Examiner<'f> {
    flags: &'f GatewayFlags,
    gateway: GatewayClient,
    desks: PickerDesks,
    /// Whether a picker has seen a probe, so that one that isn't seen is worth another try.
    is_seen: bool,
}

/// Observes a gateway.
///
/// # Errors
/// The flags name no gateway, or a picker stopped taking probes.
pub(super) async fn observe(flags: &GatewayFlags) -> anyhow::Result<Observation> {
    let gateway = GatewayClient::try_new(flags)?;
    let desks = PickerDesks::open(&flags.pickers).await;
    let mut observation = Observation {
        gateway: flags.url.clone(),
        pickers: desks.sides.clone(),
        model: flags.model.clone(),
        ..Observation::default()
    };
    let mut examiner = Examiner { flags, gateway, desks, is_seen: false };
    examiner.look_from_outside(&mut observation).await?;
    if observation.is_seen() {
        examiner.ask_the_picker(&mut observation).await?;
        if flags.thorough {
            examiner.thoroughly(&mut observation).await?;
        }
    }
    Ok(observation)
}

impl Examiner<'_> {
    /// What can be seen without the picker, too.
    async fn look_from_outside(&mut self, observation: &mut Observation) -> anyhow::Result<()> {
        let get = Outgoing::get(MODELS);
        for _ in 0..TRIES {
            let exchange = self.probe_once(ProbeOrder::default(), &get).await?;
            let is_enough = exchange.record.is_some() || exchange.status.is_none() || !self.desks.is_any();
            observation.plain.push(exchange);
            if is_enough {
                break;
            }
        }
        self.is_seen = observation.is_seen();
        if !observation.is_reached() {
            return Ok(());
        }
        if observation.model.is_none() {
            observation.model = observation.plain.iter().find_map(|exchange| first_model(&exchange.text));
        }
        let addresses = self.gateway.addresses().await.unwrap_or_default();
        if addresses.len() > 1 {
            for address in addresses {
                let get = Outgoing { address: Some(address), within: Duration::from_secs(10), ..get.clone() };
                let exchange = self.probe(ProbeAnswer::Pick, &get).await?;
                observation.addresses.push(AddressTrial { address, exchange });
            }
        }
        let http2 = Outgoing { version: HttpVersion::Http2, within: Duration::from_secs(10), ..get.clone() };
        observation.http2 = Some(self.probe(ProbeAnswer::Pick, &http2).await?);
        observation.spoofed_request_id = format!("preflight-{:016x}", fastrand::u64(..));
        let mut spoofed = get.with_header("x-request-id", observation.spoofed_request_id.clone());
        spoofed.within = Duration::from_secs(10);
        for name in ROUTING_HEADERS {
            spoofed =
                spoofed.with_header(name, if name == warmroute_ext_proc::RANK_HEADER { "0" } else { NOBODY });
        }
        observation.spoofed = Some(self.probe(ProbeAnswer::Pick, &spoofed).await?);
        Ok(())
    }

    async fn ask_the_picker(&self, observation: &mut Observation) -> anyhow::Result<()> {
        let model = observation.model.clone();
        let prompt = self.prompt(model.as_deref(), 1, false);
        observation.prompt = Some(self.probe(ProbeAnswer::Pick, &prompt).await?);
        let speaks_http2 = observation.http2.as_ref().is_some_and(|http2| http2.status.is_some());
        let version = if speaks_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let with_trailers = Outgoing { has_trailers: true, version, ..prompt };
        observation.trailers = Some(self.probe(ProbeAnswer::Pick, &with_trailers).await?);
        if let Some(model) = &model {
            let outgoing = self.prompt(Some(model), GENERATED_TOKENS, true);
            observation.generation = Some(self.generation(&outgoing, None).await?);
        }
        self.destinations(observation).await?;
        for _ in 0..ROUND_TRIPS {
            observation.refused.push(self.probe(ProbeAnswer::Immediate, &body_of(100)).await?);
        }
        self.sizes(observation, &SIZES).await?;
        self.delays(observation, &DELAYS).await
    }

    async fn thoroughly(&self, observation: &mut Observation) -> anyhow::Result<()> {
        self.sizes(observation, &LARGE_SIZES).await?;
        let longest = self.flags.longest_wait;
        let longest_ms = longest.as_millis().min(u128::from(ProbeOrder::MAX_DELAY_MS)) as u32;
        let long: Vec<u32> = [longest_ms / 4, longest_ms]
            .into_iter()
            .filter(|delay_ms| *delay_ms > ORDINARY_DELAY_MS)
            .collect();
        self.delays(observation, &long).await?;
        let prompt = self.prompt(observation.model.as_deref(), 1, false);
        observation.failures = Some(Failures {
            get: self.probe(ProbeAnswer::FailAtHeaders, &Outgoing::get(MODELS)).await?,
            post_at_headers: self.probe(ProbeAnswer::FailAtHeaders, &prompt).await?,
            post_at_pick: self.probe(ProbeAnswer::FailAtPick, &prompt).await?,
        });
        if let Some(model) = &observation.model {
            let outgoing = self.prompt(Some(model), LONG_GENERATED_TOKENS, true);
            let outgoing = Outgoing { within: longest * 2, ..outgoing };
            observation.long_generation = Some(self.generation(&outgoing, Some(longest)).await?);
        }
        Ok(())
    }

    async fn destinations(&self, observation: &mut Observation) -> anyhow::Result<()> {
        let get = Outgoing { within: Duration::from_secs(10), ..Outgoing::get(MODELS) };
        let neither = self.probe(ProbeAnswer::Neither, &get).await?;
        // Where the gateway has nowhere else to go, one answer tells.
        let trials = if neither.is_served() { TRIALS } else { 1 };
        observation.neither.push(neither);
        for _ in 0..trials {
            observation.header_only.push(self.probe(ProbeAnswer::HeaderOnly, &get).await?);
            observation.metadata_only.push(self.probe(ProbeAnswer::MetadataOnly, &get).await?);
        }
        Ok(())
    }

    /// Up to the first size that doesn't pass.
    async fn sizes(&self, observation: &mut Observation, sizes: &[usize]) -> anyhow::Result<()> {
        let limit = observation.facts().map(|facts| facts.max_request_body_bytes).min().unwrap_or(0);
        for bytes in sizes.iter().copied().filter(|bytes| *bytes <= limit) {
            if observation.sizes.last().is_some_and(|last| !last.exchange.is_probe_refusal()) {
                break;
            }
            let exchange = self.probe(ProbeAnswer::Immediate, &body_of(bytes)).await?;
            observation.sizes.push(SizeTrial { bytes, exchange });
        }
        Ok(())
    }

    /// Up to the first delay that the gateway doesn't wait for.
    async fn delays(&self, observation: &mut Observation, delays: &[u32]) -> anyhow::Result<()> {
        for delay_ms in delays.iter().copied() {
            if observation.delays.last().is_some_and(|last| !last.exchange.is_probe_refusal()) {
                break;
            }
            let order = ProbeOrder { answer: ProbeAnswer::Immediate, delay_ms };
            let within = Duration::from_millis(u64::from(delay_ms)) + Duration::from_secs(10);
            let exchange = self.probe_ordered(order, &Outgoing { within, ..body_of(100) }).await?;
            observation.delays.push(DelayTrial { delay_ms, exchange });
        }
        Ok(())
    }

    /// A streamed completion, amid which the picker is asked whether its stream is open. Broken off after a time, if one is
    /// given.
    async fn generation(&self, outgoing: &Outgoing, follow: Option<Duration>) -> anyhow::Result<Generation> {
        let registration = self.desks.register(ProbeOrder::default()).await?;
        let outgoing = outgoing.clone().with_header(PROBE_HEADER, registration.header());
        let mut generation = Generation {
            exchange: Exchange::default(),
            open_amid: None,
            pieces_after: 0,
            broken_off_ms: None,
        };
        let mut opened = match self.gateway.open(&outgoing).await {
            Ok(opened) => opened,
            Err(exchange) => {
                generation.exchange = *exchange;
                generation.exchange.record = self.desks.settled_record(&registration).await;
                return Ok(generation);
            }
        };
        opened.next_piece().await;
        generation.open_amid = self.desks.record(&registration).await.map(|record| record.ended.is_none());
        let asked_at = opened.pieces();
        while opened.next_piece().await {
            if follow.is_some_and(|follow| opened.elapsed_ms() >= follow.as_secs_f64() * 1e3) {
                generation.broken_off_ms = Some(opened.elapsed_ms());
                break;
            }
        }
        generation.pieces_after = opened.pieces() - asked_at;
        generation.exchange = opened.done();
        generation.exchange.record = self.desks.settled_record(&registration).await;
        Ok(generation)
    }

    async fn probe(&self, answer: ProbeAnswer, outgoing: &Outgoing) -> anyhow::Result<Exchange> {
        self.probe_ordered(ProbeOrder { answer, delay_ms: 0 }, outgoing).await
    }

    /// Sends it again where no picker saw it although one could.
    async fn probe_ordered(&self, order: ProbeOrder, outgoing: &Outgoing) -> anyhow::Result<Exchange> {
        let mut exchange = self.probe_once(order, outgoing).await?;
        for _ in 1..TRIES {
            if exchange.record.is_some() || !self.is_seen || exchange.status.is_none() {
                break;
            }
            exchange = self.probe_once(order, outgoing).await?;
        }
        Ok(exchange)
    }

    async fn probe_once(&self, order: ProbeOrder, outgoing: &Outgoing) -> anyhow::Result<Exchange> {
        if !self.desks.is_any() {
            return Ok(self.gateway.send(outgoing).await);
        }
        let registration = self.desks.register(order).await?;
        let mut exchange =
            self.gateway.send(&outgoing.clone().with_header(PROBE_HEADER, registration.header())).await;
        exchange.record = self.desks.settled_record(&registration).await;
        Ok(exchange)
    }

    fn prompt(&self, model: Option<&str>, max_tokens: u32, stream: bool) -> Outgoing {
        let model = model.or(self.flags.model.as_deref()).unwrap_or(NO_MODEL);
        let mut body = json!({
            "model": model,
            "prompt": "Count from one to one thousand in words: one, two, three,",
            "max_tokens": max_tokens,
            "stream": stream,
        });
        if max_tokens == LONG_GENERATED_TOKENS {
            body["ignore_eos"] = Value::Bool(true);
        }
        Outgoing::post(COMPLETIONS, body.to_string())
    }
}

/// A request that only looks like one: the picker refuses it without reading it.
fn body_of(bytes: usize) -> Outgoing {
    let frame = json!({"model": NO_MODEL, "prompt": ""}).to_string();
    let filling = "x".repeat(bytes.saturating_sub(frame.len()));
    let body = json!({"model": NO_MODEL, "prompt": filling}).to_string();
    Outgoing::post(COMPLETIONS, Bytes::from(body))
}

/// The first model of an OpenAI-style list.
fn first_model(list: &str) -> Option<String> {
    let list: Value = serde_json::from_str(list).ok()?;
    list["data"].get(0)?["id"].as_str().map(str::to_owned)
}
