//! A compiled expression.

use std::cell::Cell;

use warmroute_plugin::{BuildContext, Candidates, InferenceRequest};

use crate::check::{Checker, type_name};
use crate::syntax::Syntax;
use crate::typed::{MAX_MEMOS, Memos, Number, Scope, Truth, Typed};
use crate::variables::Row;
use crate::{ExpressionError, Fault};

/// A compiled expression, whose result is a number or a truth per row.
///
/// Its size is bounded (4,096 bytes, 500 steps, 64 levels), it doesn't loop, and evaluating it allocates nothing.
#[derive(Debug)]
pub struct Expression(Compiled);

#[derive(Debug)]
enum Compiled {
    Number(Number),
    Truth(Truth),
}

impl Expression {
    /// Compiles an expression whose result is a number, or true and false for 1 and 0. Columns that it reads are
    /// asked for.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and where.
    pub fn number(source: &str, context: &mut BuildContext<'_>) -> Result<Self, ExpressionError> {
        let syntax = Syntax::read(source)?;
        let compiled = match Checker::check(&syntax, context)? {
            Typed::Number(number) => Compiled::Number(number),
            Typed::Whole(number) => Compiled::Number(Number::Whole(Box::new(number))),
            Typed::Truth(truth) => Compiled::Truth(truth),
            text @ Typed::Text(_) => {
                let message =
                    format!("the result must be a number, or true or false, not {}", type_name(&text));
                return Err(syntax.mistake(&syntax.root, message));
            }
        };
        Ok(Self(compiled))
    }

    /// Compiles an expression whose result is true or false. Columns that it reads are asked for.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and where.
    pub fn truth(source: &str, context: &mut BuildContext<'_>) -> Result<Self, ExpressionError> {
        let syntax = Syntax::read(source)?;
        match Checker::check(&syntax, context)? {
            Typed::Truth(truth) => Ok(Self(Compiled::Truth(truth))),
            other => {
                let message = format!("the result must be true or false, not {}", type_name(&other));
                Err(syntax.mistake(&syntax.root, message))
            }
        }
    }

    /// Evaluates it for every row, in order; true is 1, false is 0.
    ///
    /// A result that is no number is a fault; infinite ones are not.
    pub fn evaluate(
        &self,
        request: &InferenceRequest,
        candidates: &Candidates<'_>,
        mut result: impl FnMut(usize, Result<f64, Fault>),
    ) {
        let memos: Memos = [const { Cell::new(None) }; MAX_MEMOS];
        for row in 0..candidates.len() {
            let scope = Scope { row: Row { request, candidates, row }, memos: &memos };
            let value = match &self.0 {
                Compiled::Number(number) => number.of(&scope),
                Compiled::Truth(truth) => truth.of(&scope).map(|truth| f64::from(u8::from(truth))),
            };
            result(
                row,
                value.and_then(|value| if value.is_nan() { Err(Fault::Arithmetic) } else { Ok(value) }),
            );
        }
    }
}
