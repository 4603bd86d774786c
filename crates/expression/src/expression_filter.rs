//! `expression-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};

use crate::expression::Expression;
use crate::fault::FaultCounters;

/// Keeps the rows for which an expression is true.
///
/// A row for which the expression has no result is kept or dropped as `onError` says, and is counted as a fallback.
#[derive(Debug)]
pub struct ExpressionFilter {
    expression: Expression,
    keeps_on_error: bool,
    fallback_on_empty: bool,
    faults: FaultCounters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum OnError {
    #[default]
    Keep,
    Drop,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    expression: String,
    #[serde(default)]
    on_error: OnError,
    /// Whether all rows are kept where none would be.
    #[serde(default)]
    fallback_on_empty: bool,
}

impl ExpressionFilter {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { expression, on_error, fallback_on_empty } = parameters;
        let expression = Expression::truth(&expression, context)
            .map_err(|error| BuildError::invalid("expression", error.to_string()))?;
        let faults = FaultCounters::new(context);
        Ok(Self { expression, keeps_on_error: on_error == OnError::Keep, fallback_on_empty, faults })
    }
}

impl Filter for ExpressionFilter {
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        self.expression.evaluate(request, candidates, |row, result| {
            keep[row] = match result {
                Ok(truth) => truth != 0.0,
                Err(fault) => {
                    self.faults.add(fault);
                    self.keeps_on_error
                }
            };
        });
        if self.fallback_on_empty && !keep.contains(&true) {
            keep.fill(true);
        }
    }
}
