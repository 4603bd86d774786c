//! Who reads which signal, who produces it, and what that one is fed by.

use std::fmt::Write;

use serde::Serialize;
use warmroute_config::{CheckedConfig, PluginSpec, PrefixProducerSpec, TokenBackend};
use warmroute_plugin::{BuildContext, Needs, Registry};

/// Built-in plugins that read the engines' metrics.
const METRICS_READERS: [&str; 6] = [
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "running-requests-size-scorer",
    "load-aware-scorer",
    "utilization-filter",
    "utilization-detector",
];
/// Built-in plugins that read what this picker has in flight.
const IN_FLIGHT_READERS: [&str; 5] = [
    "active-request-scorer",
    "token-load-scorer",
    "prefix-cache-affinity-filter",
    "utilization-filter",
    "concurrency-detector",
];
/// Built-in plugins that read the length of the prompt.
const LENGTH_READERS: [&str; 2] = ["context-length-aware", "context-length-filter"];

/// The signals of a configuration. What reads nothing but labels, headers and the request itself isn't in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct DataFlow {
    reads: Vec<Read>,
}

/// One plugin reads one signal.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Read {
    /// Name of the plugin.
    consumer: String,
    /// What it reads.
    signal: String,
    /// Name of the plugin that produces it.
    producer: String,
    fed_by: String,
}

impl DataFlow {
    /// Of all plugins that have a part in decisions. `has_tokenizer` says whether the picker will be given one on its
    /// command line.
    pub fn new(config: &CheckedConfig, registry: &Registry, has_tokenizer: bool) -> Self {
        let references = || config.profiles.iter().flat_map(|profile| &profile.plugins);
        let is_used = |plugin: &&PluginSpec| {
            references().any(|reference| reference.plugin_ref == plugin.name)
                && plugin.name != config.saturation_detector.name
        };
        let mut flow = Self { reads: Vec::new() };
        for plugin in config.plugins.iter().filter(is_used).chain([&config.saturation_detector]) {
            flow.add(plugin, config, registry, has_tokenizer);
        }
        flow
    }

    fn add(&mut self, plugin: &PluginSpec, config: &CheckedConfig, registry: &Registry, has_tokenizer: bool) {
        let mut needs = Needs::default();
        let mut context = BuildContext::new(&plugin.name, &mut needs);
        // What can't be built has been refused before.
        let _ = registry.build(&plugin.plugin_type, plugin.parameters.clone(), &mut context);
        let mut read = |signal: &str, producer: &str, fed_by: String| {
            let (consumer, signal) = (plugin.name.clone(), signal.to_owned());
            self.reads.push(Read { consumer, signal, producer: producer.to_owned(), fed_by });
        };
        let tokens = tokens(config, has_tokenizer);
        for producer in needs.prefix_producers() {
            read("prefix matches", producer, matches(config, producer, &tokens));
        }
        for key in needs.attributes() {
            let producer = key.rsplit_once('/').map_or("", |(_, producer)| producer);
            read(&format!("attribute {key}"), producer, "the endpoints".to_owned());
        }
        if needs.adapters() {
            read("LoRA adapters", "core-metrics-extractor", metrics(config));
        }
        let is_one_of = |types: &[&str]| types.contains(&plugin.plugin_type.as_str());
        if is_one_of(&METRICS_READERS) {
            let source = config.metrics_source.as_ref();
            let producer = source.map_or("nobody", |source| source.name.as_str());
            read("metrics", producer, metrics(config));
        }
        if is_one_of(&IN_FLIGHT_READERS) {
            let fed_by = "what this picker has sent and not seen the end of";
            read("requests in flight", "inflight-load-producer", fed_by.to_owned());
        }
        if is_one_of(&LENGTH_READERS) {
            let unnamed = if has_tokenizer { "--tokenizer" } else { "an estimate" };
            let producer = config.token_producer.as_ref().map_or(unnamed, |tokens| tokens.name.as_str());
            read("prompt length", producer, tokens);
        }
    }

    /// As lines for people, without a heading.
    pub fn lines(&self) -> String {
        let width = self.reads.iter().map(|read| read.consumer.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Read { consumer, signal, producer, fed_by } in &self.reads {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {consumer:width$}  {signal} of {producer}, by {fed_by}");
        }
        text
    }
}

/// What a producer of prefix matches is fed by.
fn matches(config: &CheckedConfig, producer: &str, tokens: &str) -> String {
    const SENT: &str = "what this picker has sent to each endpoint";
    match config.prefix_producer(producer) {
        Some(PrefixProducerSpec::ExactFirst(_)) => {
            format!("{} where they are seen, else {SENT}, and {tokens}", events(config))
        }
        Some(producer) if producer.approximate().is_some() => format!("{SENT} and {tokens}"),
        _ => format!("{} and {tokens}", events(config)),
    }
}

fn events(config: &CheckedConfig) -> String {
    let spec = config.kv_events();
    let dialled = match spec.as_ref().and_then(|events| events.socket_port) {
        Some(port) => format!("KV events of every engine at port {port}"),
        None => "KV events of every engine".to_owned(),
    };
    match spec.and_then(|events| Some((events.listen?, events.discover_pods))) {
        None => dialled,
        Some((address, true)) => format!("{dialled} and of engines that connect to {address}"),
        Some((address, false)) => format!("KV events of engines that connect to {address}"),
    }
}

fn tokens(config: &CheckedConfig, has_tokenizer: bool) -> String {
    match &config.token_producer {
        _ if has_tokenizer => "token ids by --tokenizer".to_owned(),
        Some(producer) => {
            let name = &producer.name;
            match &producer.backend {
                TokenBackend::Local { path } => format!("token ids by {name} with {}", path.display()),
                TokenBackend::Vllm(backend) => format!("token ids by {name} from {}", backend.url),
                _ => format!("token ids in requests ({name} only estimates those of text)"),
            }
        }
        None => "token ids in requests (text is only estimated: no tokenizer is named)".to_owned(),
    }
}

fn metrics(config: &CheckedConfig) -> String {
    match &config.metrics_source {
        Some(source) => {
            let port = source.port.map_or_else(String::new, |port| format!(" at port {port}"));
            format!("{} of every engine{port}", source.path)
        }
        None => "nothing: no metrics are scraped".to_owned(),
    }
}
