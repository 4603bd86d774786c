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

#[cfg(test)]
mod tests {
    use warmroute_kv_index::{IndexLimits, KvIndex};

    use super::*;
    use crate::engine_events::{EngineEvents, EventSettings};
    use crate::metrics::Metrics;
    use crate::pool::EndpointSpec;
    use crate::prompt::AdapterNames;
    use crate::tasks::Tasks;

    #[tokio::test]
    async fn ranks_that_an_engine_listed_are_not_those_of_the_one_in_its_place() {
        let (tasks, _ends) = Tasks::new();
        let settings =
            EventSettings { listen: None, port: 0, replay_port: 0, topic_filter: String::new(), shards: 1 };
        let (index, metrics) = (KvIndex::new(IndexLimits::default()), Arc::new(Metrics::try_new().unwrap()));
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index, settings, metrics, &adapters).unwrap();
        let followers = Followers { scraper: None, models: None, events, sources: None, tasks };
        let pool = Arc::new(Pool::new("p"));
        let mut publisher = EndpointPublisher::new(pool.clone(), followers);
        let pod = |uid: &str| {
            let spec = EndpointSpec::new("team/vllm-0-rank-0", "10.0.0.1", 8000);
            vec![EndpointSpec { uid: uid.into(), ..spec }.into()]
        };
        let names = || pool.snapshot().endpoints.iter().map(|row| row.name.to_string()).collect::<Vec<_>>();
        publisher.publish(pod("a"));
        publisher.ranks.tell("10.0.0.1", 8000, vec![0, 1]);
        publisher.publish(pod("a"));
        assert_eq!(names(), ["team/vllm-0-rank-0", "team/vllm-0-rank-1"]);
        let old = pool.snapshot().states.clone();
        publisher.publish(pod("b"));
        assert_eq!(names(), ["team/vllm-0-rank-0"]);
        assert_eq!(pool.snapshot().states[0].spec.ranks.header(), None);
        assert!(old.iter().all(|state| state.gone.is_cancelled()));
    }
}
