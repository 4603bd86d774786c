//! Compiled expressions: one tree per type, so that nothing has to be looked up or checked when they are evaluated.

use std::cell::Cell;

use regex::Regex;

use crate::Fault;
use crate::variables::{NumberVariable, Row, TextVariable, TruthVariable};

/// Tests of texts whose outcome is the same for all rows of a request, at most.
pub(crate) const MAX_MEMOS: usize = 32;

/// The outcomes of tests that are made once per request, whatever the number of rows.
pub(crate) type Memos = [Cell<Option<Result<bool, Fault>>>; MAX_MEMOS];

/// A row, and what is already known about its request.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) row: Row<'a>,
    pub(crate) memos: &'a Memos,
}

/// Something computed, by its type.
#[derive(Debug)]
pub(crate) enum Typed {
    Truth(Truth),
    Whole(Whole),
    Number(Number),
    Text(Text),
}

/// Something that is true or false.
#[derive(Debug)]
pub(crate) enum Truth {
    Constant(bool),
    Variable(TruthVariable),
    Not(Box<Truth>),
    And(Box<[Truth; 2]>),
    Or(Box<[Truth; 2]>),
    Same(Box<[Truth; 2]>),
    Choice(Box<Choice<Truth>>),
    CompareNumbers(Comparison, Box<[Number; 2]>),
    CompareWholes(Comparison, Box<[Whole; 2]>),
    CompareTexts(Comparison, Box<[Text; 2]>),
    TestText(TextTest, Box<[Text; 2]>),
    Matches(Text, Regex),
    NumberIn(Number, Vec<Number>),
    TextIn(Text, Vec<Text>),
    HasNumber(NumberVariable),
    HasText(TextVariable),
    /// NaN, infinite or finite.
    TestNumber(fn(f64) -> bool, Box<Number>),
    /// The same for all rows of a request: computed for the first one.
    Memo(usize, Box<Truth>),
}

/// A whole number, `int` in CEL.
#[derive(Debug)]
pub(crate) enum Whole {
    Constant(i64),
    Negated(Box<Whole>),
    Arithmetic(Arithmetic, Box<[Whole; 2]>),
    Choice(Box<Choice<Whole>>),
    /// Without what is behind the point.
    Truncated(Box<Number>),
    Parsed(Text),
    /// Characters of a text.
    Size(Text),
}

/// A number, `double` in CEL.
#[derive(Debug)]
pub(crate) enum Number {
    Constant(f64),
    Variable(NumberVariable),
    Whole(Box<Whole>),
    Negated(Box<Number>),
    Arithmetic(Arithmetic, Box<[Number; 2]>),
    Choice(Box<Choice<Number>>),
    Parsed(Text),
    Function(fn(f64) -> f64, Box<Number>),
    /// At least one.
    Greatest(Vec<Number>),
    /// At least one.
    Least(Vec<Number>),
}

/// A text, `string` in CEL.
#[derive(Debug)]
pub(crate) enum Text {
    Constant(Box<str>),
    Variable(TextVariable),
    Choice(Box<Choice<Text>>),
}

/// `condition ? then : otherwise`.
#[derive(Debug)]
pub(crate) struct Choice<T> {
    pub(crate) condition: Truth,
    pub(crate) then: T,
    pub(crate) otherwise: T,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// Of whole numbers only.
    Remainder,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

impl<T> Choice<T> {
    fn chosen(&self, scope: &Scope<'_>) -> Result<&T, Fault> {
        Ok(if self.condition.of(scope)? { &self.then } else { &self.otherwise })
    }
}

impl Truth {
    pub(crate) fn of(&self, scope: &Scope<'_>) -> Result<bool, Fault> {
        Ok(match self {
            Self::Constant(truth) => *truth,
            Self::Variable(variable) => variable.read(&scope.row),
            Self::Not(truth) => !truth.of(scope)?,
            // A fault on one side counts only if the other one doesn't decide, as in CEL.
            Self::And(sides) => return decided_by(false, sides, scope),
            Self::Or(sides) => return decided_by(true, sides, scope),
            Self::Same(sides) => sides[0].of(scope)? == sides[1].of(scope)?,
            Self::Choice(choice) => choice.chosen(scope)?.of(scope)?,
            Self::CompareNumbers(comparison, sides) => {
                comparison.holds(&sides[0].of(scope)?, &sides[1].of(scope)?)
            }
            Self::CompareWholes(comparison, sides) => {
                comparison.holds(&sides[0].of(scope)?, &sides[1].of(scope)?)
            }
            Self::CompareTexts(comparison, sides) => {
                comparison.holds(sides[0].of(scope)?, sides[1].of(scope)?)
            }
            Self::TestText(test, sides) => test.holds(sides[0].of(scope)?, sides[1].of(scope)?),
            Self::Matches(text, regex) => regex.is_match(text.of(scope)?),
            Self::NumberIn(number, list) => {
                let number = number.of(scope)?;
                any(list.iter().map(|other| Ok(other.of(scope)? == number)))?
            }
            Self::TextIn(text, list) => {
                let text = text.of(scope)?;
                any(list.iter().map(|other| Ok(other.of(scope)? == text)))?
            }
            Self::HasNumber(variable) => variable.read(&scope.row).is_some(),
            Self::HasText(variable) => variable.read(&scope.row).is_some(),
            Self::TestNumber(test, number) => test(number.of(scope)?),
            Self::Memo(slot, truth) => {
                let Some(memo) = scope.memos.get(*slot) else { return truth.of(scope) };
                let outcome = memo.get().unwrap_or_else(|| truth.of(scope));
                memo.set(Some(outcome));
                outcome?
            }
        })
    }
}

fn decided_by(decisive: bool, sides: &[Truth; 2], scope: &Scope<'_>) -> Result<bool, Fault> {
    let left = sides[0].of(scope);
    if left == Ok(decisive) {
        return left;
    }
    let right = sides[1].of(scope);
    if right == Ok(decisive) { right } else { left.and(right) }
}

/// Whether one of them is true; a fault counts only if none is.
fn any(mut outcomes: impl Iterator<Item = Result<bool, Fault>>) -> Result<bool, Fault> {
    let mut fault = None;
    let found = outcomes.any(|outcome| match outcome {
        Ok(found) => found,
        Err(other) => {
            fault = Some(other);
            false
        }
    });
    match fault {
        Some(fault) if !found => Err(fault),
        _ => Ok(found),
    }
}

impl Whole {
    pub(crate) fn of(&self, scope: &Scope<'_>) -> Result<i64, Fault> {
        match self {
            Self::Constant(number) => Ok(*number),
            Self::Negated(number) => number.of(scope)?.checked_neg().ok_or(Fault::Arithmetic),
            Self::Arithmetic(arithmetic, sides) => {
                let (left, right) = (sides[0].of(scope)?, sides[1].of(scope)?);
                let result = match arithmetic {
                    Arithmetic::Add => left.checked_add(right),
                    Arithmetic::Subtract => left.checked_sub(right),
                    Arithmetic::Multiply => left.checked_mul(right),
                    Arithmetic::Divide => left.checked_div(right),
                    Arithmetic::Remainder => left.checked_rem(right),
                };
                result.ok_or(Fault::Arithmetic)
            }
            Self::Choice(choice) => choice.chosen(scope)?.of(scope),
            Self::Truncated(number) => {
                let number = number.of(scope)?.trunc();
                // 2⁶³ is the first number that doesn't fit.
                let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number);
                if fits { Ok(number as i64) } else { Err(Fault::Arithmetic) }
            }
            Self::Parsed(text) => text.of(scope)?.parse().map_err(|_| Fault::Arithmetic),
            Self::Size(text) => Ok(text.of(scope)?.chars().count() as i64),
        }
    }
}

impl Number {
    pub(crate) fn of(&self, scope: &Scope<'_>) -> Result<f64, Fault> {
        match self {
            Self::Constant(number) => Ok(*number),
            Self::Variable(variable) => variable.read(&scope.row).ok_or(Fault::NoValue),
            Self::Whole(number) => Ok(number.of(scope)? as f64),
            Self::Negated(number) => Ok(-number.of(scope)?),
            Self::Arithmetic(arithmetic, sides) => {
                let (left, right) = (sides[0].of(scope)?, sides[1].of(scope)?);
                Ok(match arithmetic {
                    Arithmetic::Add => left + right,
                    Arithmetic::Subtract => left - right,
                    Arithmetic::Multiply => left * right,
                    Arithmetic::Divide => left / right,
                    Arithmetic::Remainder => left % right,
                })
            }
            Self::Choice(choice) => choice.chosen(scope)?.of(scope),
            Self::Parsed(text) => text.of(scope)?.trim().parse().map_err(|_| Fault::Arithmetic),
            Self::Function(function, number) => Ok(function(number.of(scope)?)),
            Self::Greatest(numbers) => folded(numbers, scope, |best, number| number > best),
            Self::Least(numbers) => folded(numbers, scope, |best, number| number < best),
        }
    }
}

fn folded(numbers: &[Number], scope: &Scope<'_>, is_better: fn(f64, f64) -> bool) -> Result<f64, Fault> {
    let mut best = None;
    for number in numbers {
        let number = number.of(scope)?;
        if best.is_none_or(|best| is_better(best, number)) {
            best = Some(number);
        }
    }
    best.ok_or(Fault::NoValue)
}

impl Text {
    pub(crate) fn of<'a>(&'a self, scope: &Scope<'a>) -> Result<&'a str, Fault> {
        match self {
            Self::Constant(text) => Ok(text),
            Self::Variable(variable) => variable.read(&scope.row).ok_or(Fault::NoValue),
            Self::Choice(choice) => choice.chosen(scope)?.of(scope),
        }
    }
}

impl Comparison {
    fn holds<T: PartialOrd + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

impl TextTest {
    fn holds(self, text: &str, other: &str) -> bool {
        match self {
            Self::StartsWith => text.starts_with(other),
            Self::EndsWith => text.ends_with(other),
            Self::Contains => text.contains(other),
        }
    }
}
