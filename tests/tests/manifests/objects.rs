//! Kubernetes objects, as the YAML says them.

use std::path::Path;

use serde_json::Value;

/// Several objects, in the order of the file.
#[derive(Debug)]
pub(crate) struct Objects(Vec<Value>);

impl Objects {
    /// Of a YAML text with any number of documents; empty ones are left out.
    pub(crate) fn parse(what: &str, text: &str) -> Self {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{what}: {error}"));
        Self(documents.into_iter().filter(|document| !document.is_null()).collect())
    }

    /// Of a file.
    pub(crate) fn read(path: &Path) -> Self {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::parse(&path.display().to_string(), &text)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Value] {
        &self.0
    }

    /// Those of a kind.
    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The one of a kind and name.
    pub(crate) fn named(&self, kind: &str, name: &str) -> Option<&Value> {
        self.of(kind).into_iter().find(|object| object["metadata"]["name"] == name)
    }

    /// The picker's Deployment.
    pub(crate) fn picker(&self) -> &Value {
        self.deployment("epp").expect("no Deployment of the picker")
    }

    /// The Deployment of a component, `epp` or `proxy`.
    pub(crate) fn deployment(&self, component: &str) -> Option<&Value> {
        self.of("Deployment").into_iter().find(|object| {
            object["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == component
        })
    }

    /// The picker's arguments.
    pub(crate) fn picker_args(&self) -> Vec<&str> {
        strings(&container(self.picker(), "epp").expect("no container epp")["args"])
    }

    /// The value of a flag of the picker.
    pub(crate) fn picker_flag(&self, flag: &str) -> Option<&str> {
        let start = format!("--{flag}=");
        self.picker_args().into_iter().find_map(|argument| argument.strip_prefix(start.as_str()))
    }
}

/// The pod of a Deployment.
pub(crate) fn pod(deployment: &Value) -> &Value {
    &deployment["spec"]["template"]["spec"]
}

/// The containers of a Deployment's pods, those that run first included.
pub(crate) fn containers(deployment: &Value) -> impl Iterator<Item = &Value> {
    let pod = pod(deployment);
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// The container of a name.
pub(crate) fn container<'a>(deployment: &'a Value, name: &str) -> Option<&'a Value> {
    containers(deployment).find(|container| container["name"] == name)
}

/// A list, empty where there is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A list of texts.
pub(crate) fn strings(value: &Value) -> Vec<&str> {
    list(value).iter().map(|item| item.as_str().expect("a text")).collect()
}

/// Whether labels hold all that a selector asks for.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().expect("a selector");
    !selector.is_empty() && selector.iter().all(|(key, value)| &labels[key] == value)
}
