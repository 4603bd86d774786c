//! The figures: printed as they come, and kept for `summary.json`.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::timing::Spread;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `bench/what`.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of the value; `ratio` is baseline cost ÷ our cost.
    pub unit: &'static str,
    /// The least value that is good enough, where there is one.
    pub bar: Option<f64>,
    /// Whether the value reaches the bar.
    pub meets: Option<bool>,
}

/// All figures of a run, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure without a bar and prints its line.
    pub fn figure(&mut self, name: impl Into<String>, value: Spread, unit: &'static str) {
        self.add(name.into(), value, unit, None);
    }

    /// Adds a figure that should be at least `bar` and prints its line.
    pub fn with_bar(&mut self, name: impl Into<String>, value: Spread, unit: &'static str, bar: f64) {
        self.add(name.into(), value, unit, Some(bar));
    }

    /// What was measured so far.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// The figures that miss their bar.
    pub fn misses(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().filter(|figure| figure.meets == Some(false))
    }

    /// Writes the figures as a JSON list.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        }
        let json = serde_json::to_string_pretty(&self.figures)?;
        std::fs::write(path, json + "\n").with_context(|| format!("can't write {}", path.display()))
    }

    fn add(&mut self, name: String, value: Spread, unit: &'static str, bar: Option<f64>) {
        let meets = bar.map(|bar| value.median >= bar);
        let verdict = match (bar, meets) {
            (Some(bar), Some(true)) => format!("  bar {bar}: met"),
            (Some(bar), _) => format!("  bar {bar}: MISSED"),
            _ => String::new(),
        };
        let Spread { median, low, high } = value;
        let range = if low == high { String::new() } else { format!("{} … {}", short(low), short(high)) };
        say(&format!("  {name:<52} {:>10} {unit:<14} {range:<22}{verdict}", short(median)));
        self.figures.push(Figure { name, value: median, unit, bar, meets });
    }
}

/// Prints one line of progress.
#[allow(clippy::print_stdout, reason = "the program's output is its figures")]
pub fn say(line: &str) {
    println!("{}", line.trim_end());
}

/// Three significant digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_meets_its_bar_or_misses_it() {
        let mut report = Report::default();
        let value = Spread { median: 0.5, low: 0.4, high: 0.6 };
        report.with_bar("a/met", value, "ratio", 0.5);
        report.with_bar("a/missed", value, "ratio", 0.51);
        report.figure("a/free", value, "ns");
        let meets: Vec<Option<bool>> = report.figures().iter().map(|figure| figure.meets).collect();
        assert_eq!(meets, [Some(true), Some(false), None]);
        assert_eq!(report.misses().count(), 1);
    }
}
