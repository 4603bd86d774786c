//! What a PromQL expression names: metrics and labels. Its syntax is checked by Prometheus itself.

use std::collections::BTreeSet;

/// Words that stand where a metric could, in expressions without a parenthesis after them.
const WORDS: [&str; 26] = [
    "and",
    "avg",
    "bool",
    "bottomk",
    "by",
    "count",
    "count_values",
    "end",
    "group",
    "group_left",
    "group_right",
    "ignoring",
    "inf",
    "max",
    "min",
    "nan",
    "offset",
    "on",
    "or",
    "quantile",
    "start",
    "stddev",
    "sum",
    "topk",
    "unless",
    "without",
];

/// Words that are followed by names of labels in parentheses.
const LABEL_LISTS: [&str; 6] = ["by", "group_left", "group_right", "ignoring", "on", "without"];

/// The filter that `{%}` stands for.
const FILTER: &str = r#"namespace=~"$namespace", pod=~"$pod""#;

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Metrics, as they stand there: a histogram's with `_bucket`, `_sum` or `_count`.
    pub(crate) metrics: BTreeSet<String>,
    /// Labels in selectors, groupings and joins.
    pub(crate) labels: BTreeSet<String>,
}

/// An expression of a source file as Grafana shall have it.
pub(crate) fn expanded(expr: &str) -> String {
    expr.replace("{%", &format!("{{{FILTER}"))
}

/// The same as Prometheus shall have it: Grafana's variables are filled in.
pub(crate) fn filled(expr: &str, namespace: &str) -> String {
    let variables = [
        ("$namespace", namespace),
        ("$pod", ".*"),
        ("$__rate_interval", "30s"),
        ("$__range", "2m"),
        ("$__interval", "5s"),
    ];
    variables.iter().fold(expanded(expr), |expr, (name, value)| expr.replace(name, value))
}

impl Named {
    /// Of an expression in which nothing has to be filled in but durations.
    pub(crate) fn of(expr: &str) -> Self {
        let tokens = tokens(expr);
        let mut named = Self::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            let next = tokens.get(at).map(String::as_str);
            if token == "{" {
                at = named.selector(&tokens, at);
            } else if next == Some("(") && LABEL_LISTS.contains(&token.as_str()) {
                let list = tokens[at + 1..].iter().take_while(|token| *token != ")");
                named.labels.extend(list.filter(|token| is_name(token)).cloned());
                at += 1 + tokens[at + 1..].iter().take_while(|token| *token != ")").count();
            } else if is_name(token) && next != Some("(") && !WORDS.contains(&token.to_lowercase().as_str()) {
                named.metrics.insert(token.clone());
            }
        }
        named
    }

    /// The labels between braces; the place after them.
    fn selector(&mut self, tokens: &[String], mut at: usize) -> usize {
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token.as_str() {
                "}" => break,
                token if is_name(token) => {
                    self.labels.insert(token.to_owned());
                }
                _ => {}
            }
        }
        at
    }
}

/// Names, braces and parentheses; strings, numbers, ranges and operators are left out.
fn tokens(expr: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' | '`' => string_length(rest, first),
            '[' => rest.find(']').map_or(rest.len(), |end| end + 1),
            first if is_name_char(first) => rest.find(|next| !is_name_char(next)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let token = &rest[..length];
        if is_name(token) || matches!(first, '(' | ')' | '{' | '}') {
            tokens.push(token.to_owned());
        }
        rest = &rest[length..];
    }
    tokens
}

fn string_length(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, next) in text.char_indices().skip(1) {
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' if quote != '`' => is_escaped = true,
            next if next == quote => return at + next.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn is_name_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '_' | ':')
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '_' | ':'))
}

/// The labels that a Grafana legend names, `{{label}}`.
pub(crate) fn legend_labels(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|part| part.split("}}").next()).map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(expr: &str) -> (Vec<String>, Vec<String>) {
        let Named { metrics, labels } = Named::of(expr);
        (metrics.into_iter().collect(), labels.into_iter().collect())
    }

    #[test]
    fn metrics_and_labels_are_told_from_functions_words_and_strings() {
        let (metrics, labels) = named(
            r#"histogram_quantile(0.99, sum by (le, job) (rate(a_bucket{x="by (y) {z}", w!~'\'v'}[5m] offset 1d)))
               / on (namespace) group_left () (job:b:rate5m > 1e3) and max without (pod) (c) or vector(0)"#,
        );
        assert_eq!(metrics, ["a_bucket", "c", "job:b:rate5m"]);
        assert_eq!(labels, ["job", "le", "namespace", "pod", "w", "x"]);
    }

    #[test]
    fn a_metric_alone_is_one() {
        assert_eq!(named("up"), (vec!["up".to_owned()], Vec::new()));
        assert_eq!(named("up == 0 unless time() > 5m"), (vec!["up".to_owned()], Vec::new()));
    }

    #[test]
    fn filters_are_filled_in() {
        assert_eq!(
            filled(r#"rate(a{%, b="c"}[$__rate_interval])"#, "ns"),
            r#"rate(a{namespace=~"ns", pod=~".*", b="c"}[30s])"#
        );
        assert_eq!(expanded("a{%}"), r#"a{namespace=~"$namespace", pod=~"$pod"}"#);
        assert_eq!(legend_labels("{{a}} → {{ b }} c"), ["a", "b"]);
    }
}
