//! [`Chart`]: `charts/warmroute`, rendered by helm.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::manifests::Manifests;

/// Arguments of the deployment that say where a pod listens or finds its files: the rig has its own.
const REPLACED: [&str; 9] = [
    "--bind-address",
    "--grpc-port",
    "--grpc-health-port",
    "--metrics-port",
    "--replica-port",
    "--replica-peers",
    "--config-file",
    "--kubeconfig",
    "--tokenizer",
];

/// A chart and the helm that renders it.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) helm: PathBuf,
    pub(crate) folder: PathBuf,
    /// Where value files of the rig are.
    pub(crate) values: PathBuf,
}

impl Chart {
    /// `helm template` with a values file of the rig and further values.
    ///
    /// # Errors
    /// helm refuses; with its words.
    pub(crate) fn render(&self, namespace: &str, values: &str, set: &[String]) -> anyhow::Result<Manifests> {
        let file = self.values.join(format!("{values}.yaml"));
        Manifests::parse(&self.template(namespace, &[file], set)?)
    }

    /// The text of `helm template`.
    ///
    /// # Errors
    /// As [`Chart::render`].
    pub(crate) fn template(
        &self,
        namespace: &str,
        files: &[PathBuf],
        set: &[String],
    ) -> anyhow::Result<String> {
        let mut args = vec!["template".to_owned(), "warmroute".to_owned(), path(&self.folder)];
        args.extend(["--namespace".to_owned(), namespace.to_owned(), "--kube-version=1.36.3".to_owned()]);
        args.extend(files.iter().map(|file| format!("--values={}", file.display())));
        args.extend(set.iter().map(|value| format!("--set={value}")));
        self.helm(&args)
    }

    /// `helm lint` with value files, warnings as errors.
    ///
    /// # Errors
    /// helm finds something; with its words.
    pub(crate) fn lint(&self, files: &[PathBuf]) -> anyhow::Result<String> {
        let mut args = vec!["lint".to_owned(), "--strict".to_owned(), path(&self.folder)];
        args.extend(files.iter().map(|file| format!("--values={}", file.display())));
        self.helm(&args)
    }

    fn helm(&self, args: &[String]) -> anyhow::Result<String> {
        let output = Command::new(&self.helm)
            .args(args)
            .output()
            .with_context(|| format!("cannot run {}: deploy/setup/kube.sh builds it", self.helm.display()))?;
        if !output.status.success() {
            bail!(
                "helm {}: {}{}",
                args.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The picker's arguments as its deployment gives them, without those that the rig has its own of, and its
    /// configuration out of the ConfigMap that they name.
    ///
    /// # Errors
    /// There is no such container or configuration.
    pub(crate) fn arguments(
        manifests: &Manifests,
        deployment: &Value,
    ) -> anyhow::Result<(Vec<String>, String)> {
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
        let picks = |container: &&Value| {
            let args = container["args"].as_array().into_iter().flatten();
            args.filter_map(Value::as_str).any(|arg| arg.starts_with("--config-file"))
        };
        let container = containers.and_then(|all| all.iter().find(picks));
        let container = container.context("no container of the deployment has --config-file")?;
        let given: Vec<String> = container["args"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let (mut args, mut config) = (Vec::new(), None);
        let mut rest = given.into_iter().peekable();
        while let Some(arg) = rest.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (arg.clone(), rest.next_if(|next| !next.starts_with('-'))),
            };
            if name == "--config-file" {
                config.clone_from(&value);
            }
            if !REPLACED.contains(&name.as_str()) {
                args.push(value.map_or(name.clone(), |value| format!("{name}={value}")));
            }
        }
        let config = config.context("--config-file has no value")?;
        let key = Path::new(&config).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let text = manifests
            .values_of("ConfigMap")?
            .into_iter()
            .find_map(|map| map["data"][key].as_str().map(str::to_owned));
        Ok((args, text.with_context(|| format!("no ConfigMap has {key}"))?))
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
