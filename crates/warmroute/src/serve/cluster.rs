//! What a picker has of a cluster.

use std::sync::Arc;

use warmroute_config::CheckedConfig;

use crate::cli::ServeOptions;
use crate::discovery::EndpointPublisher;
use crate::kubernetes::{KubernetesStatus, Pace, PoolDiscovery, PoolMembers, PoolRules, PoolSource, connect};
use crate::metrics::Metrics;
use crate::model_rewrites::ModelRewrites;
use crate::objectives::Objectives;
use crate::pool::DataParallel;
use crate::readiness::Readiness;
use crate::tasks::Tasks;

/// Name of a pool that isn't of a cluster.
const DEFAULT_POOL_NAME: &str = "epp";

/// What a picker has of a cluster.
pub(super) struct Cluster {
    /// A client of its API, if anything needs one.
    pub(super) kube: Option<kube::Client>,
    /// Priorities of requests: those of the command line and of the cluster.
    pub(super) objectives: Arc<Objectives>,
    /// Rules of the cluster.
    pub(super) rewrites: Arc<ModelRewrites>,
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
        let objectives = Arc::new(Objectives::try_new(&options.inference_objective)?);
        Ok(Self { kube, objectives, rewrites: Arc::default(), source })
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

    /// Starts discovery of endpoints, objectives and rewrites, if endpoints come from here; else gives the publisher back.
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
        let (client, pace) = (client.clone(), Pace::default());
        if matches!(source.members, PoolMembers::InferencePool { .. }) {
            let rules = PoolRules {
                client: client.clone(),
                source: source.clone(),
                pace,
                objectives: self.objectives.clone(),
                rewrites: self.rewrites.clone(),
                status: status.clone(),
            };
            rules.start(tasks);
        }
        let discovery = PoolDiscovery {
            client,
            source: source.clone(),
            ranks,
            pace,
            publisher,
            readiness: readiness.clone(),
            status: status.clone(),
        };
        discovery.start(tasks);
        None
    }
}
