use prometheus::{Error, Histogram, HistogramVec, IntCounterVec, IntGaugeVec};

use super::buckets::{FAST_SECONDS, HIT_BYTES, RATIO, TOKENS};
use super::maker::Maker;

/// Bytes that the peer counts per token.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The labels of a plugin.
const PLUGIN: [&str; 2] = ["plugin_name", "plugin_type"];
/// The same with the stage that the endpoint serves.
const PLUGIN_AND_ROLE: [&str; 3] = ["plugin_name", "plugin_type", "endpoint_role"];
/// The stage of the endpoint that answers.
const DECODE: &str = "decode";

/// Metrics of scheduling: decisions, plugins, prefix matches.
#[derive(Debug)]
pub struct SchedulingMetrics {
    /// Look-up, scores, pick and charge.
    pub e2e_seconds: Histogram,
    /// Decisions, per outcome and picked endpoint.
    attempts: IntCounterVec,
    /// One call of a plugin.
    plugin_seconds: HistogramVec,
    prefix_size: IntGaugeVec,
    prefix_hit_ratio: HistogramVec,
    prefix_hit_bytes: HistogramVec,
    prefix_prompt_tokens: HistogramVec,
    prefix_predicted_tokens: HistogramVec,
}

/// Where in the path of a request a plugin is called. Spelt as the llm-d Router EPP spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionPoint {
    /// A filter takes out candidates.
    Filter,
    /// A scorer scores them.
    Scorer,
    /// The picker picks.
    Picker,
    /// A producer makes what others read, such as prefix matches.
    DataProducer,
}

impl ExtensionPoint {
    /// The word used as label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "Filter",
            Self::Scorer => "Scorer",
            Self::Picker => "Picker",
            Self::DataProducer => "DataProducer",
        }
    }
}

/// Name and type of a plugin, as the configuration has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginLabels<'a> {
    /// The name; the type if the configuration gives none.
    pub name: &'a str,
    /// The type.
    pub plugin_type: &'a str,
}

/// What a prefix producer knew of a prompt at the picked endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixPrediction {
    /// Blocks of the prompt that the endpoint is known to hold.
    pub matched_blocks: u32,
    /// Blocks of the prompt.
    pub total_blocks: u32,
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Tokens that the endpoint should serve from its cache.
    pub cached_tokens: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// The picked endpoint in labels: name, namespace, port.
pub type EndpointLabels<'a> = [&'a str; 3];

impl SchedulingMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            e2e_seconds: make.histogram(
                "llm_d_epp_scheduler_e2e_duration_seconds",
                "Look-up, scores, pick and charge.",
                &FAST_SECONDS,
            )?,
            attempts: make.counters(
                "llm_d_epp_scheduler_attempts_total",
                "Decisions by outcome (success, failure) and picked endpoint.",
                &["status", "target_model_name", "endpoint_name", "namespace", "port"],
            )?,
            plugin_seconds: make.histograms(
                "llm_d_epp_plugin_duration_seconds",
                "One call of a plugin.",
                &["extension_point", "plugin_type", "plugin_name"],
                &FAST_SECONDS,
            )?,
            prefix_size: make.gauges(
                "llm_d_epp_prefix_indexer_size",
                "Entries of the prefix index.",
                &PLUGIN,
            )?,
            prefix_hit_ratio: make.histograms(
                "llm_d_epp_prefix_indexer_hit_ratio",
                "Share of the prompt's blocks that the picked endpoint is known to hold.",
                &PLUGIN,
                &RATIO,
            )?,
            prefix_hit_bytes: make.histograms(
                "llm_d_epp_prefix_indexer_hit_bytes",
                "The same as bytes of text, four per token.",
                &PLUGIN,
                &HIT_BYTES,
            )?,
            prefix_prompt_tokens: make.histograms(
                "llm_d_epp_prefix_prompt_tokens",
                "Prompt tokens of requests whose prefix was looked up.",
                &PLUGIN_AND_ROLE,
                &TOKENS,
            )?,
            prefix_predicted_tokens: make.histograms(
                "llm_d_epp_prefix_predicted_cached_tokens",
                "Prompt tokens that the picked endpoint should serve from its cache.",
                &PLUGIN_AND_ROLE,
                &TOKENS,
            )?,
        })
    }

    /// Counts a decision; without an endpoint it failed. The model is a bounded label value.
    pub fn count_attempt(&self, target_model: &str, picked: Option<EndpointLabels<'_>>) {
        let status = if picked.is_some() { "success" } else { "failure" };
        let [name, namespace, port] = picked.unwrap_or_default();
        self.attempts.with_label_values(&[status, target_model, name, namespace, port]).inc();
    }

    /// Adds one call of a plugin.
    pub fn observe_plugin(&self, point: ExtensionPoint, plugin: PluginLabels<'_>, seconds: f64) {
        self.plugin_seconds
            .with_label_values(&[point.as_str(), plugin.plugin_type, plugin.name])
            .observe(seconds);
    }

    /// Says how large the index of a prefix producer is, in entries.
    pub fn set_prefix_size(&self, producer: PluginLabels<'_>, entries: i64) {
        self.prefix_size.with_label_values(&[producer.name, producer.plugin_type]).set(entries);
    }

    /// Adds what a producer knew of a prompt at the picked endpoint.
    pub fn observe_prefix(&self, producer: PluginLabels<'_>, prediction: PrefixPrediction) {
        let labels = [producer.name, producer.plugin_type];
        let PrefixPrediction {
            matched_blocks,
            total_blocks,
            block_size_tokens,
            cached_tokens,
            prompt_tokens,
        } = prediction;
        let by_role = [producer.name, producer.plugin_type, DECODE];
        self.prefix_prompt_tokens.with_label_values(&by_role).observe(f64::from(prompt_tokens));
        self.prefix_predicted_tokens.with_label_values(&by_role).observe(f64::from(cached_tokens));
        let bytes = f64::from(matched_blocks) * f64::from(block_size_tokens) * BYTES_PER_TOKEN;
        self.prefix_hit_bytes.with_label_values(&labels).observe(bytes);
        if total_blocks > 0 {
            let ratio = f64::from(matched_blocks) / f64::from(total_blocks);
            self.prefix_hit_ratio.with_label_values(&labels).observe(ratio);
        }
    }
}
