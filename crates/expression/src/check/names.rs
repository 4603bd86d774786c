//! What operators and functions are called.

use cel::common::ast::operators;

use crate::typed::{Arithmetic, Comparison, TextTest, Truth};

/// Makes one of two.
type Joined = fn(Box<[Truth; 2]>) -> Truth;

pub(super) fn logical(operator: &str) -> Option<Joined> {
    match operator {
        operators::LOGICAL_AND => Some(Truth::And),
        operators::LOGICAL_OR => Some(Truth::Or),
        _ => None,
    }
}

pub(super) fn arithmetic(operator: &str) -> Option<Arithmetic> {
    Some(match operator {
        operators::ADD => Arithmetic::Add,
        operators::SUBSTRACT => Arithmetic::Subtract,
        operators::MULTIPLY => Arithmetic::Multiply,
        operators::DIVIDE => Arithmetic::Divide,
        operators::MODULO => Arithmetic::Remainder,
        _ => return None,
    })
}

pub(super) fn comparison(operator: &str) -> Option<Comparison> {
    Some(match operator {
        operators::EQUALS => Comparison::Equal,
        operators::NOT_EQUALS => Comparison::NotEqual,
        operators::LESS => Comparison::Less,
        operators::LESS_EQUALS => Comparison::LessOrEqual,
        operators::GREATER => Comparison::Greater,
        operators::GREATER_EQUALS => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

pub(super) fn text_test(name: &str) -> Option<TextTest> {
    match name {
        "startsWith" => Some(TextTest::StartsWith),
        "endsWith" => Some(TextTest::EndsWith),
        "contains" => Some(TextTest::Contains),
        _ => None,
    }
}

pub(super) fn math_function(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "ceil" => f64::ceil,
        "floor" => f64::floor,
        "round" => f64::round,
        "trunc" => f64::trunc,
        "sqrt" => f64::sqrt,
        "sign" => |number| if number == 0.0 { 0.0 } else { number.signum() },
        _ => return None,
    })
}

pub(super) fn math_test(name: &str) -> Option<fn(f64) -> bool> {
    Some(match name {
        "isNaN" => f64::is_nan,
        "isInf" => f64::is_infinite,
        "isFinite" => f64::is_finite,
        _ => return None,
    })
}

pub(super) fn unknown_function(name: &str) -> String {
    let instead = match name {
        "min" | "math.min" => "use math.least",
        "max" | "math.max" => "use math.greatest",
        _ => {
            "there are size, int, double, startsWith, endsWith, contains, matches, has, math.greatest, math.least, \
             math.abs, math.ceil, math.floor, math.round, math.trunc, math.sqrt, math.sign, math.isNaN, math.isInf \
             and math.isFinite"
        }
    };
    format!("there is no function {name} of this form; {instead}")
}
