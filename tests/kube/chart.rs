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
}

/// How the chart's deployment starts the picker.
#[derive(Debug, Clone)]
pub(crate) struct PickerArguments {
    /// As the deployment gives them.
    pub(crate) given: Vec<String>,
    /// Without those that the rig has its own of.
    pub(crate) kept: Vec<String>,
    /// The configuration, out of the ConfigMap that they name.
    pub(crate) config: String,
    pub(crate) service_account: String,
}

impl PickerArguments {
    /// Those of the deployment that has `--config-file`.
    ///
    /// # Errors
    /// There is no such container or configuration.
    pub(crate) fn of(manifests: &Manifests) -> anyhow::Result<Self> {
        for deployment in manifests.values_of("Deployment")? {
            let pod = &deployment["spec"]["template"]["spec"];
            for container in pod["containers"].as_array().into_iter().flatten() {
                let args = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let given: Vec<String> = args.map(str::to_owned).collect();
                let Some(file) = given.iter().find_map(|arg| arg.strip_prefix("--config-file=")) else {
                    continue;
                };
                let key = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let maps = manifests.values_of("ConfigMap")?;
                let config = maps.iter().find_map(|map| map["data"][key].as_str());
                let config = config.with_context(|| format!("no ConfigMap has {key}"))?.to_owned();
                let account = pod["serviceAccountName"].as_str();
                let service_account = account.context("the deployment names no service account")?.to_owned();
                let is_kept = |arg: &&String| !REPLACED.contains(&arg.split('=').next().unwrap_or_default());
                let kept = given.iter().filter(is_kept).cloned().collect();
                return Ok(Self { given, kept, config, service_account });
            }
        }
        bail!("no container of a deployment has --config-file=")
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
