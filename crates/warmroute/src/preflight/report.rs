use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::checks::{Check, checks};
use super::diagnosis::diagnose;
use super::finding::{GatewayFinding, Severity};
use super::observation::Observation;

/// An examination of a gateway, ready to be printed.
#[derive(Debug, Serialize)]
pub struct Preflight {
    /// The gateway's URL.
    pub gateway: String,
    /// Whether the gateway answered and a picker saw it.
    pub examined: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
    /// What is wrong, problems first.
    pub findings: Vec<GatewayFinding>,
    /// Everything that was observed.
    pub observation: Observation,
}

impl Preflight {
    /// What an observation says.
    pub fn of(observation: Observation, thorough: bool) -> Self {
        Self {
            gateway: observation.gateway.clone(),
            examined: observation.is_reached() && observation.facts().next().is_some(),
            checks: checks(&observation, thorough),
            findings: diagnose(&observation),
            observation,
        }
    }

    /// 1 if there are findings (notes aren't), 2 if the gateway or the picker's side of it couldn't be examined, else 0.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match (self.is_wrong(), self.examined) {
            (true, _) => 1,
            (false, false) => 2,
            (false, true) => 0,
        })
    }

    fn is_wrong(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity != Severity::Note)
    }

    /// Everything as JSON.
    ///
    /// # Errors
    /// It can't be written as JSON: a mistake in this program.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    /// Everything in words.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = writeln!(text, "{}\n", self.gateway);
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for Check { name, seen } in &self.checks {
            let _ = writeln!(text, "  {name:width$}  {seen}");
        }
        if !self.examined {
            let _ = writeln!(text, "\n{}", self.unexamined());
        }
        let (notes, wrong): (Vec<_>, Vec<_>) =
            self.findings.iter().partition(|finding| finding.severity == Severity::Note);
        let _ = match wrong.len() {
            0 => writeln!(text, "\nno findings"),
            1 => writeln!(text, "\n1 finding"),
            more => writeln!(text, "\n{more} findings"),
        };
        wrong.into_iter().for_each(|finding| finding_lines(&mut text, finding));
        if !notes.is_empty() {
            let _ = writeln!(text, "\ngood to know");
            notes.into_iter().for_each(|finding| finding_lines(&mut text, finding));
        }
        text
    }

    fn unexamined(&self) -> &'static str {
        if !self.observation.is_reached() {
            "the gateway doesn't answer: is the URL right, and reachable from here?"
        } else {
            "no picker could be asked, so this is what shows from outside only: name its metrics port with --address, for \
             example after kubectl port-forward, or run this in the picker's pod"
        }
    }
}

fn finding_lines(text: &mut String, finding: &GatewayFinding) {
    let _ = writeln!(text, "\n{} ({})", finding.code.as_str(), finding.severity.as_str());
    let _ = writeln!(text, "  seen   {}", finding.seen);
    let _ = writeln!(text, "  means  {}", finding.means);
    for (at, fix) in finding.fixes.iter().enumerate() {
        let label = if at == 0 { "fix" } else { "" };
        let _ = writeln!(text, "  {label:5}  {}: {}", fix.at, fix.setting);
    }
}
