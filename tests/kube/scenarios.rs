//! What happens to pods, pickers and the API server while requests are sent.

mod charts;
mod custom_resources;
mod lease;
mod outage;
mod pods;
mod rolling;
mod selector;

use warmroute_demo::harness::Recipe;

use crate::stage::Rig;
use crate::transcript::Row;

/// The scenarios by name, in the order in which they run.
pub(crate) const NAMES: [&str; 8] =
    ["charts", "pods", "selector", "custom-resources", "rolling", "rolling-duplex", "lease", "outage"];

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
        "lease" => lease::run(rig, &mut row).await,
        "outage" => outage::run(rig, &mut row).await,
        _ => Err(anyhow::anyhow!("there is no scenario {name}")),
    };
    row.end(outcome);
    row
}
