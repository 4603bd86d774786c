//! What a cluster says of the requests of a pool: objectives and model rewrites, in both of their API groups at once.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::bail;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;

use super::api_status::KubernetesStatus;
use super::followed::{Followed, Following};
use super::inference_objective::Objective;
use super::model_rewrite::Rewrite;
use super::object_watch::{Change, Kept, Pace};
use super::{ALPHA_GROUP, PoolSource, RULES_GROUP};
use crate::model_rewrites::{ModelRewrites, RewriteSet, RewriteTable};
use crate::objectives::Objectives;
use crate::tasks::Tasks;

/// Follows InferenceObjectives and InferenceModelRewrites of one pool.
pub struct PoolRules {
    /// How the API server is reached.
    pub client: kube::Client,
    /// The pool.
    pub source: PoolSource,
    /// How long is waited for the API server.
    pub pace: Pace,
    /// Where priorities go.
    pub objectives: Arc<Objectives>,
    /// Where rewrites go.
    pub rewrites: Arc<ModelRewrites>,
    /// Who is told how it goes.
    pub status: KubernetesStatus,
}

/// The objects of both groups; of two with the same name that of the newer group counts, `llm-d.ai`.
struct BothGroups<V> {
    newer: Followed<V>,
    older: Followed<V>,
}

impl PoolRules {
    /// Goes on in a vital task.
    pub fn start(self, tasks: &Tasks) {
        let stop = tasks.stop_token();
        tasks.spawn_vital("Kubernetes objectives and rewrites", async move {
            stop.run_until_cancelled(self.run()).await.unwrap_or(Ok(()))
        });
    }

    async fn run(self) -> anyhow::Result<()> {
        let Self { client, source, pace, objectives, rewrites, status } = self;
        let following = Following { client, namespace: source.namespace.clone(), pace, status };
        let mut objects =
            BothGroups::<Objective>::follow(&following, "InferenceObjective", "inferenceobjectives");
        let mut rules =
            BothGroups::<Rewrite>::follow(&following, "InferenceModelRewrite", "inferencemodelrewrites");
        loop {
            tokio::select! {
                is_changed = objects.changed() => {
                    if !is_changed {
                        bail!("a watch of objectives ended");
                    }
                    objectives.replace(priorities(&objects, &source));
                }
                is_changed = rules.changed() => {
                    if !is_changed {
                        bail!("a watch of rewrites ended");
                    }
                    rewrites.replace(RewriteTable::new(&sets(&rules, &source)));
                }
            }
        }
    }
}

fn priorities(objects: &BothGroups<Objective>, pool: &PoolSource) -> HashMap<Arc<str>, i32> {
    let own = objects.iter().filter(|(_, objective)| objective.pool.means(pool));
    own.map(|(name, objective)| (name.into(), objective.priority)).collect()
}

/// The sets of rules, the oldest first; equally old ones by name.
fn sets(objects: &BothGroups<Rewrite>, pool: &PoolSource) -> Vec<RewriteSet> {
    let mut own: Vec<(&str, &Rewrite)> =
        objects.iter().filter(|(_, rewrite)| rewrite.pool.means(pool)).collect();
    // One without a date is as new as can be.
    own.sort_by_key(|(name, rewrite)| (rewrite.created.is_none(), rewrite.created.clone(), *name));
    own.into_iter()
        .map(|(name, rewrite)| RewriteSet { name: name.into(), rules: rewrite.rules.clone() })
        .collect()
}

impl<V: Kept> BothGroups<V> {
    fn follow(following: &Following, kind: &str, plural: &str) -> Self {
        let of = |group| {
            let kind = GroupVersionKind::gvk(group, "v1alpha2", kind);
            following.optional(&ApiResource::from_gvk_with_plural(&kind, plural))
        };
        Self { newer: of(RULES_GROUP), older: of(ALPHA_GROUP) }
    }

    /// Waits for a change and takes it; false if that can't be any more.
    async fn changed(&mut self) -> bool {
        let Self { newer, older } = self;
        let (followed, change): (_, Option<Change<V>>) = tokio::select! {
            change = newer.next() => (newer, change),
            change = older.next() => (older, change),
        };
        let is_changed = change.is_some();
        change.into_iter().for_each(|change| followed.objects.apply(change));
        is_changed
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        let hidden = |name: &str| self.newer.objects.get(name).is_some();
        self.newer.objects.iter().chain(self.older.objects.iter().filter(move |(name, _)| !hidden(name)))
    }
}
