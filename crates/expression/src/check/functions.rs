//! Calls of functions.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue};
use regex::{Regex, RegexBuilder};

use super::names::{math_function, math_test, text_test, unknown_function};
use super::{Checked, Checker, Part, expected};
use crate::typed::{Number, TextTest, Truth, Typed, Whole};

/// Memory that a compiled regular expression takes at most, in bytes.
const MAX_REGEX_BYTES: usize = 256 << 10;

impl Checker<'_, '_, '_> {
    pub(super) fn function(&mut self, node: &IdedExpr, call: &CallExpr) -> Checked<Part> {
        let name = call.func_name.as_str();
        let is_math =
            call.target.as_ref().is_some_and(|of| matches!(&of.expr, Expr::Ident(name) if name == "math"));
        match (name, call.target.as_deref(), &call.args[..]) {
            (name, Some(_), args) if is_math => self.math(node, name, args),
            ("size", None, [text]) | ("size", Some(text), []) => {
                let (text, is_of_request) = self.text(text)?;
                Ok(Part { typed: Typed::Whole(Whole::Size(text)), is_of_request })
            }
            ("int", None, [operand]) => {
                let part = self.part(operand)?;
                let whole = match part.typed {
                    Typed::Whole(number) => number,
                    Typed::Number(number) => Whole::Truncated(Box::new(number)),
                    Typed::Text(text) => Whole::Parsed(text),
                    other @ Typed::Truth(_) => {
                        return self.mistake(operand, expected("a number or a text", &other));
                    }
                };
                Ok(Part { typed: Typed::Whole(whole), ..part })
            }
            ("double", None, [operand]) => {
                let part = self.part(operand)?;
                let number = match part.typed {
                    Typed::Whole(number) => Number::Whole(Box::new(number)),
                    Typed::Number(number) => number,
                    Typed::Text(text) => Number::Parsed(text),
                    other @ Typed::Truth(_) => {
                        return self.mistake(operand, expected("a number or a text", &other));
                    }
                };
                Ok(Part { typed: Typed::Number(number), ..part })
            }
            ("matches", Some(text), [pattern]) | ("matches", None, [text, pattern]) => {
                let regex = self.regex(pattern)?;
                let (text, is_of_request) = self.text(text)?;
                self.memo(node, Truth::Matches(text, regex), is_of_request)
            }
            (name, Some(text), [other]) if text_test(name).is_some() => {
                let ((text, a), (other, b)) = (self.text(text)?, self.text(other)?);
                let test = text_test(name).unwrap_or(TextTest::Contains);
                self.memo(node, Truth::TestText(test, Box::new([text, other])), a && b)
            }
            _ => self.mistake(node, unknown_function(name)),
        }
    }

    fn math(&mut self, node: &IdedExpr, name: &str, args: &[IdedExpr]) -> Checked<Part> {
        let mut is_of_request = true;
        let mut numbers = Vec::with_capacity(args.len());
        for arg in args {
            let (number, same) = self.number(arg)?;
            is_of_request &= same;
            numbers.push(number);
        }
        let typed = match (name, numbers.len()) {
            ("greatest" | "least", 0) => return self.mistake(node, format!("math.{name} needs a number")),
            ("greatest", _) => Typed::Number(Number::Greatest(numbers)),
            ("least", _) => Typed::Number(Number::Least(numbers)),
            (_, 1) => {
                let number = Box::new(numbers.swap_remove(0));
                match (math_function(name), math_test(name)) {
                    (Some(function), _) => Typed::Number(Number::Function(function, number)),
                    (None, Some(test)) => Typed::Truth(Truth::TestNumber(test, number)),
                    (None, None) => return self.mistake(node, unknown_function(&format!("math.{name}"))),
                }
            }
            _ => return self.mistake(node, unknown_function(&format!("math.{name}"))),
        };
        Ok(Part { typed, is_of_request })
    }

    fn regex(&mut self, pattern: &IdedExpr) -> Checked<Regex> {
        let Expr::Literal(LiteralValue::String(text)) = &pattern.expr else {
            return self
                .mistake(pattern, "the pattern must be a text in quotes, so that it is known at load");
        };
        let mut regex = RegexBuilder::new(text.inner());
        let regex = regex.size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build();
        regex.map_err(|error| {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            self.syntax.mistake(pattern, format!("not a regular expression: {last}"))
        })
    }
}
