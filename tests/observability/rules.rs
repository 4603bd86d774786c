//! [`RuleFile`]: `deploy/observability/rules/warmroute.yaml`, and what is known of its tests.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::check::is_about_time;
use crate::dashboard::folder;
use crate::prometheus::ActiveAlert;

/// Rules as Prometheus reads them.
#[derive(Debug, Deserialize)]
pub(crate) struct RuleFile {
    pub(crate) groups: Vec<RuleGroup>,
}

/// Rules that are evaluated one after the other.
#[derive(Debug, Deserialize)]
pub(crate) struct RuleGroup {
    pub(crate) rules: Vec<Rule>,
}

/// An alert or a recorded expression.
#[derive(Debug, Deserialize)]
pub(crate) struct Rule {
    pub(crate) alert: Option<String>,
    pub(crate) record: Option<String>,
    pub(crate) expr: String,
}

impl RuleFile {
    /// Reads the rules of the source tree at `root`.
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        read(&path(root))
    }

    /// Whether an alert depends on how fast the machine is.
    pub(crate) fn is_about_time(&self, active: &ActiveAlert) -> bool {
        let name = active.labels.get("alertname");
        self.rules().any(|rule| rule.alert.as_ref() == name && is_about_time(&rule.expr))
    }

    /// All rules.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.groups.iter().flat_map(|group| &group.rules)
    }
}

/// Where the rules are.
pub(crate) fn path(root: &Path) -> PathBuf {
    folder(root).join("rules/warmroute.yaml")
}

/// Where their tests are.
pub(crate) fn tests_path(root: &Path) -> PathBuf {
    folder(root).join("rules/warmroute.test.yaml")
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use warmroute_demo::harness::Tools;

    use super::*;

    #[derive(Deserialize)]
    struct TestFile {
        tests: Vec<TestGroup>,
    }

    #[derive(Deserialize)]
    struct TestGroup {
        alert_rule_test: Vec<AlertTest>,
    }

    #[derive(Deserialize)]
    struct AlertTest {
        alertname: String,
        exp_alerts: Vec<serde_json::Value>,
    }

    fn alerts() -> BTreeSet<String> {
        RuleFile::load(&Tools::root()).unwrap().rules().filter_map(|rule| rule.alert.clone()).collect()
    }

    #[test]
    fn every_alert_is_tested_where_it_fires_and_where_it_does_not() {
        let file: TestFile = read(&tests_path(&Tools::root())).unwrap();
        let tests = || file.tests.iter().flat_map(|group| &group.alert_rule_test);
        let of = |fires: bool| {
            let names = tests().filter(|test| test.exp_alerts.is_empty() != fires);
            names.map(|test| test.alertname.clone()).collect::<BTreeSet<String>>()
        };
        assert_eq!(of(true), alerts());
        assert_eq!(of(false), alerts());
    }

    #[test]
    fn every_alert_is_explained_and_nothing_else() {
        let page = std::fs::read_to_string(Tools::root().join("docs/kubernetes/observability.md")).unwrap();
        let headings = page.lines().filter_map(|line| line.strip_prefix("### Warmroute"));
        let explained: BTreeSet<String> = headings.map(|name| format!("Warmroute{name}")).collect();
        assert_eq!(explained, alerts());
        for section in page.split("\n### Warmroute").skip(1) {
            let name = section.lines().next().unwrap_or_default();
            for part in ["**Meaning.**", "**Cause.**", "**What to do.**"] {
                assert!(section.contains(part), "Warmroute{name} lacks {part}");
            }
        }
    }
}
