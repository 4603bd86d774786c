//! The endpoints that `--endpoints` names.

use std::net::IpAddr;

use crate::pool::EndpointSpec;

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
    /// The host is empty, or has characters that a host can't have.
    #[error("endpoint {entry:?} has no usable host: write an IP address or a DNS name, without a scheme")]
    BadHost {
        /// The entry as given.
        entry: String,
    },
}

/// Reads the entries of `--endpoints`; empty ones are skipped.
///
/// # Errors
/// The first entry that can't be an endpoint.
pub fn static_endpoints(entries: &[String]) -> Result<Vec<EndpointSpec>, EndpointError> {
    entries.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty()).map(endpoint).collect()
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
    Ok(EndpointSpec { name: owned(), host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(entry: &str) -> Result<EndpointSpec, EndpointError> {
        static_endpoints(&[entry.to_owned()]).map(|mut specs| specs.remove(0))
    }

    #[test]
    fn names_addresses_and_ipv6_are_read() {
        assert_eq!(one("127.0.0.2:8000").unwrap().host, "127.0.0.2");
        assert_eq!(one(" vllm-0.pool.svc:8000").unwrap().port, 8000);
        let v6 = one("[::1]:8000").unwrap();
        assert_eq!((v6.host.as_str(), v6.address().as_str()), ("::1", "[::1]:8000"));
        assert!(static_endpoints(&[String::new()]).unwrap().is_empty());
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
        assert!(matches!(one(":80"), Err(EndpointError::BadHost { .. })));
    }
}
