//! [`Transcript`]: what came out of each scenario, for the terminal, as Markdown and as JSON.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use parking_lot::Mutex;
use serde::Serialize;

use crate::load::{Load, Tally};
use crate::say;

/// Something that must hold.
#[derive(Debug, Clone, Serialize)]
struct Check {
    what: String,
    is_met: bool,
}

/// What came out of one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    scenario: &'static str,
    /// What happened, each with the seconds since the scenario's begin.
    events: Vec<(f64, String)>,
    checks: Vec<Check>,
    load: Option<Tally>,
    error: Option<String>,
    seconds: f64,
    #[serde(skip)]
    started: Instant,
    /// Of the load that runs, so that it can be told if the scenario ends early.
    #[serde(skip)]
    running: Option<Arc<Mutex<Tally>>>,
}

impl Row {
    pub(crate) fn new(scenario: &'static str) -> Self {
        say(&format!("--- {scenario}"));
        let (events, checks) = (Vec::new(), Vec::new());
        let (started, running) = (Instant::now(), None);
        Self { scenario, events, checks, load: None, error: None, seconds: 0.0, started, running }
    }

    /// Something happened: a progress line, and a line of the transcript.
    pub(crate) fn event(&mut self, what: impl Into<String>) {
        let what = what.into();
        say(&format!("{}: {what}", self.scenario));
        self.events.push((self.started.elapsed().as_secs_f64(), what));
    }

    /// Something must hold.
    pub(crate) fn check(&mut self, is_met: bool, what: impl Into<String>) {
        let what = what.into();
        if !is_met {
            say(&format!("{}: NOT MET: {what}", self.scenario));
        }
        self.checks.push(Check { what, is_met });
    }

    /// A load was started.
    pub(crate) fn follow(&mut self, load: &Load) {
        self.running = Some(load.tally());
    }

    /// What must hold of every load: no request fails, and every pick is a pod that was ready.
    pub(crate) fn load(&mut self, tally: Tally) {
        self.check(tally.sent > 0 && tally.failed == 0, format!("none of {} requests fails", tally.sent));
        self.check(tally.answered == tally.sent, format!("{} of them are answered whole", tally.answered));
        self.check(
            tally.wrong_picks == 0,
            format!("every pick is a pod that was ready; {} are not", tally.wrong_picks),
        );
        for failure in &tally.failures {
            say(&format!("{}: {failure}", self.scenario));
        }
        self.load = Some(tally);
    }

    /// The scenario is over.
    pub(crate) fn end(&mut self, outcome: anyhow::Result<()>) {
        self.error = outcome.err().map(|error| format!("{error:#}"));
        if let (None, Some(_), Some(running)) = (&self.load, &self.error, self.running.take()) {
            let tally = running.lock().clone();
            self.load(tally);
        }
        self.seconds = self.started.elapsed().as_secs_f64();
        say(&self.line());
    }

    fn mistakes(&self) -> usize {
        self.checks.iter().filter(|check| !check.is_met).count() + usize::from(self.error.is_some())
    }

    /// The row in words.
    fn line(&self) -> String {
        let verdict = if self.mistakes() == 0 { "ok" } else { "FAILED" };
        let load = self.load.as_ref().map_or_else(String::new, |load| {
            format!(
                ", {} requests, {} failed, {} wrong picks, {} before the news (at most {} ms)",
                load.sent, load.failed, load.wrong_picks, load.picks_before_news, load.longest_news_ms
            )
        });
        let error = self.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        format!(
            "{} {verdict} in {:.0} s: {} checks{load}{error}",
            self.scenario,
            self.seconds,
            self.checks.len()
        )
    }

    fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n\n", self.scenario, self.line());
        for (at, what) in &self.events {
            text.push_str(&format!("    {at:7.2} s  {what}\n"));
        }
        text.push('\n');
        for check in &self.checks {
            text.push_str(&format!("- {}: {}\n", if check.is_met { "yes" } else { "NO" }, check.what));
        }
        if let Some(load) = &self.load {
            text.push_str(&format!(
                "\n{} requests, {} of them streamed; half took less than {} ms, 99 % less than {} ms. Picks:",
                load.sent,
                load.streamed,
                load.latency_ms(0.5),
                load.latency_ms(0.99)
            ));
            for (address, count) in &load.picks {
                text.push_str(&format!(" {address} {count};"));
            }
            text.push('\n');
            for failure in &load.failures {
                text.push_str(&format!("- {failure}\n"));
            }
        }
        text
    }
}

/// Everything that came out.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Transcript {
    /// What it ran with, in words.
    pub(crate) about: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

impl Transcript {
    /// How many things are not as they must be.
    pub(crate) fn mistakes(&self) -> usize {
        self.rows.iter().map(Row::mistakes).sum()
    }

    /// The table, for a terminal.
    pub(crate) fn table(&self) -> String {
        let mut text =
            "| scenario | s | requests | failed | wrong picks | p50 ms | p99 ms | checks | |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for row in &self.rows {
            let load = row.load.as_ref().map_or_else(
                || " | | | | ".to_owned(),
                |load| {
                    let (half, most) = (load.latency_ms(0.5), load.latency_ms(0.99));
                    format!("{} | {} | {} | {half} | {most}", load.sent, load.failed, load.wrong_picks)
                },
            );
            let met = row.checks.iter().filter(|check| check.is_met).count();
            let verdict = if row.mistakes() == 0 { "ok" } else { "FAILED" };
            text.push_str(&format!(
                "| {} | {:.0} | {load} | {met} of {} | {verdict} |\n",
                row.scenario,
                row.seconds,
                row.checks.len()
            ));
        }
        text
    }

    /// Writes `transcript.md` and `transcript.json`.
    ///
    /// # Errors
    /// They can't be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let (text, json) = (folder.join("transcript.md"), folder.join("transcript.json"));
        let mut all = format!("# On Kubernetes\n\n{}\n\n{}", self.about.join("  \n"), self.table());
        all.extend(self.rows.iter().map(Row::markdown));
        std::fs::write(&text, all).with_context(|| format!("cannot write {}", text.display()))?;
        std::fs::write(&json, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", json.display()))?;
        Ok(text)
    }
}
