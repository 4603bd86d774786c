//! What came out: a table for the terminal, `report.json` for programs, `report.html` for people.

mod chart;
mod expectation;
mod html;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::DemoError;
use crate::load::Outcome;
use crate::scrape::{CacheCounters, Histogram};

pub use expectation::ExpectationReport;
pub use html::html;
pub use table::table;

/// Above this share of processor time in use, waiting for a processor shows in the times.
const CROWDED: f64 = 0.7;

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// In the order in which they ran.
    pub scenarios: Vec<ScenarioReport>,
    /// What it ran on.
    pub machine: Machine,
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScenarioReport {
    /// Its name.
    pub name: String,
    /// In the order in which they ran.
    pub policies: Vec<PolicyReport>,
    /// One sentence on it.
    pub description: String,
    /// What had to come out, and whether it did.
    pub expectations: Vec<ExpectationReport>,
    /// The engines and the load, in words.
    pub setup: Vec<String>,
}

/// One scenario under one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// The policy's name.
    pub name: String,
    /// Measured requests.
    pub requests: usize,
    /// Those of them that failed.
    pub errors: usize,
    /// Prompt tokens, as the engines counted them.
    pub prompt_tokens: u64,
    /// Those of them that the engines found in their prefix caches, as the engines counted them.
    pub cached_tokens: u64,
    /// Those of them that could have been found at best (see [`crate::ceiling::Ceiling`]).
    pub ceiling_tokens: u64,
    /// `cached_tokens / prompt_tokens`.
    pub hit_ratio: f64,
    /// Time to first token, in ms, from the time at which a request was due to the first generated text.
    pub ttft_ms: Percentiles,
    /// Time of the picker's decisions, in ms, from its own histogram.
    pub picker_ms: PickerPercentiles,
    /// Prompt tokens of the busiest engine, as a multiple of the mean: 1 is even, the number of engines is all to one.
    pub spread: f64,
    /// One sentence on the policy.
    pub description: String,
    /// How often each kind of failure happened.
    pub failures: Vec<FailureCount>,
    /// What each engine was given.
    pub engines: Vec<EngineShare>,
    /// The 0th, 1st, … 100th percentile of the time to first token, in ms; empty if no request succeeded.
    pub ttft_percentiles_ms: Vec<f64>,
    /// Time to the end of the answer, in ms.
    pub total_ms: Percentiles,
    /// How late the load generator sent requests, in ms: its own fault, and part of every time above.
    pub lag_ms: Percentiles,
    /// Share of the machine's processor time that was in use while this was measured, 0 to 1.
    pub machine_busy: Option<f64>,
}

/// Percentiles in ms; `null` in JSON where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the values are below.
    pub p50: Option<f64>,
    /// 90 % of the values are below.
    pub p90: Option<f64>,
    /// 99 % of the values are below.
    pub p99: Option<f64>,
}

/// Percentiles of the picker's decisions in ms, estimated from histogram buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PickerPercentiles {
    /// Half of the values are below.
    pub p50: Option<f64>,
    /// 99 % of the values are below.
    pub p99: Option<f64>,
}

/// A kind of failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// What went wrong.
    pub reason: String,
    /// How often.
    pub count: usize,
}

/// What one engine was given and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineShare {
    /// Its address.
    pub address: String,
    /// Prompt tokens that it was given.
    pub prompt_tokens: u64,
    /// Those of them that it found in its cache.
    pub cached_tokens: u64,
}

/// What the demo ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Processor, cores, memory, operating system, in words.
    pub hardware: String,
    /// Versions of what took part, in words.
    pub versions: Vec<String>,
}

impl Percentiles {
    /// Of `values`, in ms.
    pub fn of(values: impl IntoIterator<Item = Duration>) -> Self {
        let sorted = sorted_ms(values);
        Self { p50: percentile(&sorted, 0.5), p90: percentile(&sorted, 0.9), p99: percentile(&sorted, 0.99) }
    }
}

impl PickerPercentiles {
    /// Of a histogram of seconds.
    pub fn of(histogram: Option<&Histogram>) -> Self {
        let ms =
            |q| histogram.and_then(|histogram| histogram.quantile(q)).map(|seconds| rounded(seconds * 1e3));
        Self { p50: ms(0.5), p99: ms(0.99) }
    }
}

/// What [`PolicyReport::new`] takes, beside the outcomes.
#[derive(Debug, Clone)]
pub struct Measured<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// One sentence on the policy.
    pub description: &'a str,
    /// What each engine counted meanwhile, with its address.
    pub engines: &'a [(String, CacheCounters)],
    /// What the picker counted meanwhile.
    pub decisions: Option<&'a Histogram>,
    /// What could have been hit at best.
    pub ceiling_tokens: u64,
    /// Share of the machine that was in use.
    pub machine_busy: Option<f64>,
}

impl PolicyReport {
    /// Sums up one run.
    pub fn new(measured: &Measured<'_>, outcomes: &[Outcome]) -> Self {
        let failures = count_failures(outcomes);
        let prompt_tokens = measured.engines.iter().map(|(_, counters)| counters.queried_tokens).sum();
        let cached_tokens = measured.engines.iter().map(|(_, counters)| counters.hit_tokens).sum();
        let succeeded = || outcomes.iter().filter(|outcome| outcome.failure.is_none());
        let ttfts = sorted_ms(succeeded().filter_map(|outcome| outcome.ttft));
        let share = |(address, counters): &(String, CacheCounters)| EngineShare {
            address: address.clone(),
            prompt_tokens: counters.queried_tokens,
            cached_tokens: counters.hit_tokens,
        };
        let engines: Vec<EngineShare> = measured.engines.iter().map(share).collect();
        Self {
            name: measured.policy.to_owned(),
            requests: outcomes.len(),
            errors: failures.iter().map(|failure| failure.count).sum(),
            prompt_tokens,
            cached_tokens,
            ceiling_tokens: measured.ceiling_tokens,
            hit_ratio: ratio(cached_tokens, prompt_tokens),
            ttft_ms: Percentiles::of(succeeded().filter_map(|outcome| outcome.ttft)),
            picker_ms: PickerPercentiles::of(measured.decisions),
            spread: spread(&engines),
            description: measured.description.to_owned(),
            failures,
            engines,
            ttft_percentiles_ms: (0..=100).filter_map(|q| percentile(&ttfts, f64::from(q) / 100.0)).collect(),
            total_ms: Percentiles::of(succeeded().map(|outcome| outcome.total)),
            lag_ms: Percentiles::of(outcomes.iter().map(|outcome| outcome.lag)),
            machine_busy: measured.machine_busy,
        }
    }

    /// Whether so much of the machine was in use that the times are not the engines' alone.
    pub fn is_crowded(&self) -> bool {
        self.machine_busy.is_some_and(|busy| busy > CROWDED)
    }

    /// `ceiling_tokens / prompt_tokens`.
    pub fn ceiling_ratio(&self) -> f64 {
        ratio(self.ceiling_tokens, self.prompt_tokens)
    }
}

impl Report {
    /// Writes `report.json` and `report.html` into `folder` and returns their paths.
    ///
    /// # Errors
    /// [`DemoError::File`].
    pub fn write(&self, folder: &Path) -> Result<[PathBuf; 2], DemoError> {
        std::fs::create_dir_all(folder).map_err(DemoError::file("create", folder))?;
        let json_path = folder.join("report.json");
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| DemoError::file("write", &json_path)(std::io::Error::other(error)))?;
        std::fs::write(&json_path, json).map_err(DemoError::file("write", &json_path))?;
        let html_path = folder.join("report.html");
        std::fs::write(&html_path, html(self)).map_err(DemoError::file("write", &html_path))?;
        Ok([json_path, html_path])
    }
}

/// The busiest engine's share of the prompt tokens, as a multiple of the mean; 0 if there were none.
fn spread(engines: &[EngineShare]) -> f64 {
    let busiest = engines.iter().map(|engine| engine.prompt_tokens).max().unwrap_or(0);
    let all = engines.iter().map(|engine| engine.prompt_tokens).sum();
    ratio(busiest, all) * engines.len() as f64
}

fn count_failures(outcomes: &[Outcome]) -> Vec<FailureCount> {
    let mut counts = std::collections::BTreeMap::new();
    for failure in outcomes.iter().filter_map(|outcome| outcome.failure.as_ref()) {
        *counts.entry(failure.to_string()).or_insert(0) += 1;
    }
    counts.into_iter().map(|(reason, count)| FailureCount { reason, count }).collect()
}

fn sorted_ms(values: impl IntoIterator<Item = Duration>) -> Vec<f64> {
    let mut ms: Vec<f64> = values.into_iter().map(|value| value.as_secs_f64() * 1e3).collect();
    ms.sort_unstable_by(f64::total_cmp);
    ms
}

/// The smallest value that at least a share `q` of the values does not exceed (nearest rank).
fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().map(rounded)
}

/// To a µs, which is finer than anything here is measured.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
