//! Why an expression has no result for a row.

use warmroute_plugin::{BuildContext, FallbackCounter};

/// Why an expression has no result for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A variable has no value: a header that the request doesn't have, metrics that aren't fresh.
    #[error("a value is missing")]
    NoValue,
    /// A whole number divided by 0, or too large; a text that is no number; a score that is no number.
    #[error("arithmetic has no result")]
    Arithmetic,
}

/// How often an expression had no result, by the reason.
#[derive(Clone, Debug)]
pub(crate) struct FaultCounters {
    no_value: FallbackCounter,
    arithmetic: FallbackCounter,
}

impl FaultCounters {
    pub(crate) fn new(context: &mut BuildContext<'_>) -> Self {
        let no_value = context.fallback_counter("a value that the expression reads is missing");
        let arithmetic = context.fallback_counter("the expression's arithmetic has no result");
        Self { no_value, arithmetic }
    }

    pub(crate) fn add(&self, fault: Fault) {
        match fault {
            Fault::NoValue => self.no_value.add(1),
            Fault::Arithmetic => self.arithmetic.add(1),
        }
    }
}
