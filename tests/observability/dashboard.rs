//! [`DashboardFile`]: `deploy/observability/dashboards.yaml`, which the dashboards are made from.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// All dashboards.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DashboardFile {
    pub(crate) dashboards: Vec<Dashboard>,
}

/// One dashboard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dashboard {
    /// Name of the JSON file, without `.json`.
    pub(crate) file: String,
    /// Grafana's own name for it, which stays when the title changes.
    pub(crate) uid: String,
    pub(crate) title: String,
    pub(crate) description: String,
    /// The page and heading that explain it.
    pub(crate) docs: String,
    pub(crate) rows: Vec<Row>,
}

/// Panels under a heading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) title: String,
    pub(crate) panels: Vec<Panel>,
}

/// A panel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panel {
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) kind: PanelKind,
    /// Grafana's name of the unit.
    pub(crate) unit: String,
    pub(crate) description: String,
    /// What stands at the axis, where the unit doesn't say it.
    pub(crate) axis: Option<String>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    /// Whether series are stacked.
    #[serde(default)]
    pub(crate) stack: bool,
    /// Colours, from the least value up.
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
    pub(crate) queries: Vec<Query>,
}

/// How a panel shows its series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PanelKind {
    /// The newest value, large.
    Stat,
    /// Lines over time.
    #[default]
    Timeseries,
    /// A histogram over time, from its cumulative buckets.
    Heatmap,
}

/// A colour from a value on; without one, from the least.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) color: String,
    pub(crate) from: Option<f64>,
}

/// One expression of a panel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    pub(crate) expr: String,
    pub(crate) legend: String,
    /// Why it has no data in a healthy pool.
    pub(crate) empty: Option<String>,
    /// Why not even the test's trouble gives it any.
    pub(crate) unseen: Option<String>,
}

impl DashboardFile {
    /// Reads the file of the source tree at `root`.
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let path = folder(root).join("dashboards.yaml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    /// Every expression, with the dashboard and panel where it stands.
    pub(crate) fn queries(&self) -> impl Iterator<Item = (String, &Query)> {
        self.dashboards.iter().flat_map(|dashboard| {
            let panels = dashboard.rows.iter().flat_map(|row| &row.panels);
            panels.flat_map(|panel| {
                panel.queries.iter().map(|query| (format!("{}, \"{}\"", dashboard.file, panel.title), query))
            })
        })
    }
}

/// Where dashboards and rules are.
pub(crate) fn folder(root: &Path) -> std::path::PathBuf {
    root.join("deploy/observability")
}
