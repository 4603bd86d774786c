//! What was looked at, in words: one line each, whether or not anything is wrong with it.

use serde::Serialize;
use warmroute_ext_proc::{BodyMode, ProbeRecord};

use super::Exchange;
use super::diagnosis::{Destination, body_modes, destination, lease_lives, mode_name};
use super::observation::{Generation, Observation};
use super::probe_desk::ExtProcTls;

/// One line of what was observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was seen, or why nothing was.
    pub seen: String,
}

const UNSEEN: &str = "not examined: it takes the picker's metrics port and a picker that sees the probes";

/// All lines, in the order in which a request meets them.
pub(super) fn checks(observation: &Observation, thorough: bool) -> Vec<Check> {
    let mut checks = vec![
        ("gateway", gateway(observation)),
        ("pickers", pickers(observation)),
        (
            "model",
            observation.model.clone().unwrap_or_else(|| "none known: name one with --model".to_owned()),
        ),
    ];
    if !observation.is_seen() {
        checks.push(("everything else", UNSEEN.to_owned()));
        return checks.into_iter().map(|(name, seen)| Check { name, seen }).collect();
    }
    checks.extend([
        ("connection", connection(observation)),
        ("request", request(observation)),
        ("response", response(observation)),
        ("trailers", trailers(observation)),
        ("destination", destination_line(observation)),
        ("lease", lease(observation)),
        ("body size", sizes(observation)),
        ("waiting", delays(observation)),
        ("refusals", refusals(observation)),
        ("fail-open", failures(observation, thorough)),
        ("routing headers", routing_headers(observation)),
        ("request id", request_id(observation)),
        ("metadata", metadata(observation)),
        ("long responses", long(observation, thorough)),
        ("round trip", round_trip(observation)),
    ]);
    checks.into_iter().map(|(name, seen)| Check { name, seen }).collect()
}

fn records(observation: &Observation) -> impl Iterator<Item = &ProbeRecord> {
    observation.exchanges().filter_map(|exchange| exchange.record.as_ref())
}

fn gateway(observation: &Observation) -> String {
    let server = observation.plain.iter().find_map(|exchange| exchange.server.as_deref());
    let outcome = observation.plain.last().map_or("not asked".to_owned(), Exchange::outcome);
    let mut seen = format!("GET /v1/models: {outcome}; server: {}", server.unwrap_or("untold"));
    let addresses: Vec<String> = observation
        .addresses
        .iter()
        .map(|trial| format!("{} {}", trial.address, trial.exchange.outcome()))
        .collect();
    if !addresses.is_empty() {
        seen += &format!("; addresses: {}", addresses.join(", "));
    }
    match &observation.http2 {
        Some(http2) if http2.status.is_some() => seen += "; HTTP/1.1 and HTTP/2",
        Some(http2) => seen += &format!("; HTTP/1.1, no HTTP/2 ({})", http2.outcome()),
        None => {}
    }
    if observation.facts().next().is_none()
        && observation.plain.iter().any(|one| one.response_headers_touched)
    {
        seen += "; a picker touches response headers";
    }
    seen
}

fn pickers(observation: &Observation) -> String {
    let side = |side: &super::PickerSide| match (&side.facts, &side.error) {
        (Some(facts), _) => {
            format!("{}: version {}, {} endpoints", side.address, facts.version, facts.endpoints.len())
        }
        (None, error) => format!("{}: {}", side.address, error.as_deref().unwrap_or("not asked")),
    };
    observation.pickers.iter().map(side).collect::<Vec<_>>().join("; ")
}

fn connection(observation: &Observation) -> String {
    let tls = match observation.facts().next().map(|facts| facts.tls) {
        Some(ExtProcTls::Plaintext) => "plaintext",
        Some(ExtProcTls::SelfSigned) => "TLS with a self-signed certificate, so unverified",
        Some(ExtProcTls::Certificate) => "TLS; whether the gateway verifies it can't be seen",
        None => "unknown",
    };
    let shown = observation.facts().any(|facts| facts.asks_for_certificates);
    let tls = if shown { format!("{tls}; the gateway shows a certificate") } else { tls.to_owned() };
    match records(observation).find_map(|record| record.gateway) {
        Some(from) => {
            let ip = from.ip().to_canonical();
            format!("gRPC over {tls}, from {ip} (IPv{})", if ip.is_ipv4() { 4 } else { 6 })
        }
        None => format!("gRPC over {tls}"),
    }
}

fn kinds(exchange: Option<&Exchange>, prefix: &str) -> Option<String> {
    let record = exchange?.record.as_ref()?;
    let name = |kind: &str| kind.strip_prefix(prefix).map(str::to_owned);
    let seen: Vec<String> = record
        .received
        .iter()
        .filter_map(|message| {
            let name = name(&message.kind)?;
            Some(if message.bytes > 0 { format!("{name} {} B", message.bytes) } else { name })
        })
        .collect();
    let shown = seen.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    Some(if seen.len() > 4 { format!("{shown} and {} more", seen.len() - 4) } else { shown })
}

fn request(observation: &Observation) -> String {
    let mode = body_modes(observation).map_or("untold", |modes| mode_name(modes.request));
    let small = kinds(observation.prompt.as_ref(), "request_").unwrap_or_else(|| "nothing".to_owned());
    let mut seen = format!("bodies {mode}; a prompt comes as {small}");
    if let Some((bytes, record)) = largest_shown(observation) {
        let bodies = record.received.iter().filter(|message| message.kind == "request_body");
        let bodies: Vec<usize> = bodies.map(|message| message.bytes).collect();
        let largest = bodies.iter().max().copied().unwrap_or(0);
        let count = bodies.len() as u64 + record.unlisted_messages;
        seen += &format!("; {} in {count} messages of {largest} bytes at most", size(bytes));
    }
    seen
}

/// The largest body of which the picker was shown anything, and what it saw.
fn largest_shown(observation: &Observation) -> Option<(usize, &ProbeRecord)> {
    let shown = observation.sizes.iter().rev().filter(|trial| trial.exchange.is_probe_refusal());
    shown
        .filter_map(|trial| Some((trial.bytes, trial.exchange.record.as_ref()?)))
        .find(|(_, record)| record.has_received("request_body"))
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

fn response(observation: &Observation) -> String {
    let mode = body_modes(observation).map_or("untold", |modes| mode_name(modes.response));
    let generation = observation.generation.as_ref().map(|generation| &generation.exchange);
    let exchange = generation.or(observation.prompt.as_ref());
    let headers =
        exchange.and_then(|one| one.record.as_ref()).is_some_and(|one| one.has_received("response_headers"));
    let headers = if headers { "headers SEND" } else { "headers SKIP" };
    let messages = kinds(exchange, "response_").filter(|kinds| !kinds.is_empty());
    let messages = messages.map_or(String::new(), |kinds| format!("; comes as {kinds}"));
    let pieces =
        exchange.map_or(String::new(), |one| format!("; the client got it in {} pieces", one.body_pieces));
    format!("{headers}, bodies {mode}{messages}{pieces}")
}

fn trailers(observation: &Observation) -> String {
    let Some(exchange) = &observation.trailers else { return "not tried".to_owned() };
    let told = match exchange.record.as_ref().map(|record| record.has_received("request_trailers")) {
        Some(true) => "seen by the picker",
        Some(false) => "not sent to the picker (mode SKIP, or dropped by the gateway)",
        None => "unseen",
    };
    format!("request trailers: {}, {told}", exchange.outcome())
}

fn destination_line(observation: &Observation) -> String {
    let told = |follows: Option<bool>| match follows {
        Some(true) => "followed",
        Some(false) => "not followed",
        None => "unknown",
    };
    match destination(observation) {
        Destination::Untried => "not tried".to_owned(),
        Destination::Named { header: true, metadata: true } => {
            "followed from the header and from the metadata".to_owned()
        }
        Destination::Named { header: true, metadata: false } => "followed from the header alone".to_owned(),
        Destination::Named { header: false, metadata: true } => {
            "followed from the metadata envoy.lb alone".to_owned()
        }
        Destination::Named { header: false, metadata: false } => {
            "followed from neither header nor metadata".to_owned()
        }
        Destination::Chosen { header, metadata } => format!(
            "the gateway chooses where none is named; named in the header: {}, in the metadata envoy.lb: {}",
            told(header),
            told(metadata)
        ),
    }
}

fn lease(observation: &Observation) -> String {
    let Some(generation) = &observation.generation else {
        return "not examined: it takes a model that engines serve (--model)".to_owned();
    };
    match lease_lives(generation) {
        Some(true) => "held while the response runs".to_owned(),
        Some(false) => "lost before the response has ended".to_owned(),
        None => format!(
            "not known: the response ({}, {:.0} ms) was too short to ask amid it",
            generation.exchange.outcome(),
            generation.exchange.total_ms
        ),
    }
}

fn sizes(observation: &Observation) -> String {
    if largest_shown(observation).is_none()
        && observation.sizes.iter().all(|trial| trial.exchange.is_probe_refusal())
    {
        return "not examined: with these body modes the picker answers before a body comes".to_owned();
    }
    let passing = observation.sizes.iter().filter(|trial| trial.exchange.is_probe_refusal());
    let largest = passing.map(|trial| trial.bytes).max();
    let mut seen = largest.map_or("none passes".to_owned(), |bytes| format!("{} passes", size(bytes)));
    if let Some(trial) = observation.sizes.iter().find(|trial| !trial.exchange.is_probe_refusal()) {
        seen += &format!(", {} doesn't: {}", size(trial.bytes), trial.exchange.outcome());
    }
    if let Some(limit) = observation.facts().map(|facts| facts.max_request_body_bytes).min() {
        seen += &format!("; the picker itself takes {}", size(limit));
    }
    seen
}

fn delays(observation: &Observation) -> String {
    let trial = |trial: &super::DelayTrial| {
        let waits = trial.exchange.is_probe_refusal();
        let outcome = if waits { "waits".to_owned() } else { trial.exchange.outcome() };
        format!("{} ms: {outcome}", trial.delay_ms)
    };
    observation.delays.iter().map(trial).collect::<Vec<_>>().join(", ")
}

fn refusals(observation: &Observation) -> String {
    match observation.refused.iter().find(|refused| !refused.is_probe_refusal()) {
        None if observation.refused.is_empty() => "not tried".to_owned(),
        None => "a 429 of the picker reaches the client with its reason".to_owned(),
        Some(lost) => format!("a 429 of the picker reaches the client as {}", lost.outcome()),
    }
}

fn failures(observation: &Observation, thorough: bool) -> String {
    match &observation.failures {
        Some(failures) => format!(
            "with a failing picker: GET {}, POST {} and {}",
            failures.get.outcome(),
            failures.post_at_headers.outcome(),
            failures.post_at_pick.outcome()
        ),
        None if thorough => "not tried".to_owned(),
        None => "not examined without --thorough".to_owned(),
    }
}

fn routing_headers(observation: &Observation) -> String {
    let Some(spoofed) = &observation.spoofed else { return "not tried".to_owned() };
    match &spoofed.record {
        Some(record) if record.routing_headers.is_empty() => {
            "a client's are removed before the picker sees them".to_owned()
        }
        Some(record) => format!("{} of a client's reach the picker", record.routing_headers.len()),
        None => format!("sent by a client: {}", spoofed.outcome()),
    }
}

fn request_id(observation: &Observation) -> String {
    let made = match records(observation).next().map(|record| record.request_id.is_some()) {
        Some(true) => "made by the gateway where the client sends none",
        _ => "made by the picker where the client sends none",
    };
    let kept = observation.spoofed.as_ref().and_then(|spoofed| spoofed.record.as_ref()?.request_id.as_ref());
    match kept {
        Some(id) if *id == observation.spoofed_request_id => format!("{made}; a client's own is kept"),
        Some(_) => format!("{made}; a client's own is replaced"),
        None => made.to_owned(),
    }
}

fn metadata(observation: &Observation) -> String {
    let mut names: Vec<&str> = records(observation)
        .flat_map(|record| record.metadata_namespaces.iter().chain(&record.attributes))
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    let namespaces = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let subset = records(observation).find_map(|record| record.subset_entries);
    let subset =
        subset.map_or("no subset hint".to_owned(), |entries| format!("a subset hint of {entries} entries"));
    let served = records(observation).any(|record| record.served.is_some());
    let served = if served { "the served endpoint is told" } else { "the served endpoint isn't told" };
    format!("namespaces and attributes: {namespaces}; {subset}; {served}")
}

fn long(observation: &Observation, thorough: bool) -> String {
    let longest = |one: &Generation| format!("{:.0} ms", one.exchange.total_ms);
    match (&observation.long_generation, &observation.generation) {
        (Some(long), _) => match long.broken_off_ms {
            Some(ms) => format!("a response runs for {ms:.0} ms and more"),
            None => format!("a response ran for {} ({})", longest(long), long.exchange.outcome()),
        },
        (None, Some(short)) if !thorough => {
            format!("a response ran for {}; a route's timeout shows with --thorough only", longest(short))
        }
        _ => "not examined".to_owned(),
    }
}

fn round_trip(observation: &Observation) -> String {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let outside = median(observation.refused.iter().map(|one| one.total_ms).collect());
    let inside = observation.refused.iter().filter_map(|one| {
        let record = one.record.as_ref()?;
        Some(record.sent.last()?.at_us as f64 / 1e3)
    });
    match (outside, median(inside.collect())) {
        (Some(outside), Some(inside)) => format!(
            "client, gateway, picker and back: {outside:.1} ms (median of {}); {inside:.1} ms of it from the picker's first \
             message to its answer{}",
            observation.refused.len(),
            if body_modes(observation).is_some_and(|modes| modes.request == BodyMode::Buffered) {
                ", the wait for the body in between"
            } else {
                ""
            }
        ),
        _ => "not examined".to_owned(),
    }
}
