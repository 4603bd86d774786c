//! What a YAML scalar without quotes means.

use std::time::Duration;

use serde_json::Number;

/// A plain scalar by the YAML 1.2 core schema (yaml.org/spec/1.2.2, §10.3.2), with what the YAML 1.1 reader
/// of the Go peer (sigs.k8s.io/yaml) understands differently kept apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    Null,
    Bool(bool),
    /// `yes`, `off` and the like: a boolean to YAML 1.1, a text to 1.2.
    OldBool(bool),
    Number(Number),
    /// Looks like a number, and readers don't agree on which, or JSON has none such.
    OddNumber,
    Text,
}

/// What `text` means when it stands without quotes.
pub(crate) fn plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" => Plain::Bool(true),
        "false" | "False" | "FALSE" => Plain::Bool(false),
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Plain::OldBool(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Plain::OldBool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | "-.Inf" | "-.INF" | ".nan" | ".NaN" | ".NAN" => {
            Plain::OddNumber
        }
        _ => number(text),
    }
}

fn number(text: &str) -> Plain {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts = unsigned.strip_prefix('.').unwrap_or(unsigned);
    if !starts.starts_with(|first: char| first.is_ascii_digit()) {
        return Plain::Text;
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).map_or(Plain::Text, |number| Plain::Number(number.into()));
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).map_or(Plain::Text, |number| Plain::Number(number.into()));
    }
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits(&unsigned.replace('_', "")) {
        // 010 is 8 to YAML 1.1 and 10 to 1.2; 1_000 is a number to one and a text to the other.
        if unsigned.contains('_') || (unsigned.len() > 1 && unsigned.starts_with('0')) {
            return Plain::OddNumber;
        }
        let text = text.strip_prefix('+').unwrap_or(text);
        let number = text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from));
        return number.map_or(Plain::OddNumber, Plain::Number);
    }
    // Rust reads more as f64 than YAML does ("1e5" both, "infinity" only Rust), but that starts with a letter.
    match text.parse::<f64>() {
        Ok(number) => Number::from_f64(number).map_or(Plain::OddNumber, Plain::Number),
        Err(_) => Plain::Text,
    }
}

/// A duration as Go writes it: `1m30s`, `500ms`, `.5h`. Only zero needs no unit. `None` if it is no such text,
/// or negative.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(digits.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_both_versions_of_yaml_say() {
        let number = |number: f64| Plain::Number(Number::from_f64(number).unwrap());
        let table = [
            ("", Plain::Null),
            ("null", Plain::Null),
            ("true", Plain::Bool(true)),
            ("no", Plain::OldBool(false)),
            ("5", Plain::Number(5.into())),
            ("+5", Plain::Number(5.into())),
            ("-5", Plain::Number((-5).into())),
            ("0", Plain::Number(0.into())),
            ("0x1F", Plain::Number(31.into())),
            ("0o17", Plain::Number(15.into())),
            ("2.5", number(2.5)),
            (".5", number(0.5)),
            ("1e3", number(1000.0)),
            ("010", Plain::OddNumber),
            ("1_000", Plain::OddNumber),
            ("99999999999999999999", Plain::OddNumber),
            (".inf", Plain::OddNumber),
            ("1e999", Plain::OddNumber),
            ("kv@", Plain::Text),
            ("10.0.0.1", Plain::Text),
            ("2s", Plain::Text),
            ("infinity", Plain::Text),
            ("-", Plain::Text),
            ("nan", Plain::Text),
        ];
        for (text, expected) in table {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        let table = [
            ("2s", Some(2000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            (".5h", Some(1_800_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("1h0m0.25s", Some(3_600_250)),
            ("2", None),
            ("", None),
            ("-2s", None),
            ("2 s", None),
            ("s", None),
            (".s", None),
            ("1e3s", None),
            ("999999999999999999999999h", None),
        ];
        for (text, expected) in table {
            assert_eq!(duration(text), expected.map(Duration::from_millis), "{text:?}");
        }
    }
}
