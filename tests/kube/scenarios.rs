//! What happens to pods, pickers and the API server while requests are sent.

mod charts;
mod conformance;
mod custom_resources;
mod lease;
mod metrics_auth;
mod other_pools;
mod outage;
mod pods;
mod rolling;
mod selector;

use warmroute_demo::harness::Recipe;

use crate::say;
use crate::stage::Rig;
use crate::transcript::Row;

/// Lines of each log that a failed scenario shows.
const SHOWN_LINES: usize = 12;

/// The scenarios by name, in the order in which they run.
pub(crate) const NAMES: [&str; 12] = [
    "charts",
    "metrics-auth",
    "pods",
    "selector",
    "ports",
    "older-group",
    "conformance",
    "custom-resources",
    "rolling",
    "rolling-duplex",
    "lease",
    "outage",
];

/// Runs one.
pub(crate) async fn run(name: &'static str, rig: &mut Rig) -> Row {
    let mut row = Row::new(name);
    let outcome = match name {
        "charts" => charts::run(rig, &mut row).await,
        "pods" => pods::run(rig, &mut row).await,
        "selector" => selector::run(rig, &mut row).await,
        "custom-resources" => custom_resources::run(rig, &mut row).await,
        "rolling" => rolling::run(rig, &mut row, Recipe::Buffered).await,
        "rolling-duplex" => rolling::run(rig, &mut row, Recipe::FullDuplex).await,
        "metrics-auth" => metrics_auth::run(rig, &mut row).await,
        "ports" => other_pools::ports(rig, &mut row).await,
        "older-group" => other_pools::older_group(rig, &mut row).await,
        "conformance" => conformance::run(rig, &mut row).await,
        "lease" => lease::run(rig, &mut row).await,
        "outage" => outage::run(rig, &mut row).await,
        _ => Err(anyhow::anyhow!("there is no scenario {name}")),
    };
    if outcome.is_err() {
        tell_logs(rig, name);
    }
    row.end(outcome);
    row
}

/// Shows the end of the log of every process that a scenario started.
fn tell_logs(rig: &Rig, name: &str) {
    let files = std::fs::read_dir(&rig.tools.logs).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_scenario = |file: &std::path::PathBuf| {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        stem.starts_with(&format!("{name}-")) && file.extension().is_some_and(|extension| extension == "log")
    };
    for file in files.filter(of_scenario) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        say(&format!("the end of {}:\n{end}", file.display()));
    }
}
