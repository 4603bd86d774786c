//! Scraping real HTTP and HTTPS servers, and picks by what was read of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use warmroute::metrics::Metrics;
use warmroute::policy::Policy;
use warmroute::pool::{
    Adapters, DiscoveredEndpoint, EndpointSpec, EndpointState, Pool, ServedModel, ServedModels,
};
use warmroute::profile::read_config;
use warmroute::prompt::AdapterNames;
use warmroute::scrape::{Extractor, HttpSource, ModelsPoller, Scraper};
use warmroute::tasks::Tasks;
use warmroute_config::{CheckedConfig, HttpSourceSpec};
use warmroute_ext_proc::EndpointPicker as _;
use warmroute_plugin::AdapterState;

use crate::fixture::{Fixture, completion, options, registry};

const HEAD: &str = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n";

/// A configuration with these plugins, and one profile with these references.
fn config(plugins: &str, references: &[&str]) -> String {
    let references: Vec<String> =
        references.iter().map(|reference| format!("{{pluginRef: {reference}}}")).collect();
    format!("{HEAD}{plugins}schedulingProfiles: [{{name: p, plugins: [{}]}}]\n", references.join(", "))
}

fn read(text: &str) -> CheckedConfig {
    read_config(&options(text), &Arc::new(registry())).unwrap()
}

fn recorded(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../../tests/data/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// An engine of which only the metrics page and the list of models are there.
#[derive(Clone)]
struct Engine {
    address: SocketAddr,
    page: Arc<Mutex<(StatusCode, String)>>,
    models: Arc<Mutex<String>>,
    /// How often it was asked for them.
    models_asked: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: Tasks,
}

/// Accepts TLS; a connection that doesn't get through the handshake is dropped.
struct TlsListener(TcpListener, TlsAcceptor);

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.0.accept().await else { continue };
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl Engine {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tasks, _ends) = Tasks::new();
        let engine = Self {
            address: listener.local_addr().unwrap(),
            page: Arc::new(Mutex::new((StatusCode::OK, recorded("engines/vllm-ranks-lora.txt")))),
            models: Arc::new(Mutex::new("{}".to_owned())),
            models_asked: Arc::default(),
            stop: CancellationToken::new(),
            tasks,
        };
        let (page, models, asked) = (engine.page.clone(), engine.models.clone(), engine.models_asked.clone());
        let list = get(async move || {
            asked.fetch_add(1, Ordering::Relaxed);
            models.lock().clone()
        });
        let router =
            Router::new().route("/metrics", get(async move || page.lock().clone())).route("/v1/models", list);
        let stop = engine.stop.clone().cancelled_owned();
        match tls {
            None => engine.tasks.spawn("engine", async move {
                axum::serve(listener, router).with_graceful_shutdown(stop).await.unwrap();
            }),
            Some(tls) => engine.tasks.spawn("engine", async move {
                let listener = TlsListener(listener, TlsAcceptor::from(Arc::new(tls)));
                axum::serve(listener, router).with_graceful_shutdown(stop).await.unwrap();
            }),
        }
        engine
    }

    fn shows(&self, page: impl Into<String>) {
        *self.page.lock() = (StatusCode::OK, page.into());
    }

    /// Scrapes it as `config` says. The endpoint's labels may be changed in the pool.
    fn scraped_by(&self, config: &CheckedConfig) -> Scraped {
        let scraped = Scraped { pool: Pool::new("p"), metrics: Arc::new(Metrics::try_new().unwrap()) };
        scraped.label(self.address, &[]);
        let source = HttpSource::try_new(config.metrics_source.as_ref().unwrap()).unwrap();
        let extractor = Extractor::new(&config.metrics_extractor);
        let scraper = Scraper::new(source, Duration::ZERO, extractor, scraped.metrics.clone());
        self.tasks.spawn("scraper", scraper.run(scraped.endpoint()));
        if let Some(models) = &config.models_source {
            let source = HttpSource::try_new(models).unwrap();
            let poller = ModelsPoller::new(source, Duration::ZERO, scraped.metrics.clone());
            self.tasks.spawn("models", poller.run(scraped.endpoint()));
        }
        scraped
    }
}

struct Scraped {
    pool: Pool,
    metrics: Arc<Metrics>,
}

impl Scraped {
    fn endpoint(&self) -> Arc<EndpointState> {
        self.pool.snapshot().states[0].clone()
    }

    fn label(&self, address: SocketAddr, labels: &[(&str, &str)]) {
        let spec = EndpointSpec::new("e", address.ip().to_string(), address.port());
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.pool.update(&[DiscoveredEndpoint { labels: labels.collect(), ..spec.into() }]);
    }

    /// Waits until the endpoint is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&EndpointState) -> bool) {
        let waiting = async {
            while !wanted(&self.endpoint()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        waited.unwrap_or_else(|_| panic!("never {what}: {:?}", self.endpoint()));
    }

    /// Waits until a counter's line is on the metrics page with another value than 0.
    async fn until_counted(&self, line: &str) {
        self.until(line, |_| self.metrics.page().unwrap().contains(line)).await;
    }
}

fn load(state: &EndpointState) -> Option<(u32, u32, f64)> {
    state.of_scrape(|scrape| {
        let metrics = scrape.metrics;
        (metrics.waiting_requests, metrics.running_requests, metrics.kv_cache_utilization)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_followed_through_gaps_failures_and_another_engine() {
    let engine = Engine::start(None).await;
    let scraped = engine.scraped_by(&read(&config("- type: max-score-picker\n", &["max-score-picker"])));
    scraped.until("scraped", |state| load(state) == Some((6, 5, 0.5))).await;
    assert_eq!(scraped.endpoint().block_size_tokens(), Some(16));
    assert_eq!(scraped.endpoint().adapter_state("sql"), AdapterState::Active);

    // What is missing keeps its value and is counted.
    engine.shows("vllm:num_requests_waiting 1\n");
    scraped.until("scraped without all of it", |state| load(state) == Some((1, 5, 0.5))).await;
    let extract_errors = "llm_d_epp_datalayer_extract_errors_total{extractor_type=\"core-metrics-extractor\",\
                          source_type=\"metrics-data-source\"}";
    scraped.until_counted(extract_errors).await;
    let poll_errors = "llm_d_epp_datalayer_poll_errors_total{source_type=\"metrics-data-source\"}";
    assert!(!scraped.metrics.page().unwrap().contains(poll_errors));

    // A failed scrape keeps everything, and the metrics grow old.
    *engine.page.lock() = (StatusCode::INTERNAL_SERVER_ERROR, String::new());
    scraped.until_counted(poll_errors).await;
    assert_eq!(load(&scraped.endpoint()), Some((1, 5, 0.5)));

    // The label decides how the page is read from now on.
    engine.shows(recorded("engines/sglang.txt"));
    scraped.label(engine.address, &[("llm-d.ai/engine-type", "sglang")]);
    scraped.until("read as SGLang", |state| load(state) == Some((7, 5, 0.375))).await;
    assert_eq!(scraped.endpoint().block_size_tokens(), Some(64));
    assert_eq!(scraped.endpoint().adapter_state("sql"), AdapterState::Unknown);
    engine.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_asked_for_and_a_bad_answer_keeps_the_last_list() {
    let engine = Engine::start(None).await;
    engine.shows("vllm:num_requests_waiting 0\n");
    let plugins = "- type: max-score-picker\n- type: models-data-source\n- type: models-data-extractor\n";
    let layer = "dataLayer: {sources: [{pluginRef: models-data-source, extractors: [{pluginRef: \
                 models-data-extractor}]}]}\n";
    let scraped = engine.scraped_by(&read(&(config(plugins, &["max-score-picker"]) + layer)));
    let errors = "llm_d_epp_datalayer_extract_errors_total{extractor_type=\"models-data-extractor\",\
                  source_type=\"models-data-source\"}";
    scraped.until_counted(errors).await;
    assert_eq!(scraped.endpoint().models(), None);
    *engine.models.lock() = r#"{"data":[{"id":"base"},{"id":"sql","parent":"base"}]}"#.to_owned();
    scraped.until("listed", |state| state.models().is_some()).await;
    let states = ["base", "sql", "law"].map(|model| scraped.endpoint().adapter_state(model));
    assert_eq!(states, [AdapterState::Unknown, AdapterState::Room, AdapterState::Full]);
    engine.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_known_by_name_before_any_request_even_if_nobody_wants_the_list() {
    let engine = Engine::start(None).await;
    engine.shows("vllm:num_requests_waiting 0\n");
    *engine.models.lock() = r#"{"data":[{"id":"base"},{"id":"sql","parent":"base"}]}"#.to_owned();
    let scraped = engine.scraped_by(&read(&config("- type: max-score-picker\n", &["max-score-picker"])));
    let adapters = Arc::new(AdapterNames::default());
    let source = HttpSource::try_new(&HttpSourceSpec::models("names")).unwrap();
    let poller = ModelsPoller::new(source, Duration::ZERO, scraped.metrics.clone());
    let poller = poller.telling(adapters.clone()).names_only();
    engine.tasks.spawn("models", poller.run(scraped.endpoint()));
    scraped.until("the adapter", |_| adapters.contains("sql")).await;
    assert!(!adapters.contains("base"));
    assert_eq!(scraped.endpoint().models(), None);
    // A page that is no list takes nothing away, and nobody is told.
    *engine.models.lock() = String::new();
    tokio::time::timeout(Duration::from_secs(30), async {
        let before = engine.models_asked.load(Ordering::Relaxed);
        while engine.models_asked.load(Ordering::Relaxed) < before + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(adapters.contains("sql"));
    assert!(!scraped.metrics.page().unwrap().contains("models-data-extractor"));
    engine.stop.cancel();
}

/// Certificate and key that trust themselves, for 127.0.0.1.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    files: (PathBuf, PathBuf),
}

impl Identity {
    fn new(dir: &tempfile::TempDir, name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let files = (dir.path().join(format!("{name}.crt")), dir.path().join(format!("{name}.key")));
        std::fs::write(&files.0, made.cert.pem()).unwrap();
        std::fs::write(&files.1, made.signing_key.serialize_pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Self { certificate: made.cert.der().clone(), key, files }
    }

    /// A server with this identity that wants to see the other one.
    fn server(&self, client: Option<&Self>) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(client.certificate.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        builder.with_single_cert(vec![self.certificate.clone()], self.key.clone_key()).unwrap()
    }
}

fn https(parameters: &str) -> CheckedConfig {
    let source = format!(
        "- {{type: metrics-data-source, parameters: {{scheme: https, {parameters}}}}}\n- type: max-score-picker\n"
    );
    read(&config(&source, &["max-score-picker"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_verified_if_wanted_and_shows_its_own_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (Identity::new(&dir, "server"), Identity::new(&dir, "client"));
    let engine = Engine::start(Some(server.server(None))).await;
    let is_scraped = |state: &EndpointState| load(state).is_some();
    engine.scraped_by(&https("")).until("scraped unverified", is_scraped).await;
    let trusting = |identity: &Identity| {
        format!("insecureSkipVerify: false, caCertPath: {}", identity.files.0.display())
    };
    engine.scraped_by(&https(&trusting(&server))).until("scraped verified", is_scraped).await;
    let distrusted = engine.scraped_by(&https(&trusting(&client)));
    let poll_errors = "llm_d_epp_datalayer_poll_errors_total{source_type=\"metrics-data-source\"}";
    distrusted.until_counted(poll_errors).await;
    assert_eq!(load(&distrusted.endpoint()), None);
    engine.stop.cancel();

    let engine = Engine::start(Some(server.server(Some(&client)))).await;
    let (certificate, key) = (client.files.0.display(), client.files.1.display());
    let showing = format!("{}, clientCertPath: {certificate}, clientKeyPath: {key}", trusting(&server));
    engine.scraped_by(&https(&showing)).until("scraped by a known client", is_scraped).await;
    let unknown = engine.scraped_by(&https(&trusting(&server)));
    unknown.until_counted(poll_errors).await;
    assert_eq!(load(&unknown.endpoint()), None);
    engine.stop.cancel();
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.crt");
    std::fs::write(&empty, "").unwrap();
    for (path, expected) in [(dir.path().join("none.crt"), "caCertPath"), (empty, "has no certificate in it")]
    {
        let config = https(&format!("insecureSkipVerify: false, caCertPath: {}", path.display()));
        let error = HttpSource::try_new(config.metrics_source.as_ref().unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&path.display().to_string()), "{error}");
    }
}

/// Publishes a page at one endpoint of the fixture, read as its configuration says.
fn show(fixture: &Fixture, config: &CheckedConfig, at: usize, page: &str) {
    let extractor = Extractor::new(&config.metrics_extractor);
    let content = extractor.reader(&BTreeMap::new()).read(page, Instant::now(), None).unwrap();
    fixture.pool.snapshot().states[at].publish_scrape(content.scrape);
}

async fn picked(fixture: &Fixture) -> String {
    let picked = fixture.picker.pick(completion(&[1; 20])).await.unwrap();
    picked.destinations[0].clone()
}

/// A page with adapters, the request's being `m`.
fn lora(running: &str, waiting: &str, max: u32) -> String {
    format!(
        "vllm:num_requests_running 1\nvllm:lora_requests_info{{max_lora=\"{max}\",running_lora_adapters=\"{running}\",\
         waiting_lora_adapters=\"{waiting}\"}} 1\n"
    )
}

#[tokio::test]
async fn a_request_goes_where_its_adapter_is_loaded_then_where_there_is_room() {
    let text = config(
        "- type: lora-affinity-scorer\n- type: max-score-picker\n",
        &["lora-affinity-scorer", "max-score-picker"],
    );
    let (fixture, config) = (Fixture::new(&text, 4), read(&text));
    show(&fixture, &config, 0, &lora("a,b", "", 2));
    show(&fixture, &config, 1, &lora("a", "m,b", 2));
    assert_eq!(picked(&fixture).await, fixture.address(1));
    show(&fixture, &config, 2, &lora("a", "", 2));
    assert_eq!(picked(&fixture).await, fixture.address(2));
    show(&fixture, &config, 3, &lora("b, m", "", 2));
    assert_eq!(picked(&fixture).await, fixture.address(3));
    let states: Vec<_> =
        fixture.pool.snapshot().states.iter().map(|state| state.adapter_state("m")).collect();
    assert_eq!(states, [AdapterState::Full, AdapterState::Waiting, AdapterState::Room, AdapterState::Active]);
    // An engine that doesn't list the adapter is no better for its room.
    show(&fixture, &config, 3, "vllm:num_requests_running 1\n");
    let base = ServedModel { id: "base".to_owned(), adapter_of: None };
    fixture.pool.snapshot().states[2].publish_models(ServedModels::new(vec![base]));
    assert_eq!(picked(&fixture).await, fixture.address(1));
    assert_eq!(Adapters::default().state_of("m"), AdapterState::Full);
    fixture.assert_nothing_in_flight();
}

const CUSTOM: &str = "
- type: core-metrics-extractor
  name: pages
  parameters:
    engineConfigs:
    - name: vllm
      runningRequestsSpec: vllm:num_requests_running
      customMetrics: [{attributeKey: lag, metricSpec: 'lag{kind=mean}'}]
- type: endpoint-attribute-filter
  parameters:
    attribute: RunningRequestsSize
    onMissing: Fail
    algorithm: {threshold: {operator: LessThan, value: 8}}
- type: endpoint-attribute-scorer
  parameters: {attributeKey: lag, producer: PRODUCER, algorithm: {type: linear_lower_is_better}}
- type: max-score-picker
";

#[tokio::test]
async fn requests_go_by_custom_metrics_and_filters_by_load() {
    // By the extractor's name, by its type, and by the attribute alone.
    for producer in ["pages", "core-metrics-extractor", "''"] {
        let references = ["endpoint-attribute-filter", "endpoint-attribute-scorer", "max-score-picker"];
        let text = config(&CUSTOM.replace("PRODUCER", producer), &references);
        let (fixture, config) = (Fixture::new(&text, 4), read(&text));
        let page = |running: u32, lag: f64| {
            format!(
                "vllm:num_requests_running {running}\nlag{{kind=\"max\"}} 0\nlag{{kind=\"mean\"}} {lag}\n"
            )
        };
        show(&fixture, &config, 0, &page(1, 30.0));
        show(&fixture, &config, 1, &page(2, 20.0));
        show(&fixture, &config, 2, &page(8, 10.0));
        assert_eq!(picked(&fixture).await, fixture.address(1), "{producer}");
        show(&fixture, &config, 0, &page(1, 5.0));
        assert_eq!(picked(&fixture).await, fixture.address(0), "{producer}");
    }
}

#[test]
fn an_attribute_that_nothing_makes_is_refused_with_those_that_there_are() {
    let plugins = |attribute: &str| {
        format!(
            "- {{type: core-metrics-extractor, parameters: {{engineConfigs: [{{name: e, customMetrics: [{{attributeKey: lag, \
             metricSpec: m}}]}}]}}}}\n- {{type: endpoint-attribute-scorer, parameters: {{attributeKey: {attribute}, algorithm: \
             {{type: linear_lower_is_better}}}}}}\n- type: max-score-picker\n"
        )
    };
    let build = |text: &str| {
        let (tasks, _ends) = Tasks::new();
        Policy::try_new(&read(text), &registry(), &tasks).err().map(|error| error.to_string())
    };
    let references = ["endpoint-attribute-scorer", "max-score-picker"];
    assert_eq!(build(&config(&plugins("lag"), &references)), None);
    let error = build(&config(&plugins("lga"), &references)).unwrap();
    assert!(error.contains(
        "\"lga/core-metrics-extractor\", which nothing makes; there are lag/core-metrics-extractor, "
    ));
    assert!(error.contains("WaitingQueueSize/core-metrics-extractor"), "{error}");
    let unscraped = config(&plugins("lag"), &references) + "dataLayer: {injectDefaults: false}\n";
    let error = build(&unscraped).unwrap();
    assert!(error.ends_with("there are none, since no metrics are scraped"), "{error}");
}
