//! A cluster and a picker's discovery in it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use warmroute::discovery::{EndpointPublisher, Followers};
use warmroute::engine_events::{EngineEvents, EventSettings};
use warmroute::kubernetes::{
    KubernetesReport, KubernetesStatus, POOL_GROUP, Pace, PoolDiscovery, PoolMembers, PoolSource,
    ResourceState,
};
use warmroute::metrics::Metrics;
use warmroute::pool::{DataParallel, Pool, PoolSnapshot};
use warmroute::prompt::AdapterNames;
use warmroute::readiness::Readiness;
use warmroute::tasks::{Tasks, VitalEnd};
use warmroute_kv_index::{IndexLimits, KvIndex};

use crate::fake_api::{FakeApi, NAMESPACE, PATIENCE};

pub(crate) const PODS: &str = "pods";
pub(crate) const POOLS: &str = "inferencepools.inference.networking.k8s.io";

/// Repeats at once, waits as long as a slow machine may need.
pub(crate) const PACE: Pace = Pace {
    first_retry: Duration::from_millis(5),
    longest_retry: Duration::from_millis(20),
    longest_denied_retry: Duration::from_millis(20),
    answer: PATIENCE,
    watch_seconds: 30,
};

/// A pod of `app=vllm` that serves at this address.
pub(crate) fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "vllm"}, "annotations": {},
            "creationTimestamp": "2026-11-20T10:00:00Z"},
        "spec": {"containers": [{"name": "vllm", "unknown": [1, 2]}]},
        "status": {"podIP": ip, "hostIP": "192.168.0.1", "phase": "Running", "conditions": [
            {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": "True", "lastTransitionTime": null},
        ]},
    })
}

/// The same with other labels.
pub(crate) fn labelled(name: &str, ip: &str, labels: Value) -> Value {
    let mut pod = pod(name, ip);
    pod["metadata"]["labels"] = labels;
    pod
}

/// The InferencePool `llama` of pods with a label `app`.
pub(crate) fn pool(app: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"number": port})).collect();
    json!({"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "llama"},
        "spec": {"selector": {"matchLabels": {"app": app}}, "targetPorts": ports,
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}}}})
}

pub(crate) struct Cluster {
    pub(crate) api: FakeApi,
    pub(crate) pool: Arc<Pool>,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: KubernetesStatus,
    pub(crate) tasks: Tasks,
    _ends: mpsc::Receiver<VitalEnd>,
}

impl Cluster {
    /// Nothing is there, and nobody follows it.
    pub(crate) async fn new() -> Self {
        let (tasks, ends) = Tasks::new();
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let readiness = Readiness::default();
        readiness.is_listening();
        Self {
            api: FakeApi::start().await,
            pool: Arc::new(Pool::new("llama")),
            readiness,
            status: KubernetesStatus::new(NAMESPACE, metrics.clone()),
            metrics,
            tasks,
            _ends: ends,
        }
    }

    /// The pool `llama` with one port and these pods is there and followed.
    pub(crate) async fn with_pods(pods: &[(&str, &str)]) -> Self {
        let cluster = Self::new().await;
        cluster.api.apply(POOLS, pool("vllm", &[8000]));
        for (name, ip) in pods {
            cluster.api.apply(PODS, pod(name, ip));
        }
        cluster.follow_pool(POOL_GROUP);
        let addresses: Vec<String> = pods.iter().map(|(_, ip)| format!("{ip}:8000")).collect();
        cluster.addresses(&addresses.iter().map(String::as_str).collect::<Vec<_>>()).await;
        cluster
    }

    /// Follows the pool `llama` of a group.
    pub(crate) fn follow_pool(&self, group: &str) {
        self.follow(PoolMembers::InferencePool { group: group.to_owned() }, PACE);
    }

    pub(crate) fn follow(&self, members: PoolMembers, pace: Pace) {
        let settings =
            EventSettings { listen: None, port: 0, replay_port: 0, topic_filter: String::new(), shards: 1 };
        let adapters = Arc::new(AdapterNames::default());
        let index = KvIndex::new(IndexLimits::default());
        let events = EngineEvents::try_new(index, settings, self.metrics.clone(), &adapters).unwrap();
        let followers =
            Followers { scraper: None, models: None, events, sources: None, tasks: self.tasks.clone() };
        let discovery = PoolDiscovery {
            client: self.api.client(),
            source: PoolSource { name: "llama".to_owned(), namespace: NAMESPACE.to_owned(), members },
            ranks: DataParallel::default(),
            pace,
            publisher: EndpointPublisher::new(self.pool.clone(), followers),
            readiness: self.readiness.clone(),
            status: self.status.clone(),
        };
        discovery.start(&self.tasks);
    }

    /// Waits until the pool has these addresses, in this order.
    pub(crate) async fn addresses(&self, addresses: &[&str]) -> Arc<PoolSnapshot> {
        self.pool_where(|snapshot| addresses_of(snapshot) == addresses).await
    }

    /// Waits until this holds of the pool.
    pub(crate) async fn pool_where(&self, holds: impl Fn(&PoolSnapshot) -> bool) -> Arc<PoolSnapshot> {
        let mut updates = self.pool.updates();
        let reached = updates.wait_for(|_| holds(&self.pool.snapshot()));
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            panic!("the pool has {:?}; {:?}", addresses_of(&self.pool.snapshot()), self.status.report());
        }
        self.pool.snapshot()
    }

    /// Waits until this holds of what is known of the cluster.
    pub(crate) async fn status_where(&self, holds: impl Fn(&KubernetesReport) -> bool) -> KubernetesReport {
        let mut changes = self.status.changes();
        let reached = changes.wait_for(|_| holds(&self.status.report()));
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            panic!("{:?}", self.status.report());
        }
        self.status.report()
    }

    /// Waits until this holds of one kind of objects.
    pub(crate) async fn resource_where(
        &self,
        kind: &str,
        holds: impl Fn(&ResourceState) -> bool,
    ) -> ResourceState {
        let of_kind = |report: &KubernetesReport| {
            report.resources.iter().find(|state| state.resource == kind && holds(state)).cloned()
        };
        let report = self.status_where(|report| of_kind(report).is_some()).await;
        of_kind(&report).unwrap()
    }

    /// Waits until the picker is ready.
    pub(crate) async fn ready(&self) {
        tokio::time::timeout(PATIENCE, self.readiness.ready()).await.expect("not ready");
    }

    /// The addresses after each change of the pool from now on, until it is awaited.
    pub(crate) fn history(&self) -> impl Future<Output = Vec<Vec<String>>> + use<> {
        let (pool, mut updates) = (self.pool.clone(), self.pool.updates());
        updates.mark_unchanged();
        let (stop, mut stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        self.tasks.spawn("history", async move {
            let mut seen = Vec::new();
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = updates.changed() => seen.push(addresses_of(&pool.snapshot())),
                    _ = &mut stopped => break,
                }
            }
            let _ = tell.send(seen);
        });
        async move {
            drop(stop);
            told.await.unwrap()
        }
    }

    /// A line of the metrics page.
    pub(crate) fn metric(&self, line: &str) -> bool {
        self.metrics.page().unwrap().lines().any(|shown| shown == line)
    }
}

pub(crate) fn addresses_of(snapshot: &PoolSnapshot) -> Vec<String> {
    snapshot.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}
