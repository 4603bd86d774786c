//! What had to come out.

use serde::Serialize;

use super::{PolicyReport, Report};
use crate::DemoError;
use crate::scenario::HitRatioLead;

/// One expectation and what came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpectationReport {
    /// In words, with the figure that was measured.
    pub text: String,
    /// Whether it came true.
    pub is_met: bool,
}

impl ExpectationReport {
    /// Looks at each expectation whose policies both ran.
    pub fn of(expected: &[HitRatioLead], policies: &[PolicyReport]) -> Vec<Self> {
        let ratio = |name: &str| policies.iter().find(|policy| policy.name == name).map(|p| p.hit_ratio);
        let look = |lead: &HitRatioLead| {
            let points = 100.0 * (ratio(&lead.policy)? - ratio(&lead.over)?);
            let text = format!(
                "the hit ratio of {} is {points:+.1} points from that of {}, and must be {:+.1} or more",
                lead.policy, lead.over, lead.points
            );
            Some(Self { text, is_met: points >= lead.points })
        };
        expected.iter().filter_map(look).collect()
    }
}

impl Report {
    /// Says which expectations were missed.
    ///
    /// # Errors
    /// [`DemoError::Missed`] if any was.
    pub fn refuse_missed(&self) -> Result<(), DemoError> {
        let missed = |(scenario, expectation): (&str, &ExpectationReport)| {
            (!expectation.is_met).then(|| format!("{scenario}: {}", expectation.text))
        };
        let all = self
            .scenarios
            .iter()
            .flat_map(|scenario| scenario.expectations.iter().map(|one| (scenario.name.as_str(), one)));
        let missed: Vec<String> = all.filter_map(missed).collect();
        if missed.is_empty() { Ok(()) } else { Err(DemoError::Missed { missed }) }
    }
}
