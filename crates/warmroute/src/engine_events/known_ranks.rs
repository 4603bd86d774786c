//! The data-parallel ranks that engines list.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::pool::DiscoveredEndpoint;

/// By address, the ranks that the engine there lists. Written by those who ask engines, read by discovery.
#[derive(Debug, Default)]
pub struct KnownRanks {
    /// Host and port, to the ranks in order.
    told: Mutex<HashMap<(String, u16), Vec<u16>>>,
    changes: watch::Sender<u64>,
}

impl KnownRanks {
    /// The engine there lists these ranks, in order; none if it lists nothing.
    pub fn tell(&self, host: &str, port: u16, ranks: Vec<u16>) {
        let key = (host.to_owned(), port);
        let before = match ranks.is_empty() {
            true => self.told.lock().remove(&key),
            false => self.told.lock().insert(key.clone(), ranks),
        };
        if before.as_ref() != self.told.lock().get(&key) {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// What the engine there lists.
    pub fn of(&self, host: &str, port: u16) -> Vec<u16> {
        self.told.lock().get(&(host.to_owned(), port)).cloned().unwrap_or_default()
    }

    /// The number of changes so far, to wait for the next one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts an endpoint per rank in the place of every endpoint, and forgets addresses that aren't listed any more.
    pub(crate) fn apply(&self, listed: Vec<DiscoveredEndpoint>) -> Vec<DiscoveredEndpoint> {
        let addresses: HashSet<(&str, u16)> =
            listed.iter().map(|endpoint| (endpoint.spec.host.as_str(), endpoint.spec.port)).collect();
        self.told.lock().retain(|(host, port), _| addresses.contains(&(host.as_str(), *port)));
        listed.into_iter().flat_map(|endpoint| self.by_rank(endpoint)).collect()
    }

    fn by_rank(&self, endpoint: DiscoveredEndpoint) -> Vec<DiscoveredEndpoint> {
        let told = self.of(&endpoint.spec.host, endpoint.spec.port);
        let of_rank = |ranks| {
            let mut endpoint = endpoint.clone();
            endpoint.spec.ranks = ranks;
            if let Some(rank) = ranks.sharing() {
                let name = &endpoint.spec.name;
                // A pod's only port is called the first rank already.
                let pod = name.strip_suffix("-rank-0").filter(|_| !endpoint.spec.uid.is_empty());
                endpoint.spec.name = format!("{}-rank-{rank}", pod.unwrap_or(name));
            }
            endpoint
        };
        endpoint.data_parallel.ranks(&told).into_iter().map(of_rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::EndpointSpec;

    fn labels(endpoints: &[DiscoveredEndpoint]) -> Vec<(String, String)> {
        endpoints.iter().map(|endpoint| (endpoint.spec.name.clone(), endpoint.spec.label())).collect()
    }

    #[test]
    fn an_address_becomes_its_ranks_and_is_forgotten_when_it_leaves() {
        let (known, mut listed) = (KnownRanks::default(), vec![]);
        let mut changes = known.changes();
        listed.extend(["a", "b"].map(|name| EndpointSpec::new(name, name, 1).into()));
        known.tell("a", 1, vec![0, 1]);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        known.tell("a", 1, vec![0, 1]);
        assert!(!changes.has_changed().unwrap(), "it says the same again");
        let pair = |name: &str, label: &str| (name.to_owned(), label.to_owned());
        let expanded = labels(&known.apply(listed.clone()));
        assert_eq!(
            expanded,
            [pair("a-rank-0", "a:1-rank-0"), pair("a-rank-1", "a:1-rank-1"), pair("b", "b:1")]
        );
        known.apply(listed.split_off(1));
        assert!(known.of("a", 1).is_empty());
    }
}
