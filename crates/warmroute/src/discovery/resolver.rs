//! From the hosts of a list to IP addresses: Envoy's ORIGINAL_DST cluster takes nothing else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use crate::metrics::Metrics;
use crate::pool::{DiscoveredEndpoint, EndpointSpec};

/// Longest wait for one name.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);
/// Names looked up at the same time.
const LOOKUPS_AT_ONCE: usize = 16;

/// Looks up the addresses of a DNS name.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Resolves DNS names and remembers what they were.
pub(super) struct Resolver {
    lookup: Lookup,
    metrics: Arc<Metrics>,
    hosts: HashMap<String, KnownHost>,
    /// What the endpoints were called last, by the name and port of the entry and by address: an endpoint keeps its
    /// name, and with it its state, while other addresses of its entry come and go.
    names: HashMap<(String, u16, IpAddr), String>,
    /// Names of endpoints that aren't used, since another one has their address.
    shadowed: HashSet<String>,
}

/// A DNS name.
#[derive(Default)]
struct KnownHost {
    /// As of the last look-up that succeeded.
    addresses: BTreeSet<IpAddr>,
    failing: bool,
}

impl Resolver {
    /// A resolver that asks the system.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self::with_lookup(Arc::new(|host| ask_system(host).boxed()), metrics)
    }

    /// A resolver that asks `lookup`.
    pub(super) fn with_lookup(lookup: Lookup, metrics: Arc<Metrics>) -> Self {
        let (hosts, names) = (HashMap::new(), HashMap::new());
        Self { lookup, metrics, hosts, names, shadowed: HashSet::new() }
    }

    /// Looks up every DNS name of the list. One that can't be looked up keeps its last addresses, which is said once.
    pub(super) async fn look_up(&mut self, list: &[DiscoveredEndpoint]) {
        let wanted: HashSet<String> = dns_names(list).map(str::to_owned).collect();
        self.hosts.retain(|host, _| wanted.contains(host));
        let lookup = self.lookup.clone();
        let asked = wanted.into_iter().map(move |host| {
            let lookup = lookup.clone();
            async move {
                let answer = tokio::time::timeout(LOOKUP_DEADLINE, lookup(host.clone())).await;
                (host, answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            }
        });
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(LOOKUPS_AT_ONCE).collect().await;
        for (host, answer) in answers {
            self.note(host, answer);
        }
    }

    fn note(&mut self, host: String, answer: io::Result<Vec<IpAddr>>) {
        let known = self.hosts.entry(host.clone()).or_default();
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        match answer.and_then(|found| if found.is_empty() { Err(none()) } else { Ok(found) }) {
            Ok(addresses) => {
                if known.failing {
                    tracing::info!(host, "the endpoint's name is resolved again");
                }
                known.failing = false;
                known.addresses = addresses.iter().map(IpAddr::to_canonical).collect();
            }
            Err(error) => {
                self.metrics.pool.discovery_errors.with_label_values(&["dns"]).inc();
                let until_then = match known.addresses.is_empty() {
                    true => "the endpoint is not in the pool until it is resolved",
                    false => "its last addresses stay in the pool",
                };
                if !known.failing {
                    tracing::warn!(host, %error, "an endpoint's name can't be resolved: {until_then}");
                }
                known.failing = true;
            }
        }
    }

    /// The list with addresses in place of names: one endpoint per address. Of several with the same address and port
    /// the first one counts.
    pub(super) fn resolved(&mut self, list: &[DiscoveredEndpoint]) -> Vec<DiscoveredEndpoint> {
        let mut resolved = Vec::with_capacity(list.len());
        let mut names = HashMap::new();
        let mut used = HashSet::new();
        let mut shadowed = HashSet::new();
        for listed in list {
            let EndpointSpec { name, host, port, .. } = &listed.spec;
            let addresses = match host.parse::<IpAddr>() {
                Ok(ip) => BTreeSet::from([ip]),
                Err(_) => self.hosts.get(host).map(|known| known.addresses.clone()).unwrap_or_default(),
            };
            for ip in &addresses {
                let key = (name.clone(), *port, *ip);
                let called = match self.names.get(&key) {
                    Some(called) => called.clone(),
                    None if addresses.len() == 1 => name.clone(),
                    None => format!("{name}#{ip}"),
                };
                if !used.insert((*ip, *port)) {
                    shadowed.insert(called);
                    continue;
                }
                names.insert(key, called.clone());
                let spec = EndpointSpec::new(called, ip.to_string(), *port);
                resolved.push(DiscoveredEndpoint { spec, ..listed.clone() });
            }
        }
        for name in shadowed.difference(&self.shadowed) {
            tracing::warn!(name, "another endpoint has the same address and port, so this one isn't used");
        }
        (self.names, self.shadowed) = (names, shadowed);
        resolved
    }
}

/// The hosts of a list that must be looked up.
pub(super) fn dns_names(list: &[DiscoveredEndpoint]) -> impl Iterator<Item = &str> {
    list.iter().map(|endpoint| endpoint.spec.host.as_str()).filter(|host| host.parse::<IpAddr>().is_err())
}

async fn ask_system(host: String) -> io::Result<Vec<IpAddr>> {
    // The port means nothing here.
    let addresses = tokio::net::lookup_host((host, 0)).await?;
    Ok(addresses.map(|address| address.ip()).collect())
}
