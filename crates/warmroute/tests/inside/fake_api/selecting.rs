//! Label and field selectors.

use serde_json::Value;

/// Both selectors of a request.
pub(super) struct Selector {
    labels: Vec<String>,
    fields: Vec<String>,
}

impl Selector {
    pub(super) fn new(labels: &str, fields: &str) -> Self {
        Self { labels: parts(labels), fields: parts(fields) }
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str().map(str::to_owned);
        let field =
            |path: &str| path.split('.').fold(object, |value, part| &value[part]).as_str().map(str::to_owned);
        self.labels.iter().all(|part| holds(part, label)) && self.fields.iter().all(|part| holds(part, field))
    }
}

fn parts(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn holds(requirement: &str, value_of: impl Fn(&str) -> Option<String>) -> bool {
    if let Some(key) = requirement.strip_prefix('!') {
        return value_of(key.trim()).is_none();
    }
    if let Some((key, value)) = requirement.split_once("!=") {
        return value_of(key.trim()).as_deref() != Some(value.trim());
    }
    if let Some((key, value)) = requirement.split_once("==").or_else(|| requirement.split_once('=')) {
        return value_of(key.trim()).as_deref() == Some(value.trim());
    }
    let list = |text: &str| {
        text.trim_matches(['(', ')']).split(',').map(|v| v.trim().to_owned()).collect::<Vec<_>>()
    };
    if let Some((key, values)) = requirement.split_once(" notin ") {
        return value_of(key.trim()).is_none_or(|value| !list(values.trim()).contains(&value));
    }
    if let Some((key, values)) = requirement.split_once(" in ") {
        return value_of(key.trim()).is_some_and(|value| list(values.trim()).contains(&value));
    }
    value_of(requirement).is_some()
}
