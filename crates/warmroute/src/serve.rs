//! The composition root: builds the picker from options and configuration, runs it, drains it.

mod access;
mod cluster;
mod electing;
mod from_config;
mod probing;
mod replicating;
mod stopping;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use warmroute_config::{CheckedConfig, FileDiscoverySpec};
use warmroute_ext_proc::ExtProcService;
use warmroute_kv_index::{IndexLimits, KvIndex};
use warmroute_plugin::Registry;

use crate::admin::Admin;
use crate::cli::ServeOptions;
use crate::decision::Decider;
use crate::delivered::{DIAGNOSIS_INTERVAL, Diagnosis};
use crate::discovery::{Discovery, EndpointList, EndpointPublisher, Followers};
use crate::engine_events::{EngineEvents, EventListener, Expectations, SourceFinder, WITHDRAW_INTERVAL};
use crate::grpc::{ext_proc_server, health_server, listen};
use crate::metrics::{Metrics, PluginLabels};
use crate::picker::Picker;
use crate::policy::Policy;
use crate::pool::{DataParallel, Pool};
use crate::profile::ConfigSource;
use crate::prompt::{AdapterNames, Renderer, TokenSource};
use crate::readiness::Readiness;
use crate::receipt::ReceiptRing;
use crate::reload::{ConfigWatch, ReloadStatus};
use crate::scrape::{ModelsPoller, Scraper};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use access::Access;
use cluster::Cluster;
use electing::election;
use from_config::{
    event_settings, models_poller, prompt_reader, scraper, service, shown_metrics, source_finder, telemetry,
};
use probing::probe_desk;
use replicating::replica_listener;
use stopping::stop_when_told;

/// Averages over the pool aren't made more often than this.
const SHORTEST_POOL_INTERVAL: Duration = Duration::from_millis(50);

/// Serves until a signal or until a vital task ends.
///
/// # Errors
/// The options or the configuration are wrong, a port is taken, or a vital task ended.
pub async fn run(options: ServeOptions, registry: Arc<Registry>) -> anyhow::Result<()> {
    // The first provider stays; a second installation is no mistake.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let source = ConfigSource::of(&options)?;
    let config = source.check(&registry)?;
    tracing::info!("in effect: {}", config.summary().trim_end());
    for notice in config.notice_lines() {
        tracing::warn!("{notice}");
    }
    let (tasks, vital_ends) = Tasks::new();
    let policy = Policy::try_new(&config, &registry, &tasks)?.shared();
    let mut parts = Parts::build(&options, &config, policy).await?;
    let listeners = Listeners::bind(&options, parts.listener.as_ref()).await?;
    parts.access.tls.watch(&tasks);
    if let Some(election) = election(&options, &parts)? {
        tasks.spawn_vital("leader election", election.run(tasks.stop_token()));
    }
    parts.start(&options, listeners, &tasks)?;
    parts.watch_config(&options, source, config, registry, &tasks);
    stop_when_told(&options, &parts, &tasks, vital_ends).await
}

/// Everything that lives as long as the process.
struct Parts {
    pool: Arc<Pool>,
    metrics: Arc<Metrics>,
    receipts: Arc<ReceiptRing>,
    readiness: Readiness,
    service: ExtProcService<Picker>,
    index: Arc<KvIndex>,
    events: EngineEvents,
    /// None: engines don't connect here.
    listener: Option<EventListener>,
    /// None: the configuration turns scraping off.
    scraper: Option<Scraper>,
    /// None: neither models nor adapters matter.
    models: Option<ModelsPoller>,
    /// None: engines aren't asked where they publish.
    sources: Option<SourceFinder>,
    /// None: endpoints come from the command line, or from a cluster.
    discovery: Option<FileDiscoverySpec>,
    /// None of it unless the command line asks for something of a cluster.
    cluster: Cluster,
    expectations: Arc<Expectations>,
    decider: Arc<Decider>,
    diagnosis: Arc<Diagnosis>,
    reloads: Arc<Mutex<ReloadStatus>>,
    /// None: no server is asked for tokens.
    renderer: Option<Renderer>,
    telemetry: Telemetry,
    access: Access,
}

impl Parts {
    async fn build(
        options: &ServeOptions,
        config: &CheckedConfig,
        policy: Arc<Policy>,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::try_with(shown_metrics(options)).context("can't register metrics")?);
        let cluster = Cluster::connect(options, config, &metrics).await?;
        let access = Access::build(options, cluster.kube.clone(), &metrics).await?;
        let pool = Arc::new(Pool::new(cluster.pool_name()));
        metrics.show_pool(&pool).context("can't register the pool's metrics")?;
        let limits = IndexLimits { max_entries: options.kv_index_max_entries, ..IndexLimits::default() };
        let index = KvIndex::new(limits);
        let adapters = Arc::new(AdapterNames::default());
        let tokens = TokenSource::load(options, config).await?;
        let renderer = tokens.renderer.clone();
        let settings = event_settings(options, config);
        let events = EngineEvents::try_new(index.clone(), settings, metrics.clone(), &adapters)?;
        let expectations = Arc::new(Expectations::new(index.clone()));
        let telemetry = telemetry(options)?;
        let decider = Decider::new(
            pool.clone(),
            policy,
            index.clone(),
            expectations.clone(),
            options.metrics_staleness_threshold,
            metrics.clone(),
        );
        let decider = decider.telling_scores(options.peer.emit_endpoint_scores);
        // Spans need the times of every decision.
        let decider = Arc::new(if telemetry.is_on() { decider.timing_every(1) } else { decider });
        let diagnosis = Diagnosis::new(pool.clone(), decider.clone(), adapters.clone(), metrics.clone());
        let reader = prompt_reader(options, tokens, &adapters);
        let receipts = Arc::new(ReceiptRing::new(options.decisions_kept));
        let picker = Picker::new(reader, decider.clone(), receipts.clone(), metrics.clone())
            .with_objectives(cluster.objectives.clone())
            .with_rewrites(cluster.rewrites.clone())
            .traced(telemetry.clone());
        let service = service(options, picker);
        let scraper = scraper(options, config, &metrics)?;
        let models = models_poller(options, config, &metrics, &adapters)?;
        let sources = source_finder(options, config, &metrics)?;
        let (readiness, reloads) = (Readiness::default(), Arc::default());
        Ok(Self {
            pool,
            metrics,
            receipts,
            readiness,
            service,
            index,
            listener: events.listener(),
            events,
            scraper,
            models,
            sources,
            discovery: config.discovery.clone(),
            cluster,
            expectations,
            decider,
            diagnosis: Arc::new(diagnosis),
            reloads,
            renderer,
            telemetry,
            access,
        })
    }

    fn start(&self, options: &ServeOptions, listeners: Listeners, tasks: &Tasks) -> anyhow::Result<()> {
        let snapshot = self.replicate(options, listeners.replica, tasks);
        self.discover(options, tasks)?;
        let expectations = self.expectations.clone();
        tasks.spawn("withdrawals", async move {
            let mut ticks = tokio::time::interval(WITHDRAW_INTERVAL);
            loop {
                ticks.tick().await;
                expectations.withdraw_due(Instant::now());
            }
        });
        if let Some(renderer) = self.renderer.clone() {
            tasks.spawn("render warm-up", renderer.warm_up());
        }
        self.watch_pool(options, tasks);
        let diagnosis = self.diagnosis.clone();
        tasks.spawn("diagnosis", async move {
            let mut ticks = tokio::time::interval(DIAGNOSIS_INTERVAL);
            loop {
                ticks.tick().await;
                diagnosis.refresh();
            }
        });
        let (decider, mut updates) = (self.decider.clone(), self.pool.updates());
        tasks.spawn("endpoints that left", async move {
            while updates.changed().await.is_ok() {
                decider.forget_gone();
            }
        });
        if let (Some(listener), Some(socket)) = (self.listener.clone(), listeners.events) {
            tasks.spawn_vital("event listener", listener.run(socket, tasks.clone()));
        }
        let stop = tasks.stop_token();
        let readiness = || self.readiness.clone();
        let (service, tls) = (self.service.clone(), self.access.ext_proc());
        let ext_proc = ext_proc_server(listeners.ext_proc, service, readiness(), tls, stop.clone());
        tasks.spawn_vital("ext-proc server", ext_proc);
        tasks.spawn_vital("health server", health_server(listeners.health, readiness(), stop.clone()));
        let admin =
            Admin { snapshot, ..self.admin(options) }.serve(listeners.admin, self.access.admin(), stop);
        tasks.spawn_vital("metrics server", admin);
        self.readiness.is_listening();
        tracing::info!(
            grpc_port = options.grpc_port,
            health_port = options.grpc_health_port,
            metrics_port = options.metrics_port,
            tls = options.tls.secure_serving,
            "serving"
        );
        Ok(())
    }

    /// Averages over the pool, at their own pace as at the llm-d Router EPP.
    fn watch_pool(&self, options: &ServeOptions, tasks: &Tasks) {
        let (pool, metrics) = (self.pool.clone(), self.metrics.clone());
        let stale_after = options.metrics_staleness_threshold;
        let interval = options.peer.refresh_prometheus_metrics_interval.max(SHORTEST_POOL_INTERVAL);
        tasks.spawn("pool metrics", async move {
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                metrics.pool.observe(&pool, Instant::now(), stale_after);
            }
        });
    }

    fn discover(&self, options: &ServeOptions, tasks: &Tasks) -> anyhow::Result<()> {
        let ranks = DataParallel {
            size: options.data_parallel_size,
            rank: None,
            pinning: options.data_parallel_pinning,
        };
        let followers = Followers {
            scraper: self.scraper.clone(),
            models: self.models.clone(),
            events: self.events.clone(),
            sources: self.sources.clone(),
            tasks: tasks.clone(),
        };
        let publisher = EndpointPublisher::new(self.pool.clone(), followers);
        let Some(publisher) = self.cluster.discover(publisher, ranks, &self.readiness, tasks) else {
            return Ok(());
        };
        let list = EndpointList::load_ranked(&options.endpoints, ranks, self.discovery.as_ref())?;
        Discovery::new(list, publisher, self.readiness.clone(), self.metrics.clone()).start(tasks);
        Ok(())
    }

    /// Follows changes of the configuration's file, if it has one.
    fn watch_config(
        &self,
        options: &ServeOptions,
        source: ConfigSource,
        config: CheckedConfig,
        registry: Arc<Registry>,
        tasks: &Tasks,
    ) {
        let Some(path) = source.path.filter(|_| options.watch_config) else { return };
        let watch = ConfigWatch {
            path,
            registry,
            decider: self.decider.clone(),
            tasks: tasks.clone(),
            metrics: self.metrics.clone(),
            status: self.reloads.clone(),
        };
        tasks.spawn("config watch", watch.run(config, source.text));
    }

    fn admin(&self, options: &ServeOptions) -> Admin {
        let (metrics, index, pool_name) = (self.metrics.clone(), self.index.clone(), self.pool.name.clone());
        let (events, service) = (self.events.clone(), self.service.clone());
        let decider = self.decider.clone();
        let refresh = move || {
            let stats = index.stats();
            metrics.index.entries.set(stats.entries as i64);
            metrics.events.queue_depth.set(events.queue_depth() as i64);
            metrics.admission.observe(&pool_name, decider.saturation(None));
            metrics.events.shards.set(events.shards() as i64);
            for (name, plugin_type, entries) in decider.prefix_sizes() {
                let producer = PluginLabels { name: &name, plugin_type };
                metrics.scheduling.set_prefix_size(producer, entries as i64);
            }
            let counters = service.counters();
            metrics.streams.set_open(counters.open_streams);
            metrics.streams.lease_blind.set(counters.lease_blind_ends as i64);
            let violations: u64 = counters.violations.iter().map(|(_, count)| count).sum();
            metrics.streams.protocol_violations.set(violations as i64);
        };
        Admin {
            pool: self.pool.clone(),
            receipts: self.receipts.clone(),
            metrics: self.metrics.clone(),
            refresh: Arc::new(refresh),
            readiness: self.readiness.clone(),
            stale_after: options.metrics_staleness_threshold,
            decider: self.decider.clone(),
            reloads: self.reloads.clone(),
            diagnosis: self.diagnosis.clone(),
            listener: self.listener.clone(),
            kubernetes: self.cluster.status(),
            probes: probe_desk(options, &self.service, &self.pool),
            snapshot: None,
        }
    }
}

struct Listeners {
    ext_proc: tokio::net::TcpListener,
    health: tokio::net::TcpListener,
    admin: tokio::net::TcpListener,
    /// Where engines connect to publish events, if the configuration says so.
    events: Option<tokio::net::TcpListener>,
    /// Where siblings get what is known, if they may.
    replica: Option<tokio::net::TcpListener>,
}

impl Listeners {
    async fn bind(options: &ServeOptions, events: Option<&EventListener>) -> anyhow::Result<Self> {
        let events = match events.map(EventListener::address) {
            Some(address) => Some(listen(address.ip(), address.port(), "zmqEndpoint").await?),
            None => None,
        };
        Ok(Self {
            events,
            replica: replica_listener(options).await?,
            ext_proc: listen(options.bind_address, options.grpc_port, "--grpc-port").await?,
            health: listen(options.bind_address, options.grpc_health_port, "--grpc-health-port").await?,
            admin: listen(options.bind_address, options.metrics_port, "--metrics-port").await?,
        })
    }
}
