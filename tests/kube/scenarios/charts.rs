//! Every values file of the chart: linted, rendered, and applied to the API server, which checks every field.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;

use crate::chart::PickerArguments;
use crate::manifests::Manifests;
use crate::stage::Rig;
use crate::transcript::Row;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in [rig.chart.folder.join("ci"), rig.chart.values.clone()] {
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("there is no {}", folder.display()))?
        {
            files.push(entry?.path());
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    row.check(files.len() > 10, format!("there are {} values files", files.len()));
    for file in files {
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let outcome = try_out(rig, &name, file).await;
        row.check(outcome.is_ok(), format!("{name} is taken by helm and by the API server"));
        match outcome {
            Ok(kinds) => row.event(format!("{name}: {kinds}")),
            Err(error) => row.event(format!("{name}: {error:#}")),
        }
    }
    Ok(())
}

/// Lints, renders and applies one values file in a namespace of its own; returns what it makes.
async fn try_out(rig: &Rig, name: &str, file: PathBuf) -> anyhow::Result<String> {
    let namespace = format!("chart-{name}").replace('.', "-");
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    Manifests::parse(&space.to_string())?.apply(&rig.client, "").await?;
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
