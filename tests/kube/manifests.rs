//! [`Manifests`]: YAML documents, given to the API server as they are.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::Value;

/// Who the fields are said to be of.
const FIELD_MANAGER: &str = "warmroute-tests";

/// How long a new kind may take to be served.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(60);

/// Documents of a YAML text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manifests {
    documents: Vec<Document>,
}

#[derive(Debug, Clone)]
struct Document {
    head: Head,
    text: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Metadata,
}

#[derive(Debug, Clone, Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
}

impl Document {
    /// Kind and name, as errors call it.
    fn title(&self) -> String {
        format!("{} {} {}", self.head.api_version, self.head.kind, self.head.metadata.name)
    }
}

impl Manifests {
    /// All `.yaml` files of a folder.
    ///
    /// # Errors
    /// One can't be read.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for entry in
            std::fs::read_dir(folder).with_context(|| format!("there is no folder {}", folder.display()))?
        {
            files.push(entry?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        let mut all = Self::default();
        for file in files {
            let text = std::fs::read_to_string(&file)?;
            all.documents.extend(Self::parse(&text).with_context(|| file.display().to_string())?.documents);
        }
        Ok(all)
    }

    /// The documents of a text; empty ones are left out.
    ///
    /// # Errors
    /// One has no kind or name.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut documents = Vec::new();
        for text in format!("\n{text}").split("\n---") {
            // What stands on the line of the dashes is a comment or nothing.
            let text = text.split_once('\n').map_or("", |(_, rest)| rest);
            if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
                continue;
            }
            let head = serde_saphyr::from_str(text).with_context(|| {
                format!("no Kubernetes object: {}", text.chars().take(120).collect::<String>())
            })?;
            documents.push(Document { head, text: text.to_owned() });
        }
        Ok(Self { documents })
    }

    /// Adds those of another text.
    pub(crate) fn append(&mut self, other: Self) {
        self.documents.extend(other.documents);
    }

    /// Whether there is one of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.documents.iter().any(|document| document.head.metadata.name == name)
    }

    /// Names of the documents of a kind.
    pub(crate) fn names_of(&self, kind: &str) -> Vec<&str> {
        let of_kind = self.documents.iter().filter(|document| document.head.kind == kind);
        of_kind.map(|document| document.head.metadata.name.as_str()).collect()
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    /// The kinds, each once, in the order in which they come.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = Vec::new();
        for document in &self.documents {
            if !kinds.contains(&document.head.kind.as_str()) {
                kinds.push(&document.head.kind);
            }
        }
        kinds
    }

    /// The same documents, but those of a kind and name only.
    pub(crate) fn only(&self, kind: &str, name: &str) -> Self {
        let is_it = |document: &&Document| document.head.kind == kind && document.head.metadata.name == name;
        Self { documents: self.documents.iter().filter(is_it).cloned().collect() }
    }

    /// All documents of a kind.
    ///
    /// # Errors
    /// One can't be read.
    pub(crate) fn values_of(&self, kind: &str) -> anyhow::Result<Vec<Value>> {
        let of_kind = self.documents.iter().filter(|document| document.head.kind == kind);
        of_kind.map(|document| Ok(serde_saphyr::from_str(&document.text)?)).collect()
    }

    /// Applies all, in this order; unknown fields are errors. What names no namespace goes to `namespace`.
    ///
    /// # Errors
    /// The API server refuses one.
    pub(crate) async fn apply(&self, client: &Client, namespace: &str) -> anyhow::Result<()> {
        self.send(client, namespace, "").await
    }

    /// The same, without storing anything: what the API server would say.
    ///
    /// # Errors
    /// It would refuse one.
    pub(crate) async fn try_out(&self, client: &Client, namespace: &str) -> anyhow::Result<()> {
        self.send(client, namespace, "&dryRun=All").await
    }

    async fn send(&self, client: &Client, namespace: &str, more: &str) -> anyhow::Result<()> {
        for document in &self.documents {
            let path = path_of(client, &document.head, namespace).await.with_context(|| document.title())?;
            let query = format!("fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict{more}");
            let request = http::Request::patch(format!("{path}?{query}"))
                .header("content-type", "application/apply-patch+yaml")
                .body(document.text.clone().into_bytes())?;
            client.request::<Value>(request).await.with_context(|| document.title())?;
        }
        Ok(())
    }

    /// Deletes all that are there.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn delete(&self, client: &Client, namespace: &str) -> anyhow::Result<()> {
        for document in &self.documents {
            let path = path_of(client, &document.head, namespace).await.with_context(|| document.title())?;
            match client.request::<Value>(http::Request::delete(path).body(Vec::new())?).await {
                Ok(_) => {}
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error).with_context(|| document.title()),
            }
        }
        Ok(())
    }

    /// Waits until the API server serves the kinds that these definitions define.
    ///
    /// # Errors
    /// It doesn't in time.
    pub(crate) async fn until_established(&self, client: &Client) -> anyhow::Result<()> {
        for document in
            self.documents.iter().filter(|document| document.head.kind == "CustomResourceDefinition")
        {
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
                document.head.metadata.name
            );
            let started = Instant::now();
            loop {
                let definition = client.request::<Value>(http::Request::get(&path).body(Vec::new())?).await?;
                let is_established =
                    |condition: &Value| condition["type"] == "Established" && condition["status"] == "True";
                if definition["status"]["conditions"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(is_established))
                {
                    break;
                }
                if started.elapsed() > ESTABLISHED_WITHIN {
                    bail!("{} is not established: {}", document.title(), definition["status"]);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Deletes definitions and waits until they and all objects of their kinds are gone.
    ///
    /// # Errors
    /// They stay.
    pub(crate) async fn delete_definitions(&self, client: &Client) -> anyhow::Result<()> {
        self.delete(client, "").await?;
        let started = Instant::now();
        for document in &self.documents {
            let path = path_of(client, &document.head, "").await?;
            loop {
                match client.request::<Value>(http::Request::get(&path).body(Vec::new())?).await {
                    Err(Error::Api(status)) if status.code == 404 => break,
                    Err(error) => return Err(error.into()),
                    Ok(_) if started.elapsed() > ESTABLISHED_WITHIN => {
                        bail!("{} is still there", document.title())
                    }
                    Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
        Ok(())
    }
}

/// The path of an object.
async fn path_of(client: &Client, head: &Head, namespace: &str) -> anyhow::Result<String> {
    let (group, version) = head.api_version.split_once('/').unwrap_or(("", &head.api_version));
    let kind = GroupVersionKind::gvk(group, version, &head.kind);
    let (resource, capabilities) = pinned_kind(client, &kind).await?;
    let namespace = match capabilities.scope {
        Scope::Namespaced => Some(head.metadata.namespace.as_deref().unwrap_or(namespace)),
        Scope::Cluster => None,
    };
    let url = kube::core::DynamicObject::new(&head.metadata.name, &resource);
    let base = <kube::core::DynamicObject as kube::Resource>::url_path(&resource, namespace);
    Ok(format!("{base}/{}", url.metadata.name.unwrap_or_default()))
}
