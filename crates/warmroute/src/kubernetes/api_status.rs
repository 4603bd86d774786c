//! How far what is known of a cluster can be trusted: for the log, the metrics and the status page.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use kube::api::ApiResource;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::api_problem::{ApiCause, ApiProblem};
use crate::metrics::Metrics;

/// Objects that can't be used which are shown by name.
const SHOWN_REFUSALS: usize = 32;
/// What is usual once is an outage if it happens this often in a row.
const TOLERATED: u32 = 3;

/// How things stand with one kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FollowState {
    /// Nothing is known yet.
    Starting,
    /// The API server tells of every change.
    Following,
    /// The API server doesn't tell: what was known before counts.
    Failing,
    /// The kind isn't installed, and needn't be.
    NotInstalled,
}

/// One kind of objects, for the status page.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ResourceState {
    /// Plural name with the group: `pods`, `inferencepools.inference.networking.k8s.io`.
    pub resource: String,
    /// How things stand.
    pub state: FollowState,
    /// Objects known.
    pub objects: usize,
    /// What is wrong and what to do, while it is failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Objects that can't be used, and why; the first 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
}

/// What is known of a cluster, for the status page.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KubernetesReport {
    /// Namespace of everything that is read.
    pub namespace: String,
    /// Why there is no pool; absent if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_pool: Option<String>,
    /// Each kind of objects.
    pub resources: Vec<ResourceState>,
}

impl KubernetesReport {
    /// Why there is no pool, with what is wrong with the kinds of objects that tell of it; None if there is one.
    pub fn why_no_pool(&self) -> Option<String> {
        let mut why = self.no_pool.clone()?;
        for ResourceState { resource, problem, .. } in &self.resources {
            if let Some(problem) = problem {
                why = format!("{why}; {resource}: {problem}");
            }
        }
        Some(why)
    }
}

/// What is known of a cluster. Cheap to clone; all clones share it.
#[derive(Clone, Debug)]
pub struct KubernetesStatus {
    namespace: Arc<str>,
    metrics: Arc<Metrics>,
    no_pool: Arc<Mutex<Option<String>>>,
    resources: Arc<Mutex<Vec<Weak<Mutex<ResourceState>>>>>,
    changes: watch::Sender<u64>,
}

impl KubernetesStatus {
    /// Nothing is known of this namespace.
    pub fn new(namespace: &str, metrics: Arc<Metrics>) -> Self {
        let no_pool = Arc::new(Mutex::new(Some("the API server hasn't told of it yet".to_owned())));
        Self {
            namespace: namespace.into(),
            metrics,
            no_pool,
            resources: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Where a watch of these objects tells how it goes; it is shown as long as that lives.
    pub(super) fn resource(&self, resource: &ApiResource, is_optional: bool) -> ResourceStatus {
        let shown = ResourceState {
            resource: match resource.group.as_str() {
                "" => resource.plural.clone(),
                group => format!("{}.{group}", resource.plural),
            },
            state: FollowState::Starting,
            objects: 0,
            problem: None,
            refused: BTreeMap::new(),
        };
        let shown = Arc::new(Mutex::new(shown));
        let mut resources = self.resources.lock();
        resources.retain(|known| known.strong_count() > 0);
        resources.push(Arc::downgrade(&shown));
        ResourceStatus {
            shown,
            cause: Arc::default(),
            resource: resource.clone(),
            namespace: self.namespace.clone(),
            metrics: self.metrics.clone(),
            is_optional,
            changes: self.changes.clone(),
        }
    }

    /// The number of changes so far, to wait for the next one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says why there is no pool, or that there is one.
    pub(super) fn set_no_pool(&self, why: Option<String>) {
        *self.no_pool.lock() = why;
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// All of it.
    pub fn report(&self) -> KubernetesReport {
        let resources = self.resources.lock();
        KubernetesReport {
            namespace: self.namespace.to_string(),
            no_pool: self.no_pool.lock().clone(),
            resources: resources.iter().filter_map(Weak::upgrade).map(|shown| shown.lock().clone()).collect(),
        }
    }
}

/// How it goes with one watch. Clones tell of the same.
#[derive(Clone, Debug)]
pub(super) struct ResourceStatus {
    shown: Arc<Mutex<ResourceState>>,
    /// Of the outage that was told last.
    cause: Arc<Mutex<Option<ApiCause>>>,
    resource: ApiResource,
    namespace: Arc<str>,
    metrics: Arc<Metrics>,
    is_optional: bool,
    changes: watch::Sender<u64>,
}

impl ResourceStatus {
    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Says that the server tells of every change from now on.
    pub(super) fn follows(&self) {
        let mut shown = self.shown.lock();
        if shown.state == FollowState::Following {
            return;
        }
        if self.cause.lock().take().is_some() {
            tracing::info!(resource = shown.resource, "the Kubernetes API tells of these objects again");
        }
        (shown.state, shown.problem) = (FollowState::Following, None);
        self.metrics.kubernetes.following.with_label_values(&[&shown.resource]).set(1);
        drop(shown);
        self.changed();
    }

    /// Says that the server doesn't tell, the `failures`th time in a row. It is logged when it begins, and when its cause
    /// becomes another.
    pub(super) fn failed(&self, problem: &ApiProblem, failures: u32) {
        let mut shown = self.shown.lock();
        let labels = [shown.resource.as_str(), problem.cause.as_str()];
        self.metrics.kubernetes.failures.with_label_values(&labels).inc();
        if problem.cause.is_usual() && failures < TOLERATED {
            return;
        }
        let told = self.cause.lock().replace(problem.cause);
        let words = self.words(problem);
        if told != Some(problem.cause) {
            let resource = shown.resource.as_str();
            match self.is_optional && problem.cause == ApiCause::NotInstalled {
                true => tracing::info!(resource, "{words}"),
                false => tracing::warn!(
                    resource,
                    "the Kubernetes API doesn't tell of these objects, what is known of them stays in effect: {words}"
                ),
            }
        }
        let is_missing = self.is_optional && problem.cause == ApiCause::NotInstalled;
        shown.state = if is_missing { FollowState::NotInstalled } else { FollowState::Failing };
        shown.problem = Some(words).filter(|_| !is_missing);
        self.metrics.kubernetes.following.with_label_values(&[&shown.resource]).set(0);
        drop(shown);
        self.changed();
    }

    /// Whether the kind needn't be installed.
    pub(super) fn is_optional(&self) -> bool {
        self.is_optional
    }

    /// Says that the kind has been removed.
    pub(super) fn removed(&self) {
        let shown = self.shown.lock();
        if shown.objects > 0 {
            tracing::warn!(
                resource = shown.resource,
                objects = shown.objects,
                "the kind isn't installed any more, so what its objects said isn't in effect any more"
            );
        }
    }

    /// Says how many objects there are.
    pub(super) fn holds(&self, objects: usize) {
        let mut shown = self.shown.lock();
        shown.objects = objects;
        self.metrics.kubernetes.objects.with_label_values(&[&shown.resource]).set(objects as i64);
        drop(shown);
        self.changed();
    }

    /// Says that an object can't be used. It is logged and counted once per object and reason.
    pub(super) fn refused(&self, name: &str, why: &str, had_good: bool) {
        let mut shown = self.shown.lock();
        if shown.refused.get(name).is_some_and(|known| known == why) {
            return;
        }
        self.metrics.kubernetes.refused.with_label_values(&[&shown.resource]).inc();
        let instead = if had_good { "its last good version stays in effect" } else { "it is left out" };
        tracing::warn!(resource = shown.resource, name, "an object can't be used, {instead}: {why}");
        if shown.refused.len() < SHOWN_REFUSALS || shown.refused.contains_key(name) {
            shown.refused.insert(name.to_owned(), why.to_owned());
        }
        drop(shown);
        self.changed();
    }

    /// Says that an object can be used, or is gone.
    pub(super) fn not_refused(&self, name: &str) {
        self.shown.lock().refused.remove(name);
    }

    /// Says that of the objects that couldn't be used only these are left.
    pub(super) fn keep_refused(&self, is_left: impl Fn(&str) -> bool) {
        self.shown.lock().refused.retain(|name, _| is_left(name));
    }

    fn words(&self, problem: &ApiProblem) -> String {
        let ApiResource { group, plural, .. } = &self.resource;
        let (namespace, detail) = (&self.namespace, &problem.detail);
        match problem.cause {
            ApiCause::Forbidden => format!(
                "a Role in namespace {namespace} is missing, bound to the picker's service account, with the rule \
                 {{apiGroups: [{group:?}], resources: [{plural:?}], verbs: [get, list, watch]}} ({detail})"
            ),
            ApiCause::Unauthorized => {
                format!(
                    "the picker's credentials aren't accepted: check its service account token ({detail})"
                )
            }
            ApiCause::NotInstalled => {
                format!(
                    "the cluster has no {plural} of the group {group:?}: the CRD isn't installed ({detail})"
                )
            }
            _ => detail.clone(),
        }
    }
}
