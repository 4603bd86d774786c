//! What is in effect, in a few lines.

use std::fmt::Write as _;

use crate::engine_metrics::DEFAULT_ENGINE;
use crate::{
    ApproximatePrefixSpec, CheckedConfig, MetricsExtractorSpec, Parser, PluginSpec, PrefixProducerSpec,
    SessionIdSource, TokenBackend,
};

impl CheckedConfig {
    /// A few lines that say what is in effect, for the start-up log. Without notices.
    pub fn summary(&self) -> String {
        let mut text = format!("configuration {}", self.source.name());
        self.add_profiles(&mut text);
        if let Some(handler) = self.handler.summary() {
            let _ = write!(text, "\n  handler: {handler}");
        }
        for producer in &self.prefix_producers {
            // Writing to a String can't fail.
            let _ = write!(text, "\n  prefix matches: {}", prefix_producer(producer));
        }
        if let Some(producer) = &self.token_producer {
            let _ = match &producer.backend {
                TokenBackend::Local { path } => {
                    write!(text, "\n  tokens: {} with {}", producer.name, path.display())
                }
                TokenBackend::Vllm(server) => {
                    write!(text, "\n  tokens: {} from {} of {}", producer.name, server.model_name, server.url)
                }
                TokenBackend::Estimate(_) => write!(text, "\n  tokens: {} estimates them", producer.name),
            };
        }
        match &self.metrics_source {
            None => text.push_str("\n  metrics: not scraped"),
            Some(source) => {
                let port = source
                    .port
                    .map_or_else(|| "the endpoint's port".to_owned(), |port| format!("port {port}"));
                let interval =
                    source.interval.map_or_else(String::new, |interval| format!(" every {interval:?}"));
                let tls = if source.tls.is_some() { " over https" } else { "" };
                let _ = write!(text, "\n  metrics: {} on {port}{tls}{interval}", source.path);
                text.push_str(&extracted(&self.metrics_extractor));
            }
        }
        if let Some(source) = &self.models_source {
            let _ = write!(text, "\n  models: {} of every endpoint", source.path);
        }
        if let Some(file) = &self.discovery {
            let watched = if file.watch_file { ", watched" } else { ", read once" };
            let _ = write!(text, "\n  endpoints: {} with {}{watched}", file.name, file.path.display());
        }
        let _ = write!(text, "\n  saturation: {}", described(&self.saturation_detector));
        for producer in &self.session_id_producers {
            let _ = write!(text, "\n  session ids: {} from {}", producer.name, place(&producer.source));
        }
        if self.reports_served_endpoint {
            text.push_str("\n  responses tell which endpoint served, by the gateway's word");
        }
        let parsers: Vec<&str> = self.parsers.iter().map(|parser| parser.plugin_type()).collect();
        let _ = write!(text, "\n  parsers: {}", parsers.join(", "));
        text
    }

    /// A line per profile, with its plugins.
    fn add_profiles(&self, text: &mut String) {
        for profile in &self.profiles {
            let plugins = profile.plugins.iter().map(|reference| {
                let plugin = self.plugins.iter().find(|plugin| plugin.name == reference.plugin_ref);
                let plugin = plugin.map_or_else(|| reference.plugin_ref.clone(), described);
                if reference.weight == 1.0 { plugin } else { format!("{plugin} × {}", reference.weight) }
            });
            let plugins: Vec<String> = plugins.collect();
            // Writing to a String can't fail.
            let _ = write!(text, "\n  profile {}: {}", profile.name, plugins.join(", "));
        }
    }
}

/// What differs from vLLM's metrics, read as one.
fn extracted(extractor: &MetricsExtractorSpec) -> String {
    let mut text = String::new();
    if extractor.default_engine != DEFAULT_ENGINE {
        // Writing to a String can't fail.
        let _ = write!(
            text,
            ", of engine {} unless {} says otherwise",
            extractor.default_engine, extractor.engine_label_key
        );
    }
    let keys = extractor.attribute_keys();
    if !keys.is_empty() {
        let _ = write!(text, ", with the attributes {}", keys.join(", "));
    }
    text
}

fn place(source: &SessionIdSource) -> String {
    match source {
        SessionIdSource::Header(name) => format!("header {name}"),
        SessionIdSource::Cookie(name) => format!("cookie {name}"),
    }
}

fn prefix_producer(producer: &PrefixProducerSpec) -> String {
    let name = producer.name();
    match producer {
        PrefixProducerSpec::Precise(spec) => {
            let speculative = match spec.speculative_indexing {
                true => format!(", picked blocks expected for at least {:?}", spec.speculative_ttl),
                false => String::new(),
            };
            let port = spec.socket_port.map_or_else(String::new, |port| format!(" on port {port}"));
            let replay = spec.replay_socket_port.filter(|port| *port != 0);
            let replay =
                replay.map_or_else(String::new, |port| format!(", lost ones by replay on port {port}"));
            let topic = match spec.topic_filter.as_str() {
                "" => String::new(),
                prefix => format!(" of topics {prefix:?}"),
            };
            format!("{name} from KV events{topic}{port}{replay}{speculative}")
        }
        PrefixProducerSpec::Approximate(spec) | PrefixProducerSpec::Burst(spec) => {
            format!("{name} from what was sent{}", approximate(spec))
        }
        PrefixProducerSpec::ExactFirst(spec) => {
            format!("{name} from KV events where they are seen, else from what was sent{}", approximate(spec))
        }
    }
}

fn approximate(spec: &ApproximatePrefixSpec) -> String {
    let size = spec.block_size_tokens.max(spec.min_block_size_tokens);
    match spec.auto_tune {
        true => " in blocks of each engine's size".to_owned(),
        false => format!(" in blocks of {size} tokens, {} per endpoint", spec.capacity_blocks),
    }
}

fn described(plugin: &PluginSpec) -> String {
    let name = match plugin.name == plugin.plugin_type {
        true => plugin.name.clone(),
        false => format!("{} ({})", plugin.name, plugin.plugin_type),
    };
    match plugin.parameters.as_object() {
        Some(parameters) if !parameters.is_empty() => format!("{name} {}", plugin.parameters),
        _ => name,
    }
}

impl Parser {
    /// The type of the parser in configurations.
    pub fn plugin_type(self) -> &'static str {
        match self {
            Self::OpenAi => "openai-parser",
            Self::Anthropic => "anthropic-parser",
            Self::VllmHttp => "vllmhttp-parser",
            Self::SglangHttp => "sglanghttp-parser",
            Self::Passthrough => "passthrough-parser",
        }
    }
}
