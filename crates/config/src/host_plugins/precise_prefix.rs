//! `precise-prefix-cache-producer`.

use std::net::SocketAddr;
use std::time::Duration;

use super::PORT;
use crate::fields::{Fields, Mistakes};
use crate::peer_types::PRECISE_SCORER;
use crate::plugins::Declared;
use crate::yaml::Node;
use crate::{Place, PrecisePrefixSpec, TierWeights};

impl PrecisePrefixSpec {
    /// The producer with its defaults. Two differ from the peer's, on purpose: what was just picked is expected
    /// (otherwise a burst of one prompt scatters), and every topic is taken (an engine's own default topic is
    /// empty, which the peer's `kv@` silently leaves out).
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            speculative_indexing: true,
            speculative_ttl: Duration::from_secs(2),
            topic_filter: String::new(),
            listen: None,
            discover_pods: true,
            concurrency: 4,
            socket_port: None,
            replay_socket_port: None,
            doubtful_match_weight: 0.5,
            tier_weights: TierWeights::default(),
            relearn_hot_prefixes: false,
        }
    }
}

/// `precise-prefix-cache-producer`, or the half of it in `precise-prefix-cache-scorer`.
pub(crate) fn prefix_producer(declared: &Declared<'_>, mistakes: &mut Mistakes) -> PrecisePrefixSpec {
    let mut spec = PrecisePrefixSpec::new(&declared.name);
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
    if let Some((weight, place)) = fields.number("doubtfulMatchWeight", mistakes) {
        spec.doubtful_match_weight = weight;
        if !(0.0..=1.0).contains(&weight) {
            mistakes.at(place, format!("doubtfulMatchWeight must be from 0 to 1, not {weight}"));
        }
    }
    if let Some((relearns, _)) = fields.boolean("relearnHotPrefixes", mistakes) {
        spec.relearn_hot_prefixes = relearns;
    }
    if let Some(node) = fields.node("tokenProcessorConfig") {
        token_processor(node, mistakes);
    }
    if let Some(node) = fields.node("indexerConfig") {
        indexer(node, &mut spec, declared.plugin_type == PRECISE_SCORER, mistakes);
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

fn indexer(node: &Node, spec: &mut PrecisePrefixSpec, is_scorer: bool, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "indexerConfig", mistakes);
    if let Some(node) = fields.node("kvBlockIndexConfig") {
        block_index(node, mistakes);
    }
    if fields.node("kvCacheBackendConfigs").is_some() {
        spec.tier_weights = tier_weights(fields.list("kvCacheBackendConfigs", mistakes), mistakes);
    }
    if let Some(node) = fields.node("tokenizersPoolConfig") {
        if is_scorer {
            mistakes.notice(
                node.place,
                "tokenizersPoolConfig isn't used: tokens are made in process, with --tokenizer or token-producer",
            );
            return fields.finish(mistakes);
        }
        mistakes.hinted(node.place, "tokenizersPoolConfig is not available here", "use token-producer");
    }
    fields.finish(mistakes);
}

/// The list takes the place of the defaults: a tier that it doesn't name counts fully.
fn tier_weights(list: &[Node], mistakes: &mut Mistakes) -> TierWeights {
    let mut weights = TierWeights::EQUAL;
    for node in list {
        let mut fields = Fields::of(node, "an entry of kvCacheBackendConfigs", mistakes);
        let name = fields.required_text("name", mistakes);
        fields.required("weight", mistakes);
        let weight = fields.number("weight", mistakes);
        fields.finish(mistakes);
        let (Some((name, place)), Some((weight, weight_place))) = (name, weight) else { continue };
        if !(0.0..=1.0).contains(&weight) {
            mistakes.at(weight_place, format!("weight must be from 0 to 1, not {weight}"));
            continue;
        }
        let is = |known: &[&str]| known.iter().any(|known| name.eq_ignore_ascii_case(known));
        // As engines name their media: one tier may have several names.
        if is(&["gpu"]) {
            weights.gpu = weight;
        } else if is(&["cpu", "cpu_pinned"]) {
            weights.cpu = weight;
        } else if is(&["storage", "disk", "fs", "obj", "shared_storage"]) {
            weights.storage = weight;
        } else {
            weights.other = weight;
            if is(&["other"]) {
                continue;
            }
            mistakes.notice(
                place,
                format!("{name} isn't a tier that is told apart: its weight counts for all but gpu, cpu and storage"),
            );
        }
    }
    weights
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

/// `tcp://*:5557`: the address that engines connect to.
fn listen_address(endpoint: &str, place: Place, mistakes: &mut Mistakes) -> Option<SocketAddr> {
    let address = endpoint.strip_prefix("tcp://").map(|address| address.replacen('*', "0.0.0.0", 1));
    match address.and_then(|address| address.parse::<SocketAddr>().ok()).filter(|address| address.port() > 0)
    {
        Some(address) => {
            mistakes.notice(
                place,
                format!(
                    "zmqEndpoint: whoever reaches port {} can make the picker believe anything of any engine's cache; \
                     let only the engines reach it (a NetworkPolicy)",
                    address.port()
                ),
            );
            Some(address)
        }
        None => {
            let message =
                format!("zmqEndpoint must be an address of this host to listen at, not {endpoint:?}");
            mistakes.hinted(place, message, "tcp://*:5557, tcp://10.0.0.1:5557 or tcp://[::]:5557");
            None
        }
    }
}

/// Events tell by their form whose they are, so the type decides nothing; one whose events aren't read is refused.
fn engine_type(engine: &str, place: Place, mistakes: &mut Mistakes) {
    match engine {
        "vllm" | "sglang" => mistakes.notice(
            place,
            "engineType isn't used: events of vLLM and SGLang are told apart by their form, engine by engine",
        ),
        _ => mistakes.hinted(
            place,
            format!("engineType {engine:?} is not available in this version"),
            "use vllm or sglang",
        ),
    }
}

fn kv_events(node: &Node, spec: &mut PrecisePrefixSpec, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "kvEventsConfig", mistakes);
    if let Some((endpoint, place)) = fields.text("zmqEndpoint", mistakes) {
        spec.listen = listen_address(endpoint, place, mistakes);
    }
    if let Some((topic, _)) = fields.text("topicFilter", mistakes) {
        spec.topic_filter = topic.to_owned();
    }
    if let Some((concurrency, _)) = fields.whole("concurrency", 1..=1024, mistakes) {
        spec.concurrency = concurrency as u32;
    }
    if let Some((false, place)) = fields.boolean("discoverPods", mistakes) {
        spec.discover_pods = false;
        if spec.listen.is_none() {
            let message = "without discoverPods and without zmqEndpoint there would be no events";
            mistakes.hinted(place, message, "remove it, or give zmqEndpoint");
        }
    }
    if let Some((engine, place)) = fields.text("engineType", mistakes) {
        engine_type(engine, place, mistakes);
    }
    if let Some(node) = fields.node("podDiscoveryConfig") {
        let mut fields = Fields::of(node, "podDiscoveryConfig", mistakes);
        if let Some((port, _)) = fields.whole("socketPort", PORT, mistakes) {
            spec.socket_port = u16::try_from(port).ok();
        }
        if let Some((port, _)) = fields.whole("replaySocketPort", 0..=65535, mistakes) {
            spec.replay_socket_port = u16::try_from(port).ok();
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
