//! From text to a syntax tree, with places.

use cel::IdedExpr;
use cel::common::ast::SourceInfo;
use cel::parser::{ParseErrors, Parser};

/// Longest expression, in bytes.
const MAX_SOURCE_BYTES: usize = 4096;
/// Parentheses in parentheses, calls in calls and so on, at most.
const MAX_NESTING: u16 = 32;
/// After this many attempts to go on behind a mistake the rest isn't read.
const RECOVERIES: u32 = 5;
/// The generated parser takes up to a few hundred kilobytes of stack per level of nesting, more than a thread of the
/// host has for 32 of them.
const STACK_BYTES: usize = 64 << 20;

/// What is wrong with an expression, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column} of the expression: {message}")]
pub struct ExpressionError {
    /// Line of the expression, from 1.
    pub line: usize,
    /// Column in the line, from 1, in characters.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

/// A syntax tree, and where everything in it stands in the text.
#[derive(Debug)]
pub(crate) struct Syntax {
    pub(crate) root: IdedExpr,
    info: SourceInfo,
}

impl Syntax {
    /// Reads an expression.
    ///
    /// # Errors
    ///
    /// The first mistake.
    pub(crate) fn read(source: &str) -> Result<Self, ExpressionError> {
        let at_start = |message: String| ExpressionError { line: 1, column: 1, message };
        if source.trim().is_empty() {
            return Err(at_start("there is no expression".to_owned()));
        }
        if source.len() > MAX_SOURCE_BYTES {
            let bytes = source.len();
            return Err(at_start(format!("{bytes} bytes are too long; at most {MAX_SOURCE_BYTES} are read")));
        }
        let text = source.to_owned();
        let parser = std::thread::Builder::new().name("expression".to_owned()).stack_size(STACK_BYTES);
        let parse = move || {
            let parser = Parser::new().max_recursion_depth(MAX_NESTING).error_recovery_limit(RECOVERIES);
            parser.parse_with_source_info(&text).map_err(|errors| first(&errors))
        };
        let thread = parser.spawn(parse).map_err(|error| at_start(format!("can't be read: {error}")))?;
        match thread.join() {
            Ok(Ok((root, info))) => Ok(Self { root, info }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(at_start("can't be read: the parser failed; write it in another way".to_owned())),
        }
    }

    /// A mistake at a node of the tree.
    pub(crate) fn mistake(&self, node: &IdedExpr, message: impl Into<String>) -> ExpressionError {
        let start = self.info.offset_for(node.id).map_or(0, |(start, _)| start as usize);
        let before = self.info.source.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        ExpressionError { line, column, message: message.into() }
    }
}

fn first(errors: &ParseErrors) -> ExpressionError {
    let Some(error) = errors.errors.first() else {
        return ExpressionError { line: 1, column: 1, message: "can't be read".to_owned() };
    };
    let (line, column) = error.pos;
    let at_least_one = |number: isize| usize::try_from(number).unwrap_or(0).max(1);
    // The parser lists everything that it would have taken instead, which is nearly everything.
    let message = match error.msg.split_once(" expecting ") {
        Some((message, _)) => message.to_owned(),
        None if error.msg.contains("Recursion limit") => {
            format!("nested too deeply; at most {MAX_NESTING} levels are read")
        }
        None if error.msg.contains("invalid argument to has()") => {
            "has() takes no key in quotes; write `'key' in …` instead".to_owned()
        }
        None => error.msg.clone(),
    };
    ExpressionError { line: at_least_one(line), column: at_least_one(column), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(source: &str) -> (usize, usize, String) {
        let error = Syntax::read(source).unwrap_err();
        (error.line, error.column, error.message)
    }

    #[test]
    fn a_mistake_has_its_place() {
        assert_eq!(mistake("1 +\n  ) 2"), (2, 3, "Syntax error: extraneous input ')'".to_owned()));
        assert_eq!(mistake(" "), (1, 1, "there is no expression".to_owned()));
        assert_eq!(mistake("a &&").0, 1);
        assert_eq!(mistake("a ? b").0, 1);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(mistake(&"1+".repeat(3000)).2.contains("6000 bytes are too long"));
        for open in ["(", "[", "f(", "!(", "a[", "[1].exists(x, ", "{1: ", "true ? 1 : ("] {
            let (_, _, message) = mistake(&open.repeat(100));
            assert!(message.contains("nested too deeply"), "{open}: {message}");
        }
        // Long but flat is for the checker to judge: reading it must not overflow.
        for flat in ["1+", "a.", "!", "-", "a[0] in ", "a<", "a&&"] {
            let read = Syntax::read(&format!("{}a", flat.repeat(4000 / flat.len())));
            assert!(read.is_ok(), "{flat}: {:?}", read.err());
        }
    }

    #[test]
    fn places_count_characters() {
        let syntax = Syntax::read("'é' ==\n 'ü' + bad").unwrap();
        let cel::common::ast::Expr::Call(call) = &syntax.root.expr else { panic!("a call") };
        let error = syntax.mistake(&call.args[1], "x");
        assert_eq!((error.line, error.column), (2, 6));
        assert_eq!(mistake("'éé' ==\n 'é' )").1, 6);
    }
}
