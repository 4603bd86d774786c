//! Discovery over real files and a real pool; waits are for the pool's updates and for counters, never for time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use warmroute_config::{KnownTypes, check};
use warmroute_kv_index::{IndexLimits, KvIndex};

use super::*;
use crate::engine_events::EventSettings;
use crate::pool::{EndpointSpec, Pool, PoolSnapshot};
use crate::prompt::AdapterNames;

/// Far more than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const FAST: Duration = Duration::from_millis(5);

/// What `file-discovery` with this path comes to.
fn spec(path: &Path, watch_file: bool) -> FileDiscoverySpec {
    let text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: max-score-picker\n- type: file-discovery\n  \
         parameters: {{path: '{}', watchFile: {watch_file}}}\ndataLayer: {{discovery: {{endpoints: {{pluginRef: \
         file-discovery}}}}}}\n",
        path.display()
    );
    let known = KnownTypes::new([("max-score-picker", warmroute_config::SchedulingKind::Picker)]);
    check("test", text.as_bytes(), &known).unwrap().discovery.unwrap()
}

/// One line per endpoint: name and address.
fn listed(endpoints: &[(&str, &str)]) -> String {
    let line =
        |(name, address): &(&str, &str)| format!("- {{name: {name}, address: '{address}', port: 8000}}\n");
    format!("endpoints:\n{}", endpoints.iter().map(line).collect::<String>())
}

struct Fixture {
    pool: Arc<Pool>,
    updates: watch::Receiver<u64>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    tasks: Tasks,
    _ends: tokio::sync::mpsc::Receiver<crate::tasks::VitalEnd>,
}

impl Fixture {
    fn new() -> Self {
        let (tasks, ends) = Tasks::new();
        let pool = Arc::new(Pool::new("p"));
        let (updates, metrics) = (pool.updates(), Arc::new(Metrics::try_new().unwrap()));
        Self { pool, updates, metrics, readiness: Readiness::default(), tasks, _ends: ends }
    }

    fn discovery(&self, list: EndpointList) -> Discovery {
        let index = KvIndex::new(IndexLimits::default());
        let settings =
            EventSettings { listen: None, port: 0, replay_port: 0, topic_filter: String::new(), shards: 1 };
        let adapters = Arc::new(AdapterNames::default());
        let events = EngineEvents::try_new(index, settings, self.metrics.clone(), &adapters).unwrap();
        let followers =
            Followers { scraper: None, models: None, events, sources: None, tasks: self.tasks.clone() };
        let (readiness, metrics) = (self.readiness.clone(), self.metrics.clone());
        let publisher = EndpointPublisher::new(self.pool.clone(), followers);
        let mut discovery = Discovery::new(list, publisher, readiness, metrics);
        discovery.file_interval = FAST;
        discovery.lookup_interval = FAST;
        discovery
    }

    fn start_file(&self, path: &Path) {
        let list = EndpointList::load(&[], Some(&spec(path, true))).unwrap();
        self.discovery(list).start(&self.tasks);
    }

    /// Waits until the names in the pool are these, in this order.
    async fn names(&mut self, names: &[&str]) -> Arc<PoolSnapshot> {
        let pool = self.pool.clone();
        let is_there = self.updates.wait_for(|_| names_of(&pool) == names);
        if tokio::time::timeout(PATIENCE, is_there).await.is_err() {
            panic!("the pool has {:?}, not {names:?}", names_of(&pool));
        }
        self.pool.snapshot()
    }

    async fn errors(&self, cause: &str, at_least: u64) {
        let counter = self.metrics.pool.discovery_errors.with_label_values(&[cause]);
        let counted = async {
            while counter.get() < at_least {
                tokio::time::sleep(FAST).await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.expect("no error was counted");
    }
}

fn names_of(pool: &Pool) -> Vec<String> {
    pool.snapshot().endpoints.iter().map(|endpoint| endpoint.name.to_string()).collect()
}

#[tokio::test]
async fn a_file_is_followed_and_a_bad_version_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    std::fs::write(&path, listed(&[("a", "10.0.0.1"), ("b", "::1")])).unwrap();
    let mut fixture = Fixture::new();
    fixture.start_file(&path);
    // A list of addresses is in the pool as soon as discovery has started.
    let first = fixture.pool.snapshot();
    assert_eq!(names_of(&fixture.pool), ["default/a", "default/b"]);
    assert_eq!(&*first.endpoints[1].address, "[::1]:8000");
    fixture.readiness.is_listening();
    assert!(fixture.readiness.is_ready());

    std::fs::write(&path, "endpoints:\n- {name: c, address: nowhere:1, port: 0}\n").unwrap();
    fixture.errors("file", 1).await;
    assert!(Arc::ptr_eq(&first, &fixture.pool.snapshot()));

    std::fs::write(&path, listed(&[("b", "::1"), ("c", "10.0.0.3")])).unwrap();
    let second = fixture.names(&["default/b", "default/c"]).await;
    assert!(Arc::ptr_eq(&first.states[1], &second.states[0]), "b keeps its state");
    assert!(first.states[0].gone.is_cancelled() && !second.states[0].gone.is_cancelled());
    // Once per change, however often it was read.
    assert_eq!(fixture.metrics.pool.discovery_errors.with_label_values(&["file"]).get(), 1);

    std::fs::remove_file(&path).unwrap();
    fixture.errors("file", 2).await;
    assert!(Arc::ptr_eq(&second, &fixture.pool.snapshot()));
    std::fs::write(&path, "endpoints: []\n").unwrap();
    fixture.names(&[]).await;
    assert!(fixture.tasks.shut_down(PATIENCE).await);
}

#[cfg(unix)]
#[tokio::test]
async fn symbolic_links_are_followed_when_they_are_swapped() {
    use std::os::unix::fs::symlink;
    // As the kubelet lays out a ConfigMap volume: file → ..data/file, ..data → a directory that is replaced.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let version = |name: &str, endpoints: &[(&str, &str)]| {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("endpoints.yaml"), listed(endpoints)).unwrap();
        symlink(name, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    version("..1", &[("a", "10.0.0.1")]);
    symlink("..data/endpoints.yaml", at("endpoints.yaml")).unwrap();
    let mut fixture = Fixture::new();
    fixture.start_file(&at("endpoints.yaml"));
    let first = fixture.names(&["default/a"]).await;
    version("..2", &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    std::fs::remove_dir_all(at("..1")).unwrap();
    let second = fixture.names(&["default/a", "default/b"]).await;
    assert!(Arc::ptr_eq(&first.states[0], &second.states[0]));
}

#[tokio::test]
async fn labels_reach_plugins_and_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    let text = |zone: &str| {
        format!(
            "endpoints:\n- {{name: a, namespace: ns, address: 10.0.0.1, port: 1, labels: {{zone: {zone}}}}}\n"
        )
    };
    std::fs::write(&path, text("east")).unwrap();
    let mut fixture = Fixture::new();
    fixture.start_file(&path);
    let first = fixture.names(&["ns/a"]).await;
    assert_eq!(first.endpoints[0].labels["zone"], "east");
    std::fs::write(&path, text("west")).unwrap();
    let pool = fixture.pool.clone();
    let relabelled = fixture.updates.wait_for(|_| pool.snapshot().endpoints[0].labels["zone"] == "west");
    tokio::time::timeout(PATIENCE, relabelled).await.unwrap().unwrap();
    let second = fixture.pool.snapshot();
    assert_eq!(first.endpoints[0].id, second.endpoints[0].id);
    assert!(!first.states[0].gone.is_cancelled());
}

#[test]
fn the_first_load_must_succeed_and_one_source_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    let load =
        |entries: &[String]| EndpointList::load(entries, Some(&spec(&path, true))).unwrap_err().to_string();
    assert!(load(&[]).starts_with("can't read the endpoints file "), "{}", load(&[]));
    std::fs::write(&path, "endpoints:\n- {name: a, address: x, port: 0}\n- {name: a}\n").unwrap();
    let error = load(&[]);
    assert!(error.contains("endpoints.yaml:2:") && error.contains("endpoints.yaml:3:"), "{error}");
    let error = load(&["10.0.0.1:1".to_owned()]);
    assert!(error.starts_with("both --endpoints and file-discovery") && error.contains("remove --endpoints"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(load(&[]).ends_with("it is not a file"), "{}", load(&[]));
}

#[tokio::test]
async fn a_file_that_is_not_watched_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    std::fs::write(&path, listed(&[("a", "10.0.0.1")])).unwrap();
    let list = EndpointList::load(&[], Some(&spec(&path, false))).unwrap();
    let fixture = Fixture::new();
    fixture.discovery(list).start(&fixture.tasks);
    assert_eq!(names_of(&fixture.pool), ["default/a"]);
    // Nothing runs on that could read it again: the discovery, and with it its hold on the pool, is gone.
    assert_eq!(Arc::strong_count(&fixture.pool), 1);
}

#[tokio::test]
async fn dns_names_become_addresses() {
    let mut fixture = Fixture::new();
    let list = EndpointList::load(&["localhost:8000".to_owned()], None).unwrap();
    fixture.discovery(list).start(&fixture.tasks);
    let pool = fixture.pool.clone();
    let resolved = fixture.updates.wait_for(|_| !pool.snapshot().states.is_empty());
    tokio::time::timeout(PATIENCE, resolved).await.unwrap().unwrap();
    for state in &fixture.pool.snapshot().states {
        assert!(state.spec.host.parse::<IpAddr>().unwrap().is_loopback());
        let suffixed = format!("localhost:8000#{}", state.spec.host);
        assert!(["localhost:8000", &suffixed].contains(&&*state.endpoint.name));
    }
}

type Answers = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// A resolver with answers that a test sets; a name without one can't be resolved.
fn resolver(metrics: &Arc<Metrics>) -> (Resolver, Answers) {
    let answers = Answers::default();
    let asked = answers.clone();
    let lookup = move |host: String| {
        let answer = asked.lock().get(&host).cloned().ok_or_else(|| io::Error::other("no such name"));
        futures::future::ready(answer).boxed()
    };
    (Resolver::with_lookup(Arc::new(lookup), metrics.clone()), answers)
}

fn entry(name: &str, host: &str) -> DiscoveredEndpoint {
    EndpointSpec::new(name, host, 1).into()
}

fn shown(resolved: &[DiscoveredEndpoint]) -> Vec<String> {
    resolved.iter().map(|endpoint| format!("{} {}", endpoint.spec.name, endpoint.spec.host)).collect()
}

#[tokio::test]
async fn an_endpoint_keeps_its_name_while_other_addresses_come_and_go() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let (mut resolver, answers) = resolver(&metrics);
    let list = [entry("n", "pool"), entry("fixed", "10.0.0.9")];
    let mut step = async |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        answers.lock().insert("pool".to_owned(), addresses);
        resolver.look_up(&list).await;
        shown(&resolver.resolved(&list))
    };
    assert_eq!(step(&["10.0.0.1"]).await, ["n 10.0.0.1", "fixed 10.0.0.9"]);
    assert_eq!(
        step(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]).await,
        ["n 10.0.0.1", "n#10.0.0.2 10.0.0.2", "fixed 10.0.0.9"]
    );
    assert_eq!(step(&["10.0.0.2"]).await, ["n#10.0.0.2 10.0.0.2", "fixed 10.0.0.9"]);
    // An empty answer is a failure: the last addresses stay.
    assert_eq!(step(&[]).await, ["n#10.0.0.2 10.0.0.2", "fixed 10.0.0.9"]);
    assert_eq!(metrics.pool.discovery_errors.with_label_values(&["dns"]).get(), 1);
    // An address that is listed twice counts once, for the entry that comes first.
    assert_eq!(step(&["10.0.0.9", "::ffff:10.0.0.8"]).await, ["n#10.0.0.8 10.0.0.8", "n#10.0.0.9 10.0.0.9"]);
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_keeps_its_last_addresses() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let (mut resolver, answers) = resolver(&metrics);
    let list = [entry("n", "pool"), entry("m", "nowhere")];
    answers.lock().insert("pool".to_owned(), vec!["10.0.0.1".parse().unwrap()]);
    resolver.look_up(&list).await;
    assert_eq!(shown(&resolver.resolved(&list)), ["n 10.0.0.1"]);
    answers.lock().clear();
    resolver.look_up(&list).await;
    assert_eq!(shown(&resolver.resolved(&list)), ["n 10.0.0.1"]);
    assert_eq!(metrics.pool.discovery_errors.with_label_values(&["dns"]).get(), 3);
    // What isn't listed any more is forgotten.
    resolver.look_up(&[]).await;
    assert!(resolver.resolved(&list).is_empty());
}
