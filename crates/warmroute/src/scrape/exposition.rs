//! Reads the few values that picking needs out of an engine's Prometheus text page.
//!
//! A vLLM page has 50 to 70 KB and hundreds of series, and is fetched many times a second from every engine, so the
//! page is walked line by line and only lines of a wanted family are looked at.

use warmroute_plugin::EndpointMetrics;

/// Names of the wanted families for one kind of engine.
#[derive(Clone, Copy, Debug)]
pub struct MetricNames {
    /// Gauge: requests that wait in the engine's queue.
    pub waiting: &'static str,
    /// Gauge: requests that run.
    pub running: &'static str,
    /// Gauge, 0 to 1: share of the KV cache in use.
    pub kv_cache_utilization: &'static str,
    /// Info gauge whose labels `block_size` and `num_gpu_blocks` describe the cache.
    pub cache_config: &'static str,
}

/// vLLM's names (0.10 and later).
pub const VLLM: MetricNames = MetricNames {
    waiting: "vllm:num_requests_waiting",
    running: "vllm:num_requests_running",
    kv_cache_utilization: "vllm:kv_cache_usage_perc",
    cache_config: "vllm:cache_config_info",
};

/// A page without any of the three load values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the page has no sample of {missing}")]
pub struct MissingMetric {
    /// The first wanted family without a readable sample.
    pub missing: &'static str,
}

/// Reads one page. If a family has several series the first one counts, as at the llm-d Router EPP.
///
/// # Errors
/// One of the three load values has no readable sample. Cache configuration is optional.
pub fn read_page(names: &MetricNames, page: &str) -> Result<EndpointMetrics, MissingMetric> {
    let (mut waiting, mut running, mut kv, mut cache) = (None, None, None, None);
    for line in page.lines() {
        if line.starts_with('#') {
            continue;
        }
        if let Some(sample) = sample_of(line, names.waiting) {
            waiting = waiting.or(sample.value);
        } else if let Some(sample) = sample_of(line, names.running) {
            running = running.or(sample.value);
        } else if let Some(sample) = sample_of(line, names.kv_cache_utilization) {
            kv = kv.or(sample.value);
        } else if cache.is_none()
            && let Some(sample) = sample_of(line, names.cache_config)
        {
            cache = Some(sample.labels);
        }
    }
    let mut metrics = EndpointMetrics::default();
    metrics.waiting_requests = as_count(waiting.ok_or(MissingMetric { missing: names.waiting })?);
    metrics.running_requests = as_count(running.ok_or(MissingMetric { missing: names.running })?);
    metrics.kv_cache_utilization =
        kv.ok_or(MissingMetric { missing: names.kv_cache_utilization })?.clamp(0.0, 1.0);
    if let Some(labels) = cache {
        metrics.block_size_tokens = label(labels, "block_size").and_then(|v| v.parse().ok()).unwrap_or(0);
        metrics.num_gpu_blocks = label(labels, "num_gpu_blocks").and_then(|v| v.parse().ok()).unwrap_or(0);
    }
    Ok(metrics)
}

struct Sample<'a> {
    labels: &'a str,
    /// None: not a number, or not finite.
    value: Option<f64>,
}

/// `name{labels} value [timestamp]` or `name value [timestamp]`; None if the line is of another family.
fn sample_of<'a>(line: &'a str, name: &str) -> Option<Sample<'a>> {
    let rest = line.strip_prefix(name)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_at(end_of_labels(rest)?),
        None if rest.starts_with([' ', '\t']) => ("", rest),
        None => return None,
    };
    let value = rest.trim_start_matches('}').split_ascii_whitespace().next()?;
    Some(Sample { labels, value: value.parse().ok().filter(|v: &f64| v.is_finite()) })
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

/// The value of a label whose value has no escapes (numbers and names here).
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut from = 0;
    while let Some(at) = labels[from..].find(name) {
        let start = from + at;
        let standing_alone = start == 0 || matches!(labels.as_bytes()[start - 1], b',' | b' ');
        if standing_alone && let Some(value) = labels[start + name.len()..].strip_prefix("=\"") {
            return value.split('"').next();
        }
        from = start + name.len();
    }
    None
}

fn as_count(value: f64) -> u32 {
    // Saturating by definition of `as`; negative values become 0.
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(name: &str) -> String {
        let path = format!("{}/../../tests/data/vllm/metrics/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn reads_a_recorded_page_under_load() {
        let metrics = read_page(&VLLM, &recorded("vllm-metrics-load-1.txt")).unwrap();
        assert_eq!((metrics.running_requests, metrics.waiting_requests), (4, 8));
        assert!(metrics.kv_cache_utilization > 0.0 && metrics.kv_cache_utilization < 1.0);
        assert_eq!(metrics.block_size_tokens, 32);
        assert_eq!(metrics.num_gpu_blocks, 32);
    }

    #[test]
    fn reads_a_recorded_idle_page() {
        let metrics = read_page(&VLLM, &recorded("vllm-metrics-idle.txt")).unwrap();
        assert_eq!((metrics.running_requests, metrics.waiting_requests), (0, 0));
        assert_eq!(metrics.kv_cache_utilization, 0.0);
    }

    #[test]
    fn names_what_is_missing() {
        let error = read_page(&VLLM, "vllm:num_requests_waiting 1\n").unwrap_err();
        assert_eq!(error.missing, "vllm:num_requests_running");
    }

    #[test]
    fn longer_names_not_numbers_and_odd_labels_are_no_samples() {
        let page = "vllm:num_requests_waiting_total 7\n\
                    vllm:num_requests_waiting{a=\"}\\\"\"} NaN\n\
                    vllm:num_requests_waiting{a=\"b\"} 3 1700000000\n\
                    vllm:num_requests_running 2.0\nvllm:kv_cache_usage_perc 1.5\n";
        let metrics = read_page(&VLLM, page).unwrap();
        assert_eq!((metrics.waiting_requests, metrics.running_requests), (3, 2));
        assert_eq!(metrics.kv_cache_utilization, 1.0);
    }

    #[test]
    fn label_names_match_whole() {
        let labels = "effective_block_size=\"8\",block_size=\"16\"";
        assert_eq!(label(labels, "block_size"), Some("16"));
        assert_eq!(label(labels, "size"), None);
    }
}
