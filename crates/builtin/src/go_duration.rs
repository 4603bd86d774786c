//! Durations in parameters, as Go and Kubernetes write them.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration parameter: `200ms`, `1.5s`, `1m30s`; only 0 needs no unit.
///
/// Format: `time.ParseDuration` of Go, without negative values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

const UNITS: [(&str, f64); 8] = [
    ("h", 3600.0),
    ("m", 60.0),
    ("s", 1.0),
    ("ms", 1e-3),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ns", 1e-9),
];

fn read(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, tail) =
            tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
        let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = Duration::try_from_secs_f64(digits.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(sum)
}

/// Through a visitor, so that a mistake is placed at the parameter.
struct Text;

impl Visitor<'_> for Text {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like 500ms or 1m30s")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        read(text).map(GoDuration).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = self.0.as_nanos();
        let whole = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)];
        let whole = whole.iter().find(|(_, size)| nanos.is_multiple_of(*size));
        let (unit, size) = whole.copied().unwrap_or(("ns", 1));
        serializer.collect_str(&format_args!("{}{unit}", nanos / size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_in_go() {
        let table = [
            ("200ms", Some((200_000_000, "200ms"))),
            ("1m30s", Some((90_000_000_000, "90s"))),
            ("1.5s", Some((1_500_000_000, "1500ms"))),
            ("1001ns", Some((1001, "1001ns"))),
            ("0", Some((0, "0s"))),
            ("", None),
            ("5", None),
            ("-2s", None),
            ("2 s", None),
            ("1..5s", None),
            ("99999999999999999999h", None),
        ];
        for (text, expected) in table {
            let read: Option<GoDuration> = serde_json::from_value(text.into()).ok();
            let nanos = read.map(|read| read.0.as_nanos());
            assert_eq!(nanos, expected.map(|(nanos, _)| nanos), "{text:?}");
            if let (Some(read), Some((_, written))) = (read, expected) {
                assert_eq!(serde_json::to_value(read).unwrap(), written);
            }
        }
    }
}
