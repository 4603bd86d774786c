//! `header-based-testing-filter`.

use std::net::{IpAddr, SocketAddr};

use warmroute_plugin::{Candidates, Filter, InferenceRequest};

/// The header with the endpoints that a test wants.
const HEADER: &str = "test-epp-endpoint-selection";

/// Keeps the endpoints that a header of the request lists: `ip` for every port, or `ip:port`, with commas between.
/// Without the header none is kept. For tests of gateways.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderBasedTestingFilter;

impl Filter for HeaderBasedTestingFilter {
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        keep.fill(false);
        let values = request.headers.get_all(HEADER).iter().filter_map(|value| value.to_str().ok());
        for entry in
            values.flat_map(|value| value.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
        {
            for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
                *keep = *keep || is_meant(entry, &endpoint.address);
            }
        }
    }
}

/// Whether an entry names the endpoint with this address, `host:port`.
fn is_meant(entry: &str, address: &str) -> bool {
    if entry == address {
        return true;
    }
    let bare = entry.trim_start_matches('[').trim_end_matches(']');
    match (bare.parse::<IpAddr>(), address.parse::<SocketAddr>()) {
        (Ok(ip), Ok(address)) => ip == address.ip(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use warmroute_plugin::testing::request;
    use warmroute_plugin::{Candidates, Endpoint, EndpointId, Filter, InFlight, MetricsState};

    use super::{HEADER, HeaderBasedTestingFilter};

    fn kept(values: &[&'static str]) -> Vec<bool> {
        let addresses = ["10.0.0.1:8000", "10.0.0.1:8001", "[fd00::1]:8000", "10.0.0.11:8000"];
        let endpoints: Vec<_> = (0u32..)
            .zip(addresses)
            .map(|(id, address)| Arc::new(Endpoint::new(EndpointId(id), address, address)))
            .collect();
        let (metrics, in_flight) = ([MetricsState::NeverScraped; 4], [InFlight::default(); 4]);
        let table = Candidates::builder(&endpoints).metrics(&metrics).in_flight(&in_flight).build().unwrap();
        let mut request = request();
        for value in values {
            request.headers.append(HEADER, HeaderValue::from_static(value));
        }
        let mut keep = vec![true; 4];
        HeaderBasedTestingFilter.filter(&request, &table, &mut keep);
        keep
    }

    #[test]
    fn the_listed_endpoints_are_kept() {
        assert_eq!(kept(&[]), [false; 4]);
        assert_eq!(kept(&[""]), [false; 4]);
        assert_eq!(kept(&["10.0.0.1"]), [true, true, false, false]);
        assert_eq!(kept(&["10.0.0.1:8001, 10.0.0.11"]), [false, true, false, true]);
        assert_eq!(kept(&["fd00::1"]), [false, false, true, false]);
        assert_eq!(kept(&["[fd00::1]:8000", "10.0.0.9"]), [false, false, true, false]);
        assert_eq!(kept(&["[fd00::1]:8001"]), [false; 4]);
    }
}
