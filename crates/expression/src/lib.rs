//! Scorers and filters for those who don't want to compile: an expression in the configuration.
//!
//! ```yaml
//! - type: expression-scorer
//!   name: idle-and-warm
//!   parameters:
//!     expression: >-
//!       0.7 * prefix["precise-prefix-cache-producer"].matched_ratio + 0.3 / (1 + in_flight.requests)
//! - type: expression-filter
//!   name: zone-of-the-tenant
//!   parameters:
//!     expression: >-
//!       !has(request.headers.zone) || endpoint.labels["zone"] == request.headers.zone
//! ```
//!
//! The language is a part of [CEL](https://github.com/google/cel-spec), read by the `cel` crate's parser and then
//! checked and compiled here, at load: names, types and the size of what is computed. So an expression that is taken
//! has a known type and bounded cost, reads only the signals that it names, and can fail in two ways only: a value that
//! isn't there, and whole-number arithmetic without a result. Nothing in it loops, joins texts, or allocates when it is
//! evaluated.
//!
//! `docs/expressions.md` has the variables, the operators and functions, and what differs from CEL.

mod check;
mod expression;
mod expression_filter;
mod expression_scorer;
mod fault;
mod syntax;
mod typed;
mod variables;

pub use expression::Expression;
pub use expression_filter::ExpressionFilter;
pub use expression_scorer::ExpressionScorer;
pub use fault::Fault;
pub use syntax::ExpressionError;

use warmroute_plugin::{DuplicateType, Registry};

/// Registers `expression-scorer` and `expression-filter`.
///
/// # Errors
///
/// If one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.scorer(
        "expression-scorer",
        "scores every endpoint by an expression (CEL) over the request and the endpoint's signals",
        ExpressionScorer::build,
    )?;
    registry.filter(
        "expression-filter",
        "keeps endpoints for which an expression (CEL) is true",
        ExpressionFilter::build,
    )
}
