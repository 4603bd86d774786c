//! Every values file of the chart: linted, rendered, and applied to the API server, which checks every field; the picker
//! takes its flags and its configuration. And every manifest of `deploy/kubernetes`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;

use crate::chart::PickerArguments;
use crate::manifests::Manifests;
use crate::stage::Rig;
use crate::transcript::Row;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let values = yaml_files(&[rig.chart.folder.join("ci"), rig.chart.values.clone()])?;
    row.check(values.len() > 10, format!("there are {} values files", values.len()));
    for file in values {
        let name = stem(&file);
        tell(row, &name, try_out(rig, &name, file).await);
    }
    let manifests = rig.tools.root.join("deploy/kubernetes");
    make_namespace(rig, "inference").await?;
    for file in yaml_files(&[manifests.clone(), manifests.join("vllm"), manifests.join("sglang")])? {
        let name = file.strip_prefix(&manifests).unwrap_or(&file).display().to_string();
        tell(row, &name, try_out_manifest(rig, &file).await);
    }
    Ok(())
}

fn tell(row: &mut Row, name: &str, outcome: anyhow::Result<String>) {
    row.check(outcome.is_ok(), format!("{name} is taken"));
    match outcome {
        Ok(what) => row.event(format!("{name}: {what}")),
        Err(error) => row.event(format!("{name}: {error:#}")),
    }
}

fn yaml_files(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(folder).with_context(|| format!("there is no {}", folder.display()))? {
            files.push(entry?.path());
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

async fn make_namespace(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    Manifests::parse(&space.to_string())?.apply(&rig.client, "").await
}

/// Applies a manifest as it is.
async fn try_out_manifest(rig: &Rig, file: &Path) -> anyhow::Result<String> {
    let manifests = Manifests::parse(&std::fs::read_to_string(file)?)?;
    manifests.apply(&rig.client, "inference").await?;
    manifests.delete(&rig.client, "inference").await?;
    Ok(format!("{} objects, {}", manifests.len(), manifests.kinds().join(", ")))
}

/// Lints, renders and applies one values file in a namespace of its own; returns what it makes.
async fn try_out(rig: &Rig, name: &str, file: PathBuf) -> anyhow::Result<String> {
    let namespace = format!("chart-{name}").replace('.', "-");
    make_namespace(rig, &namespace).await?;
    let files = [file];
    rig.chart.lint(&files)?;
    let manifests = Manifests::parse(&rig.chart.template(&namespace, &files, &[])?)?;
    let chart = PickerArguments::of(&manifests)?;
    picker_takes(rig, &chart, name)?;
    manifests.apply(&rig.client, &namespace).await?;
    // A second time, as an upgrade to the same version.
    manifests.try_out(&rig.client, &namespace).await?;
    manifests.delete(&rig.client, &namespace).await?;
    Ok(format!("{} objects, {}", manifests.len(), manifests.kinds().join(", ")))
}

/// The picker takes its configuration, and every flag: it ends because there is no such kubeconfig, and not before.
fn picker_takes(rig: &Rig, chart: &PickerArguments, name: &str) -> anyhow::Result<()> {
    let file = rig.folder.join(format!("chart-{name}.yaml"));
    std::fs::write(&file, &chart.config)?;
    let run = |args: &[&str]| {
        let output = Command::new(&rig.tools.picker).args(args).output()?;
        let said = [output.stdout, output.stderr].concat();
        anyhow::Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let file = file.display().to_string();
    let (is_taken, said) = run(&["check", &file])?;
    if !is_taken {
        bail!("warmroute check: {said}");
    }
    let mut args: Vec<&str> = chart.given.iter().map(String::as_str).collect();
    args.retain(|arg| !arg.starts_with("--config-file"));
    args.extend(["--config-file", &file, "--kubeconfig", "/there/is/none"]);
    let (is_serving, said) = run(&args)?;
    if is_serving || !said.contains("/there/is/none") {
        bail!("warmroute {}: {said}", args.join(" "));
    }
    Ok(())
}
