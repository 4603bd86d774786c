//! A watch and what it has told.

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::ApiResource;

use super::api_status::KubernetesStatus;
use super::object_set::ObjectSet;
use super::object_watch::{Change, Kept, ObjectWatch, Pace, Selection};

/// Objects of one kind as they are followed; dropping it ends that.
pub(super) struct Followed<V> {
    changes: BoxStream<'static, Change<V>>,
    /// What is known by now.
    pub(super) objects: ObjectSet<V>,
}

/// How objects of a cluster are followed.
#[derive(Clone)]
pub(super) struct Following {
    /// How the API server is reached.
    pub(super) client: kube::Client,
    /// Where the objects are.
    pub(super) namespace: String,
    /// How long is waited for the API server.
    pub(super) pace: Pace,
    /// Who is told how it goes.
    pub(super) status: KubernetesStatus,
}

impl Following {
    /// Follows objects without which there is no pool.
    pub(super) fn needed<V: Kept>(&self, resource: &ApiResource, selection: Selection) -> Followed<V> {
        self.follow(resource, selection, false)
    }

    /// Follows objects of a kind that needn't be installed.
    pub(super) fn optional<V: Kept>(&self, resource: &ApiResource) -> Followed<V> {
        self.follow(resource, Selection::default(), true)
    }

    fn follow<V: Kept>(
        &self,
        resource: &ApiResource,
        selection: Selection,
        is_optional: bool,
    ) -> Followed<V> {
        let status = self.status.resource(resource, is_optional);
        let of = (resource, self.namespace.as_str());
        let watch = ObjectWatch::<V>::new(self.client.clone(), of, selection, self.pace, status.clone());
        Followed { changes: watch.changes(), objects: ObjectSet::new(status) }
    }
}

impl<V> Followed<V> {
    /// Waits for a change, which is to be applied. None never comes: a watch doesn't end.
    pub(super) async fn next(&mut self) -> Option<Change<V>> {
        self.changes.next().await
    }
}
