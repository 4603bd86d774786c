//! From what was observed of a gateway to what is wrong with it. Pure.

use warmroute_ext_proc::{BodyMode, BodyModes};

use super::Exchange;
use super::finding::{GatewayFinding, Symptom};
use super::observation::{Generation, Observation};
use super::probe_desk::ExtProcTls;

/// Fewest requests that say something of where a gateway with a choice of its own sends them.
const LEAST_TOLD: usize = 4;

/// What a picker may take, in milliseconds, without a gateway giving it up. Longer waits are tried too, and tell nothing
/// wrong.
pub(super) const ORDINARY_DELAY_MS: u32 = 1_500;

/// What a gateway goes by when it sends a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Untried,
    /// It has no choice of its own; by what it goes.
    Named {
        header: bool,
        metadata: bool,
    },
    /// It chooses by itself where none is named; None where it doesn't tell which endpoint served.
    Chosen {
        header: Option<bool>,
        metadata: Option<bool>,
    },
}

/// The findings, problems first.
pub fn diagnose(observation: &Observation) -> Vec<GatewayFinding> {
    let mut findings = Vec::new();
    reach(observation, &mut findings);
    modes(observation, &mut findings);
    lease(observation, &mut findings);
    limits(observation, &mut findings);
    destination_findings(observation, &mut findings);
    routing_headers(observation, &mut findings);
    failures(observation, &mut findings);
    transport(observation, &mut findings);
    request_ids(observation, &mut findings);
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn add(findings: &mut Vec<GatewayFinding>, code: Symptom, seen: impl Into<String>) {
    findings.push(GatewayFinding::new(code, seen));
}

/// Whether requests come to the picker at all, from every address.
fn reach(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let is_asked = observation.facts().next().is_some();
    if is_asked && observation.is_reached() && !observation.is_seen() {
        let outcomes: Vec<String> = observation.plain.iter().map(Exchange::outcome).collect();
        add(
            findings,
            Symptom::PickerNotAsked,
            format!(
                "{} requests through the gateway ({}), none at the picker",
                outcomes.len(),
                outcomes.join(", ")
            ),
        );
    } else if is_asked && observation.is_seen() {
        // Large bodies and long waits may well be refused by the gateway alone.
        let small = observation.plain.iter().chain(&observation.prompt).chain(&observation.refused);
        let small = small
            .chain(&observation.neither)
            .chain(&observation.header_only)
            .chain(&observation.metadata_only);
        let small: Vec<&Exchange> = small.filter(|exchange| exchange.status.is_some()).collect();
        let (unseen, all) = (small.iter().filter(|exchange| exchange.record.is_none()).count(), small.len());
        if unseen > 0 {
            let seen =
                format!("{unseen} of {all} probes that the gateway answered weren't seen by the picker");
            add(findings, Symptom::PickerSometimesAsked, seen);
        }
    }
    for trial in &observation.addresses {
        if trial.exchange.status.is_none() {
            let seen = format!("{}: {}", trial.address, trial.exchange.outcome());
            add(findings, Symptom::AddressFails, seen);
        }
    }
    let again = observation.exchanges().filter_map(|exchange| exchange.record.as_ref());
    let again = again.filter(|record| record.streams > 1).count();
    if again > 0 {
        add(findings, Symptom::Retried, format!("{again} probes came more than once"));
    }
    if let Some(lost) = observation.refused.iter().find(|refused| !refused.is_probe_refusal()) {
        let seen = format!(
            "the picker refused with 429 and a reason; the client got {}{}",
            lost.outcome(),
            if lost.refused_because.is_none() { " without the reason" } else { "" }
        );
        add(findings, Symptom::RefusalsLost, seen);
    }
}

/// The body modes in force, if any stream told them.
pub(super) fn body_modes(observation: &Observation) -> Option<BodyModes> {
    observation.exchanges().find_map(|exchange| exchange.record.as_ref()?.modes)
}

fn modes(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let Some(modes) = body_modes(observation) else { return };
    match modes.request {
        BodyMode::None | BodyMode::Streamed | BodyMode::Unknown => {
            add(
                findings,
                Symptom::RequestBodyHidden,
                format!("request body mode {}", mode_name(modes.request)),
            );
        }
        BodyMode::BufferedPartial => {
            add(findings, Symptom::RequestBodyPartial, "request body mode BUFFERED_PARTIAL");
        }
        BodyMode::Buffered | BodyMode::FullDuplex | BodyMode::Grpc => {}
    }
    match modes.response {
        BodyMode::Buffered | BodyMode::BufferedPartial => {
            add(
                findings,
                Symptom::ResponseBuffered,
                format!("response body mode {}", mode_name(modes.response)),
            );
        }
        BodyMode::FullDuplex | BodyMode::Streamed | BodyMode::Grpc => {
            add(
                findings,
                Symptom::ResponseBodiesPass,
                format!("response body mode {}", mode_name(modes.response)),
            );
        }
        BodyMode::None | BodyMode::Unknown => {}
    }
    if let (Some(prompt), Some(trailers)) = (&observation.prompt, &observation.trailers)
        && prompt.is_served()
        && !trailers.is_served()
    {
        let seen = format!(
            "a request with trailers: {}; the same without: {}",
            trailers.outcome(),
            prompt.outcome()
        );
        add(findings, Symptom::TrailersFail, seen);
    }
}

/// Whether the picker's stream lived as long as the response; None if the response was too short to tell.
pub(super) fn lease_lives(generation: &Generation) -> Option<bool> {
    let record = generation.exchange.record.as_ref()?;
    if record.received.iter().any(|message| message.end_of_stream && message.kind.starts_with("response_")) {
        return Some(true);
    }
    let went_on = generation.pieces_after > 0 && generation.exchange.status == Some(200);
    match generation.open_amid? {
        true => Some(true),
        false => went_on.then_some(false),
    }
}

fn lease(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    if let Some(generation) = &observation.generation
        && lease_lives(generation) == Some(false)
    {
        let ended = generation.exchange.record.as_ref().and_then(|record| record.ended.as_ref());
        let ended = ended.map_or(String::new(), |end| format!(" after {:.1} ms", end.at_us as f64 / 1e3));
        let seen = format!(
            "the picker's stream ended{ended}, the response went on for {:.0} ms",
            generation.exchange.total_ms
        );
        add(findings, Symptom::LeaseBlind, seen);
    }
    let long = observation.long_generation.iter().chain(&observation.generation);
    for generation in long.filter(|generation| generation.broken_off_ms.is_none()) {
        let exchange = &generation.exchange;
        if exchange.status == Some(504) || (exchange.status == Some(200) && exchange.error.is_some()) {
            let seen =
                format!("a streamed completion: {} after {:.0} ms", exchange.outcome(), exchange.total_ms);
            add(findings, Symptom::ResponseCut, seen);
        }
    }
}

fn limits(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    if let Some(refused) = observation.sizes.iter().find(|trial| !trial.exchange.is_probe_refusal()) {
        let passed = observation.sizes.iter().filter(|trial| trial.exchange.is_probe_refusal());
        let passed = passed.map(|trial| trial.bytes).max().unwrap_or(0);
        let whose = match &refused.exchange.record {
            Some(record) if record.received.iter().any(|message| message.kind == "request_body") => {
                "after it had begun to send it to the picker"
            }
            _ => "before any of it came to the picker",
        };
        let seen = format!(
            "a body of {} bytes passes, one of {} is answered {} by the gateway, {whose}",
            passed,
            refused.bytes,
            refused.exchange.outcome()
        );
        add(findings, Symptom::BodyLimit, seen);
    }
    let is_given_up = |trial: &&super::DelayTrial| {
        !trial.exchange.is_probe_refusal() && trial.delay_ms <= ORDINARY_DELAY_MS
    };
    if let Some(given_up) = observation.delays.iter().find(is_given_up) {
        let seen = format!(
            "a picker that takes {} ms for its answer is given up after {:.0} ms: {}",
            given_up.delay_ms,
            given_up.exchange.total_ms,
            given_up.exchange.outcome()
        );
        add(findings, Symptom::MessageTimeout, seen);
    }
    if body_modes(observation).is_some_and(|modes| modes.request == BodyMode::FullDuplex) {
        add(findings, Symptom::StallUnbounded, "request body mode FULL_DUPLEX_STREAMED");
    }
}

/// By what the gateway goes.
pub(super) fn destination(observation: &Observation) -> Destination {
    let (Some(neither), Some(header), Some(metadata)) =
        (observation.neither.first(), observation.header_only.first(), observation.metadata_only.first())
    else {
        return Destination::Untried;
    };
    if !neither.is_served() {
        return Destination::Named { header: header.is_served(), metadata: metadata.is_served() };
    }
    let has_several = observation.facts().any(|facts| facts.endpoints.len() > 1);
    let follows = |exchanges: &[Exchange]| {
        let told: Vec<bool> = exchanges
            .iter()
            .filter_map(|exchange| {
                let record = exchange.record.as_ref()?;
                Some(record.served.as_ref()? == record.destination.as_ref()?)
            })
            .collect();
        (has_several && told.len() >= LEAST_TOLD).then(|| told.iter().all(|follows| *follows))
    };
    Destination::Chosen {
        header: follows(&observation.header_only),
        metadata: follows(&observation.metadata_only),
    }
}

fn destination_findings(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    match destination(observation) {
        Destination::Named { header: false, metadata: false } => {
            let seen = "no request is served whose destination is named in the header alone, or in the metadata alone";
            add(findings, Symptom::DestinationIgnored, seen);
        }
        Destination::Chosen { header: Some(false), metadata: Some(false) } => {
            let seen =
                "served by other endpoints than the picked ones, whether header or metadata named them";
            add(findings, Symptom::DestinationIgnored, seen);
        }
        Destination::Chosen { header: None, .. } | Destination::Chosen { metadata: None, .. } => {
            let seen = "requests are served although the picker names no destination, and which endpoint serves isn't told";
            add(findings, Symptom::DestinationUnclear, seen);
        }
        Destination::Untried | Destination::Named { .. } | Destination::Chosen { .. } => {}
    }
}

fn routing_headers(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let Some(spoofed) = &observation.spoofed else { return };
    let is_plain_served = observation.plain.last().is_some_and(Exchange::is_served);
    if is_plain_served && !spoofed.is_served() {
        let seen = format!(
            "with a destination of the client's own, an address that nobody has: {}",
            spoofed.outcome()
        );
        add(findings, Symptom::RoutingHeadersWin, seen);
    }
    let Some(record) = &spoofed.record else { return };
    if !record.routing_headers.is_empty() {
        let seen = format!("sent by the client, seen by the picker: {}", record.routing_headers.join(", "));
        add(findings, Symptom::RoutingHeadersPass, seen);
    }
}

/// What the gateway answers where it goes on without the picker and has no destination; None if it always has one.
fn nowhere(observation: &Observation) -> Option<&Exchange> {
    observation.neither.first().filter(|exchange| !exchange.is_served())
}

fn failures(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let Some(failures) = &observation.failures else { return };
    let all = [&failures.get, &failures.post_at_headers, &failures.post_at_pick];
    let [get, at_headers, at_pick] = all.map(Exchange::outcome);
    let seen = format!(
        "the picker's stream fails: a GET gets {get}, a POST {at_headers} (at its headers) and {at_pick} (at its body)"
    );
    let nowhere = nowhere(observation);
    let is_nowhere = |exchange: &Exchange| {
        nowhere.is_some_and(|nowhere| nowhere.status == exchange.status && nowhere.text == exchange.text)
    };
    let is_opened = |exchange: &Exchange| exchange.is_served() || is_nowhere(exchange);
    if !all.into_iter().any(is_opened) {
        add(findings, Symptom::FailClosed, seen);
        return;
    }
    if !all.into_iter().all(is_opened) {
        add(findings, Symptom::FailOpenNotForBodies, seen.clone());
    }
    if all.into_iter().any(is_nowhere) {
        add(findings, Symptom::FailOpenNowhere, seen);
    }
}

fn transport(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let from = observation.exchanges().find_map(|exchange| exchange.record.as_ref()?.gateway);
    let is_local = from.is_some_and(|from| from.ip().to_canonical().is_loopback());
    if !observation.is_seen() {
        return;
    }
    let served: Vec<ExtProcTls> = observation.facts().map(|facts| facts.tls).collect();
    if served.contains(&ExtProcTls::Plaintext) && !is_local {
        let from = from.map_or("an unknown address".to_owned(), |from| from.ip().to_canonical().to_string());
        add(findings, Symptom::ExtProcPlaintext, format!("streams come from {from} without TLS"));
    }
    if served.contains(&ExtProcTls::SelfSigned) {
        add(findings, Symptom::ExtProcUnverified, "the gateway takes a certificate that nobody has signed");
    }
}

fn request_ids(observation: &Observation, findings: &mut Vec<GatewayFinding>) {
    let plain = observation.plain.iter().rev().find_map(|exchange| exchange.record.as_ref());
    if plain.is_some_and(|record| record.request_id.is_none()) {
        add(findings, Symptom::RequestIdMissing, "no x-request-id where the client sends none");
    }
    let spoofed = observation.spoofed.as_ref().and_then(|spoofed| spoofed.record.as_ref());
    if let Some(record) = spoofed
        && record.request_id.as_deref().is_some_and(|id| id != observation.spoofed_request_id)
    {
        add(findings, Symptom::RequestIdReplaced, "the picker got another x-request-id than the client sent");
    }
}

/// As Envoy calls it.
pub(super) fn mode_name(mode: BodyMode) -> &'static str {
    match mode {
        BodyMode::None => "NONE",
        BodyMode::Streamed => "STREAMED",
        BodyMode::Buffered => "BUFFERED",
        BodyMode::BufferedPartial => "BUFFERED_PARTIAL",
        BodyMode::FullDuplex => "FULL_DUPLEX_STREAMED",
        BodyMode::Grpc => "GRPC",
        BodyMode::Unknown => "unknown to this version",
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use warmroute_ext_proc::{ProbeEnd, ProbeMessage, ProbeRecord};

    use super::super::finding::Severity;
    use super::super::observation::{AddressTrial, DelayTrial, Failures, PickerSide, SizeTrial};
    use super::super::probe_desk::PickerFacts;
    use super::*;

    fn record() -> ProbeRecord {
        ProbeRecord {
            streams: 1,
            gateway: Some(SocketAddr::from(([10, 1, 0, 9], 40_000))),
            modes: Some(BodyModes { request: BodyMode::Buffered, response: BodyMode::None }),
            request_id: Some("made".to_owned()),
            destination: Some("10.0.0.1:8000".to_owned()),
            ..ProbeRecord::default()
        }
    }

    fn answered(status: u16) -> Exchange {
        Exchange { status: Some(status), record: Some(record()), ..Exchange::default() }
    }

    fn served_by(endpoint: &str) -> Exchange {
        let record = ProbeRecord { served: Some(endpoint.to_owned()), ..record() };
        Exchange { record: Some(record), ..answered(200) }
    }

    fn refused() -> Exchange {
        Exchange { refused_because: Some("warmroute-probe".to_owned()), ..answered(429) }
    }

    fn picker(tls: ExtProcTls) -> PickerSide {
        let facts = PickerFacts {
            version: "1".to_owned(),
            instance: "a".to_owned(),
            tls,
            asks_for_certificates: false,
            max_request_body_bytes: 1 << 25,
            tokenize_deadline_ms: 200,
            endpoints: vec!["10.0.0.1:8000".to_owned(), "10.0.0.2:8000".to_owned()],
            streams: 0,
        };
        PickerSide { address: "http://p:9090".to_owned(), facts: Some(facts), error: None }
    }

    fn generation(open_amid: Option<bool>, pieces_after: usize) -> Generation {
        let ended = ProbeEnd { status: "OK".to_owned(), by_gateway: true, at_us: 3_000 };
        let record = ProbeRecord { ended: Some(ended), ..record() };
        let exchange = Exchange { total_ms: 900.0, record: Some(record), ..answered(200) };
        Generation { exchange, open_amid, pieces_after, broken_off_ms: None }
    }

    /// A gateway with nothing wrong: ORIGINAL_DST, buffered requests, leases held.
    fn healthy() -> Observation {
        let spoofed = ProbeRecord { request_id: Some("mine".to_owned()), ..record() };
        Observation {
            pickers: vec![picker(ExtProcTls::Certificate)],
            plain: vec![answered(200)],
            spoofed: Some(Exchange { record: Some(spoofed), ..answered(200) }),
            spoofed_request_id: "mine".to_owned(),
            prompt: Some(answered(200)),
            trailers: Some(answered(200)),
            generation: Some(generation(Some(true), 9)),
            neither: vec![answered(503)],
            header_only: vec![answered(200)],
            metadata_only: vec![answered(503)],
            refused: vec![refused(); 3],
            sizes: vec![SizeTrial { bytes: 5_000_000, exchange: refused() }],
            delays: vec![DelayTrial { delay_ms: 1_500, exchange: refused() }],
            ..Observation::default()
        }
    }

    fn codes(observation: &Observation) -> Vec<&'static str> {
        diagnose(observation).into_iter().map(|finding| finding.code.as_str()).collect()
    }

    #[track_caller]
    fn finds(change: impl Fn(&mut Observation), expected: &[&str]) {
        let mut observation = healthy();
        change(&mut observation);
        assert_eq!(codes(&observation), expected);
    }

    /// Changes what every record says.
    fn each_record(observation: &mut Observation, change: impl Fn(&mut ProbeRecord)) {
        let lists = [&mut observation.plain, &mut observation.refused];
        let single = observation.spoofed.iter_mut().chain(&mut observation.prompt);
        lists.into_iter().flatten().chain(single).filter_map(|one| one.record.as_mut()).for_each(change);
    }

    #[test]
    fn nothing_is_wrong_with_a_healthy_gateway() {
        assert_eq!(codes(&healthy()), [""; 0]);
        // Nor with one of which nothing is known.
        assert_eq!(codes(&Observation::default()), [""; 0]);
    }

    #[test]
    fn requests_that_do_not_reach_the_picker() {
        let unseen = Exchange { record: None, ..answered(200) };
        let nothing = Observation {
            pickers: vec![picker(ExtProcTls::Plaintext)],
            plain: vec![unseen.clone(); 4],
            ..Observation::default()
        };
        assert_eq!(codes(&nothing), ["picker-not-asked"]);
        // A gateway that doesn't answer, or a picker that can't be asked, says nothing about the other.
        let silent = Observation { plain: vec![Exchange::failed("refused")], ..nothing.clone() };
        assert_eq!(codes(&silent), [""; 0]);
        assert_eq!(codes(&Observation { pickers: Vec::new(), ..nothing }), [""; 0]);
        finds(|seen| seen.plain.insert(0, unseen.clone()), &["picker-sometimes-asked"]);
        finds(|seen| seen.sizes[0].exchange.record = None, &[]);
    }

    #[test]
    fn body_modes_say_what_is_hidden() {
        use BodyMode::{Buffered, BufferedPartial, FullDuplex, None, Streamed};
        for (request, response, expected) in [
            (Buffered, None, vec![]),
            (None, None, vec!["request-body-hidden"]),
            (Streamed, None, vec!["request-body-hidden"]),
            (BufferedPartial, Buffered, vec!["response-buffered", "request-body-partial"]),
            (FullDuplex, FullDuplex, vec!["response-bodies-pass", "stall-unbounded"]),
            (Buffered, Streamed, vec!["response-bodies-pass"]),
        ] {
            let modes = Some(BodyModes { request, response });
            finds(|seen| each_record(seen, |record| record.modes = modes), &expected);
        }
    }

    #[test]
    fn a_lease_is_lost_only_where_the_response_went_on() {
        let with = |open_amid, pieces_after| {
            move |seen: &mut Observation| seen.generation = Some(generation(open_amid, pieces_after))
        };
        finds(with(Some(false), 5), &["lease-blind"]);
        finds(with(Some(false), 0), &[]);
        finds(with(None, 5), &[]);
        // The picker saw the response's end itself.
        let end = ProbeMessage { kind: "response_body".to_owned(), bytes: 9, end_of_stream: true, at_us: 5 };
        let complete = |seen: &mut Observation| {
            let mut generation = generation(Some(false), 5);
            generation.exchange.record.as_mut().unwrap().received.push(end.clone());
            seen.generation = Some(generation);
        };
        finds(complete, &[]);
    }

    #[test]
    fn responses_that_are_cut() {
        let cut = |broken_off_ms| {
            move |seen: &mut Observation| {
                let mut long = generation(Some(true), 5);
                long.exchange.error = Some("broke off".to_owned());
                long.broken_off_ms = broken_off_ms;
                seen.long_generation = Some(long);
            }
        };
        finds(cut(None), &["response-cut"]);
        // The client itself broke it off.
        finds(cut(Some(20_000.0)), &[]);
    }

    #[test]
    fn limits_of_size_and_patience() {
        let too_large = SizeTrial { bytes: 20_000_000, exchange: Exchange { record: None, ..answered(413) } };
        finds(|seen| seen.sizes.push(too_large.clone()), &["body-limit"]);
        let impatient = |delay_ms| {
            move |seen: &mut Observation| seen.delays = vec![DelayTrial { delay_ms, exchange: answered(504) }]
        };
        finds(impatient(300), &["message-timeout"]);
        // Nobody has to wait that long.
        finds(impatient(ORDINARY_DELAY_MS + 1), &[]);
    }

    #[test]
    fn whom_the_gateway_follows() {
        finds(|seen| seen.header_only = vec![answered(503)], &["destination-ignored"]);
        finds(|seen| seen.metadata_only = vec![answered(200)], &[]);
        let chooses = |header: &'static str, metadata: &'static str, trials| {
            move |seen: &mut Observation| {
                seen.neither = vec![answered(200)];
                seen.header_only = vec![served_by(header); trials];
                seen.metadata_only = vec![served_by(metadata); trials];
            }
        };
        let (picked, other) = ("10.0.0.1:8000", "10.0.0.2:8000");
        finds(chooses(picked, picked, 6), &[]);
        finds(chooses(other, picked, 6), &[]);
        finds(chooses(other, other, 6), &["destination-ignored"]);
        finds(chooses(picked, picked, LEAST_TOLD - 1), &["destination-unclear"]);
        let untold = |seen: &mut Observation| seen.neither = vec![answered(200)];
        finds(untold, &["destination-unclear"]);
    }

    #[test]
    fn headers_of_clients() {
        let pass = |seen: &mut Observation| {
            let record = seen.spoofed.as_mut().unwrap().record.as_mut().unwrap();
            record.routing_headers.push("x-prefiller-host-port".to_owned());
            record.request_id = Some("other".to_owned());
        };
        finds(pass, &["routing-headers-pass", "request-id-replaced"]);
        finds(|seen| seen.spoofed = Some(answered(503)), &["routing-headers-win", "request-id-replaced"]);
        finds(|seen| seen.plain[0].record.as_mut().unwrap().request_id = None, &["request-id-missing"]);
    }

    #[test]
    fn failing_pickers() {
        let with = |get, at_headers, at_pick| {
            move |seen: &mut Observation| {
                let [get, post_at_headers, post_at_pick] = [get, at_headers, at_pick].map(answered);
                seen.failures = Some(Failures { get, post_at_headers, post_at_pick });
            }
        };
        finds(with(500, 500, 500), &["fail-closed"]);
        finds(with(200, 200, 200), &[]);
        finds(with(503, 503, 503), &["fail-open-nowhere"]);
        finds(with(200, 500, 500), &["fail-open-not-for-bodies"]);
        finds(with(503, 503, 500), &["fail-open-not-for-bodies", "fail-open-nowhere"]);
        // Where there is always somewhere to go, a 503 is a failure.
        let closed = |seen: &mut Observation| {
            with(503, 503, 503)(seen);
            seen.neither = vec![answered(200)];
        };
        finds(closed, &["fail-closed", "destination-unclear"]);
    }

    #[test]
    fn transport_and_the_rest() {
        let tls = |tls| move |seen: &mut Observation| seen.pickers = vec![picker(tls)];
        finds(tls(ExtProcTls::Plaintext), &["ext-proc-plaintext"]);
        finds(tls(ExtProcTls::SelfSigned), &["ext-proc-unverified"]);
        let on_loopback = |seen: &mut Observation| {
            tls(ExtProcTls::Plaintext)(seen);
            each_record(seen, |record| record.gateway = Some(SocketAddr::from(([127, 0, 0, 1], 4))));
        };
        finds(on_loopback, &[]);
        finds(|seen| seen.trailers = Some(answered(504)), &["trailers-fail"]);
        finds(|seen| seen.refused[1].status = Some(503), &["refusals-lost"]);
        finds(|seen| seen.refused[1].record.as_mut().unwrap().streams = 2, &["retried"]);
        let exchange = Exchange::failed("no connection within 5 s");
        let dead = AddressTrial { address: [10, 0, 0, 7].into(), exchange };
        finds(|seen| seen.addresses.push(dead.clone()), &["address-fails"]);
    }

    #[test]
    fn problems_come_first_and_each_finding_has_words() {
        let mut observation = healthy();
        observation.pickers = vec![picker(ExtProcTls::SelfSigned)];
        observation.generation = Some(generation(Some(false), 5));
        observation.failures = Some(Failures {
            get: answered(500),
            post_at_headers: answered(500),
            post_at_pick: answered(500),
        });
        let findings = diagnose(&observation);
        let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Problem, Severity::Risk, Severity::Note]);
        assert!(findings.iter().all(|finding| !finding.means.is_empty() && !finding.fixes.is_empty()));
        let code = serde_json::to_value(findings[0].code).unwrap();
        assert_eq!(code, findings[0].code.as_str());
    }
}
