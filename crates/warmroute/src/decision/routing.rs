//! How a decision with several endpoints reaches them: where the gateway sends the request, and the headers by which a
//! sidecar before the engine learns of the others (`pkg/common/routing` in github.com/llm-d/llm-d-router).

use http::{HeaderMap, HeaderName, HeaderValue};
use warmroute_plugin::Endpoint;
use warmroute_scheduler::{Decision, ProfileHandler, ProfileRun, Stage};

use crate::pool::EndpointState;

/// `host:port` of the endpoint that computes the prompt.
const PREFILLER: HeaderName = HeaderName::from_static("x-prefiller-host-port");
/// `host:port` of the endpoints that encode media, with commas between.
const ENCODERS: HeaderName = HeaderName::from_static("x-encoder-hosts-ports");
/// `host:port` of the picked data-parallel rank, where the request goes to another port of its host.
const RANK: HeaderName = HeaderName::from_static("x-data-parallel-host-port");
/// The rank that is meant of those behind one address.
const PINNED_RANK: HeaderName = HeaderName::from_static(warmroute_ext_proc::RANK_HEADER);

/// Where the gateway sends a request for this endpoint.
fn destination(handler: &ProfileHandler, endpoint: &Endpoint) -> String {
    match handler.primary_port() {
        Some(port) => with_port(&endpoint.address, port),
        None => endpoint.address.to_string(),
    }
}

/// The same host, in brackets if it was, with another port.
fn with_port(address: &str, port: u16) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    format!("{host}:{port}")
}

/// Sets the headers that this decision needs. What a client sent under the names of the others is removed where the
/// answer is made, since they are routing headers.
pub(super) fn set_headers(handler: &ProfileHandler, decision: &Decision<'_>, headers: &mut HeaderMap) {
    for helper in decision.helpers() {
        match helper.stage {
            Stage::Prefill => set(headers, PREFILLER, addresses(&helper.run, 1)),
            Stage::Encode => set(headers, ENCODERS, addresses(&helper.run, usize::MAX)),
            Stage::Primary => {}
        }
    }
    if handler.primary_port().is_some() {
        set(headers, RANK, addresses(&decision.primary(), 1));
    }
}

/// Pins the request to the endpoint's rank if that shares its address with others.
pub(super) fn pin(endpoint: &EndpointState, headers: &mut HeaderMap) {
    if let Some(rank) = endpoint.spec.ranks.header() {
        headers.insert(PINNED_RANK, HeaderValue::from(rank));
    }
}

/// Where the gateway may send the request, best first. What goes with it is the first one's: of further endpoints only
/// those count that take the same header for a rank, or none as well. An address stands there once.
pub(super) fn destinations<'a>(
    handler: &ProfileHandler,
    picked: impl Iterator<Item = &'a EndpointState>,
) -> Vec<String> {
    let mut destinations: Vec<String> = Vec::with_capacity(1);
    let mut pinned = None;
    for endpoint in picked {
        let header = endpoint.spec.ranks.header();
        let destination = destination(handler, &endpoint.endpoint);
        if *pinned.get_or_insert(header) == header && !destinations.contains(&destination) {
            destinations.push(destination);
        }
    }
    destinations
}

/// The addresses of the picked endpoints, at most so many.
fn addresses(run: &ProfileRun<'_>, at_most: usize) -> String {
    let Some(pick) = run.pick() else { return String::new() };
    let picked: Vec<&str> = pick.endpoints().take(at_most).map(|endpoint| &*endpoint.address).collect();
    picked.join(",")
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // An address is host and port, which are always a valid value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_leaves_the_host_as_it_is() {
        assert_eq!(with_port("10.0.0.1:8003", 8000), "10.0.0.1:8000");
        assert_eq!(with_port("[fd00::1]:8003", 8000), "[fd00::1]:8000");
    }
}
