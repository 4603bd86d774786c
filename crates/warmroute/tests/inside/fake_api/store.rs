//! The objects, and what has happened to them.

use std::collections::{BTreeMap, HashMap, HashSet};

use http::Method;
use serde_json::{Value, json};

use super::selecting::Selector;

struct Happening {
    version: u64,
    kind: String,
    /// Neither: a bookmark.
    before: Option<Value>,
    after: Option<Value>,
}

pub(super) struct Store {
    version: u64,
    /// Older resource versions are gone.
    oldest: u64,
    objects: HashMap<String, BTreeMap<String, Value>>,
    happenings: Vec<Happening>,
    uninstalled: HashSet<String>,
}

impl Default for Store {
    fn default() -> Self {
        let (objects, happenings, uninstalled) = (HashMap::new(), Vec::new(), HashSet::new());
        Self { version: 1, oldest: 1, objects, happenings, uninstalled }
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("an object has a name").to_owned()
}

impl Store {
    pub(super) fn knows(&self, kind: &str) -> bool {
        !self.uninstalled.contains(kind)
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.objects.get(kind)?.get(name).cloned()
    }

    fn happens(&mut self, kind: &str, before: Option<Value>, after: Option<Value>) {
        self.happenings.push(Happening { version: self.version, kind: kind.to_owned(), before, after });
    }

    pub(super) fn put(&mut self, kind: &str, mut object: Value) -> Value {
        let (name, before) = (name_of(&object), self.get(kind, &name_of(&object)));
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["namespace"] = json!(super::NAMESPACE);
        if object["metadata"]["uid"].is_null() {
            let same = before.as_ref().map(|before| before["metadata"]["uid"].clone());
            object["metadata"]["uid"] = same.unwrap_or_else(|| json!(format!("uid-{}", self.version)));
        }
        self.objects.entry(kind.to_owned()).or_default().insert(name, object.clone());
        self.happens(kind, before, Some(object.clone()));
        object
    }

    pub(super) fn delete(&mut self, kind: &str, name: &str) -> Option<Value> {
        let gone = self.objects.get_mut(kind)?.remove(name)?;
        self.version += 1;
        self.happens(kind, Some(gone.clone()), None);
        Some(gone)
    }

    pub(super) fn replace_unseen(&mut self, kind: &str, objects: Vec<Value>) {
        self.objects.remove(kind);
        for object in objects {
            self.put(kind, object);
        }
        self.version += 1;
        self.oldest = self.version;
        self.happenings.clear();
    }

    pub(super) fn uninstall(&mut self, kind: &str) {
        let names: Vec<String> =
            self.objects.get(kind).into_iter().flatten().map(|(name, _)| name.clone()).collect();
        for name in names {
            self.delete(kind, &name);
        }
        self.uninstalled.insert(kind.to_owned());
    }

    pub(super) fn install(&mut self, kind: &str) {
        self.uninstalled.remove(kind);
    }

    pub(super) fn bookmark(&mut self, kind: &str) {
        self.version += 1;
        self.happens(kind, None, None);
    }

    /// A page of a list; the continue token is the name of the last object and the version of the list.
    pub(super) fn page(
        &self,
        kind: &str,
        selector: &Selector,
        limit: Option<usize>,
        token: &str,
    ) -> Result<Value, &'static str> {
        let (after, version) = token.split_once('@').unwrap_or(("", ""));
        let version = if token.is_empty() { self.version } else { version.parse().unwrap() };
        if version < self.oldest {
            return Err("The provided continue parameter is too old");
        }
        let all = self.objects.get(kind).into_iter().flatten();
        let left: Vec<_> =
            all.filter(|(name, object)| name.as_str() > after && selector.matches(object)).collect();
        let page: Vec<Value> =
            left.iter().take(limit.unwrap_or(usize::MAX)).map(|(_, object)| (*object).clone()).collect();
        let token = match page.last() {
            Some(last) if page.len() < left.len() => format!("{}@{version}", name_of(last)),
            _ => String::new(),
        };
        Ok(json!({"kind": "List", "apiVersion": "v1", "items": page,
            "metadata": {"resourceVersion": version.to_string(), "continue": token}}))
    }

    /// What a watch is told that knows everything up to a version, and up to which version it knows it then.
    pub(super) fn since(&self, kind: &str, selector: &Selector, from: u64) -> (Vec<Value>, u64) {
        if from < self.oldest {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410});
            return (vec![json!({"type": "ERROR", "object": gone})], from);
        }
        let new =
            self.happenings.iter().filter(|happening| happening.version > from && happening.kind == kind);
        (new.filter_map(|happening| event(happening, selector)).collect(), self.version.max(from))
    }

    /// What is done to a single object: the code and the object, or the code and the reason.
    pub(super) fn one(
        &mut self,
        method: &Method,
        kind: &str,
        name: Option<String>,
        mut given: Value,
    ) -> Result<(u16, Value), (u16, &'static str)> {
        let known =
            |store: &Self| name.as_deref().and_then(|name| store.get(kind, name)).ok_or((404, "NotFound"));
        match method.as_str() {
            "GET" => known(self).map(|object| (200, object)),
            "POST" if self.get(kind, &name_of(&given)).is_some() => Err((409, "AlreadyExists")),
            "POST" => Ok((201, self.put(kind, given))),
            "DELETE" => {
                let object = known(self)?;
                self.delete(kind, &name_of(&object));
                Ok((200, object))
            }
            "PUT" | "PATCH" => {
                let old = known(self)?;
                let version = &given["metadata"]["resourceVersion"];
                if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
                    return Err((409, "Conflict"));
                }
                if method == Method::PATCH {
                    let mut merged = old.clone();
                    merge(&mut merged, given);
                    given = merged;
                }
                given["metadata"]["uid"] = old["metadata"]["uid"].clone();
                Ok((200, self.put(kind, given)))
            }
            _ => Err((405, "MethodNotAllowed")),
        }
    }
}

fn event(happening: &Happening, selector: &Selector) -> Option<Value> {
    let Happening { version, before, after, .. } = happening;
    let version = version.to_string();
    let matched = |object: &Option<Value>| object.as_ref().is_some_and(|object| selector.matches(object));
    let (kind, object) = match (matched(before), matched(after)) {
        _ if before.is_none() && after.is_none() => ("BOOKMARK", &None),
        (false, true) => ("ADDED", after),
        (true, true) => ("MODIFIED", after),
        (true, false) => ("DELETED", before),
        (false, false) => return None,
    };
    let mut object =
        object.clone().unwrap_or_else(|| json!({"kind": "Pod", "apiVersion": "v1", "metadata": {}}));
    object["metadata"]["resourceVersion"] = json!(version);
    Some(json!({"type": kind, "object": object}))
}

/// A merge patch (RFC 7386).
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (name, value) in fields {
                match value {
                    Value::Null => {
                        into.as_object_mut().unwrap().remove(&name);
                    }
                    value => merge(&mut into[&name], value),
                }
            }
        }
        other => *into = other,
    }
}
