//! Objects of one kind, listed and then watched, for as long as the picker runs.
//!
//! Unlike `kube::runtime::watcher` it says when a watch stands again after an outage that changed nothing, bounds the
//! wait for every answer, and lists anew after every failure, so that what is known is never older than it seems.

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource, ListParams, WatchEvent, WatchParams};
use kube::core::{DeserializeGuard, DynamicResourceScope};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::api_problem::{ApiCause, ApiProblem};
use super::api_status::ResourceStatus;

/// After so many answers that there is no such kind, one after the other, its objects are gone: some seconds, so that an API
/// server that is only starting isn't believed.
const REMOVED_AFTER: u32 = 6;

/// Objects per page of a list: what is in memory in full at a time.
const PAGE_OBJECTS: u32 = 100;

/// What is kept of an object.
pub(super) trait Kept: Sized + Send + 'static {
    /// The sections of the object that are read; unknown fields are ignored.
    type Body: DeserializeOwned + Clone + Debug + Send + 'static;

    /// Takes what is needed.
    ///
    /// # Errors
    /// Text that says what of the object can't be used.
    fn keep(metadata: ObjectMeta, body: Self::Body) -> Result<Self, String>;
}

/// An object by its name, or why it can't be used.
pub(super) type Named<V> = (String, Result<V, String>);

/// What has become of the objects.
#[derive(Debug)]
pub(super) enum Change<V> {
    /// These are all.
    Listed(Vec<Named<V>>),
    /// This one is new or different.
    Applied(Named<V>),
    /// This one is gone, or isn't selected any more.
    Deleted(String),
}

/// Which objects of a kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// A label selector.
    pub(super) labels: Option<String>,
    /// A field selector.
    pub(super) fields: Option<String>,
}

/// How long is waited for an API server.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Before the first of several repetitions; each later one waits twice as long.
    pub first_retry: Duration,
    /// Between two repetitions at most.
    pub longest_retry: Duration,
    /// The same if the answer was that this isn't allowed, or that there is no such kind: that won't change soon.
    pub longest_denied_retry: Duration,
    /// For an answer.
    pub answer: Duration,
    /// After this the server is asked to end a watch, which then begins anew where it stood. A connection that is dead
    /// without having been closed is noticed a little later.
    pub watch_seconds: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(250),
            longest_retry: Duration::from_secs(5),
            longest_denied_retry: Duration::from_secs(10),
            answer: Duration::from_secs(20),
            watch_seconds: 60,
        }
    }
}

impl Pace {
    /// A watch that ends before this didn't end because its time was over.
    fn early(&self) -> Duration {
        Duration::from_secs(self.watch_seconds.into()) / 2
    }
}

/// The API's view of an object: metadata, and the sections that are read.
#[derive(Clone, Debug, Deserialize)]
struct Viewed<B> {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(flatten)]
    body: B,
}

impl<B> kube::Resource for Viewed<B> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

type Guarded<V> = DeserializeGuard<Viewed<<V as Kept>::Body>>;

/// Where a watch stands.
enum Next<V: Kept> {
    /// Everything is to be listed.
    List,
    /// What has happened since this resource version is to be asked for.
    Watch(String),
    /// The server tells what happens.
    Follow {
        version: String,
        since: Instant,
        events: BoxStream<'static, kube::Result<WatchEvent<Guarded<V>>>>,
    },
}

/// Lists objects of one kind and then watches them; dropping it ends that.
pub(super) struct ObjectWatch<V: Kept> {
    api: Api<Guarded<V>>,
    selection: Selection,
    pace: Pace,
    status: ResourceStatus,
    next: Next<V>,
    /// Failures without anything good between them.
    failures: u32,
    kept: PhantomData<V>,
}

impl<V: Kept> ObjectWatch<V> {
    /// Objects of `resource` in a namespace. Nothing is asked yet.
    pub(super) fn new(
        client: kube::Client,
        (resource, namespace): (&ApiResource, &str),
        selection: Selection,
        pace: Pace,
        status: ResourceStatus,
    ) -> Self {
        let api = Api::namespaced_with(client, namespace, resource);
        Self { api, selection, pace, status, next: Next::List, failures: 0, kept: PhantomData }
    }

    /// What becomes of the objects, beginning with all that there are. It never ends; failures are told to the status
    /// and repeated.
    pub(super) fn changes(self) -> BoxStream<'static, Change<V>> {
        futures::stream::unfold(self, |watch| async { Some(watch.change().await) }).boxed()
    }

    async fn change(mut self) -> (Change<V>, Self) {
        loop {
            match self.step().await {
                Ok(Some(change)) => return (change, self),
                Ok(None) => {}
                Err(problem) => {
                    self.next = Next::List;
                    let wait = self.after(&problem);
                    let is_removed =
                        problem.cause == ApiCause::NotInstalled && self.failures == REMOVED_AFTER;
                    if is_removed && self.status.is_optional() {
                        self.status.removed();
                        return (Change::Listed(Vec::new()), self);
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Change<V>>, ApiProblem> {
        match std::mem::replace(&mut self.next, Next::List) {
            Next::List => {
                let (version, objects) = self.list().await?;
                self.next = Next::Watch(version);
                Ok(Some(Change::Listed(objects)))
            }
            Next::Watch(version) => {
                let events = self.watch(&version).await?;
                self.status.follows();
                self.next = Next::Follow { version, since: Instant::now(), events };
                Ok(None)
            }
            Next::Follow { version, since, mut events } => {
                // The server may be a little late.
                let longest = Duration::from_secs(self.pace.watch_seconds.into()) + self.pace.answer;
                let next = timeout(longest, events.next()).await;
                // It stood for a while.
                if since.elapsed() > self.pace.answer {
                    self.failures = 0;
                }
                match next {
                    Err(_) => Err(ApiProblem::no_answer(longest)),
                    Ok(None) if since.elapsed() < self.pace.early() => Err(ApiProblem::ended_early()),
                    Ok(None) => {
                        self.next = Next::Watch(version);
                        Ok(None)
                    }
                    Ok(Some(event)) => {
                        let (change, newer) = changed::<V>(event.map_err(ApiProblem::of)?)?;
                        self.failures = 0;
                        self.next = Next::Follow { version: newer.unwrap_or(version), since, events };
                        Ok(change)
                    }
                }
            }
        }
    }

    /// All objects, page by page, and the resource version of the list.
    async fn list(&mut self) -> Result<(String, Vec<Named<V>>), ApiProblem> {
        let Selection { labels, fields } = &self.selection;
        let mut params = ListParams {
            label_selector: labels.clone(),
            field_selector: fields.clone(),
            limit: Some(PAGE_OBJECTS),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = answered(self.pace.answer, self.api.list(&params)).await?;
            objects.extend(page.items.into_iter().map(named::<V>));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return Ok((version.ok_or_else(ApiProblem::no_version)?, objects));
            }
        }
    }

    async fn watch(
        &mut self,
        version: &str,
    ) -> Result<BoxStream<'static, kube::Result<WatchEvent<Guarded<V>>>>, ApiProblem> {
        let Selection { labels, fields } = &self.selection;
        let params = WatchParams {
            label_selector: labels.clone(),
            field_selector: fields.clone(),
            timeout: Some(self.pace.watch_seconds),
            ..WatchParams::default()
        };
        Ok(answered(self.pace.answer, self.api.watch(&params, version)).await?.boxed())
    }

    /// Tells of a failure; says how long to wait then.
    fn after(&mut self, problem: &ApiProblem) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.status.failed(problem, self.failures);
        let longest =
            if problem.cause.is_denial() { self.pace.longest_denied_retry } else { self.pace.longest_retry };
        let wait = self.pace.first_retry.saturating_mul(1 << (self.failures - 1).min(16)).min(longest);
        // Several pickers that lost the same server shouldn't come back at the same moment.
        wait.mul_f64(0.5 + fastrand::f64() / 2.0).max(problem.retry_after)
    }
}

async fn answered<T>(limit: Duration, asked: impl Future<Output = kube::Result<T>>) -> Result<T, ApiProblem> {
    match timeout(limit, asked).await {
        Ok(answer) => answer.map_err(ApiProblem::of),
        Err(_) => Err(ApiProblem::no_answer(limit)),
    }
}

fn named<V: Kept>(DeserializeGuard(object): Guarded<V>) -> Named<V> {
    match object {
        Ok(Viewed { metadata, body }) => {
            let name = metadata.name.clone().unwrap_or_default();
            (name, V::keep(metadata, body))
        }
        Err(invalid) => (invalid.metadata.name.unwrap_or_default(), Err(invalid.error)),
    }
}

/// What an event says, and the resource version that it leads to.
fn changed<V: Kept>(
    event: WatchEvent<Guarded<V>>,
) -> Result<(Option<Change<V>>, Option<String>), ApiProblem> {
    let version = |object: &Guarded<V>| kube::Resource::meta(object).resource_version.clone();
    Ok(match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            let version = version(&object);
            (Some(Change::Applied(named::<V>(object))), version)
        }
        WatchEvent::Deleted(object) => {
            let version = version(&object);
            let name = kube::Resource::meta(&object).name.clone().unwrap_or_default();
            (Some(Change::Deleted(name)), version)
        }
        WatchEvent::Bookmark(mark) => (None, Some(mark.metadata.resource_version)),
        WatchEvent::Error(status) => return Err(ApiProblem::of(kube::Error::Api(status))),
    })
}
