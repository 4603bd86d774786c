//! What a picker has of a cluster.

use std::sync::Arc;

use warmroute_config::CheckedConfig;

use crate::cli::ServeOptions;
use crate::discovery::EndpointPublisher;
use crate::kubernetes::{KubernetesStatus, Pace, PoolDiscovery, PoolSource, connect};
use crate::metrics::Metrics;
use crate::pool::DataParallel;
use crate::readiness::Readiness;
use crate::tasks::Tasks;

/// Name of a pool that isn't of a cluster.
const DEFAULT_POOL_NAME: &str = "epp";

/// What a picker has of a cluster.
pub(super) struct Cluster {
    /// A client of its API, if anything needs one.
    pub(super) kube: Option<kube::Client>,
    /// None: endpoints don't come from there.
    source: Option<(PoolSource, KubernetesStatus)>,
}

impl Cluster {
    pub(super) async fn connect(
        options: &ServeOptions,
        config: &CheckedConfig,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let flags = &options.kubernetes;
        let source =
            flags.source(&options.endpoints, config.discovery.as_ref(), |name| std::env::var(name).ok())?;
        let kube = match source.is_some() || options.replicas.ha_enable_leader_election {
            true => Some(connect(flags.kubeconfig.as_deref()).await?),
            false => None,
        };
        let source = source.map(|source| {
            let status = KubernetesStatus::new(&source.namespace, metrics.clone());
            (source, status)
        });
        Ok(Self { kube, source })
    }

    pub(super) fn pool_name(&self) -> &str {
        self.source.as_ref().map_or(DEFAULT_POOL_NAME, |(source, _)| &source.name)
    }

    /// That of the pool, or where this process would look for one.
    pub(super) fn namespace(&self, options: &ServeOptions) -> String {
        let given = || Some(options.kubernetes.pool_namespace.clone()).filter(|given| !given.is_empty());
        let of_pool = self.source.as_ref().map(|(source, _)| source.namespace.clone());
        let of_pod = || std::env::var("NAMESPACE").ok().filter(|given| !given.is_empty());
        of_pool.or_else(given).or_else(of_pod).unwrap_or_else(|| "default".to_owned())
    }

    /// None: endpoints don't come from a cluster.
    pub(super) fn status(&self) -> Option<KubernetesStatus> {
        self.source.as_ref().map(|(_, status)| status.clone())
    }

    /// Starts discovery, if endpoints come from here; else gives the publisher back.
    pub(super) fn discover(
        &self,
        publisher: EndpointPublisher,
        ranks: DataParallel,
        readiness: &Readiness,
        tasks: &Tasks,
    ) -> Option<EndpointPublisher> {
        let (Some(client), Some((source, status))) = (&self.kube, &self.source) else {
            return Some(publisher);
        };
        let discovery = PoolDiscovery {
            client: client.clone(),
            source: source.clone(),
            ranks,
            pace: Pace::default(),
            publisher,
            readiness: readiness.clone(),
            status: status.clone(),
        };
        discovery.start(tasks);
        None
    }
}
