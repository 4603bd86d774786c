//! From a list of endpoints to the pool, with what runs for each.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::Followers;
use crate::engine_events::{KnownRanks, SourceFinder};
use crate::pool::{DiscoveredEndpoint, Pool};

/// Puts endpoints into the pool, one per rank, and starts what runs for new ones.
pub struct EndpointPublisher {
    pool: Arc<Pool>,
    followers: Followers,
    ranks: Arc<KnownRanks>,
    published: Option<Vec<DiscoveredEndpoint>>,
}

impl EndpointPublisher {
    /// Nothing is published yet.
    pub fn new(pool: Arc<Pool>, followers: Followers) -> Self {
        let ranks = followers.sources.as_ref().map(SourceFinder::ranks).unwrap_or_default();
        Self { pool, followers, ranks, published: None }
    }

    /// Whether engines are asked for their ranks.
    pub fn asks_engines(&self) -> bool {
        self.followers.sources.is_some()
    }

    /// The number of changes so far of the ranks that engines list: after one, the list is to be published again.
    pub fn rank_changes(&self) -> watch::Receiver<u64> {
        self.ranks.changes()
    }

    /// These are the endpoints from now on; their hosts are IP addresses.
    pub fn publish(&mut self, listed: Vec<DiscoveredEndpoint>) {
        self.forget_ranks_of_replaced(&listed);
        let endpoints = self.ranks.apply(listed);
        if self.published.as_ref() == Some(&endpoints) {
            return;
        }
        let change = self.pool.update(&endpoints);
        for gone in &change.removed {
            tracing::info!(endpoint = %gone.endpoint.name, address = %gone.endpoint.address, "endpoint left");
        }
        for endpoint in &change.added {
            tracing::info!(endpoint = %endpoint.endpoint.name, address = %endpoint.endpoint.address, "endpoint added");
        }
        // The ranks of one address stand side by side.
        for rows in change.added.chunk_by(|a, b| a.endpoint.address == b.endpoint.address) {
            self.followers.follow(rows);
        }
        self.published = Some(endpoints);
    }

    /// There are no endpoints any more.
    pub fn clear(&mut self) {
        self.publish(Vec::new());
    }

    /// What an engine listed doesn't hold for the one that has its address now.
    fn forget_ranks_of_replaced(&self, listed: &[DiscoveredEndpoint]) {
        let address = |endpoint: &DiscoveredEndpoint| (endpoint.spec.host.clone(), endpoint.spec.port);
        let published = self.published.iter().flatten();
        let known: HashMap<(String, u16), &str> =
            published.map(|endpoint| (address(endpoint), &*endpoint.spec.uid)).collect();
        for endpoint in listed {
            let address = address(endpoint);
            if known.get(&address).is_some_and(|uid| **uid != *endpoint.spec.uid) {
                self.ranks.tell(&address.0, address.1, Vec::new());
            }
        }
    }
}
