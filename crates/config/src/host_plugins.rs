//! Parameters of the plugins that are parts of the host.

use std::path::PathBuf;
use std::time::Duration;

use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::yaml::Node;
use crate::{FileDiscoverySpec, MetricsSourceSpec, PrefixProducerSpec, TokenProducerSpec};

const PORT: std::ops::RangeInclusive<u64> = 1..=65535;

impl PrefixProducerSpec {
    /// The producer with its defaults. Two differ from the peer's, on purpose: what was just picked is expected
    /// (otherwise a burst of one prompt scatters), and every topic is taken (an engine's own default topic is
    /// empty, which the peer's `kv@` silently leaves out).
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            speculative_indexing: true,
            speculative_ttl: Duration::from_secs(2),
            topic_filter: String::new(),
            concurrency: 4,
            socket_port: None,
        }
    }
}

/// No parameters, for a host plugin that takes none.
pub(crate) fn none(declared: &Declared<'_>, mistakes: &mut Mistakes) {
    if let Some(node) = declared.parameters {
        let fields = Fields::of(node, &declared.name, mistakes);
        fields.finish_with(
            Some("it takes no parameters; the llm-d EPP ignores them, here nothing is ignored"),
            mistakes,
        );
    }
}

/// `precise-prefix-cache-producer`.
pub(crate) fn prefix_producer(declared: &Declared<'_>, mistakes: &mut Mistakes) -> PrefixProducerSpec {
    let mut spec = PrefixProducerSpec::new(&declared.name);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((value, _)) = fields.boolean("speculativeIndexing", mistakes) {
        spec.speculative_indexing = value;
    }
    if let Some((value, place)) = fields.duration("speculativeTTL", mistakes) {
        spec.speculative_ttl = value;
        if value.is_zero() {
            mistakes.at(place, "speculativeTTL must be more than 0");
        }
    }
    if let Some(node) = fields.node("tokenProcessorConfig") {
        token_processor(node, mistakes);
    }
    if let Some(node) = fields.node("indexerConfig") {
        indexer(node, mistakes);
    }
    if let Some(node) = fields.node("kvEventsConfig") {
        kv_events(node, &mut spec, mistakes);
    }
    fields.finish(mistakes);
    spec
}

fn token_processor(node: &Node, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "tokenProcessorConfig", mistakes);
    for name in ["blockSizeTokens", "blockSize"] {
        if let Some((_, place)) = fields.whole(name, 1..=u64::MAX, mistakes) {
            mistakes
                .notice(place, format!("{name} isn't used: blocks are indexed in each engine's own size"));
        }
    }
    for name in ["hashSeed", "hashAlgorithm"] {
        if let Some((_, place)) = fields.text(name, mistakes) {
            mistakes.notice(
                place,
                format!("{name} isn't used: blocks are keyed by their tokens, not by the engine's hash"),
            );
        }
    }
    fields.finish(mistakes);
}

fn indexer(node: &Node, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "indexerConfig", mistakes);
    if let Some(node) = fields.node("kvBlockIndexConfig") {
        block_index(node, mistakes);
    }
    if let Some(node) = fields.node("kvCacheBackendConfigs") {
        let message = "weights of cache tiers come later";
        mistakes.hinted(node.place, message, "remove kvCacheBackendConfigs; every tier counts alike");
    }
    if let Some(node) = fields.node("tokenizersPoolConfig") {
        mistakes.hinted(node.place, "tokenizersPoolConfig is not available here", "use token-producer");
    }
    fields.finish(mistakes);
}

fn block_index(node: &Node, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "kvBlockIndexConfig", mistakes);
    if let Some(node) = fields.node("inMemoryConfig") {
        let mut fields = Fields::of(node, "inMemoryConfig", mistakes);
        for name in ["size", "podCacheSize"] {
            if let Some((_, place)) = fields.whole(name, 1..=u64::MAX, mistakes) {
                let message = format!(
                    "{name} isn't used: the index holds what the engines hold, and no holder is evicted"
                );
                mistakes.notice(place, message);
            }
        }
        fields.finish(mistakes);
    }
    for name in ["redisConfig", "costAwareMemoryConfig"] {
        if let Some(node) = fields.node(name) {
            mistakes.hinted(
                node.place,
                format!("{name} is not available"),
                "remove it; the index is in memory",
            );
        }
    }
    if let Some((_, place)) = fields.boolean("enableMetrics", mistakes) {
        mistakes.notice(place, "enableMetrics isn't used: the index always has metrics");
    }
    if let Some((_, place)) = fields.duration("metricsLoggingInterval", mistakes) {
        mistakes.notice(place, "metricsLoggingInterval isn't used: read the metrics page");
    }
    fields.finish(mistakes);
}

fn kv_events(node: &Node, spec: &mut PrefixProducerSpec, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "kvEventsConfig", mistakes);
    if let Some(node) = fields.node("zmqEndpoint") {
        let message = "zmqEndpoint is not available yet: every engine is subscribed to at its own address, \
                       so that a lost event is noticed per engine";
        let hint = "remove it, let each engine publish on its own port and name that in podDiscoveryConfig.socketPort";
        mistakes.hinted(node.place, message, hint);
    }
    if let Some((topic, _)) = fields.text("topicFilter", mistakes) {
        spec.topic_filter = topic.to_owned();
    }
    if let Some((concurrency, _)) = fields.whole("concurrency", 1..=1024, mistakes) {
        spec.concurrency = concurrency as u32;
    }
    if let Some((false, place)) = fields.boolean("discoverPods", mistakes) {
        mistakes.hinted(place, "without discoverPods there would be no events", "remove it");
    }
    if let Some((engine, place)) = fields.text("engineType", mistakes)
        && engine != "vllm"
    {
        mistakes.hinted(place, format!("engineType {engine:?} is not available in this version"), "use vllm");
    }
    if let Some(node) = fields.node("podDiscoveryConfig") {
        let mut fields = Fields::of(node, "podDiscoveryConfig", mistakes);
        if let Some((port, _)) = fields.whole("socketPort", PORT, mistakes) {
            spec.socket_port = u16::try_from(port).ok();
        }
        if let Some((port, place)) = fields.whole("replaySocketPort", 0..=65535, mistakes)
            && port != 0
        {
            mistakes.notice(
                place,
                "replaySocketPort isn't used yet: after lost events an engine is followed from then on",
            );
        }
        for name in ["podLabelSelector", "podNamespace"] {
            if let Some((_, place)) = fields.text(name, mistakes) {
                mistakes.notice(place, format!("{name} isn't used: every endpoint is subscribed to"));
            }
        }
        fields.finish(mistakes);
    }
    fields.finish(mistakes);
}

/// `token-producer`.
pub(crate) fn token_producer(declared: &Declared<'_>, mistakes: &mut Mistakes) -> Option<TokenProducerSpec> {
    const HINT: &str = "give the folder with the model's tokenizer files: `local: {path: …}`";
    let Some(node) = declared.parameters else {
        let message = "token-producer needs to know where the tokenizer is";
        mistakes.hinted(declared.place, message, HINT);
        return None;
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    // The local tokenizer knows its model; the name is for the peer's remote backends.
    let _ = fields.text("modelName", mistakes);
    let mut refused = false;
    for (name, why) in [
        (
            "estimate",
            "an estimate doesn't give the engine's tokens, so exact prefix matches would never be found",
        ),
        ("vllm", "asking vLLM for tokens is not available; tokens are made in process"),
        ("udsTokenizerConfig", "the tokenizer sidecar is not available; tokens are made in process"),
    ] {
        if let Some(node) = fields.entry(name) {
            mistakes.hinted(node.place, why, HINT);
            refused = true;
        }
    }
    let mut path = None;
    if let Some(node) = fields.node("local") {
        let mut fields = Fields::of(node, "local", mistakes);
        path = fields.text("path", mistakes).filter(|(path, _)| !path.is_empty());
        if path.is_none() && !refused {
            mistakes.hinted(fields.place(), "local needs a path", HINT);
        }
        fields.finish(mistakes);
    } else if !refused {
        mistakes.hinted(node.place, "token-producer needs to know where the tokenizer is", HINT);
    }
    fields.finish(mistakes);
    let (path, _) = path?;
    Some(TokenProducerSpec { name: declared.name.clone(), path: PathBuf::from(path) })
}

impl MetricsSourceSpec {
    /// The source with the peer's defaults.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), path: "/metrics".to_owned(), port: None, interval: None }
    }
}

/// `metrics-data-source`.
pub(crate) fn metrics_source(declared: &Declared<'_>, mistakes: &mut Mistakes) -> MetricsSourceSpec {
    let mut spec = MetricsSourceSpec::new(&declared.name);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((scheme, place)) = fields.text("scheme", mistakes)
        && scheme != "http"
    {
        mistakes.hinted(
            place,
            format!("metrics over {scheme:?} are not available in this version"),
            "use http",
        );
    }
    if let Some((path, place)) = fields.text("path", mistakes) {
        if !path.starts_with('/') {
            mistakes.hinted(place, "path must begin with /", format!("write {:?}", format!("/{path}")));
        }
        spec.path = path.to_owned();
    }
    if let Some((port, _)) = fields.whole("port", PORT, mistakes) {
        spec.port = u16::try_from(port).ok();
    }
    if let Some((interval, place)) = fields.duration("interval", mistakes) {
        spec.interval = Some(interval);
        if interval < Duration::from_millis(1) {
            mistakes.at(place, "interval must be at least 1ms");
        }
    }
    let _ = fields.boolean("insecureSkipVerify", mistakes);
    for name in ["caCertPath", "clientCertPath", "clientKeyPath"] {
        if let Some((_, place)) = fields.text(name, mistakes) {
            mistakes.hinted(
                place,
                format!("{name} is for https, which is not available in this version"),
                "remove it",
            );
        }
    }
    fields.finish(mistakes);
    spec
}

/// `core-metrics-extractor`.
pub(crate) fn metrics_extractor(declared: &Declared<'_>, mistakes: &mut Mistakes) {
    let Some(node) = declared.parameters else { return };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((engine, place)) = fields.text("defaultEngine", mistakes)
        && engine != "vllm"
    {
        let message = format!("the metric names of engine {engine:?} are not available in this version");
        mistakes.hinted(place, message, "use vllm");
    }
    if let Some((_, place)) = fields.text("engineLabelKey", mistakes) {
        mistakes.notice(place, "engineLabelKey isn't used: every engine is read as vLLM");
    }
    if let Some(node) = fields.entry("engineConfigs") {
        mistakes.hinted(node.place, "other metric names than vLLM's come later", "remove engineConfigs");
    }
    fields.finish(mistakes);
}

/// `file-discovery`.
pub(crate) fn file_discovery(declared: &Declared<'_>, mistakes: &mut Mistakes) -> Option<FileDiscoverySpec> {
    let Some(node) = declared.parameters else {
        let message = format!("{} needs to know which file the endpoints are in", declared.name);
        mistakes.hinted(declared.place, message, "add `parameters: {path: …}`");
        return None;
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    let path = fields.required_text("path", mistakes);
    let watch_file = fields.boolean("watchFile", mistakes).is_some_and(|(value, _)| value);
    fields.finish(mistakes);
    let (path, _) = path?;
    Some(FileDiscoverySpec { name: declared.name.clone(), path: PathBuf::from(path), watch_file })
}
