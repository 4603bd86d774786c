//! [`Comparison`]: what was predicted of one request and what was delivered; [`PhaseTally`]: the same per phase.

use serde::Serialize;

/// What must hold of a request's prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// It came alone: predicted = delivered.
    Equal,
    /// The view is partial: never more than delivered.
    NotMore,
    /// It came among others, so that its prediction may be overtaken: only told.
    Told,
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    pub(crate) phase: &'static str,
    pub(crate) request_id: String,
    /// Address of the picked engine.
    pub(crate) engine: String,
    /// How far its view was trusted, and why, unless that was exact.
    pub(crate) trust: Option<String>,
    pub(crate) rule: Rule,
    /// Why the rule doesn't hold for this one.
    pub(crate) excuse: Option<&'static str>,
    /// Tokens of the prompt, as the picker counted them before.
    pub(crate) counted_tokens: Option<u64>,
    /// Tokens of the prompt, as the engine counted them.
    pub(crate) prompt_tokens: u64,
    /// Cached tokens by what was known.
    pub(crate) predicted_tokens: u64,
    /// The same with what was expected to be there soon.
    pub(crate) expected_tokens: u64,
    /// Cached tokens that the engine reports.
    pub(crate) delivered_tokens: u64,
    /// Tokens of the answer.
    pub(crate) completion_tokens: u64,
    /// What made the decision poorer than configured.
    pub(crate) fallbacks: Vec<String>,
}

impl Comparison {
    /// Whether it breaks its rule. Prompts must be counted right under any rule.
    pub(crate) fn is_wrong(&self) -> bool {
        let held = match self.rule {
            Rule::Equal => self.predicted_tokens == self.delivered_tokens,
            Rule::NotMore => self.predicted_tokens <= self.delivered_tokens,
            Rule::Told => true,
        };
        self.counted_tokens != Some(self.prompt_tokens) || (!held && self.excuse.is_none())
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let counted = self.counted_tokens.map_or_else(|| "unknown".to_owned(), |tokens| tokens.to_string());
        format!(
            "{} at {}: predicted {}, expected {}, delivered {} of {} prompt tokens (counted before: {counted}); trust {}{}{}",
            self.request_id,
            self.engine,
            self.predicted_tokens,
            self.expected_tokens,
            self.delivered_tokens,
            self.prompt_tokens,
            self.trust.as_deref().unwrap_or("exact"),
            self.excuse.map_or_else(String::new, |excuse| format!("; {excuse}")),
            if self.fallbacks.is_empty() {
                String::new()
            } else {
                format!("; {}", self.fallbacks.join(", "))
            },
        )
    }
}

/// The comparisons of one phase, counted.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PhaseTally {
    pub(crate) phase: &'static str,
    pub(crate) requests: u64,
    /// Predicted = delivered.
    pub(crate) equal: u64,
    /// Predicted more than was delivered.
    pub(crate) more: u64,
    /// Predicted less than was delivered.
    pub(crate) less: u64,
    /// Of those: excused.
    pub(crate) excused: u64,
    /// Rules broken.
    pub(crate) wrong: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) predicted_tokens: u64,
    pub(crate) delivered_tokens: u64,
}

impl PhaseTally {
    /// One per phase, in the order in which they ran.
    pub(crate) fn of_all(comparisons: &[Comparison]) -> Vec<Self> {
        let mut tallies: Vec<Self> = Vec::new();
        for comparison in comparisons {
            if tallies.last().is_none_or(|last| last.phase != comparison.phase) {
                tallies.push(Self { phase: comparison.phase, ..Self::default() });
            }
            if let Some(last) = tallies.last_mut() {
                last.add(comparison);
            }
        }
        tallies
    }

    fn add(&mut self, comparison: &Comparison) {
        let (predicted, delivered) = (comparison.predicted_tokens, comparison.delivered_tokens);
        self.requests += 1;
        self.equal += u64::from(predicted == delivered);
        self.more += u64::from(predicted > delivered);
        self.less += u64::from(predicted < delivered);
        self.excused += u64::from(predicted != delivered && comparison.excuse.is_some());
        self.wrong += u64::from(comparison.is_wrong());
        self.prompt_tokens += comparison.prompt_tokens;
        self.predicted_tokens += predicted;
        self.delivered_tokens += delivered;
    }
}
