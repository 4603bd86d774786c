//! Objects as last told.

use std::collections::{BTreeMap, BTreeSet};

use super::api_status::ResourceStatus;
use super::object_watch::{Change, Named};

/// The objects of one kind by name, as last told. Of one that can't be used any more the last good version stays.
#[derive(Debug)]
pub(super) struct ObjectSet<V> {
    objects: BTreeMap<String, V>,
    status: ResourceStatus,
    /// Whether all have been listed once.
    pub(super) is_listed: bool,
}

impl<V> ObjectSet<V> {
    /// Nothing yet.
    pub(super) fn new(status: ResourceStatus) -> Self {
        Self { objects: BTreeMap::new(), status, is_listed: false }
    }

    /// All of them, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.objects.iter().map(|(name, object)| (name.as_str(), object))
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.objects.get(name)
    }

    /// Takes a change.
    pub(super) fn apply(&mut self, change: Change<V>) {
        match change {
            Change::Listed(listed) => {
                let names: BTreeSet<String> = listed.iter().map(|(name, _)| name.clone()).collect();
                self.objects.retain(|name, _| names.contains(name));
                self.status.keep_refused(|name| names.contains(name));
                listed.into_iter().for_each(|named| self.put(named));
                self.is_listed = true;
            }
            Change::Applied(named) => self.put(named),
            Change::Deleted(name) => {
                self.objects.remove(&name);
                self.status.not_refused(&name);
            }
        }
        self.status.holds(self.objects.len());
    }

    fn put(&mut self, (name, object): Named<V>) {
        match object {
            Ok(object) => {
                self.status.not_refused(&name);
                self.objects.insert(name, object);
            }
            Err(why) => self.status.refused(&name, &why, self.objects.contains_key(&name)),
        }
    }
}
