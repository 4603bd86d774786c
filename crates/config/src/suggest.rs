//! "Did you mean".

/// A longer name is nothing that anybody mistyped, and comparing costs its square.
const MAX_COMPARED_CHARACTERS: usize = 64;

/// The option that `given` is most likely a slip of: at most a third of it differs.
pub(crate) fn nearest<'a>(given: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given: Vec<char> =
        given.chars().flat_map(char::to_lowercase).take(MAX_COMPARED_CHARACTERS + 1).collect();
    if given.len() > MAX_COMPARED_CHARACTERS {
        return None;
    }
    let near = options.into_iter().map(|option| (distance(&given, option), option));
    let near = near.filter(|(distance, option)| *distance <= given.len().max(option.len()).div_ceil(3));
    near.min_by_key(|(distance, _)| *distance).map(|(_, option)| option)
}

/// `Did you mean` as a hint.
pub(crate) fn did_you_mean<'a>(given: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(given, options).map(|option| format!("did you mean {option:?}?"))
}

/// Insertions, removals and replacements from one to the other (Levenshtein), whatever the case.
fn distance(given: &[char], option: &str) -> usize {
    let option: Vec<char> = option.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=option.len()).collect();
    for (line, a) in given.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, b) in option.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[option.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let options = ["queue-scorer", "max-score-picker", "random-picker", "name"];
        assert_eq!(nearest("queue-scorrer", options), Some("queue-scorer"));
        assert_eq!(nearest("Queue-Scorer", options), Some("queue-scorer"));
        assert_eq!(nearest("randm-piker", options), Some("random-picker"));
        assert_eq!(nearest("nmae", options), Some("name"));
        assert_eq!(nearest("acme-thing", options), None);
        assert_eq!(nearest(&"x".repeat(100_000), options), None);
        assert_eq!(nearest("", options), None);
    }
}
