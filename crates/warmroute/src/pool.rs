//! The pool: the endpoints that may be picked, as one immutable snapshot at a time.
//!
//! Discovery is the only writer. What changes often about an endpoint (its metrics, its load) lives in the
//! endpoint's own state, which snapshots share.

mod ranks;
mod scrape;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warmroute_plugin::{AdapterState, Endpoint, EndpointId, EndpointMetrics, MetricsState};

use crate::delivered::{Deliveries, LossAccount};
use crate::engine_events::EngineState;
use crate::lease::EndpointLoad;

pub use ranks::{DataParallel, Ranks};
pub use scrape::{Adapters, Scrape, ServedModel, ServedModels};

/// What discovery knows of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSpec {
    /// How people call it.
    pub name: String,
    /// Host without brackets: an IP address or a DNS name.
    pub host: String,
    /// Serving port.
    pub port: u16,
    /// The data-parallel ranks behind it.
    pub ranks: Ranks,
    /// What tells it from a later one with the same name and address, as the UID of a pod; empty where nothing does.
    pub uid: Arc<str>,
}

impl EndpointSpec {
    /// An engine that has its address to itself.
    pub fn new(name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self { name: name.into(), host: host.into(), port, ranks: Ranks::default(), uid: "".into() }
    }

    /// `host:port` as Envoy gets it; an IPv6 host is bracketed.
    pub fn address(&self) -> String {
        host_port(&self.host, self.port)
    }

    /// What tells the endpoint from others in metrics, logs and receipts: its address, and its rank if it shares that.
    pub fn label(&self) -> String {
        match self.ranks.sharing() {
            Some(rank) => format!("{}-rank-{rank}", self.address()),
            None => self.address(),
        }
    }
}

/// An endpoint with its labels, as discovery hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredEndpoint {
    /// Which endpoint it is: as long as this is the same, it keeps its state.
    pub spec: EndpointSpec,
    /// What plugins see as its labels.
    pub labels: BTreeMap<String, String>,
    /// What its list says of its ranks. In a pool [`EndpointSpec::ranks`] counts.
    pub data_parallel: DataParallel,
}

impl From<EndpointSpec> for DiscoveredEndpoint {
    /// Without labels.
    fn from(spec: EndpointSpec) -> Self {
        Self { spec, labels: BTreeMap::new(), data_parallel: DataParallel::default() }
    }
}

/// `host:port`, an IPv6 host in brackets.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// One incarnation of an endpoint: everything about it that changes while it is in the pool.
#[derive(Debug)]
pub struct EndpointState {
    /// The endpoint as plugins see it.
    pub endpoint: Arc<Endpoint>,
    /// Where it is.
    pub spec: EndpointSpec,
    /// [`EndpointSpec::label`].
    pub label: Arc<str>,
    /// What this picker has in flight there.
    pub load: Arc<EndpointLoad>,
    /// The engine behind it, as its events tell; of several ranks that can't be told apart, all of them.
    pub engine: Arc<EngineState>,
    /// What it delivered of what was predicted.
    pub deliveries: Arc<Deliveries>,
    /// Cancelled when the endpoint leaves the pool; ends its scraper and its subscription.
    pub gone: CancellationToken,
    /// Shared with the state of the same incarnation under other labels.
    findings: Arc<Findings>,
}

/// What was found out of one incarnation so far.
#[derive(Debug)]
struct Findings {
    /// The endpoint with its labels of now.
    labelled: ArcSwap<Endpoint>,
    scrape: ArcSwapOption<Scrape>,
    models: ArcSwapOption<ServedModels>,
}

impl EndpointState {
    /// The same incarnation with other labels: what runs for it goes on, and both see the same.
    fn relabelled(&self, labels: &BTreeMap<String, String>) -> Self {
        let mut endpoint = (*self.endpoint).clone();
        endpoint.labels.clone_from(labels);
        let endpoint = Arc::new(endpoint);
        self.findings.labelled.store(endpoint.clone());
        Self {
            endpoint,
            spec: self.spec.clone(),
            label: self.label.clone(),
            load: self.load.clone(),
            engine: self.engine.clone(),
            deliveries: self.deliveries.clone(),
            gone: self.gone.clone(),
            findings: self.findings.clone(),
        }
    }

    /// The endpoint with its labels of now, which may be newer than this state's own.
    pub fn labelled(&self) -> Arc<Endpoint> {
        self.findings.labelled.load_full()
    }

    /// Publishes a good scrape of nothing but load and cache.
    pub fn scraped(&self, metrics: EndpointMetrics, at: Instant) {
        self.publish_scrape(Scrape::new(metrics, at));
    }

    /// The same, one of those that are made at an interval.
    pub fn scraped_every(&self, interval: Duration, metrics: EndpointMetrics, at: Instant) {
        self.publish_scrape(Scrape::new(metrics, at).followed_after(interval));
    }

    /// Publishes a good scrape.
    pub fn publish_scrape(&self, scrape: Scrape) {
        if let Some(counters) = scrape.prefix_counters {
            self.deliveries.read_counters(counters);
        }
        self.findings.scrape.store(Some(Arc::new(scrape)));
    }

    /// The last good scrape, however old.
    pub fn last_scrape(&self) -> Option<Arc<Scrape>> {
        self.findings.scrape.load_full()
    }

    /// Reads something of the last good scrape, however old, without sharing it. `None` without one.
    pub fn of_scrape<T>(&self, read: impl FnOnce(&Scrape) -> T) -> Option<T> {
        self.findings.scrape.load().as_deref().map(read)
    }

    /// Publishes what the endpoint says that it serves.
    pub fn publish_models(&self, models: ServedModels) {
        self.findings.models.store(Some(Arc::new(models)));
    }

    /// What the endpoint says that it serves; None if it wasn't asked, or has never answered.
    pub fn models(&self) -> Option<Arc<ServedModels>> {
        self.findings.models.load_full()
    }

    /// Where the engine stands with `model`, by its last metrics and by what it says that it serves.
    pub fn adapter_state(&self, model: &str) -> AdapterState {
        let by_metrics = self.of_scrape(|scrape| Some(scrape.adapters.as_ref()?.state_of(model))).flatten();
        let by_metrics = by_metrics.unwrap_or_default();
        match self.findings.models.load().as_deref() {
            Some(models) => models.refine(model, by_metrics),
            None => by_metrics,
        }
    }

    /// Never scraped, fresh, or older than `stale_after`.
    pub fn metrics_state(&self, now: Instant, stale_after: Duration) -> MetricsState {
        match self.findings.scrape.load().as_deref() {
            None => MetricsState::NeverScraped,
            Some(scrape) => {
                let metrics = scrape.metrics.overdue_by(now.saturating_duration_since(scrape.next_at));
                match now.saturating_duration_since(scrape.at) > stale_after {
                    true => MetricsState::Stale(metrics),
                    false => MetricsState::Fresh(metrics),
                }
            }
        }
    }

    /// Tokens per KV block: what the engine's events say, else what its metrics say; None if neither does.
    pub fn block_size_tokens(&self) -> Option<u32> {
        let scraped = || self.of_scrape(|scrape| scrape.metrics.block_size_tokens).unwrap_or(0);
        match self.engine.block_size_tokens() {
            0 => Some(scraped()).filter(|size| *size > 0),
            size => Some(size),
        }
    }
}

/// One immutable version of the pool. `endpoints` and `states` are parallel: row i is the same endpoint.
#[derive(Debug, Default)]
pub struct PoolSnapshot {
    /// Endpoints as plugins see them.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Their state.
    pub states: Vec<Arc<EndpointState>>,
}

impl PoolSnapshot {
    /// Rows that a subset hint allows. Only the host part of each entry counts, as at the llm-d Router EPP, so that
    /// all ranks of a pod qualify.
    pub fn subset_rows(&self, subset: &[String]) -> Vec<u32> {
        let hosts: Vec<&str> = subset.iter().map(|entry| warmroute_ext_proc::subset_host(entry)).collect();
        let allowed = |state: &EndpointState| hosts.iter().any(|host| *host == state.spec.host);
        (0u32..).zip(&self.states).filter(|(_, state)| allowed(state)).map(|(row, _)| row).collect()
    }
}

/// What an update changed.
#[derive(Debug, Default)]
pub struct PoolChange {
    /// Endpoints that are new.
    pub added: Vec<Arc<EndpointState>>,
    /// Endpoints that left; their `gone` tokens are cancelled.
    pub removed: Vec<Arc<EndpointState>>,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    /// Name used in metric labels.
    pub name: String,
    /// Where cached tokens of its requests are lost.
    pub loss: Arc<LossAccount>,
    snapshot: ArcSwap<PoolSnapshot>,
    next_id: AtomicU32,
    /// Number of updates so far.
    updates: watch::Sender<u64>,
    /// Writers take turns; readers never wait for this.
    writer: Mutex<()>,
}

impl Pool {
    /// An empty pool.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            loss: Arc::default(),
            snapshot: ArcSwap::default(),
            next_id: AtomicU32::new(0),
            updates: watch::Sender::new(0),
            writer: Mutex::new(()),
        }
    }

    /// The pool as of now.
    pub fn snapshot(&self) -> Arc<PoolSnapshot> {
        self.snapshot.load_full()
    }

    /// The number of updates so far, to wait for the next one.
    pub fn updates(&self) -> watch::Receiver<u64> {
        self.updates.subscribe()
    }

    /// Replaces the endpoints by these, in this order; one whose spec stays keeps its state, even if its labels
    /// change. Duplicates count once.
    pub fn update<E: Clone + Into<DiscoveredEndpoint>>(&self, endpoints: &[E]) -> PoolChange {
        let _writer = self.writer.lock();
        let old = self.snapshot();
        let known: HashMap<&EndpointSpec, &Arc<EndpointState>> =
            old.states.iter().map(|state| (&state.spec, state)).collect();
        let mut change = PoolChange::default();
        let mut seen: HashSet<EndpointSpec> = HashSet::with_capacity(endpoints.len());
        let mut states: Vec<Arc<EndpointState>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let DiscoveredEndpoint { spec, labels, .. } = endpoint.clone().into();
            if !seen.insert(spec.clone()) {
                continue;
            }
            states.push(match known.get(&spec) {
                Some(state) if state.endpoint.labels == labels => Arc::clone(state),
                Some(state) => Arc::new(state.relabelled(&labels)),
                None => {
                    let state = Arc::new(self.new_state(spec, labels));
                    change.added.push(state.clone());
                    state
                }
            });
        }
        for state in &old.states {
            if !seen.contains(&state.spec) {
                state.gone.cancel();
                change.removed.push(state.clone());
            }
        }
        let endpoints = states.iter().map(|state| state.endpoint.clone()).collect();
        self.snapshot.store(Arc::new(PoolSnapshot { endpoints, states }));
        self.updates.send_modify(|updates| *updates += 1);
        change
    }

    fn new_state(&self, spec: EndpointSpec, labels: BTreeMap<String, String>) -> EndpointState {
        // Each engine behind it has a number of its own.
        let engines = spec.ranks.count();
        let id = EndpointId(self.next_id.fetch_add(engines.into(), Ordering::Relaxed));
        let mut endpoint = Endpoint::new(id, spec.name.as_str(), spec.address());
        endpoint.labels = labels;
        let endpoint = Arc::new(endpoint);
        let findings = Findings {
            labelled: ArcSwap::new(endpoint.clone()),
            scrape: ArcSwapOption::empty(),
            models: ArcSwapOption::empty(),
        };
        EndpointState {
            endpoint,
            label: spec.label().into(),
            spec,
            load: Arc::new(EndpointLoad::default()),
            engine: Arc::new(EngineState::of_ranks(engines)),
            deliveries: Arc::new(Deliveries::new(self.loss.clone())),
            gone: CancellationToken::new(),
            findings: Arc::new(findings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(host: &str, port: u16) -> EndpointSpec {
        EndpointSpec::new(host_port(host, port), host, port)
    }

    #[test]
    fn an_endpoint_that_stays_keeps_its_state_and_one_that_returns_is_new() {
        let pool = Pool::new("p");
        pool.update(&[spec("a", 1), spec("b", 1)]);
        let first = pool.snapshot();
        let change = pool.update(&[spec("b", 1), spec("c", 1), spec("c", 1)]);
        assert_eq!((change.added.len(), change.removed.len()), (1, 1));
        assert!(first.states[0].gone.is_cancelled());
        let second = pool.snapshot();
        assert!(Arc::ptr_eq(&first.states[1], &second.states[0]));
        pool.update(&[spec("a", 1)]);
        assert_ne!(pool.snapshot().endpoints[0].id, first.endpoints[0].id);
    }

    #[test]
    fn new_labels_are_seen_and_leave_the_incarnation_as_it_is() {
        let pool = Pool::new("p");
        let labelled = |zone: &str| {
            let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
            DiscoveredEndpoint { labels, ..spec("a", 1).into() }
        };
        let mut updates = pool.updates();
        let first = pool.update(&[labelled("x")]).added.remove(0);
        assert_eq!(first.endpoint.labels["zone"], "x");
        let change = pool.update(&[labelled("y")]);
        assert!(change.added.is_empty() && change.removed.is_empty());
        let second = pool.snapshot().states[0].clone();
        assert_eq!((second.endpoint.labels["zone"].as_str(), second.endpoint.id), ("y", first.endpoint.id));
        // What the first one's scraper finds out is seen by the second.
        first.scraped(EndpointMetrics::new(3, 0, 0.0), Instant::now());
        assert_eq!(second.last_scrape().unwrap().metrics.waiting_requests, 3);
        assert!(Arc::ptr_eq(&first.load, &second.load) && Arc::ptr_eq(&first.engine, &second.engine));
        assert_eq!(*updates.borrow_and_update(), 2);
        pool.update::<EndpointSpec>(&[]);
        assert!(first.gone.is_cancelled() && second.gone.is_cancelled());
    }

    #[test]
    fn metrics_are_never_scraped_then_fresh_then_stale() {
        let pool = Pool::new("p");
        pool.update(&[spec("a", 1)]);
        let state = pool.snapshot().states[0].clone();
        let (now, limit) = (Instant::now(), Duration::from_secs(2));
        assert_eq!(state.metrics_state(now, limit), MetricsState::NeverScraped);
        state.scraped(EndpointMetrics::new(1, 2, 0.5), now);
        assert!(state.metrics_state(now + limit, limit).fresh().is_some());
        let later = state.metrics_state(now + limit + Duration::from_millis(1), limit);
        assert!(matches!(later, MetricsState::Stale(metrics) if metrics.waiting_requests == 1));
    }

    #[test]
    fn metrics_are_overdue_from_when_the_next_ones_are_due() {
        let pool = Pool::new("p");
        pool.update(&[spec("a", 1)]);
        let state = pool.snapshot().states[0].clone();
        let (now, limit) = (Instant::now(), Duration::from_secs(2));
        let overdue_after = |time| state.metrics_state(now + time, limit).last().unwrap().overdue;
        state.scraped_every(Duration::from_secs(1), EndpointMetrics::default(), now);
        assert_eq!(overdue_after(Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(overdue_after(Duration::from_millis(1200)), Duration::from_millis(200));
        state.scraped(EndpointMetrics::default(), now);
        assert_eq!(overdue_after(Duration::from_millis(200)), Duration::from_millis(200));
    }

    #[test]
    fn a_subset_matches_hosts_whatever_the_port() {
        let pool = Pool::new("p");
        pool.update(&[
            spec("10.0.0.1", 8000),
            spec("10.0.0.1", 8001),
            spec("::1", 8000),
            spec("10.0.0.2", 1),
        ]);
        let snapshot = pool.snapshot();
        assert_eq!(snapshot.subset_rows(&["10.0.0.1:9".to_owned()]), [0, 1]);
        assert_eq!(snapshot.subset_rows(&["[::1]:8000".to_owned()]), [2]);
        assert!(snapshot.subset_rows(&["10.0.0.3:1".to_owned()]).is_empty());
        assert_eq!(&*snapshot.endpoints[2].address, "[::1]:8000");
    }
}
