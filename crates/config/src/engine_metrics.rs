//! Which metrics of an engine mean what: the names of the llm-d Router EPP's five built-in engines, and those that a
//! configuration gives.
//!
//! Names and defaults: `pkg/epp/framework/plugins/datalayer/extractor/metrics/` in github.com/llm-d/llm-d-router.

use std::fmt;

/// The label that says which engine an endpoint runs.
pub(crate) const ENGINE_LABEL: &str = "llm-d.ai/engine-type";
/// The engine of endpoints without the label, or with a name that isn't known.
pub(crate) const DEFAULT_ENGINE: &str = "vllm";
/// Labels of an info metric that describe the KV cache unless a file names others: tokens per block, and blocks.
pub(crate) const CACHE_LABELS: (&str, &str) = ("block_size", "num_gpu_blocks");

/// What is read out of the endpoints' metrics pages (`core-metrics-extractor`).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MetricsExtractorSpec {
    /// Its name, which is the second half of the keys of its attributes.
    pub name: String,
    /// The label that says which engine an endpoint runs. Where it is missing, [`OLD_ENGINE_LABEL`] counts.
    pub engine_label_key: String,
    /// The engine of endpoints without that label or with a name that isn't known; one of `engines`.
    pub default_engine: String,
    /// What is made of series that differ in their data-parallel rank.
    pub rank_series: RankSeries,
    /// The engines: those of the file, then the built-in ones that it doesn't redefine.
    pub engines: Vec<EngineMetricsSpec>,
}

/// The label's name before `llm-d.ai/engine-type`; read where the other one is missing.
pub const OLD_ENGINE_LABEL: &str = "inference.networking.k8s.io/engine-type";

impl MetricsExtractorSpec {
    /// The built-in engines alone.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            engine_label_key: ENGINE_LABEL.to_owned(),
            default_engine: DEFAULT_ENGINE.to_owned(),
            rank_series: RankSeries::default(),
            engines: EngineMetricsSpec::built_in(),
        }
    }

    /// The same under another name.
    #[must_use]
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The attributes that it makes of custom metrics, each once, in the order of the engines.
    pub fn attribute_keys(&self) -> Vec<&str> {
        let mut keys = Vec::new();
        for custom in self.engines.iter().flat_map(|engine| &engine.custom_metrics) {
            if !keys.contains(&custom.attribute_key.as_str()) {
                keys.push(custom.attribute_key.as_str());
            }
        }
        keys
    }
}

/// What is made of several series of one load metric that differ in their data-parallel rank (the label `engine` or
/// `dp_rank`), as a page has them that shows several ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RankSeries {
    /// What the ranks are together: waiting and running requests are added up, KV cache usage is their mean.
    #[default]
    Combined,
    /// The first series alone, as at the llm-d Router EPP.
    First,
}

impl RankSeries {
    /// Its name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Combined => "combined",
            Self::First => "first",
        }
    }
}

/// Which metrics of one kind of engine mean what; `None` is something that the engine doesn't tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineMetricsSpec {
    /// The value of the label.
    pub name: String,
    /// Requests that wait.
    pub queued_requests: Option<MetricSpec>,
    /// Requests that run.
    pub running_requests: Option<MetricSpec>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<MetricSpec>,
    /// LoRA adapters, as labels of vLLM's shape.
    pub lora: Option<MetricSpec>,
    /// Info metric that describes the KV cache in its labels.
    pub cache_info: Option<MetricSpec>,
    /// Label of `cache_info` with the tokens per block.
    pub cache_block_size_label: String,
    /// Label of `cache_info` with the number of blocks.
    pub cache_num_blocks_label: String,
    /// Tokens per block, as a value.
    pub cache_block_size: Option<MetricSpec>,
    /// Number of blocks, as a value.
    pub cache_num_blocks: Option<MetricSpec>,
    /// Metrics that become attributes of the endpoint.
    pub custom_metrics: Vec<CustomMetricSpec>,
}

impl EngineMetricsSpec {
    /// An engine of which nothing is read.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cache_block_size_label: CACHE_LABELS.0.to_owned(),
            cache_num_blocks_label: CACHE_LABELS.1.to_owned(),
            ..Self::default()
        }
    }

    /// The engines that need no configuration.
    pub fn built_in() -> Vec<Self> {
        let load = |name: &str, queued: MetricSpec, running: MetricSpec, kv_usage: Option<MetricSpec>| Self {
            queued_requests: Some(queued),
            running_requests: Some(running),
            kv_usage,
            ..Self::new(name)
        };
        let plain = MetricSpec::plain;
        let request = |kind| MetricSpec::labelled("nv_trt_llm_request_metrics", "request_type", kind);
        let block =
            |kind| MetricSpec::labelled("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", kind);
        let vllm = Self {
            lora: Some(plain("vllm:lora_requests_info")),
            cache_info: Some(plain("vllm:cache_config_info")),
            ..load(
                "vllm",
                plain("vllm:num_requests_waiting"),
                plain("vllm:num_requests_running"),
                Some(plain("vllm:kv_cache_usage_perc")),
            )
        };
        let sglang = Self {
            cache_info: Some(plain("sglang:cache_config_info")),
            cache_block_size_label: "page_size".to_owned(),
            cache_num_blocks_label: "num_pages".to_owned(),
            ..load(
                "sglang",
                plain("sglang:num_queue_reqs"),
                plain("sglang:num_running_reqs"),
                Some(plain("sglang:token_usage")),
            )
        };
        let trtllm = Self {
            cache_block_size: Some(plain("trtllm_kv_cache_tokens_per_block")),
            cache_num_blocks: Some(plain("trtllm_kv_cache_max_blocks")),
            ..load(
                "trtllm-serve",
                plain("trtllm_num_requests_waiting"),
                plain("trtllm_num_requests_running"),
                Some(plain("trtllm_kv_cache_utilization")),
            )
        };
        let triton_trtllm = Self {
            cache_block_size: Some(block("tokens_per")),
            cache_num_blocks: Some(block("max")),
            ..load("triton-tensorrt-llm", request("waiting"), request("scheduled"), Some(block("fraction")))
        };
        let triton = load(
            "triton",
            plain("nv_inference_pending_request_count"),
            plain("nv_inference_exec_count"),
            None,
        );
        vec![vllm, sglang, trtllm, triton_trtllm, triton]
    }
}

/// A metric that becomes an attribute of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomMetricSpec {
    /// First half of the attribute's key; the second is the extractor's name.
    pub attribute_key: String,
    /// The metric.
    pub metric: MetricSpec,
}

/// A metric, and labels that a series of it must have: `name` or `name{label=value,…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricSpec {
    /// Name of the metric, as on the page.
    pub name: String,
    /// Labels with their values, neither of which needs escapes.
    pub labels: Vec<(String, String)>,
}

/// Why a text is no metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricSpecError {
    /// The name isn't one that Prometheus takes.
    #[error("{0:?} is no name of a metric")]
    Name(String),
    /// A brace is opened and not closed at the end, or the other way round.
    #[error("braces must enclose the labels at the end, as in name{{label=value}}")]
    Braces,
    /// Something between the braces isn't `label=value`.
    #[error("{0:?} is not label=value")]
    Label(String),
    /// A label stands there twice.
    #[error("label {0:?} is given twice")]
    TwiceGiven(String),
}

impl MetricSpec {
    fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), labels: Vec::new() }
    }

    fn labelled(name: &str, label: &str, value: &str) -> Self {
        Self { name: name.to_owned(), labels: vec![(label.to_owned(), value.to_owned())] }
    }

    /// Reads `name` or `name{label=value,…}`. Values may be in double quotes, as on a metrics page.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, MetricSpecError> {
        let text = text.trim();
        let (name, labels) = match text.split_once('{') {
            None if text.contains('}') => return Err(MetricSpecError::Braces),
            None => (text, ""),
            Some((name, rest)) => (name.trim_end(), rest.strip_suffix('}').ok_or(MetricSpecError::Braces)?),
        };
        if !is_name(name, |c| c == ':') {
            return Err(MetricSpecError::Name(name.to_owned()));
        }
        let mut spec = Self::plain(name);
        for pair in labels.split(',').map(str::trim).filter(|_| !labels.trim().is_empty()) {
            let (label, value) = label_of(pair).ok_or_else(|| MetricSpecError::Label(pair.to_owned()))?;
            if spec.labels.iter().any(|(known, _)| known == label) {
                return Err(MetricSpecError::TwiceGiven(label.to_owned()));
            }
            spec.labels.push((label.to_owned(), value.to_owned()));
        }
        Ok(spec)
    }
}

fn label_of(pair: &str) -> Option<(&str, &str)> {
    let (label, value) = pair.split_once('=')?;
    let (label, value) = (label.trim_end(), value.trim_start());
    let value = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => value,
    };
    let needs_no_escape = !value.is_empty() && !value.contains(['"', '\\', '{', '}', '\n']);
    (is_name(label, |_| false) && needs_no_escape).then_some((label, value))
}

/// Whether it is a name of letters, digits, `_` and `also`, and doesn't begin with a digit.
fn is_name(name: &str, also: impl Fn(char) -> bool) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || also(c);
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}

impl fmt::Display for MetricSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.labels.is_empty() {
            return Ok(());
        }
        let labels: Vec<String> =
            self.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        write!(f, "{{{}}}", labels.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_a_name_with_or_without_labels() {
        for (text, shown) in [
            ("vllm:num_requests_waiting", "vllm:num_requests_waiting"),
            (" a_1 ", "a_1"),
            ("a{}", "a"),
            ("a{b=c}", "a{b=c}"),
            ("a { b = \"c d\" , e=f}", "a{b=c d,e=f}"),
        ] {
            let spec = MetricSpec::parse(text).unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(MetricSpec::parse(shown).unwrap(), spec);
        }
    }

    #[test]
    fn what_is_no_metric_is_refused_with_the_reason() {
        use MetricSpecError::{Braces, Label, Name, TwiceGiven};
        for (text, error) in [
            ("", Name(String::new())),
            ("1a", Name("1a".to_owned())),
            ("a b", Name("a b".to_owned())),
            ("{b=c}", Name(String::new())),
            ("a{b=c", Braces),
            ("ab=c}", Braces),
            ("a{b=c}d", Braces),
            ("a{b}", Label("b".to_owned())),
            ("a{b=c,}", Label(String::new())),
            ("a{b=}", Label("b=".to_owned())),
            ("a{b=\"c}", Label("b=\"c".to_owned())),
            ("a{b=c{d}}", Label("b=c{d}".to_owned())),
            ("a{1b=c}", Label("1b=c".to_owned())),
            ("a{b=c,b=d}", TwiceGiven("b".to_owned())),
        ] {
            assert_eq!(MetricSpec::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn an_attribute_that_several_engines_have_is_one() {
        let custom =
            |key: &str| CustomMetricSpec { attribute_key: key.to_owned(), metric: MetricSpec::plain("m") };
        let mut spec = MetricsExtractorSpec::new("e");
        assert!(spec.attribute_keys().is_empty());
        spec.engines[0].custom_metrics = vec![custom("a"), custom("b")];
        spec.engines[1].custom_metrics = vec![custom("b"), custom("c")];
        assert_eq!(spec.attribute_keys(), ["a", "b", "c"]);
    }
}
