//! What Jinja templates of models use and the template engine doesn't parse, rewritten into what it does.

use std::ops::Range;

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Name of the filter that `%` formatting is rewritten to.
pub(crate) const PERCENT_FILTER: &str = "__percent_format";

/// Rewrites a template.
///
/// `{% generation %}` marks what an assistant said, for training, and renders its body: it becomes
/// `{% if true %}`, which leaves the white-space control of the tag as it is. `'text' % operand` becomes a
/// filter. A template that doesn't tokenize is returned as it is; compiling it then tells the error.
pub(crate) fn rewrite(source: &str, syntax: &SyntaxConfig) -> String {
    let tokens: Result<Vec<_>, _> = tokenize(source, false, syntax.clone()).collect();
    let Ok(tokens) = tokens else { return source.to_owned() };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for place in 1..tokens.len() {
        let (token, span) = &tokens[place];
        match (&tokens[place - 1].0, token) {
            (Token::BlockStart, Token::Ident("generation")) => {
                edits.push((range(span), "if true".to_owned()))
            }
            (Token::BlockStart, Token::Ident("endgeneration")) => {
                edits.push((range(span), "endif".to_owned()))
            }
            (Token::Str(_) | Token::String(_), Token::Mod) => {
                if let Some(end) = operand_end(&tokens, place + 1) {
                    edits.push((range(span), format!("|{PERCENT_FILTER}(")));
                    edits.push((end..end, ")".to_owned()));
                }
            }
            _ => {}
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    apply(source, &edits)
}

fn range(span: &Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}

fn apply(source: &str, edits: &[(Range<usize>, String)]) -> String {
    let mut text = String::with_capacity(source.len() + 64);
    let mut done = 0;
    for (range, replacement) in edits {
        text.push_str(source.get(done..range.start).unwrap_or_default());
        text.push_str(replacement);
        done = range.end;
    }
    text.push_str(source.get(done..).unwrap_or_default());
    text
}

/// Where the operand that begins at token `first` ends: signs, a name, literal or bracketed expression, then
/// attributes, subscripts, calls and filters.
fn operand_end(tokens: &[(Token<'_>, Span)], first: usize) -> Option<usize> {
    let mut place = first;
    while matches!(tokens.get(place)?.0, Token::Minus | Token::Plus) {
        place += 1;
    }
    let mut last = match tokens.get(place)?.0 {
        Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => closing(tokens, place)?,
        Token::Ident(_)
        | Token::Str(_)
        | Token::String(_)
        | Token::Int(_)
        | Token::Int128(_)
        | Token::Float(_) => place,
        _ => return None,
    };
    loop {
        match tokens.get(last + 1).map(|(token, _)| token) {
            Some(Token::ParenOpen | Token::BracketOpen) => last = closing(tokens, last + 1)?,
            Some(Token::Dot | Token::Pipe) => match tokens.get(last + 2)?.0 {
                Token::Ident(_) | Token::Int(_) => last += 2,
                _ => return None,
            },
            _ => return Some(tokens[last].1.end_offset as usize),
        }
    }
}

/// The token that closes the bracket at token `open`.
fn closing(tokens: &[(Token<'_>, Span)], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (place, (token, _)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                depth -= 1;
                if depth == 0 {
                    return Some(place);
                }
            }
            Token::VariableEnd | Token::BlockEnd => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use minijinja::syntax::SyntaxConfig;

    use super::rewrite;

    #[test]
    fn rewrites() {
        for (source, expected) in [
            ("{%- generation -%}x{% endgeneration %}", "{%- if true -%}x{% endif %}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            (
                "{# {% generation %} #}{{ '{% generation %}' }}",
                "{# {% generation %} #}{{ '{% generation %}' }}",
            ),
            ("{{ '%s' % x }}", "{{ '%s' |__percent_format( x) }}"),
            ("{{ '%05.2f' % -3.5 ~ y }}", "{{ '%05.2f' |__percent_format( -3.5) ~ y }}"),
            (
                "{{ \"%s %s\" % (a[0].b|upper, f(1)) }}",
                "{{ \"%s %s\" |__percent_format( (a[0].b|upper, f(1))) }}",
            ),
            ("{{ '%d' % m.x[1]|int }}", "{{ '%d' |__percent_format( m.x[1]|int) }}"),
            ("{{ 7 % 2 }} {{ x % 3 }}", "{{ 7 % 2 }} {{ x % 3 }}"),
            ("{{ 'a' % }}", "{{ 'a' % }}"),
            ("{{ unclosed", "{{ unclosed"),
        ] {
            assert_eq!(rewrite(source, &SyntaxConfig::default()), expected);
        }
    }
}
