//! The Prometheus text format: series of wanted metrics, and their labels.
//!
//! A vLLM page has 50 to 70 KB and hundreds of series, and is fetched many times a second from every engine, so the
//! page is walked once, line by line, and a line of another metric is left after a look at one byte of its name.
//! Source of the format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::borrow::Cow;

/// Most metrics that one table can find.
pub(super) const MAX_NAMES: usize = 64;

/// Finds lines of some metrics.
#[derive(Debug)]
pub(super) struct NameTable {
    /// What all names begin with.
    prefix: String,
    /// The rest of each name.
    rests: Vec<String>,
    /// By the byte after the prefix: which names it can be, one bit each.
    by_byte: Box<[u64; 256]>,
}

impl NameTable {
    /// A table of these names, all different; of more than [`MAX_NAMES`] the first.
    pub(super) fn new(names: &[String]) -> Self {
        let names = &names[..names.len().min(MAX_NAMES)];
        let first = names.first().map_or("", String::as_str);
        let common = |name: &String| first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        // Names are ASCII, so that every position is a boundary.
        let prefix = &first[..names.iter().map(common).min().unwrap_or(0)];
        let mut by_byte = Box::new([0; 256]);
        for (at, name) in names.iter().enumerate() {
            match name.as_bytes().get(prefix.len()) {
                Some(byte) => by_byte[usize::from(*byte)] |= 1 << at,
                // The name ends here: labels or a value follow.
                None => b"{ \t".iter().for_each(|byte| by_byte[usize::from(*byte)] |= 1 << at),
            }
        }
        let rests = names.iter().map(|name| name[prefix.len()..].to_owned()).collect();
        Self { prefix: prefix.to_owned(), rests, by_byte }
    }

    /// The number of the name and the readable sample, if the line is one of a wanted metric. A value that isn't a
    /// finite number is no sample.
    pub(super) fn sample_of<'a>(&self, line: &'a str) -> Option<(usize, Sample<'a>)> {
        let rest = line.strip_prefix(self.prefix.as_str())?;
        let mut possible = self.by_byte[usize::from(*rest.as_bytes().first()?)];
        while possible != 0 {
            let at = possible.trailing_zeros() as usize;
            possible &= possible - 1;
            if let Some(rest) = self.rests.get(at).and_then(|name| rest.strip_prefix(name.as_str()))
                && rest.starts_with(['{', ' ', '\t'])
            {
                return Sample::read(rest).map(|sample| (at, sample));
            }
        }
        None
    }
}

/// One series at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'a> {
    /// What stands between the braces.
    pub(super) labels: &'a str,
    /// Finite.
    pub(super) value: f64,
    /// In milliseconds; none is before every one.
    pub(super) timestamp: f64,
}

impl<'a> Sample<'a> {
    /// `{labels} value [timestamp]`, labels if there are any.
    fn read(text: &'a str) -> Option<Self> {
        let (labels, rest) = match text.strip_prefix('{') {
            Some(rest) => rest.split_at(end_of_labels(rest)?),
            None => ("", text),
        };
        let mut words = rest.trim_start_matches('}').split_ascii_whitespace();
        let value = words.next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
        let timestamp = words.next().and_then(|word| word.parse().ok()).filter(|time: &f64| time.is_finite());
        Some(Self { labels, value, timestamp: timestamp.unwrap_or(f64::NEG_INFINITY) })
    }

    /// The value of a label, as it is written: with escapes.
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        labels(self.labels).find(|(label, _)| *label == name).map(|(_, value)| value)
    }
}

/// Position of the closing brace; braces inside quoted label values don't count.
fn end_of_labels(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The labels with their values as written; ends at what is none.
fn labels(mut text: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let (name, rest) = text.split_once("=\"")?;
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        text = &rest[end + 1..];
        Some((name.trim_start_matches([',', ' ']), &rest[..end]))
    })
}

/// The value of a label without its escapes.
pub(super) fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            'n' if escaped => text.push('\n'),
            c => text.push(c),
        }
        escaped = false;
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str], line: &str) -> Option<(usize, f64)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        NameTable::new(&names).sample_of(line).map(|(at, sample)| (at, sample.value))
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let names = ["v:ab", "v:abc", "v:b"];
        for (line, expected) in [
            ("v:ab 1", Some((0, 1.0))),
            ("v:ab{x=\"y\"} 2", Some((0, 2.0))),
            ("v:abc\t3 1700000000", Some((1, 3.0))),
            ("v:b{} 4", Some((2, 4.0))),
            ("v:bc 5", None),
            ("v:a 6", None),
            ("v: 7", None),
            ("v:", None),
            ("", None),
            ("# v:ab 8", None),
            ("v:ab NaN", None),
            ("v:ab +Inf", None),
            ("v:ab", None),
            ("v:ab{x=\"y\" 9", None),
            ("v:ab{x=\"}\\\"\"} 10", Some((0, 10.0))),
        ] {
            assert_eq!(found(&names, line), expected, "{line}");
        }
        // One name is the beginning of the others, or there is none.
        assert_eq!(found(&["ab", "abc"], "ab 1"), Some((0, 1.0)));
        assert_eq!(found(&["ab", "abc"], "abc{} 1"), Some((1, 1.0)));
        assert_eq!(found(&["ab"], "ab{} 1"), Some((0, 1.0)));
        assert_eq!(found(&[], "ab 1"), None);
    }

    #[test]
    fn labels_are_told_from_what_stands_in_values() {
        let line = "m{a=\"x,size=\", effective_size=\"8\",size=\"16\",odd=\"\\\\\\\"\\n\",} 1 5";
        let (_, sample) = NameTable::new(&["m".to_owned()]).sample_of(line).unwrap();
        assert_eq!(sample.label("size"), Some("16"));
        assert_eq!(sample.label("a"), Some("x,size="));
        assert_eq!(sample.label("b"), None);
        assert_eq!(sample.label("odd").map(unescaped).unwrap(), "\\\"\n");
        assert_eq!(sample.timestamp, 5.0);
    }
}
