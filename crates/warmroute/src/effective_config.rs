//! What is in effect, written as a configuration: what was left out of a file stands in it, with its default.

mod handler;

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use warmroute_config::{
    ApproximatePrefixSpec, CheckedConfig, EngineMetricsSpec, EstimateSpec, FileDiscoverySpec, FramesSpec,
    HttpSourceSpec, MetricsExtractorSpec, PictureTokensSpec, PluginSpec, PrecisePrefixSpec, PrefixLimit,
    PrefixProducerSpec, ProfileSpec, ResolutionSpec, SessionIdProducerSpec, SessionIdSource, TokenBackend,
    TokenProducerSpec,
};
use warmroute_plugin::{PluginKind, Registry};

use handler::handler_entries;

/// A checked configuration as an `EndpointPickerConfig` in which nothing is left to defaults. Reading it gives the
/// same configuration again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveConfig {
    api_version: &'static str,
    kind: &'static str,
    plugins: Vec<PluginEntry>,
    scheduling_profiles: Vec<ProfileEntry>,
    data_layer: DataLayerEntry,
    request_handler: RequestHandlerEntry,
    flow_control: FlowControlEntry,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowControlEntry {
    saturation_detector: RefEntry,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct PluginEntry {
    #[serde(rename = "type")]
    plugin_type: String,
    name: String,
    #[serde(skip_serializing_if = "is_empty")]
    parameters: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ProfileEntry {
    name: String,
    plugins: Vec<RefEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RefEntry {
    plugin_ref: String,
    /// Scorers have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DataLayerEntry {
    inject_defaults: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    discovery: Option<DiscoveryEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DiscoveryEntry {
    endpoints: RefEntry,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceEntry {
    plugin_ref: String,
    extractors: Vec<RefEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct RequestHandlerEntry {
    parsers: Vec<RefEntry>,
}

const METRICS_EXTRACTOR: &str = "core-metrics-extractor";
const MODELS_EXTRACTOR: &str = "models-data-extractor";

impl EffectiveConfig {
    /// Writes out what `config` says, and the defaults of `registry`'s plugin types where it says nothing.
    pub fn new(config: &CheckedConfig, registry: &Registry) -> Self {
        let mut plugins: Vec<_> = config.plugins.iter().map(|plugin| scheduling(plugin, registry)).collect();
        if !config.plugins.iter().any(|plugin| plugin.name == config.saturation_detector.name) {
            plugins.push(scheduling(&config.saturation_detector, registry));
        }
        plugins.extend(config.prefix_producers.iter().map(prefix_producer));
        plugins.extend(config.in_flight_prefix_producer.as_deref().map(in_flight_producer));
        plugins.extend(config.token_producer.as_ref().map(token_producer));
        if let Some(source) = &config.metrics_source {
            plugins.push(http_source("metrics-data-source", source));
            plugins.push(metrics_extractor(&config.metrics_extractor));
        }
        if let Some(source) = &config.models_source {
            plugins.push(http_source("models-data-source", source));
            plugins.push(entry(MODELS_EXTRACTOR, MODELS_EXTRACTOR, json!({})));
        }
        plugins.extend(config.discovery.as_ref().map(file_discovery));
        plugins.extend(config.session_id_producers.iter().map(session_id_producer));
        let verifier = "destination-endpoint-served-verifier";
        plugins.extend(config.reports_served_endpoint.then(|| entry(verifier, verifier, json!({}))));
        let parsers = config.parsers.iter().map(|parser| parser.plugin_type());
        plugins.extend(parsers.clone().map(|parser| entry(parser, parser, json!({}))));
        plugins.extend(handler_entries(&config.handler));
        let sources = [
            (&config.metrics_source, config.metrics_extractor.name.as_str()),
            (&config.models_source, MODELS_EXTRACTOR),
        ];
        let sources = sources.into_iter().filter_map(|(source, extractor)| {
            let plugin_ref = source.as_ref()?.name.clone();
            Some(SourceEntry { plugin_ref, extractors: vec![reference(extractor)] })
        });
        let discovery =
            config.discovery.as_ref().map(|file| DiscoveryEntry { endpoints: reference(&file.name) });
        Self {
            api_version: "llm-d.ai/v1",
            kind: "EndpointPickerConfig",
            plugins,
            scheduling_profiles: config.profiles.iter().map(|p| profile(p, config, registry)).collect(),
            data_layer: DataLayerEntry { inject_defaults: false, sources: sources.collect(), discovery },
            request_handler: RequestHandlerEntry { parsers: parsers.map(reference).collect() },
            flow_control: FlowControlEntry {
                saturation_detector: reference(&config.saturation_detector.name),
            },
        }
    }

    /// As YAML.
    ///
    /// # Errors
    /// A parameter has a value that YAML can't hold.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }
}

fn is_empty(parameters: &Value) -> bool {
    parameters.as_object().is_some_and(Map::is_empty)
}

fn entry(plugin_type: &str, name: &str, parameters: Value) -> PluginEntry {
    PluginEntry { plugin_type: plugin_type.to_owned(), name: name.to_owned(), parameters }
}

fn reference(name: &str) -> RefEntry {
    RefEntry { plugin_ref: name.to_owned(), weight: None }
}

fn profile(profile: &ProfileSpec, config: &CheckedConfig, registry: &Registry) -> ProfileEntry {
    let plugins = profile.plugins.iter().map(|plugin| {
        let is_scorer = kind_of(&plugin.plugin_ref, config, registry) == Some(PluginKind::Scorer);
        RefEntry { plugin_ref: plugin.plugin_ref.clone(), weight: is_scorer.then_some(plugin.weight) }
    });
    ProfileEntry { name: profile.name.clone(), plugins: plugins.collect() }
}

/// What the plugin with this name is.
pub(crate) fn kind_of(name: &str, config: &CheckedConfig, registry: &Registry) -> Option<PluginKind> {
    let plugin = config.plugins.iter().find(|plugin| plugin.name == name)?;
    registry.get(&plugin.plugin_type).map(|plugin_type| plugin_type.kind())
}

fn scheduling(plugin: &PluginSpec, registry: &Registry) -> PluginEntry {
    let mut parameters = plugin.parameters.as_object().cloned().unwrap_or_default();
    for parameter in registry.get(&plugin.plugin_type).iter().flat_map(|known| known.parameters()) {
        // A default of null means that there is none.
        if let Some(default) = parameter.default.as_ref().filter(|default| !default.is_null()) {
            parameters.entry(parameter.name.clone()).or_insert_with(|| default.clone());
        }
    }
    entry(&plugin.plugin_type, &plugin.name, Value::Object(parameters))
}

fn prefix_producer(producer: &PrefixProducerSpec) -> PluginEntry {
    let parameters = match producer {
        PrefixProducerSpec::Precise(spec) => precise_parameters(spec),
        PrefixProducerSpec::Burst(spec) => json!({
            "blockSizeTokens": spec.block_size_tokens,
            "maxPrefixTokensToMatch": match spec.limit {
                PrefixLimit::Tokens(tokens) => tokens,
                _ => 0,
            },
        }),
        _ => producer.approximate().map_or_else(|| json!({}), approximate_parameters),
    };
    entry(producer.plugin_type(), producer.name(), parameters)
}

fn precise_parameters(spec: &PrecisePrefixSpec) -> Value {
    let mut events = json!({"topicFilter": spec.topic_filter, "concurrency": spec.concurrency});
    if let Some(address) = spec.listen {
        events["zmqEndpoint"] = json!(format!("tcp://{address}"));
        events["discoverPods"] = json!(spec.discover_pods);
    }
    if let Some(port) = spec.socket_port {
        events["podDiscoveryConfig"] = json!({"socketPort": port});
    }
    if let Some(port) = spec.replay_socket_port {
        events["podDiscoveryConfig"]["replaySocketPort"] = json!(port);
    }
    let weights = &spec.tier_weights;
    json!({
        "speculativeIndexing": spec.speculative_indexing,
        "speculativeTTL": go_duration(spec.speculative_ttl),
        "doubtfulMatchWeight": spec.doubtful_match_weight,
        "indexerConfig": {"kvCacheBackendConfigs": [
            {"name": "gpu", "weight": weights.gpu},
            {"name": "cpu", "weight": weights.cpu},
            {"name": "storage", "weight": weights.storage},
            {"name": "other", "weight": weights.other},
        ]},
        "kvEventsConfig": events,
    })
}

fn approximate_parameters(spec: &ApproximatePrefixSpec) -> Value {
    let mut parameters = json!({
        "autoTune": spec.auto_tune,
        "blockSizeTokens": spec.block_size_tokens,
        "minBlockSizeTokens": spec.min_block_size_tokens,
        "lruCapacityPerServer": spec.capacity_blocks,
    });
    match spec.limit {
        PrefixLimit::Tokens(tokens) => parameters["maxPrefixTokensToMatch"] = json!(tokens),
        PrefixLimit::Blocks(blocks) => {
            parameters["maxPrefixTokensToMatch"] = json!(0);
            parameters["maxPrefixBlocksToMatch"] = json!(blocks);
        }
        _ => {
            parameters["maxPrefixTokensToMatch"] = json!(0);
            parameters["maxPrefixBlocksToMatch"] = json!(0);
        }
    }
    parameters
}

fn in_flight_producer(reads: &str) -> PluginEntry {
    const TYPE: &str = "inflight-load-producer";
    entry(TYPE, TYPE, json!({"prefixMatchInfoProducerName": reads}))
}

fn token_producer(producer: &TokenProducerSpec) -> PluginEntry {
    let parameters = match &producer.backend {
        TokenBackend::Local { path } => json!({"local": {"path": path}}),
        TokenBackend::Vllm(server) => json!({
            "modelName": server.model_name,
            "vllm": {
                "url": server.url,
                "timeout": go_duration(server.timeout),
                "mmTimeout": go_duration(server.mm_timeout),
            },
        }),
        TokenBackend::Estimate(spec) => json!({"estimate": estimate(spec)}),
        _ => json!({}),
    };
    entry("token-producer", &producer.name, parameters)
}

fn estimate(spec: &EstimateSpec) -> Value {
    let tokens = |tokens, static_name: &str| match tokens {
        PictureTokensSpec::Static(tokens) => json!({"mode": "static", "static": {static_name: tokens}}),
        PictureTokensSpec::Dynamic(factor) => json!({"mode": "dynamic", "dynamic": {"factor": factor}}),
    };
    let resolution = |(width, height): ResolutionSpec| json!({"width": width, "height": height});
    let mut image = tokens(spec.image.tokens, "staticToken");
    image["defaultResolution"] = resolution(spec.image.default_resolution);
    let video = &spec.video;
    let mut frames = match video.frames {
        FramesSpec::Sampled { sample_fps, temporal_patch_size } => json!({
            "mode": "sampled",
            "sampled": {"sampleFPS": sample_fps, "temporalPatchSize": temporal_patch_size},
        }),
        FramesSpec::Strided { default_source_fps, frame_stride } => json!({
            "mode": "strided",
            "strided": {"defaultSourceFPS": default_source_fps, "frameStride": frame_stride},
        }),
    };
    frames["minFrames"] = json!(video.min_frames);
    frames["maxFrames"] = json!(video.max_frames);
    json!({"image": image, "video": {
        "tokensPerFrame": tokens(video.tokens_per_frame, "numTokensPerFrame"),
        "frames": frames,
        "defaultResolution": resolution(video.default_resolution),
        "defaultDuration": video.default_duration_s,
        "maxVideoTokens": video.max_video_tokens,
    }})
}

fn http_source(plugin_type: &str, source: &HttpSourceSpec) -> PluginEntry {
    let scheme = if source.tls.is_some() { "https" } else { "http" };
    let mut parameters = json!({"scheme": scheme, "path": source.path});
    if let Some(tls) = &source.tls {
        parameters["insecureSkipVerify"] = json!(tls.insecure_skip_verify);
        if let Some(path) = &tls.ca_cert_path {
            parameters["caCertPath"] = json!(path);
        }
        if let Some((certificate, key)) = &tls.client_identity {
            parameters["clientCertPath"] = json!(certificate);
            parameters["clientKeyPath"] = json!(key);
        }
    }
    if let Some(port) = source.port {
        parameters["port"] = json!(port);
    }
    if let Some(interval) = source.interval {
        parameters["interval"] = json!(go_duration(interval));
    }
    entry(plugin_type, &source.name, parameters)
}

fn metrics_extractor(extractor: &MetricsExtractorSpec) -> PluginEntry {
    let parameters = json!({
        "engineLabelKey": extractor.engine_label_key,
        "defaultEngine": extractor.default_engine,
        "rankSeries": extractor.rank_series.as_str(),
        "engineConfigs": extractor.engines.iter().map(engine_config).collect::<Vec<_>>(),
    });
    entry(METRICS_EXTRACTOR, &extractor.name, parameters)
}

fn engine_config(engine: &EngineMetricsSpec) -> Value {
    let mut config = Map::new();
    config.insert("name".to_owned(), json!(engine.name));
    for (name, metric) in [
        ("queuedRequestsSpec", &engine.queued_requests),
        ("runningRequestsSpec", &engine.running_requests),
        ("kvUsageSpec", &engine.kv_usage),
        ("loraSpec", &engine.lora),
        ("cacheInfoSpec", &engine.cache_info),
        ("cacheBlockSizeSpec", &engine.cache_block_size),
        ("cacheNumBlocksSpec", &engine.cache_num_blocks),
    ] {
        // What isn't there isn't read, so it needs no default.
        config.extend(metric.as_ref().map(|metric| (name.to_owned(), json!(metric.to_string()))));
    }
    if engine.cache_info.is_some() {
        config.insert("cacheBlockSizeLabelName".to_owned(), json!(engine.cache_block_size_label));
        config.insert("cacheNumBlocksLabelName".to_owned(), json!(engine.cache_num_blocks_label));
    }
    if !engine.custom_metrics.is_empty() {
        let custom = engine.custom_metrics.iter().map(
            |custom| json!({"attributeKey": custom.attribute_key, "metricSpec": custom.metric.to_string()}),
        );
        config.insert("customMetrics".to_owned(), custom.collect());
    }
    Value::Object(config)
}

fn file_discovery(file: &FileDiscoverySpec) -> PluginEntry {
    entry("file-discovery", &file.name, json!({"path": file.path, "watchFile": file.watch_file}))
}

fn session_id_producer(producer: &SessionIdProducerSpec) -> PluginEntry {
    let parameters = match &producer.source {
        SessionIdSource::Header(name) => json!({"headerName": name}),
        SessionIdSource::Cookie(name) => json!({"cookieName": name}),
    };
    entry("session-id-producer", &producer.name, parameters)
}

/// A duration as Go writes one, in the largest unit that leaves no fraction.
fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    for (unit, size) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)] {
        if nanos.is_multiple_of(size) {
            return format!("{}{unit}", nanos / size);
        }
    }
    format!("{nanos}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_without_fractions() {
        assert_eq!(go_duration(Duration::ZERO), "0s");
        assert_eq!(go_duration(Duration::from_secs(120)), "120s");
        assert_eq!(go_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(go_duration(Duration::from_nanos(1_001)), "1001ns");
        assert_eq!(go_duration(Duration::from_micros(7)), "7us");
    }
}
