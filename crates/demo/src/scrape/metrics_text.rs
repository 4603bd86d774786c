//! [`MetricsText`]: a metrics page in the Prometheus text format.
//!
//! Format: "Text-based format" of the Prometheus documentation (exposition formats, version 0.0.4).

use super::Histogram;
use crate::DemoError;

/// One line of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels, in the order of the page, unescaped.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// All samples of a page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsText {
    /// In the order of the page.
    pub samples: Vec<Sample>,
}

impl MetricsText {
    /// Parses a page. Comments and blank lines are skipped, timestamps are ignored.
    ///
    /// # Errors
    /// [`DemoError::MetricsText`] names the first line that is no sample.
    pub fn parse(page: &str) -> Result<Self, DemoError> {
        let mut samples = Vec::new();
        for (index, line) in page.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || DemoError::MetricsText { line: index + 1, text: line.chars().take(120).collect() };
            samples.push(sample(line).ok_or_else(wrong)?);
        }
        Ok(Self { samples })
    }

    /// The sum over all samples of this name that carry all of `labels`; `None` where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| labels.iter().all(|(label, value)| sample.label(label) == Some(value)))
            .map(|sample| sample.value)
            .peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// The histogram of this name, added up over all its label sets; `None` where there is none.
    pub fn histogram(&self, name: &str) -> Option<Histogram> {
        let bucket_name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.name == bucket_name) {
            let bound: f64 = sample.label("le")?.parse().ok()?;
            // A count: whole and not negative.
            let count = sample.value as u64;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        (!buckets.is_empty()).then(|| Histogram::from_cumulative(buckets))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The labels up to the closing brace, and what comes after it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, quoted) = rest.split_once('=')?;
        let mut value = String::new();
        let mut characters = quoted.trim_start().strip_prefix('"')?.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => match characters.next()? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.push((label.trim().to_owned(), value));
        rest = characters.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_hold_anything() {
        let page = MetricsText::parse(
            "# HELP a text {x=\"y\"} 4\na{m=\"q \\\"x\\\" \\\\ }, b=\\n\",n=\"\",} 1.5e3 1795168825264\nb 2\n\nb{x=\"1\"} +Inf\n",
        )
        .unwrap();
        assert_eq!(page.samples[0].label("m"), Some("q \"x\" \\ }, b=\n"));
        assert_eq!(page.samples[0].label("n"), Some(""));
        assert_eq!(page.sum("a", &[]), Some(1500.0));
        assert_eq!(page.sum("b", &[("x", "1")]), Some(f64::INFINITY));
        assert_eq!(page.sum("c", &[]), None);
    }

    #[test]
    fn what_is_no_sample_is_told_with_its_line() {
        for (page, line) in [("a 1\nb", 2), ("a{x=\"1\" 2", 1), ("a{x} 2", 1), ("a x", 1), ("{} 1", 1)] {
            let error = MetricsText::parse(page).unwrap_err();
            assert!(
                matches!(error, DemoError::MetricsText { line: at, .. } if at == line),
                "{page}: {error}"
            );
        }
    }

    #[test]
    fn a_recorded_page_of_vllm_is_read() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vllm/metrics/vllm-metrics-load-1.txt");
        let page = MetricsText::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(page.sum(super::super::QUERIES, &[]), Some(2496.0));
        assert_eq!(page.sum(super::super::HITS, &[("engine", "0")]), Some(992.0));
        let ttft = page.histogram("vllm:time_to_first_token_seconds").unwrap();
        assert_eq!(Some(ttft.count() as f64), page.sum("vllm:time_to_first_token_seconds_count", &[]));
    }
}
