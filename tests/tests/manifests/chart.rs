//! The chart, rendered by helm.

use std::path::PathBuf;
use std::process::{Command, Output};

use warmroute_demo::harness::Tools;

use crate::objects::Objects;

/// A helm that comes from its Go module doesn't know of which Kubernetes it is.
const KUBE_VERSION: &str = "1.34.0";

/// `helm`: `HELM`, else what the set-up put into `target/tools/helm`, else the one on the path.
fn helm() -> PathBuf {
    let built = Tools::root().join("target/tools/helm/helm");
    match std::env::var_os("HELM") {
        Some(given) => given.into(),
        None if built.is_file() => built,
        None => "helm".into(),
    }
}

/// The folder of the chart.
pub(crate) fn folder() -> PathBuf {
    Tools::root().join("charts/warmroute")
}

/// The chart's values files, by name.
pub(crate) fn values_files() -> Vec<String> {
    let entries = std::fs::read_dir(folder().join("ci")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_suffix(".yaml").expect("a values file").to_owned())
        .collect();
    names.sort();
    names
}

fn run(command: &str, file: &str, set: &[&str], kube_version: &str) -> Output {
    let mut helm = Command::new(helm());
    helm.arg(command);
    if command == "template" {
        helm.args(["warmroute", "--namespace", "inference"]);
    }
    helm.arg(folder()).args(["--kube-version", kube_version]);
    helm.arg("--values").arg(folder().join("ci").join(format!("{file}.yaml")));
    for given in set {
        helm.args(["--set", given]);
    }
    helm.output().unwrap_or_else(|error| panic!("no helm ({error}): run deploy/setup/kube.sh, or set HELM"))
}

/// What the chart renders with a values file and more values.
pub(crate) fn rendered(file: &str, set: &[&str]) -> Objects {
    rendered_for(KUBE_VERSION, file, set)
}

/// The same for a version of Kubernetes.
pub(crate) fn rendered_for(kube_version: &str, file: &str, set: &[&str]) -> Objects {
    let output = run("template", file, set, kube_version);
    assert!(output.status.success(), "{file} {set:?}: {}", String::from_utf8_lossy(&output.stderr));
    Objects::parse(file, std::str::from_utf8(&output.stdout).unwrap())
}

/// What helm says to values that the chart refuses.
pub(crate) fn refusal(file: &str, set: &[&str]) -> String {
    let output = run("template", file, set, KUBE_VERSION);
    assert!(!output.status.success(), "{file} {set:?} is taken");
    String::from_utf8(output.stderr).unwrap()
}

/// `helm lint`.
pub(crate) fn lint(file: &str) {
    let output = run("lint", file, &[], KUBE_VERSION);
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stdout));
}
