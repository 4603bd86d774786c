//! [`TruthReport`]: what came out, for the terminal, as Markdown and as JSON.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::comparison::{Comparison, PhaseTally};
use crate::driver::{Check, Driver};
use crate::trust_history::{HistoryLine, TrustHistory};

/// Everything that came out.
#[derive(Debug, Serialize)]
pub(crate) struct TruthReport {
    /// What it ran with, in words.
    versions: Vec<String>,
    phases: Vec<PhaseTally>,
    checks: Vec<Check>,
    trust: Vec<HistoryLine>,
    late_events: Vec<String>,
    comparisons: Vec<Comparison>,
    #[serde(skip)]
    history: TrustHistory,
}

impl TruthReport {
    pub(crate) fn of(driver: &Driver, versions: Vec<String>) -> Self {
        let history = driver.stack.history.clone();
        Self {
            versions,
            phases: PhaseTally::of_all(&driver.comparisons),
            checks: driver.checks.clone(),
            trust: history.lines(),
            late_events: driver.late_events.clone(),
            comparisons: driver.comparisons.clone(),
            history,
        }
    }

    /// How many things are not as they must be.
    pub(crate) fn mistakes(&self) -> usize {
        self.wrong().count() + self.checks.iter().filter(|check| !check.is_met).count()
    }

    fn wrong(&self) -> impl Iterator<Item = &Comparison> {
        self.comparisons.iter().filter(|comparison| comparison.is_wrong())
    }

    /// Writes `report.md` and `report.json`.
    ///
    /// # Errors
    /// They can't be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let (text, json) = (folder.join("report.md"), folder.join("report.json"));
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        std::fs::write(&text, self.markdown()).with_context(|| format!("cannot write {}", text.display()))?;
        std::fs::write(&json, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", json.display()))?;
        Ok(text)
    }

    /// The report for people; it reads well on a terminal, too.
    pub(crate) fn markdown(&self) -> String {
        let mut text =
            format!("# Predicted and delivered, with real vLLM\n\n{}\n", self.versions.join("  \n"));
        text.push_str(
            "\nCached prompt tokens per request, as the picker predicted and as the engine reports. Equal, more, less: \
             requests of which as many, more or fewer tokens were predicted than delivered.\n\n",
        );
        text.push_str(&self.table());
        text.push_str("\n## What must hold\n\n");
        for check in &self.checks {
            text.push_str(&format!("- {}: {}\n", if check.is_met { "yes" } else { "NO" }, check.what));
        }
        let wrong: Vec<String> =
            self.wrong().map(|comparison| format!("- {}\n", comparison.line())).collect();
        text.push_str(&format!(
            "- {}: every request is as its phase demands; {} are not\n",
            if wrong.is_empty() { "yes" } else { "NO" },
            wrong.len()
        ));
        text.push_str(&wrong.concat());
        let differing = self
            .comparisons
            .iter()
            .filter(|comparison| comparison.predicted_tokens != comparison.delivered_tokens);
        let allowed: Vec<String> = differing
            .filter(|comparison| !comparison.is_wrong())
            .map(|comparison| format!("- {}\n", comparison.line()))
            .collect();
        text.push_str(&format!("\n## Allowed differences: {}\n\n{}", allowed.len(), allowed.concat()));
        if !self.late_events.is_empty() {
            text.push_str(&format!(
                "\n## Requests whose events did not come as they were waited for: {}\n\n- {}\n",
                self.late_events.len(),
                self.late_events.join("\n- ")
            ));
        }
        text.push_str("\n## Trust over time\n\n");
        for line in &self.trust {
            let engine = if line.engine.is_empty() { String::new() } else { format!("{}: ", line.engine) };
            text.push_str(&format!(
                "- {:8.2} s  {engine}{}\n",
                self.history.seconds(line.at_unix_ms),
                line.what
            ));
        }
        text
    }

    /// Aligned, so that it can be read as it is.
    fn table(&self) -> String {
        let header = [
            "phase",
            "requests",
            "equal",
            "more",
            "less",
            "excused",
            "wrong",
            "prompt tokens",
            "predicted",
            "delivered",
        ];
        let row = |tally: &PhaseTally| {
            let numbers = [
                tally.requests,
                tally.equal,
                tally.more,
                tally.less,
                tally.excused,
                tally.wrong,
                tally.prompt_tokens,
                tally.predicted_tokens,
                tally.delivered_tokens,
            ];
            std::iter::once(tally.phase.to_owned()).chain(numbers.iter().map(ToString::to_string)).collect()
        };
        let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.phases.iter().map(row));
        let widths: Vec<usize> = (0..header.len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (at, row) in rows.iter().enumerate() {
            let cell = |(column, cell): (usize, &String)| {
                let width = widths[column];
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            };
            text.push_str(&format!(
                "| {} |\n",
                row.iter().enumerate().map(cell).collect::<Vec<_>>().join(" | ")
            ));
            if at == 0 {
                let line = |(column, width): (usize, &usize)| {
                    let dashes = "-".repeat(width.saturating_sub(1));
                    if column == 0 { format!("{dashes}-") } else { format!("{dashes}:") }
                };
                text.push_str(&format!(
                    "| {} |\n",
                    widths.iter().enumerate().map(line).collect::<Vec<_>>().join(" | ")
                ));
            }
        }
        text
    }
}
