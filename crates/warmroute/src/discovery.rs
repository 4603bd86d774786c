//! Discovery: which endpoints there are. It alone writes the pool.
//!
//! The list comes from `--endpoints`, from the file that `file-discovery` names, or from a cluster
//! ([`crate::kubernetes::PoolDiscovery`]). Hosts may be DNS names, which are
//! resolved again and again; the file may change while the process runs. What is new in the pool gets its scraper and
//! its subscription from [`Followers`].

mod endpoint_publisher;
mod endpoints_file;
mod resolver;
mod static_list;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use warmroute_config::FileDiscoverySpec;

pub use endpoint_publisher::EndpointPublisher;
pub use endpoints_file::{EndpointsFile, EndpointsFileError};
pub use static_list::{EndpointError, static_endpoints};

use crate::engine_events::{EngineEvents, SourceFinder};
use crate::metrics::Metrics;
use crate::pool::{DataParallel, DiscoveredEndpoint, EndpointState};
use crate::readiness::Readiness;
use crate::scrape::{ModelsPoller, Scraper};
use crate::tasks::Tasks;
use resolver::{Resolver, dns_names};

/// How often a watched file is read.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// How often DNS names are looked up.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);

/// Why there is no list of endpoints.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Both the command line and the configuration say where endpoints come from.
    #[error(
        "both --endpoints and {plugin} of dataLayer.discovery say where the endpoints are: remove --endpoints, or \
         discovery from the configuration"
    )]
    TwoSources {
        /// Name of the discovery plugin.
        plugin: String,
    },
    /// `--endpoints` has a mistake.
    #[error(transparent)]
    Static(#[from] EndpointError),
    /// The first load of the endpoints file failed.
    #[error(transparent)]
    File(#[from] EndpointsFileError),
}

/// Starts what runs for an endpoint as long as it is in the pool.
#[derive(Clone)]
pub struct Followers {
    /// None: nothing is scraped.
    pub scraper: Option<Scraper>,
    /// None: endpoints aren't asked for their models.
    pub models: Option<ModelsPoller>,
    /// Where engines' events go.
    pub events: EngineEvents,
    /// None: engines aren't asked where they publish.
    pub sources: Option<SourceFinder>,
    /// Who owns the tasks.
    pub tasks: Tasks,
}

impl Followers {
    /// Starts what runs for endpoints that are new in the pool and have one address: scraper, model list and question for
    /// event sources once for all, a subscription for each. Ranks of one address come and leave together, since each
    /// knows how many there are. All ends when they leave.
    pub fn follow(&self, rows: &[Arc<EndpointState>]) {
        let Some(first) = rows.first() else { return };
        if let Some(scraper) = self.scraper.clone() {
            self.tasks.spawn("scraper", scraper.run_rows(rows.to_vec()));
        }
        if let Some(models) = self.models.clone() {
            self.tasks.spawn("models", models.run_rows(rows.to_vec()));
        }
        let sources = self.sources.as_ref().map(|finder| {
            let (sources, question) = finder.question(first);
            self.tasks.spawn("event sources", question.run());
            sources
        });
        for row in rows {
            let following = self.events.clone().follow_as_told(row.clone(), sources.clone());
            self.tasks.spawn("subscription", following);
        }
    }
}

/// The list of endpoints as it is written down, with DNS names in it, and the file if it is watched.
#[derive(Debug)]
pub struct EndpointList {
    endpoints: Vec<DiscoveredEndpoint>,
    watched: Option<EndpointsFile>,
}

impl EndpointList {
    /// Reads the list for the first time: from the file that `discovery` names, else from `--endpoints`.
    ///
    /// # Errors
    /// Both are given, or what is given has mistakes.
    pub fn load(entries: &[String], discovery: Option<&FileDiscoverySpec>) -> Result<Self, DiscoveryError> {
        Self::load_ranked(entries, DataParallel::default(), discovery)
    }

    /// The same; `ranks` is what the command line says of the ranks behind the entries of `--endpoints`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_ranked(
        entries: &[String],
        ranks: DataParallel,
        discovery: Option<&FileDiscoverySpec>,
    ) -> Result<Self, DiscoveryError> {
        let endpoints = static_endpoints(entries, ranks)?;
        let Some(discovery) = discovery else {
            return Ok(Self { endpoints, watched: None });
        };
        if !endpoints.is_empty() {
            return Err(DiscoveryError::TwoSources { plugin: discovery.name.clone() });
        }
        let (file, endpoints) = EndpointsFile::load(&discovery.path)?;
        Ok(Self { endpoints, watched: discovery.watch_file.then_some(file) })
    }
}

/// Keeps the pool as the list says.
pub struct Discovery {
    list: EndpointList,
    resolver: Resolver,
    publisher: EndpointPublisher,
    /// Whether engines may list ranks.
    asks_engines: bool,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    file_interval: Duration,
    lookup_interval: Duration,
}

impl Discovery {
    /// A discovery that has not published anything.
    pub fn new(
        list: EndpointList,
        publisher: EndpointPublisher,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            list,
            resolver: Resolver::new(metrics.clone()),
            asks_engines: publisher.asks_engines(),
            publisher,
            readiness,
            metrics,
            file_interval: FILE_INTERVAL,
            lookup_interval: LOOKUP_INTERVAL,
        }
    }

    /// Publishes the list: at once if it has only IP addresses, else as soon as its names are looked up. Goes on in a
    /// vital task if there are names to look up again, a file to watch, or ranks that engines may list.
    pub fn start(mut self, tasks: &Tasks) {
        if self.list.endpoints.is_empty() {
            tracing::warn!(
                "no endpoints: every request will be refused with 503; name some with --endpoints or in the file of \
                 file-discovery, or an InferencePool with --pool-name"
            );
        }
        let has_names = dns_names(&self.list.endpoints).next().is_some();
        if !has_names {
            self.publish();
        }
        if has_names || self.list.watched.is_some() || self.asks_engines {
            let stop = tasks.stop_token();
            tasks.spawn_vital("discovery", async move {
                stop.run_until_cancelled(self.run()).await;
                Ok(())
            });
        }
    }

    async fn run(&mut self) {
        let mut lookups = tokio::time::interval(self.lookup_interval);
        lookups.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reads = tokio::time::interval(self.file_interval);
        reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ranks = self.publisher.rank_changes();
        loop {
            tokio::select! {
                _ = lookups.tick() => {}
                Ok(()) = ranks.changed() => {
                    self.publish();
                    continue;
                }
                _ = reads.tick(), if self.list.watched.is_some() => {
                    if !self.reload().await {
                        continue;
                    }
                }
            }
            self.resolver.look_up(&self.list.endpoints).await;
            self.publish();
        }
    }

    /// Reads the watched file; says whether there is a new list. A refused one is said loudly, once, and the last good
    /// one stays.
    async fn reload(&mut self) -> bool {
        let Some(file) = &mut self.list.watched else { return false };
        match file.changed().await {
            Ok(None) => false,
            Ok(Some(endpoints)) => {
                let path = file.path().display().to_string();
                tracing::info!(path, endpoints = endpoints.len(), "the endpoints file has changed");
                self.list.endpoints = endpoints;
                true
            }
            Err(error) => {
                self.metrics.pool.discovery_errors.with_label_values(&["file"]).inc();
                tracing::error!(
                    "the endpoints file has changed and is refused; the {} endpoints of its last good version stay: \
                     {error}",
                    self.list.endpoints.len()
                );
                false
            }
        }
    }

    fn publish(&mut self) {
        self.publisher.publish(self.resolver.resolved(&self.list.endpoints));
        self.readiness.pool_is_synced();
    }
}

#[cfg(test)]
mod tests;
