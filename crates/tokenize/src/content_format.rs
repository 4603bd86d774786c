//! Whether a template wants message contents as text or as lists of parts.

use minijinja::machinery::{ast, parse};
use minijinja::syntax::SyntaxConfig;

/// Form in which a chat template gets the content of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentFormat {
    /// One text; parts are joined by line feeds.
    String,
    /// A list of parts.
    OpenAi,
}

impl ContentFormat {
    /// Decides by the syntax tree of a template, as vLLM does (`renderers/hf.py`): a template that loops over
    /// a message's content wants parts. One that doesn't parse gets text.
    pub(crate) fn detect(source: &str, syntax: &SyntaxConfig) -> Self {
        let Ok(ast::Stmt::Template(template)) = parse(source, "chat template", syntax.clone()) else {
            return Self::String;
        };
        let mut tree = Tree::default();
        tree.collect(&template.children, None);
        if tree.loops_over_content() { Self::OpenAi } else { Self::String }
    }
}

/// What of a template decides its content format.
#[derive(Default)]
struct Tree<'a> {
    assignments: Vec<(&'a str, &'a ast::Expr<'a>)>,
    loops: Vec<Loop<'a>>,
    macros: Vec<&'a ast::Macro<'a>>,
    calls: Vec<&'a ast::Call<'a>>,
}

struct Loop<'a> {
    target: Option<&'a str>,
    over: &'a ast::Expr<'a>,
    inside: Option<&'a str>,
}

impl<'a> Tree<'a> {
    /// Walks statements; `inside` is the macro they stand in.
    fn collect(&mut self, body: &'a [ast::Stmt<'a>], inside: Option<&'a str>) {
        for statement in body {
            self.statement(statement, inside);
        }
    }

    fn statement(&mut self, statement: &'a ast::Stmt<'a>, inside: Option<&'a str>) {
        match statement {
            ast::Stmt::ForLoop(node) => {
                self.loops.push(Loop { target: name(&node.target), over: &node.iter, inside });
                self.expression(&node.iter);
                self.collect(&node.body, inside);
                self.collect(&node.else_body, inside);
            }
            ast::Stmt::IfCond(node) => {
                self.expression(&node.expr);
                self.collect(&node.true_body, inside);
                self.collect(&node.false_body, inside);
            }
            ast::Stmt::WithBlock(node) => {
                node.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.collect(&node.body, inside);
            }
            ast::Stmt::Set(node) => {
                if let Some(target) = name(&node.target) {
                    self.assignments.push((target, &node.expr));
                }
                self.expression(&node.expr);
            }
            ast::Stmt::SetBlock(node) => self.collect(&node.body, inside),
            ast::Stmt::AutoEscape(node) => self.collect(&node.body, inside),
            ast::Stmt::FilterBlock(node) => self.collect(&node.body, inside),
            ast::Stmt::Block(node) => self.collect(&node.body, inside),
            ast::Stmt::Macro(node) => {
                self.macros.push(node);
                self.collect(&node.body, Some(node.name));
            }
            ast::Stmt::CallBlock(node) => {
                self.calls.push(&node.call);
                self.collect(&node.macro_decl.body, inside);
            }
            ast::Stmt::EmitExpr(node) => self.expression(&node.expr),
            ast::Stmt::Do(node) => self.calls.push(&node.call),
            _ => {}
        }
    }

    /// Collects the calls in an expression.
    fn expression(&mut self, expression: &'a ast::Expr<'a>) {
        match expression {
            ast::Expr::Call(node) => {
                self.calls.push(node);
                self.arguments(&node.args);
                self.expression(&node.expr);
            }
            ast::Expr::Filter(node) => {
                node.expr.iter().for_each(|inner| self.expression(inner));
                self.arguments(&node.args);
            }
            ast::Expr::Test(node) => self.expression(&node.expr),
            ast::Expr::BinOp(node) => {
                self.expression(&node.left);
                self.expression(&node.right);
            }
            ast::Expr::UnaryOp(node) => self.expression(&node.expr),
            ast::Expr::Compare(node) => self.expression(&node.expr),
            ast::Expr::IfExpr(node) => {
                self.expression(&node.test_expr);
                self.expression(&node.true_expr);
                node.false_expr.iter().for_each(|inner| self.expression(inner));
            }
            ast::Expr::GetAttr(node) => self.expression(&node.expr),
            ast::Expr::GetItem(node) => self.expression(&node.expr),
            ast::Expr::Slice(node) => self.expression(&node.expr),
            ast::Expr::List(node) => node.items.iter().for_each(|inner| self.expression(inner)),
            ast::Expr::Tuple(node) => node.items.iter().for_each(|inner| self.expression(inner)),
            ast::Expr::Map(node) => node.values.iter().for_each(|inner| self.expression(inner)),
            ast::Expr::Var(_) | ast::Expr::Const(_) => {}
        }
    }

    fn arguments(&mut self, arguments: &'a [ast::CallArg<'a>]) {
        for argument in arguments {
            match argument {
                ast::CallArg::Pos(inner)
                | ast::CallArg::Kwarg(_, inner)
                | ast::CallArg::PosSplat(inner)
                | ast::CallArg::KwargSplat(inner) => self.expression(inner),
            }
        }
    }

    /// Variables bound to the messages.
    fn conversations(&self) -> Vec<&'a str> {
        let mut names = vec!["messages"];
        for (target, value) in &self.assignments {
            if names.iter().any(|name| is_variable(value, name)) {
                names.push(target);
            }
        }
        names
    }

    fn loops_over_content(&self) -> bool {
        let conversations = self.conversations();
        let messages: Vec<&str> = self
            .loops
            .iter()
            .filter(|a_loop| conversations.iter().any(|name| is_variable(a_loop.over, name)))
            .filter_map(|a_loop| a_loop.target)
            .collect();
        let is_content =
            |value: &ast::Expr<'_>| messages.iter().any(|message| is_member(value, message, "content"));
        self.loops.iter().any(|a_loop| {
            is_content(a_loop.over)
                || match a_loop.inside {
                    None => is_variable(a_loop.over, "content"),
                    Some(a_macro) => self
                        .parameters_given(a_macro, &is_content)
                        .iter()
                        .any(|parameter| is_variable(a_loop.over, parameter)),
                }
        })
    }

    /// Parameters of a macro that some call passes a fitting value to.
    fn parameters_given(&self, macro_name: &str, fits: &dyn Fn(&ast::Expr<'_>) -> bool) -> Vec<&'a str> {
        let Some(declared) = self.macros.iter().find(|declared| declared.name == macro_name) else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for call in self.calls.iter().filter(|call| name(&call.expr) == Some(macro_name)) {
            for (place, argument) in call.args.iter().enumerate() {
                match argument {
                    ast::CallArg::Pos(value) if fits(value) => {
                        names.extend(declared.args.get(place).and_then(name));
                    }
                    ast::CallArg::Kwarg(parameter, value) if fits(value) => names.push(parameter),
                    _ => {}
                }
            }
        }
        names
    }
}

fn name<'a>(expression: &ast::Expr<'a>) -> Option<&'a str> {
    match expression {
        ast::Expr::Var(variable) => Some(variable.id),
        _ => None,
    }
}

/// The expression under filters, tests and slices.
fn stripped<'e, 'a>(expression: &'e ast::Expr<'a>) -> &'e ast::Expr<'a> {
    match expression {
        ast::Expr::Filter(node) => node.expr.as_ref().map_or(expression, stripped),
        ast::Expr::Test(node) => stripped(&node.expr),
        ast::Expr::Slice(node) => stripped(&node.expr),
        _ => expression,
    }
}

fn is_variable(expression: &ast::Expr<'_>, variable: &str) -> bool {
    name(stripped(expression)) == Some(variable)
}

fn is_member(expression: &ast::Expr<'_>, variable: &str, member: &str) -> bool {
    match stripped(expression) {
        ast::Expr::GetAttr(node) => node.name == member && name(&node.expr) == Some(variable),
        ast::Expr::GetItem(node) => {
            matches!(&node.subscript_expr, ast::Expr::Const(key) if key.value.as_str() == Some(member))
                && name(&node.expr) == Some(variable)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use minijinja::syntax::SyntaxConfig;

    use super::ContentFormat;

    #[test]
    fn detection() {
        let loops = "{% for c in m.content %}{% endfor %}";
        for (source, expected) in [
            ("{% for m in messages %}{{ m.content }}{% endfor %}", ContentFormat::String),
            (&format!("{{% for m in messages %}}{loops}{{% endfor %}}"), ContentFormat::OpenAi),
            (
                "{% for m in messages %}{% for c in m['content'] | list %}{% endfor %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            (
                "{% set x = messages[1:] %}{% for m in x %}{% for c in m.content %}{% endfor %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            ("{% for m in tools %}{% for c in m.content %}{% endfor %}{% endfor %}", ContentFormat::String),
            (
                "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            ("{% macro f(content) %}{% for c in content %}{% endfor %}{% endmacro %}", ContentFormat::String),
            (
                "{% macro f(a, b) %}{% for c in b %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(1, m.content) }}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            (
                "{% macro f(a, b) %}{% for c in a %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(1, b=m.content) }}{% endfor %}",
                ContentFormat::String,
            ),
            ("{% for m in messages %}{% for c in m.content %}", ContentFormat::String),
        ] {
            assert_eq!(ContentFormat::detect(source, &SyntaxConfig::default()), expected, "{source}");
        }
    }
}
