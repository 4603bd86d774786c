//! Discovery in a cluster: from an InferencePool or a selector to pods, from pods to endpoints.

use anyhow::bail;

use super::api_status::KubernetesStatus;
use super::followed::{Followed, Following};
use super::inference_pool::Membership;
use super::object_watch::{Change, Pace, Selection};
use super::pods::{Pod, endpoints_of};
use super::{PoolMembers, PoolSource, pod_resource, pool_resource};
use crate::discovery::EndpointPublisher;
use crate::pool::DataParallel;
use crate::readiness::Readiness;
use crate::tasks::Tasks;

/// Keeps the pool as the cluster says.
pub struct PoolDiscovery {
    /// How the API server is reached.
    pub client: kube::Client,
    /// Which pods.
    pub source: PoolSource,
    /// What the command line says of the ranks behind a pod's only port.
    pub ranks: DataParallel,
    /// How long is waited for the API server.
    pub pace: Pace,
    /// Where endpoints go.
    pub publisher: EndpointPublisher,
    /// Who is told whether the pool is known.
    pub readiness: Readiness,
    /// Who is told how far it can be trusted.
    pub status: KubernetesStatus,
}

/// The pods of one selector.
struct Members {
    membership: Membership,
    pods: Followed<Pod>,
}

/// What the loop waits for.
enum Happening {
    Pool(Option<Change<Membership>>),
    Pods(Option<Change<Pod>>),
    /// Pods of the selector to come.
    NextPods(Option<Change<Pod>>),
    Ranks,
}

impl PoolDiscovery {
    /// Goes on in a vital task.
    pub fn start(self, tasks: &Tasks) {
        let stop = tasks.stop_token();
        tasks.spawn_vital("Kubernetes discovery", async move {
            stop.run_until_cancelled(self.run()).await.unwrap_or(Ok(()))
        });
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut ranks = self.publisher.rank_changes();
        let (mut pool, mut current, mut next) = (None, None, None);
        match self.source.members.clone() {
            PoolMembers::InferencePool { group } => {
                let fields = Some(format!("metadata.name={}", self.source.name));
                let selection = Selection { labels: None, fields };
                pool = Some(self.following().needed::<Membership>(&pool_resource(&group), selection));
            }
            PoolMembers::Selector { selector, ports } => {
                current = Some(self.members(Membership { selector, ports }));
            }
        }
        loop {
            let happening = tokio::select! {
                change = next_change(&mut pool) => Happening::Pool(change),
                change = next_change(pods_of(&mut current)) => Happening::Pods(change),
                change = next_change(pods_of(&mut next)) => Happening::NextPods(change),
                Ok(()) = ranks.changed() => Happening::Ranks,
            };
            match happening {
                Happening::Pool(Some(change)) => {
                    if let Some(pool) = &mut pool {
                        pool.objects.apply(change);
                        let membership = pool.objects.iter().next().map(|(_, membership)| membership.clone());
                        self.pool_is(membership, &mut current, &mut next);
                    }
                }
                Happening::Pods(Some(change)) => apply(&mut current, change),
                Happening::NextPods(Some(change)) => {
                    apply(&mut next, change);
                    if next.as_ref().is_some_and(|next: &Members| next.pods.objects.is_listed) {
                        current = next.take();
                    }
                }
                Happening::Ranks => {}
                // A watch never ends.
                Happening::Pool(None) | Happening::Pods(None) | Happening::NextPods(None) => {
                    bail!("a watch ended")
                }
            }
            self.publish(current.as_ref());
        }
    }

    /// Follows another selector, if it is another one. The pods of the old one stay until those of the new one are
    /// known.
    fn pool_is(
        &mut self,
        pool: Option<Membership>,
        current: &mut Option<Members>,
        next: &mut Option<Members>,
    ) {
        let Some(membership) = pool else {
            self.pool_is_gone();
            (*current, *next) = (None, None);
            return;
        };
        if current.is_none() {
            tracing::info!(selector = membership.selector, ports = ?membership.ports, "the InferencePool is known");
        }
        if let Some(same) = current.as_mut().filter(|known| known.membership.selector == membership.selector)
        {
            same.membership = membership;
            *next = None;
            return;
        }
        if let Some(same) = next.as_mut().filter(|known| known.membership.selector == membership.selector) {
            same.membership = membership;
            return;
        }
        let followed = Some(self.members(membership));
        match current.as_ref().is_some_and(|known| known.pods.objects.is_listed) {
            true => *next = followed,
            false => *current = followed,
        }
    }

    /// There is no such pool: as at the llm-d Router EPP nothing is picked then, and the picker isn't ready.
    fn pool_is_gone(&mut self) {
        let PoolSource { name, namespace, .. } = &self.source;
        let why = format!("there is no InferencePool {namespace}/{name}: create it, or correct --pool-name");
        tracing::warn!("{why}; until then every request is refused with 503 and the picker isn't ready");
        self.status.set_no_pool(Some(why));
        self.readiness.pool_is_gone();
        self.publisher.clear();
    }

    fn publish(&mut self, current: Option<&Members>) {
        let Some(Members { membership, pods }) = current else { return };
        if !pods.objects.is_listed {
            return;
        }
        let (namespace, pods) = (&self.source.namespace, pods.objects.iter());
        let endpoints = endpoints_of(namespace, pods, &membership.ports, self.ranks);
        self.publisher.publish(endpoints);
        self.status.set_no_pool(None);
        self.readiness.pool_is_synced();
    }

    fn members(&self, membership: Membership) -> Members {
        let selection = Selection { labels: Some(membership.selector.clone()), fields: None };
        Members { pods: self.following().needed(&pod_resource(), selection), membership }
    }

    fn following(&self) -> Following {
        Following {
            client: self.client.clone(),
            namespace: self.source.namespace.clone(),
            pace: self.pace,
            status: self.status.clone(),
        }
    }
}

fn pods_of(members: &mut Option<Members>) -> Option<&mut Followed<Pod>> {
    members.as_mut().map(|members| &mut members.pods)
}

fn apply(members: &mut Option<Members>, change: Change<Pod>) {
    if let Some(followed) = pods_of(members) {
        followed.objects.apply(change);
    }
}

/// Waits for ever if nothing is followed.
async fn next_change<'f, V: 'f>(followed: impl Into<Option<&'f mut Followed<V>>>) -> Option<Change<V>> {
    match followed.into() {
        Some(followed) => followed.next().await,
        None => std::future::pending().await,
    }
}
