//! The endpoints that `--endpoints` names.

use std::net::IpAddr;

use warmroute_config::MAX_RANKS;

use crate::pool::{DataParallel, DiscoveredEndpoint, EndpointSpec};

/// An entry of `--endpoints` that can't be an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is no port.
    #[error("endpoint {entry:?} has no port: write host:port, or [IPv6]:port")]
    NoPort {
        /// The entry as given.
        entry: String,
    },
    /// The port isn't a number from 1 to 65535.
    #[error("endpoint {entry:?} has the port {port:?}, which is not a number from 1 to 65535")]
    BadPort {
        /// The entry as given.
        entry: String,
        /// The text behind the last colon.
        port: String,
    },
    /// What follows `#` is no data-parallel rank.
    #[error("endpoint {entry:?} has {rank:?} behind #, where a data-parallel rank may stand: a number from 0 to {}", MAX_RANKS - 1)]
    BadRank {
        /// The entry as given.
        entry: String,
        /// The text behind the sign.
        rank: String,
    },
    /// The host is empty, or has characters that a host can't have.
    #[error("endpoint {entry:?} has no usable host: write an IP address or a DNS name, without a scheme")]
    BadHost {
        /// The entry as given.
        entry: String,
    },
}

/// Reads the entries of `--endpoints`, `host:port`, with `#rank` behind it for a data-parallel rank that has this port to
/// itself; empty ones are skipped. `ranks` is for those without a rank.
///
/// # Errors
/// The first entry that can't be an endpoint.
pub fn static_endpoints(
    entries: &[String],
    ranks: DataParallel,
) -> Result<Vec<DiscoveredEndpoint>, EndpointError> {
    let entries = entries.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty());
    entries.map(|entry| ranked_endpoint(entry, ranks)).collect()
}

fn ranked_endpoint(entry: &str, ranks: DataParallel) -> Result<DiscoveredEndpoint, EndpointError> {
    let Some((address, rank)) = entry.split_once('#') else {
        return Ok(DiscoveredEndpoint { data_parallel: ranks, ..endpoint(entry)?.into() });
    };
    let bad = || EndpointError::BadRank { entry: entry.to_owned(), rank: rank.to_owned() };
    let rank = rank.parse().ok().filter(|rank| *rank < MAX_RANKS).ok_or_else(bad)?;
    let data_parallel = DataParallel { rank: Some(rank), ..DataParallel::default() };
    Ok(DiscoveredEndpoint { data_parallel, ..endpoint(address)?.into() })
}

fn endpoint(entry: &str) -> Result<EndpointSpec, EndpointError> {
    let owned = || entry.to_owned();
    let (host, port) = entry.rsplit_once(':').ok_or_else(|| EndpointError::NoPort { entry: owned() })?;
    if host.contains(':') && !host.starts_with('[') {
        // An IPv6 address without brackets: its last group is no port.
        return Err(EndpointError::NoPort { entry: owned() });
    }
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| EndpointError::BadPort { entry: owned(), port: port.to_owned() })?;
    let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) if inner.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => inner,
        Some(_) => return Err(EndpointError::BadHost { entry: owned() }),
        None => host,
    };
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(usable) {
        return Err(EndpointError::BadHost { entry: owned() });
    }
    Ok(EndpointSpec::new(owned(), host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(entry: &str) -> Result<EndpointSpec, EndpointError> {
        static_endpoints(&[entry.to_owned()], DataParallel::default()).map(|mut specs| specs.remove(0).spec)
    }

    #[test]
    fn names_addresses_and_ipv6_are_read() {
        assert_eq!(one("127.0.0.2:8000").unwrap().host, "127.0.0.2");
        assert_eq!(one(" vllm-0.pool.svc:8000").unwrap().port, 8000);
        let v6 = one("[::1]:8000").unwrap();
        assert_eq!((v6.host.as_str(), v6.address().as_str()), ("::1", "[::1]:8000"));
        assert!(static_endpoints(&[String::new()], DataParallel::default()).unwrap().is_empty());
        let entries = ["10.0.0.1:8000", "10.0.0.1:8001#1"].map(str::to_owned);
        let listed =
            static_endpoints(&entries, DataParallel { size: Some(2), ..DataParallel::default() }).unwrap();
        let ranks = |at: usize| (listed[at].data_parallel.size, listed[at].data_parallel.rank);
        assert_eq!((ranks(0), ranks(1)), ((Some(2), None), (None, Some(1))));
        assert_eq!(listed[1].spec.name, "10.0.0.1:8001");
    }

    #[test]
    fn mistakes_say_what_is_wrong() {
        assert!(matches!(one("localhost"), Err(EndpointError::NoPort { .. })));
        assert!(matches!(one("::1"), Err(EndpointError::NoPort { .. })));
        assert!(matches!(one("a:0"), Err(EndpointError::BadPort { .. })));
        assert!(matches!(one("a:http"), Err(EndpointError::BadPort { .. })));
        assert!(matches!(
            one("http://a:80"),
            Err(EndpointError::NoPort { .. } | EndpointError::BadHost { .. })
        ));
        assert!(matches!(one("[a]:80"), Err(EndpointError::BadHost { .. })));
        assert!(matches!(one("a:80#"), Err(EndpointError::BadRank { .. })));
        assert!(matches!(one("a:80#1024"), Err(EndpointError::BadRank { .. })));
        assert!(matches!(one(":80"), Err(EndpointError::BadHost { .. })));
    }
}
