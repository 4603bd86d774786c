//! The `/metrics` page: a capture of a real vLLM with the live values put in.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::counters::EngineCounters;
use crate::histogram::{Histogram, HistogramSnapshot};
use crate::scheduler::SchedulerStats;

/// `/metrics` of an idle vLLM 0.32.0, so that names, help texts, labels and size are those of a real engine.
const TEMPLATE: &str = include_str!("metrics_template.txt");
const TEMPLATE_MODEL: &str = "model_name=\"tiny-qwen2\"";

const TTFT: &str = "vllm:time_to_first_token_seconds";
const REQUEST_LATENCY: &str = "vllm:e2e_request_latency_seconds";

/// A sample whose value changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    RunningRequests,
    WaitingRequests,
    KvCacheUsage,
    PrefixCacheQueries,
    PrefixCacheHits,
    Preemptions,
    PromptTokens,
    ComputedPromptTokens,
    CachedPromptTokens,
    GenerationTokens,
    FinishedRequests,
    AbortedRequests,
    TtftBucket(usize),
    TtftCount,
    TtftSum,
    LatencyBucket(usize),
    LatencyCount,
    LatencySum,
}

/// Samples with a live value: metric name, a label it must have (or nothing), and the value.
const SAMPLES: &[(&str, &str, Slot)] = &[
    ("vllm:num_requests_running", "", Slot::RunningRequests),
    ("vllm:num_requests_waiting", "", Slot::WaitingRequests),
    ("vllm:num_requests_waiting_by_reason", "reason=\"capacity\"", Slot::WaitingRequests),
    ("vllm:kv_cache_usage_perc", "", Slot::KvCacheUsage),
    ("vllm:prefix_cache_queries_total", "", Slot::PrefixCacheQueries),
    ("vllm:prefix_cache_hits_total", "", Slot::PrefixCacheHits),
    ("vllm:num_preemptions_total", "", Slot::Preemptions),
    ("vllm:prompt_tokens_total", "", Slot::PromptTokens),
    ("vllm:prompt_tokens_by_source_total", "source=\"local_compute\"", Slot::ComputedPromptTokens),
    ("vllm:prompt_tokens_by_source_total", "source=\"local_cache_hit\"", Slot::CachedPromptTokens),
    ("vllm:prompt_tokens_cached_total", "", Slot::CachedPromptTokens),
    ("vllm:prompt_tokens_cached_by_source_total", "source=\"device\"", Slot::CachedPromptTokens),
    ("vllm:generation_tokens_total", "", Slot::GenerationTokens),
    ("vllm:request_success_total", "finished_reason=\"length\"", Slot::FinishedRequests),
    ("vllm:request_success_total", "finished_reason=\"abort\"", Slot::AbortedRequests),
];

/// What names the rank in the template.
const TEMPLATE_RANK: &str = "engine=\"0\"";

/// The page of one engine: fixed text and slots in between, each of a rank.
pub(crate) struct MetricsPage {
    segments: Vec<(String, Slot, usize)>,
    tail: String,
}

impl MetricsPage {
    /// The page of an engine with this model name, the cache of each rank, and so many ranks.
    pub(crate) fn new(model_name: &str, block_size_tokens: u32, num_gpu_blocks: u32, ranks: u16) -> Self {
        let model = format!("model_name=\"{}\"", escaped(model_name));
        let mut page = Self { segments: Vec::new(), tail: String::new() };
        let mut buckets = (0, 0);
        // vLLM tells every rank the blocks of all.
        let all_blocks = num_gpu_blocks.saturating_mul(u32::from(ranks));
        for line in TEMPLATE.lines() {
            let line = line.replace(TEMPLATE_MODEL, &model);
            let slot = slot_of(&line, &mut buckets);
            let copies = if line.contains(TEMPLATE_RANK) { ranks } else { 1 };
            for rank in 0..copies {
                let line = line.replace(TEMPLATE_RANK, &format!("engine=\"{rank}\""));
                match (slot, line.rsplit_once(' ')) {
                    (Some(slot), Some((sample, _))) => {
                        page.tail.push_str(sample);
                        page.tail.push(' ');
                        page.segments.push((std::mem::take(&mut page.tail), slot, usize::from(rank)));
                    }
                    _ if line.starts_with("vllm:cache_config_info{") => {
                        page.tail.push_str(&cache_config(&line, block_size_tokens, all_blocks));
                    }
                    _ => page.tail.push_str(&line),
                }
                page.tail.push('\n');
            }
        }
        page
    }

    /// Counters with the histogram bounds of the page.
    pub(crate) fn counters() -> EngineCounters {
        EngineCounters::new(bounds_of(TTFT), bounds_of(REQUEST_LATENCY))
    }

    /// The page with the values of now.
    pub(crate) fn render(&self, ranks: &[Arc<EngineCounters>]) -> String {
        let now: Vec<RankNow<'_>> = ranks.iter().map(|counters| RankNow::of(counters)).collect();
        let mut page = String::with_capacity((TEMPLATE.len() + 4096) * ranks.len());
        for (text, slot, rank) in &self.segments {
            page.push_str(text);
            let value = now.get(*rank).map_or(0.0, |rank| rank.value(*slot));
            // Debug keeps the ".0" of whole numbers, as the Python client writes them.
            let _ = write!(page, "{value:?}");
        }
        page.push_str(&self.tail);
        page
    }
}

/// The live values of one rank.
struct RankNow<'a> {
    counters: &'a EngineCounters,
    scheduler: SchedulerStats,
    ttft: Rendered,
    latency: Rendered,
}

impl<'a> RankNow<'a> {
    fn of(counters: &'a EngineCounters) -> Self {
        Self {
            counters,
            scheduler: *counters.scheduler.lock(),
            ttft: Rendered::of(&counters.time_to_first_token),
            latency: Rendered::of(&counters.request_latency),
        }
    }

    fn value(&self, slot: Slot) -> f64 {
        let Self { counters, scheduler, ttft, latency } = self;
        match slot {
            Slot::RunningRequests => f64::from(scheduler.running_requests),
            Slot::WaitingRequests => f64::from(scheduler.waiting_requests),
            Slot::KvCacheUsage => scheduler.kv_cache_usage,
            Slot::PrefixCacheQueries => scheduler.prefix_cache_queries_tokens as f64,
            Slot::PrefixCacheHits => scheduler.prefix_cache_hits_tokens as f64,
            Slot::Preemptions => scheduler.preemptions as f64,
            Slot::PromptTokens => scheduler.prompt_tokens as f64,
            Slot::ComputedPromptTokens => (scheduler.prompt_tokens - scheduler.cached_prompt_tokens) as f64,
            Slot::CachedPromptTokens => scheduler.cached_prompt_tokens as f64,
            Slot::GenerationTokens => scheduler.generation_tokens as f64,
            Slot::FinishedRequests => counters.finished_requests.load(Ordering::Relaxed) as f64,
            Slot::AbortedRequests => counters.aborted_requests.load(Ordering::Relaxed) as f64,
            Slot::TtftBucket(index) => ttft.bucket(index),
            Slot::TtftCount => ttft.count(),
            Slot::TtftSum => ttft.0.sum_seconds,
            Slot::LatencyBucket(index) => latency.bucket(index),
            Slot::LatencyCount => latency.count(),
            Slot::LatencySum => latency.0.sum_seconds,
        }
    }
}

struct Rendered(HistogramSnapshot);

impl Rendered {
    fn of(histogram: &Histogram) -> Self {
        Self(histogram.snapshot())
    }

    fn bucket(&self, index: usize) -> f64 {
        self.0.cumulative.get(index).copied().unwrap_or(0) as f64
    }

    fn count(&self) -> f64 {
        self.0.cumulative.last().copied().unwrap_or(0) as f64
    }
}

/// The slot of a sample line, if it is live. `buckets` counts the bucket lines met so far.
fn slot_of(line: &str, buckets: &mut (usize, usize)) -> Option<Slot> {
    let (name, labels) = line.split_once('{')?;
    let next = |count: &mut usize| {
        *count += 1;
        *count - 1
    };
    if let Some(part) = name.strip_prefix(TTFT) {
        return match part {
            "_bucket" => Some(Slot::TtftBucket(next(&mut buckets.0))),
            "_count" => Some(Slot::TtftCount),
            "_sum" => Some(Slot::TtftSum),
            _ => None,
        };
    }
    if let Some(part) = name.strip_prefix(REQUEST_LATENCY) {
        return match part {
            "_bucket" => Some(Slot::LatencyBucket(next(&mut buckets.1))),
            "_count" => Some(Slot::LatencyCount),
            "_sum" => Some(Slot::LatencySum),
            _ => None,
        };
    }
    let sample = SAMPLES.iter().find(|sample| sample.0 == name && labels.contains(sample.1))?;
    Some(sample.2)
}

fn bounds_of(metric: &str) -> Vec<f64> {
    TEMPLATE
        .lines()
        .filter_map(|line| line.strip_prefix(metric)?.strip_prefix("_bucket{"))
        .filter_map(|labels| labels.split_once("le=\"")?.1.split_once('"')?.0.parse().ok())
        .filter(|bound: &f64| bound.is_finite())
        .collect()
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn cache_config(line: &str, block_size_tokens: u32, num_gpu_blocks: u32) -> String {
    let size = u64::from(block_size_tokens) * u64::from(num_gpu_blocks);
    let mut line = line.to_owned();
    for (label, value) in [
        ("block_size", u64::from(block_size_tokens)),
        ("effective_attention_block_size", u64::from(block_size_tokens)),
        ("num_gpu_blocks", u64::from(num_gpu_blocks)),
        ("num_gpu_blocks_override", u64::from(num_gpu_blocks)),
        ("kv_cache_size_tokens", size),
    ] {
        let key = format!(",{label}=\"");
        if let Some(at) = line.find(&key) {
            let start = at + key.len();
            if let Some(len) = line[start..].find('"') {
                line.replace_range(start..start + len, &value.to_string());
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{MetricsPage, TEMPLATE};
    use crate::scheduler::SchedulerStats;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn every_rank_has_its_series() {
        let page = MetricsPage::new("m", 32, 32, 2);
        let ranks = [(); 2].map(|()| Arc::new(MetricsPage::counters()));
        ranks[1].scheduler.lock().running_requests = 3;
        let text = page.render(&ranks);
        let shows = |line: &str| assert!(text.lines().any(|found| found == line), "missing: {line}");
        shows("vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0.0");
        shows("vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 3.0");
        let of_cache = |line: &&str| line.starts_with("vllm:cache_config_info{");
        let caches: Vec<_> = text.lines().filter(of_cache).collect();
        assert_eq!(caches.len(), 2);
        assert!(caches[1].contains(",engine=\"1\",") && caches[1].contains(",num_gpu_blocks=\"64\","));
    }

    #[test]
    fn the_page_of_an_idle_engine_is_the_capture() {
        let page = MetricsPage::new("tiny-qwen2", 32, 32, 1);
        assert_eq!(page.render(&[Arc::new(MetricsPage::counters())]), TEMPLATE);
    }

    #[test]
    fn live_values_stand_where_vllm_has_them() {
        let page = MetricsPage::new("a \"b\"", 16, 1024, 1);
        let counters = MetricsPage::counters();
        *counters.scheduler.lock() = SchedulerStats {
            running_requests: 4,
            waiting_requests: 8,
            kv_cache_usage: 1.0 - 7.0 / 31.0,
            prompt_tokens: 10,
            cached_prompt_tokens: 4,
            ..SchedulerStats::default()
        };
        counters.time_to_first_token.observe(Duration::from_millis(30));
        let text = page.render(&[Arc::new(counters)]);
        for line in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"a \\\"b\\\"\"} 4.0",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"a \\\"b\\\"\"} 8.0",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a \\\"b\\\"\"} 0.7741935483870968",
            "vllm:prompt_tokens_by_source_total{engine=\"0\",model_name=\"a \\\"b\\\"\",source=\"local_compute\"} 6.0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"0.02\",model_name=\"a \\\"b\\\"\"} 0.0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"0.04\",model_name=\"a \\\"b\\\"\"} 1.0",
            "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"a \\\"b\\\"\"} 1.0",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}");
        }
        let config = text.lines().find(|line| line.starts_with("vllm:cache_config_info{")).unwrap();
        assert!(config.contains(",block_size=\"16\",") && config.contains(",num_gpu_blocks=\"1024\","));
        assert!(!text.contains("tiny-qwen2"));
    }
}
