//! `expression-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::expression::Expression;
use crate::fault::FaultCounters;

/// Scores every row by an expression. The result is a score, cut off at 0 and 1, or with a `normalize` any number,
/// whose place between the lowest and the highest of the candidates is the score.
///
/// A row for which the expression has no result gets the score `onError`, and is counted as a fallback.
#[derive(Debug)]
pub struct ExpressionScorer {
    expression: Expression,
    normalize: Normalize,
    on_error: f64,
    faults: FaultCounters,
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Normalize {
    /// A result is a score.
    #[default]
    None,
    /// The highest result is 1, the lowest 0; all 1 if they are equal.
    HigherIsBetter,
    /// The lowest result is 1, the highest 0; all 1 if they are equal.
    LowerIsBetter,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    expression: String,
    #[serde(default)]
    normalize: Normalize,
    /// The score of a row for which there is no result, 0 to 1.
    #[serde(default)]
    on_error: f64,
}

impl ExpressionScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { expression, normalize, on_error } = parameters;
        if !(0.0..=1.0).contains(&on_error) {
            return Err(BuildError::invalid("onError", "must be from 0 to 1"));
        }
        let expression = Expression::number(&expression, context)
            .map_err(|error| BuildError::invalid("expression", error.to_string()))?;
        Ok(Self { expression, normalize, on_error, faults: FaultCounters::new(context) })
    }

    /// Spreads the results over 0 to 1; NaN marks rows without one.
    fn normalize(&self, scores: &mut [f64]) {
        // An infinite result would leave nothing for the others.
        let bounded = |score: f64| score.clamp(-1e300, 1e300);
        let known = || scores.iter().copied().filter(|score| !score.is_nan()).map(bounded);
        let (lowest, highest) = (known().fold(f64::MAX, f64::min), known().fold(f64::MIN, f64::max));
        let range = highest - lowest;
        for score in scores {
            if score.is_nan() {
                *score = self.on_error;
            } else if range > 0.0 {
                let share = (bounded(*score) - lowest) / range;
                *score = if self.normalize == Normalize::LowerIsBetter { 1.0 - share } else { share };
            } else {
                *score = 1.0;
            }
        }
    }
}

impl Scorer for ExpressionScorer {
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let missing = if self.normalize == Normalize::None { self.on_error } else { f64::NAN };
        self.expression.evaluate(request, candidates, |row, result| {
            scores[row] = result.unwrap_or_else(|fault| {
                self.faults.add(fault);
                missing
            });
        });
        if self.normalize != Normalize::None {
            self.normalize(scores);
        }
    }
}
