//! Label selectors as text.

/// A label selector that the API server would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{requirement:?} is no requirement on a label: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key, separated by commas"
)]
pub struct SelectorError {
    /// What isn't understood.
    pub requirement: String,
}

/// Checks a label selector, so that a mistake is told at the start and not by an API server that refuses every request.
/// The grammar: kubernetes.io/docs/concepts/overview/working-with-objects/labels, "List and watch filtering".
///
/// # Errors
/// The first requirement that isn't one.
pub(super) fn check_selector(text: &str) -> Result<(), SelectorError> {
    match requirements(text).into_iter().find(|requirement| !is_requirement(requirement.trim())) {
        Some(wrong) => Err(SelectorError { requirement: wrong.trim().to_owned() }),
        None => Ok(()),
    }
}

/// What stands between the commas outside of parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn is_requirement(text: &str) -> bool {
    if let Some(key) = text.strip_prefix('!') {
        return is_key(key.trim());
    }
    for sign in ["!=", "==", "="] {
        if let Some((key, value)) = text.split_once(sign) {
            return is_key(key.trim()) && is_value(value.trim());
        }
    }
    for sign in ['<', '>'] {
        if let Some((key, value)) = text.split_once(sign) {
            return is_key(key.trim()) && value.trim().parse::<i64>().is_ok();
        }
    }
    match text.split_once(char::is_whitespace) {
        Some((key, rest)) => is_key(key) && is_set(rest.trim_start()),
        None => is_key(text),
    }
}

/// `in (a,b)` or `notin (a,b)`.
fn is_set(text: &str) -> bool {
    let values = text.strip_prefix("notin").or_else(|| text.strip_prefix("in"));
    let values = values.and_then(|rest| rest.trim().strip_prefix('(')?.strip_suffix(')'));
    values.is_some_and(|values| values.split(',').all(|value| is_value(value.trim())))
}

/// `name` or `prefix/name`.
fn is_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty() && is_value(name) && prefix.is_none_or(super::is_dns_name)
}

/// At most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; or nothing.
fn is_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63 && text.chars().all(inner) && end(text.chars().next()) && end(text.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_of_the_api_are_taken() {
        for right in [
            "app=vllm",
            "app==vllm,tier!=batch",
            "app = vllm, llm-d.ai/role in (decode, both),!draining",
            "environment notin (qa)",
            "partition",
            "gpus>4",
            "app=",
            "x in (,a)",
        ] {
            assert_eq!(check_selector(right), Ok(()), "{right}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wrong) in [
            ("", ""),
            ("app=vllm,", ""),
            ("app=vllm,=b", "=b"),
            ("a b", "a b"),
            ("app in vllm", "app in vllm"),
            ("app in (a,b", "app in (a,b"),
            ("-app=x", "-app=x"),
            ("Upper/app=x", "Upper/app=x"),
            ("app=a b", "app=a b"),
            ("gpus>many", "gpus>many"),
            ("a=b&limit=1", "a=b&limit=1"),
        ] {
            let error = check_selector(text).unwrap_err();
            assert_eq!(error.requirement, wrong, "{text}");
        }
    }
}
