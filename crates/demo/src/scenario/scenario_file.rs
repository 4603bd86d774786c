//! [`ScenarioFile`]: `deploy/demo/scenarios.yaml`.

use std::path::Path;

use serde::Deserialize;

use crate::DemoError;
use crate::harness::EngineOptions;

/// All scenarios.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioFile {
    /// The model name that requests carry and engines serve.
    pub model: String,
    /// The policies that are compared where a scenario names none, in the order in which they run: files in
    /// `policies/`, without `.yaml`.
    pub policies: Vec<String>,
    /// In the order in which they run.
    pub scenarios: Vec<Scenario>,
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, as `--scenario` takes it.
    pub name: String,
    /// One sentence for the report.
    pub description: String,
    /// How many replicas of the picker, each of which Envoy may ask for any request.
    #[serde(default = "one")]
    pub pickers: usize,
    /// The policies that are compared here; empty for the file's.
    #[serde(default)]
    pub policies: Vec<String>,
    /// What must come out.
    #[serde(default)]
    pub expect: Vec<HitRatioLead>,
    /// The engines.
    pub engines: EngineSpec,
    /// The requests.
    pub workload: Workload,
}

fn one() -> usize {
    1
}

/// An expectation: the hit ratio of one policy is above that of another.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HitRatioLead {
    /// The policy that leads.
    pub policy: String,
    /// The one that it is compared with.
    pub over: String,
    /// By how many percentage points of the hit ratio at least; a negative number is what noise may take away.
    pub points: f64,
}

impl Scenario {
    /// The policies that are compared: its own, or else those of `file`.
    pub fn policies<'a>(&'a self, file: &'a ScenarioFile) -> &'a [String] {
        if self.policies.is_empty() { &file.policies } else { &self.policies }
    }
}

/// The engines of a scenario.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// How many.
    pub count: u8,
    /// Tokens per KV block.
    pub block_size_tokens: u32,
    /// KV blocks of each engine.
    pub num_gpu_blocks: u32,
    /// Requests that one engine runs at once.
    pub max_num_seqs: u32,
    /// Time for each prompt token that is not cached, in µs.
    pub prefill_us_per_token: f64,
    /// Time for each generated token, in ms.
    pub decode_ms_per_token: f64,
}

/// The requests of a scenario.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// The same request again and again.
    Repeat(RepeatSpec),
    /// Groups of requests with a long beginning in common.
    SharedPrefix(SharedPrefixSpec),
}

/// One warm-up request of another session, then identical requests one after another.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatSpec {
    /// How many measured requests.
    pub requests: usize,
    /// Pause between two of them, in ms.
    pub gap_ms: u64,
    /// Generated tokens of each.
    pub max_tokens: u32,
    /// The user's message.
    pub prompt: String,
}

/// Many groups of requests; those of one group share a long system message. Arrivals are a Poisson process over the
/// shuffled questions of all groups; before it, one question of each group warms the caches.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefixSpec {
    /// Seed of the texts, the order and the arrival times.
    pub seed: u64,
    /// How many groups.
    pub groups: usize,
    /// Measured questions of each group.
    pub questions_per_group: usize,
    /// Words of a group's common text.
    pub prefix_words: usize,
    /// Words of a question.
    pub question_words: usize,
    /// Generated tokens of each request.
    pub max_tokens: u32,
    /// Arrivals per second of the warm-up.
    pub warm_up_rate_per_s: f64,
    /// Arrivals per second of the measured requests.
    pub rate_per_s: f64,
}

impl ScenarioFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`DemoError::File`], or [`DemoError::Scenario`] with the place of the mistake.
    pub fn load(path: &Path) -> Result<Self, DemoError> {
        let text = std::fs::read_to_string(path).map_err(DemoError::file("read", path))?;
        let wrong = |reason: String| DemoError::Scenario { path: path.to_owned(), reason };
        serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))
    }

    /// The scenario of this name.
    ///
    /// # Errors
    /// [`DemoError::Unknown`].
    pub fn get(&self, name: &str) -> Result<&Scenario, DemoError> {
        let unknown = || DemoError::Unknown {
            kind: "scenario",
            name: name.to_owned(),
            known: self.scenarios.iter().map(|scenario| scenario.name.clone()).collect(),
        };
        self.scenarios.iter().find(|scenario| scenario.name == name).ok_or_else(unknown)
    }
}

impl EngineSpec {
    /// As the harness takes it.
    pub fn options(&self, model: &str) -> EngineOptions {
        EngineOptions {
            count: self.count,
            one_process: true,
            model: model.to_owned(),
            block_size_tokens: self.block_size_tokens,
            num_gpu_blocks: self.num_gpu_blocks,
            max_num_seqs: self.max_num_seqs,
            prefill_us_per_token: self.prefill_us_per_token,
            decode_ms_per_token: self.decode_ms_per_token,
            extra_args: Vec::new(),
        }
    }
}
