//! From a syntax tree to a compiled expression: names, types, and the bounds on what is computed.

mod functions;
mod names;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};
use warmroute_plugin::BuildContext;

use self::names::{arithmetic, comparison, logical};
use crate::ExpressionError;
use crate::syntax::Syntax;
use crate::typed::{Arithmetic, Choice, Comparison, MAX_MEMOS, Number, Text, Truth, Typed, Whole};
use crate::variables::{NumberVariable, TextVariable, Variable, variable};

/// Operators, calls, variables and constants, at most.
const MAX_NODES: usize = 500;
/// Operators in operators and calls in calls, at most.
const MAX_DEPTH: usize = 64;

type Checked<T> = Result<T, ExpressionError>;

/// Checks one expression.
pub(crate) struct Checker<'s, 'c, 'n> {
    syntax: &'s Syntax,
    context: &'c mut BuildContext<'n>,
    nodes: usize,
    depth: usize,
    memos: usize,
}

/// A compiled part, and whether it is the same for all rows of a request.
struct Part {
    typed: Typed,
    is_of_request: bool,
}

impl<'s, 'c, 'n> Checker<'s, 'c, 'n> {
    /// Compiles the whole expression.
    ///
    /// # Errors
    ///
    /// The first mistake, with its place.
    pub(crate) fn check(syntax: &'s Syntax, context: &'c mut BuildContext<'n>) -> Checked<Typed> {
        let mut checker = Self { syntax, context, nodes: 0, depth: 0, memos: 0 };
        Ok(checker.part(&syntax.root)?.typed)
    }

    fn mistake<T>(&self, node: &IdedExpr, message: impl Into<String>) -> Checked<T> {
        Err(self.syntax.mistake(node, message))
    }

    fn part(&mut self, node: &IdedExpr) -> Checked<Part> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.mistake(node, format!("this is too much: at most {MAX_NODES} steps are taken"));
        }
        if self.depth >= MAX_DEPTH {
            return self.mistake(node, format!("nested too deeply: at most {MAX_DEPTH} levels are taken"));
        }
        self.depth += 1;
        let part = self.part_below(node);
        self.depth -= 1;
        part
    }

    fn part_below(&mut self, node: &IdedExpr) -> Checked<Part> {
        match &node.expr {
            Expr::Literal(literal) => match constant(literal) {
                Some(typed) => Ok(Part { typed, is_of_request: true }),
                None => {
                    self.mistake(node, "there are numbers, texts, true and false, and no other constants")
                }
            },
            Expr::Call(call) if call.func_name != operators::INDEX => self.call(node, call),
            Expr::Select(select) if select.test => self.presence(node),
            Expr::Ident(_) | Expr::Select(_) | Expr::Call(_) => self.variable(node),
            Expr::List(_) => self.mistake(node, "a list can only be on the right-hand side of `in`"),
            Expr::Comprehension(_) => {
                self.mistake(node, "all, exists, exists_one, map and filter aren't available: nothing loops")
            }
            Expr::Map(_) | Expr::Struct(_) => self.mistake(node, "maps can't be written here"),
            _ => self.mistake(node, "this isn't available"),
        }
    }

    /// The names that lead to a variable: `a.b["c"]` is a, b and c.
    fn path<'e>(&self, node: &'e IdedExpr) -> Checked<Vec<&'e str>> {
        let mut path = Vec::new();
        let mut node = node;
        loop {
            match &node.expr {
                Expr::Ident(name) => path.push(name.as_str()),
                Expr::Select(select) => {
                    path.push(&select.field);
                    node = &select.operand;
                    continue;
                }
                Expr::Call(CallExpr { func_name, target: None, args }) if func_name == operators::INDEX => {
                    let [of, key] = &args[..] else {
                        return self.mistake(node, "an index needs one key");
                    };
                    let Expr::Literal(LiteralValue::String(key)) = &key.expr else {
                        return self
                            .mistake(key, "the key must be a text in quotes, so that it is known at load");
                    };
                    path.push(key.inner());
                    node = of;
                    continue;
                }
                _ => return self.mistake(node, "only variables have fields"),
            }
            path.reverse();
            // Longer ones don't exist, and would make long messages.
            path.truncate(5);
            return Ok(path);
        }
    }

    fn variable(&mut self, node: &IdedExpr) -> Checked<Part> {
        let path = self.path(node)?;
        let found = variable(&path, self.context).map_err(|message| self.syntax.mistake(node, message))?;
        let is_of_request = is_of_request(&found);
        let typed = match found {
            Variable::Number(variable) => Typed::Number(Number::Variable(variable)),
            Variable::Truth(variable) => Typed::Truth(Truth::Variable(variable)),
            Variable::Text(variable) => Typed::Text(Text::Variable(variable)),
        };
        Ok(Part { typed, is_of_request })
    }

    /// `has(a.b)`.
    fn presence(&mut self, node: &IdedExpr) -> Checked<Part> {
        let path = self.path(node)?;
        self.presence_of(node, &path)
    }

    fn presence_of(&mut self, node: &IdedExpr, path: &[&str]) -> Checked<Part> {
        let found = variable(path, self.context).map_err(|message| self.syntax.mistake(node, message))?;
        let is_of_request = is_of_request(&found);
        let truth = match found {
            Variable::Number(variable) => Truth::HasNumber(variable),
            Variable::Text(variable) => Truth::HasText(variable),
            Variable::Truth(_) => Truth::Constant(true),
        };
        self.memo(node, truth, is_of_request)
    }

    fn call(&mut self, node: &IdedExpr, call: &CallExpr) -> Checked<Part> {
        match (call.func_name.as_str(), call.target.as_deref(), &call.args[..]) {
            (operators::CONDITIONAL, None, [condition, then, otherwise]) => {
                self.choice(node, condition, then, otherwise)
            }
            (operators::LOGICAL_NOT, None, [operand]) => {
                let (truth, is_of_request) = self.truth(operand)?;
                Ok(Part { typed: Typed::Truth(Truth::Not(Box::new(truth))), is_of_request })
            }
            (operators::NEGATE, None, [operand]) => {
                let part = self.part(operand)?;
                let typed = match part.typed {
                    Typed::Whole(number) => Typed::Whole(Whole::Negated(Box::new(number))),
                    Typed::Number(number) => Typed::Number(Number::Negated(Box::new(number))),
                    other => return self.mistake(operand, expected("a number", &other)),
                };
                Ok(Part { typed, ..part })
            }
            (operators::IN, None, [what, list]) => self.membership(what, list),
            (operator, None, [left, right]) => {
                if let Some(make) = logical(operator) {
                    let ((left, a), (right, b)) = (self.truth(left)?, self.truth(right)?);
                    let typed = Typed::Truth(make(Box::new([left, right])));
                    return Ok(Part { typed, is_of_request: a && b });
                }
                if let Some(arithmetic) = arithmetic(operator) {
                    return self.arithmetic(node, arithmetic, left, right);
                }
                if let Some(comparison) = comparison(operator) {
                    return self.comparison(node, comparison, left, right);
                }
                self.function(node, call)
            }
            _ => self.function(node, call),
        }
    }

    fn choice(
        &mut self,
        node: &IdedExpr,
        condition: &IdedExpr,
        then: &IdedExpr,
        otherwise: &IdedExpr,
    ) -> Checked<Part> {
        let (condition, is_of_request) = self.truth(condition)?;
        let (then, otherwise) = (self.part(then)?, self.part(otherwise)?);
        let is_of_request = is_of_request && then.is_of_request && otherwise.is_of_request;
        let typed = match (then.typed, otherwise.typed) {
            (Typed::Truth(then), Typed::Truth(otherwise)) => {
                Typed::Truth(Truth::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Whole(then), Typed::Whole(otherwise)) => {
                Typed::Whole(Whole::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Text(then), Typed::Text(otherwise)) => {
                Typed::Text(Text::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (then, otherwise) => {
                let names = (type_name(&then), type_name(&otherwise));
                match (number(then), number(otherwise)) {
                    (Some(then), Some(otherwise)) => {
                        Typed::Number(Number::Choice(Box::new(Choice { condition, then, otherwise })))
                    }
                    _ => {
                        let message =
                            format!("both outcomes must be of one type, not {} and {}", names.0, names.1);
                        return self.mistake(node, message);
                    }
                }
            }
        };
        Ok(Part { typed, is_of_request })
    }

    fn arithmetic(
        &mut self,
        node: &IdedExpr,
        arithmetic: Arithmetic,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Checked<Part> {
        let (left, right) = (self.part(left)?, self.part(right)?);
        let is_of_request = left.is_of_request && right.is_of_request;
        let typed = match (left.typed, right.typed) {
            (Typed::Whole(left), Typed::Whole(right)) => {
                Typed::Whole(Whole::Arithmetic(arithmetic, Box::new([left, right])))
            }
            (Typed::Text(_), Typed::Text(_)) => return self.mistake(node, "texts can't be joined"),
            (left, right) => {
                let names = (type_name(&left), type_name(&right));
                match (number(left), number(right)) {
                    (Some(_), Some(_)) if matches!(arithmetic, Arithmetic::Remainder) => {
                        return self.mistake(node, "% is for whole numbers; make one of a number with int()");
                    }
                    (Some(left), Some(right)) => {
                        Typed::Number(Number::Arithmetic(arithmetic, Box::new([left, right])))
                    }
                    _ => {
                        let message = format!("{} and {} can't be calculated with", names.0, names.1);
                        return self.mistake(node, message);
                    }
                }
            }
        };
        Ok(Part { typed, is_of_request })
    }

    fn comparison(
        &mut self,
        node: &IdedExpr,
        comparison: Comparison,
        left: &IdedExpr,
        right: &IdedExpr,
    ) -> Checked<Part> {
        let (left, right) = (self.part(left)?, self.part(right)?);
        let is_of_request = left.is_of_request && right.is_of_request;
        let truth = match (left.typed, right.typed) {
            (Typed::Text(left), Typed::Text(right)) => {
                Truth::CompareTexts(comparison, Box::new([left, right]))
            }
            (Typed::Whole(left), Typed::Whole(right)) => {
                Truth::CompareWholes(comparison, Box::new([left, right]))
            }
            (Typed::Truth(left), Typed::Truth(right)) => match comparison {
                Comparison::Equal => Truth::Same(Box::new([left, right])),
                Comparison::NotEqual => Truth::Not(Box::new(Truth::Same(Box::new([left, right])))),
                _ => return self.mistake(node, "true and false have no order"),
            },
            (left, right) => {
                let names = (type_name(&left), type_name(&right));
                match (number(left), number(right)) {
                    (Some(left), Some(right)) => Truth::CompareNumbers(comparison, Box::new([left, right])),
                    _ => {
                        let message = format!("{} and {} can't be compared", names.0, names.1);
                        return self.mistake(node, message);
                    }
                }
            }
        };
        self.memo(node, truth, is_of_request)
    }

    /// `what in list`, and `"key" in variable`.
    fn membership(&mut self, what: &IdedExpr, list: &IdedExpr) -> Checked<Part> {
        let Expr::List(elements) = &list.expr else {
            let Expr::Literal(LiteralValue::String(key)) = &what.expr else {
                return self.mistake(
                    list,
                    "`in` needs a list in brackets, or a text in quotes on its left-hand side",
                );
            };
            let mut path = self.path(list)?;
            if path == ["prefix"] {
                return self.mistake(list, "a prefix producer is there or the configuration is refused");
            }
            path.push(key.inner());
            return self.presence_of(list, &path);
        };
        if !elements.optional_indices.is_empty() {
            return self.mistake(list, "optional elements aren't available");
        }
        let what_part = self.part(what)?;
        let mut is_of_request = what_part.is_of_request;
        let mut parts = Vec::with_capacity(elements.elements.len());
        for element in &elements.elements {
            let part = self.part(element)?;
            is_of_request &= part.is_of_request;
            parts.push((element, part.typed));
        }
        let truth = match what_part.typed {
            Typed::Text(text) => {
                let mut list = Vec::with_capacity(parts.len());
                for (element, part) in parts {
                    match part {
                        Typed::Text(text) => list.push(text),
                        other => return self.mistake(element, expected("a text", &other)),
                    }
                }
                Truth::TextIn(text, list)
            }
            Typed::Truth(_) => return self.mistake(what, "`in` is for numbers and texts"),
            other => {
                let Some(what) = number(other) else {
                    return self.mistake(what, "`in` is for numbers and texts");
                };
                let mut list = Vec::with_capacity(parts.len());
                for (element, part) in parts {
                    let name = type_name(&part);
                    match number(part) {
                        Some(number) => list.push(number),
                        None => return self.mistake(element, format!("must be a number, not {name}")),
                    }
                }
                Truth::NumberIn(what, list)
            }
        };
        self.memo(what, truth, is_of_request)
    }

    /// A test that is made once per request if it can be.
    fn memo(&mut self, node: &IdedExpr, truth: Truth, is_of_request: bool) -> Checked<Part> {
        if !is_of_request {
            return Ok(Part { typed: Typed::Truth(truth), is_of_request });
        }
        if self.memos == MAX_MEMOS {
            return self.mistake(node, format!("at most {MAX_MEMOS} tests of the request are taken"));
        }
        self.memos += 1;
        let truth = Truth::Memo(self.memos - 1, Box::new(truth));
        Ok(Part { typed: Typed::Truth(truth), is_of_request })
    }

    fn truth(&mut self, node: &IdedExpr) -> Checked<(Truth, bool)> {
        match self.part(node)? {
            Part { typed: Typed::Truth(truth), is_of_request } => Ok((truth, is_of_request)),
            other => self.mistake(node, expected("true or false", &other.typed)),
        }
    }

    fn text(&mut self, node: &IdedExpr) -> Checked<(Text, bool)> {
        match self.part(node)? {
            Part { typed: Typed::Text(text), is_of_request } => Ok((text, is_of_request)),
            other => self.mistake(node, expected("a text", &other.typed)),
        }
    }

    fn number(&mut self, node: &IdedExpr) -> Checked<(Number, bool)> {
        let part = self.part(node)?;
        let name = type_name(&part.typed);
        match number(part.typed) {
            Some(number) => Ok((number, part.is_of_request)),
            None => self.mistake(node, format!("must be a number, not {name}")),
        }
    }
}

fn is_of_request(variable: &Variable) -> bool {
    match variable {
        Variable::Number(variable) => NumberVariable::is_of_request(variable),
        Variable::Truth(variable) => variable.is_of_request(),
        Variable::Text(variable) => TextVariable::is_of_request(variable),
    }
}

fn constant(literal: &LiteralValue) -> Option<Typed> {
    Some(match literal {
        LiteralValue::Boolean(truth) => Typed::Truth(Truth::Constant(*truth.inner())),
        LiteralValue::Double(number) => Typed::Number(Number::Constant(*number.inner())),
        LiteralValue::Int(number) => Typed::Whole(Whole::Constant(*number.inner())),
        LiteralValue::UInt(number) => Typed::Whole(Whole::Constant(i64::try_from(*number.inner()).ok()?)),
        LiteralValue::String(text) => Typed::Text(Text::Constant(text.inner().into())),
        LiteralValue::Bytes(_) | LiteralValue::Null => return None,
    })
}

/// A whole number counts as a number wherever one is needed.
fn number(typed: Typed) -> Option<Number> {
    match typed {
        Typed::Number(number) => Some(number),
        Typed::Whole(Whole::Constant(number)) => Some(Number::Constant(number as f64)),
        Typed::Whole(number) => Some(Number::Whole(Box::new(number))),
        Typed::Truth(_) | Typed::Text(_) => None,
    }
}

pub(crate) fn type_name(typed: &Typed) -> &'static str {
    match typed {
        Typed::Truth(_) => "true or false",
        Typed::Whole(_) => "a whole number",
        Typed::Number(_) => "a number",
        Typed::Text(_) => "a text",
    }
}

fn expected(what: &str, found: &Typed) -> String {
    format!("must be {what}, not {}", type_name(found))
}
