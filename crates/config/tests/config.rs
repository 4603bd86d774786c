//! Whole configurations: what is taken, with which defaults, and what is refused, where and why.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::time::Duration;

use serde_json::json;
use warmroute_config::{
    BUILT_IN, CheckedConfig, ConfigError, EstimateSpec, FramesSpec, ImageEstimateSpec, KnownTypes,
    ParameterMistake, Parser, PictureTokensSpec, Place, PluginSpec, PrefixProducerSpec, SchedulingKind,
    TierWeights, TokenBackend, VideoEstimateSpec, VllmBackendSpec, built_in, check,
};
use warmroute_plugin::{BuildContext, Needs, PluginKind, Registry};

/// The types of the built-in crate, whose parameters are checked by building.
fn known() -> KnownTypes {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry).unwrap();
    let kinds: Vec<_> = registry.types().map(|t| (t.name(), kind(t.kind()))).collect();
    KnownTypes::new(kinds).check_parameters_with(move |spec| build(&registry, spec))
}

fn kind(kind: PluginKind) -> SchedulingKind {
    match kind {
        PluginKind::Filter => SchedulingKind::Filter,
        PluginKind::Scorer => SchedulingKind::Scorer,
        _ => SchedulingKind::Picker,
    }
}

fn build(registry: &Registry, spec: &PluginSpec) -> Result<(), ParameterMistake> {
    let mut needs = Needs::default();
    let mut context = BuildContext::new(&spec.name, &mut needs);
    match registry.build(&spec.plugin_type, spec.parameters.clone(), &mut context) {
        Ok(_) => Ok(()),
        Err(error) => Err(ParameterMistake { path: error.path().to_owned(), message: error.to_string() }),
    }
}

fn checked(body: &str) -> CheckedConfig {
    let text = format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{body}");
    check("test.yaml", text.as_bytes(), &known()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(body: &str) -> ConfigError {
    let text = format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{body}");
    check("test.yaml", text.as_bytes(), &known()).unwrap_err()
}

/// Line, and message with hint.
fn mistakes(error: &ConfigError) -> Vec<(u32, String)> {
    let text = |m: &warmroute_config::Mistake| match &m.hint {
        Some(hint) => format!("{} ({hint})", m.message),
        None => m.message.clone(),
    };
    error.mistakes.iter().map(|mistake| (mistake.place.line, text(mistake))).collect()
}

/// The only mistake of a body, whose first line is line 3 of the file.
fn mistake(body: &str) -> (u32, String) {
    let error = refused(body);
    let mut all = mistakes(&error);
    assert_eq!(all.len(), 1, "{error}");
    all.remove(0)
}

fn references(config: &CheckedConfig) -> Vec<(&str, f64)> {
    let plugins = config.profiles[0].plugins.iter();
    plugins.map(|reference| (reference.plugin_ref.as_str(), reference.weight)).collect()
}

fn has_notice(config: &CheckedConfig, line: Option<u32>, part: &str) -> bool {
    let at = |place: Option<Place>| place.map(|place| place.line);
    config.notices.iter().any(|notice| at(notice.place) == line && notice.message.contains(part))
}

#[test]
fn the_built_in_configuration_is_right() {
    let config = built_in(&known()).unwrap();
    let expected = [
        ("queue-scorer", 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("prefix-cache-scorer", 3.0),
        ("max-score-picker", 1.0),
    ];
    assert_eq!(references(&config), expected);
    let [PrefixProducerSpec::ExactFirst(producer)] = &*config.prefix_producers else {
        panic!("{:?}", config.prefix_producers)
    };
    assert_eq!(producer.name, "approx-prefix-cache-producer");
    assert_eq!(config.metrics_source.as_ref().unwrap().path, "/metrics");
    assert_eq!(config.parsers, [Parser::OpenAi, Parser::Anthropic, Parser::VllmHttp, Parser::Passthrough]);
    assert_eq!(config.notices, []);
    assert!(BUILT_IN.starts_with("apiVersion: llm-d.ai/v1\n"));
    assert_eq!(
        config.summary(),
        "configuration built-in default\n  \
         profile default: queue-scorer × 2, kv-cache-utilization-scorer × 2, prefix-cache-scorer \
         {\"prefixMatchInfoProducerName\":\"approx-prefix-cache-producer\"} × 3, max-score-picker\n  \
         prefix matches: approx-prefix-cache-producer from KV events where they are seen, else from what was sent in \
         blocks of each engine's size\n  \
         metrics: /metrics on the endpoint's port\n  \
         saturation: utilization-detector\n  \
         parsers: openai-parser, anthropic-parser, vllmhttp-parser, passthrough-parser"
    );
}

#[test]
fn all_api_versions_are_taken() {
    for version in ["llm-d.ai/v1", "llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"] {
        let text =
            format!("apiVersion: {version}\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n");
        let config = check("f", text.as_bytes(), &known()).unwrap();
        assert_eq!(has_notice(&config, Some(1), "is deprecated"), version.starts_with("inference."));
    }
}

#[test]
fn json_is_taken() {
    let text = r#"{"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig",
        "plugins": [{"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 2}}]}"#;
    let config = check("f", text.as_bytes(), &known()).unwrap();
    assert_eq!(config.plugins[0].parameters, json!({"maxNumOfEndpoints": 2}));
    let tabs = text.replace("        ", "\t\t");
    assert!(tabs.contains('\t'));
    assert_eq!(check("f", tabs.as_bytes(), &known()).unwrap().plugins.len(), 1);
    let lines: Vec<String> = config.notice_lines().collect();
    assert_eq!(lines, ["f: there is no scheduling profile, so one called default has max-score-picker"]);
}

#[test]
fn without_profiles_there_is_one_with_everything_in_the_order_of_the_file() {
    let config = checked(
        "plugins:\n- type: prefix-cache-scorer\n- {type: queue-scorer, name: b}\n- {type: queue-scorer, name: a}\n",
    );
    let expected = [("prefix-cache-scorer", 1.0), ("b", 1.0), ("a", 1.0), ("max-score-picker", 1.0)];
    assert_eq!(references(&config), expected);
    assert_eq!(config.profiles[0].name, "default");
    let picker = config.plugins.last().unwrap();
    assert_eq!((picker.name.as_str(), picker.place), ("max-score-picker", None));
    assert!(has_notice(&config, None, "there is no scheduling profile"));
    assert!(has_notice(&config, None, "has no picker, so it gets max-score-picker"));
}

#[test]
fn a_profile_without_a_picker_gets_the_first_one_of_the_file() {
    let config = checked(
        "plugins:\n- type: queue-scorer\n- type: random-picker\n- type: max-score-picker\n\
         schedulingProfiles:\n- name: p\n  plugins:\n  - {pluginRef: queue-scorer, weight: 0.5}\n",
    );
    assert_eq!(references(&config), [("queue-scorer", 0.5), ("random-picker", 1.0)]);
    assert!(has_notice(&config, Some(8), "gets random-picker"));
    assert!(has_notice(&config, Some(6), "max-score-picker is in no scheduling profile"));
}

#[test]
fn weights_of_tiers_take_the_place_of_the_defaults() {
    let weights = |list: &str| {
        let text = format!(
            "plugins:\n- type: precise-prefix-cache-producer\n  parameters:\n    indexerConfig:\n      kvCacheBackendConfigs: {list}\n"
        );
        checked(&text)
    };
    let config =
        weights("[{name: gpu, weight: 0.9}, {name: CPU, weight: 0.4}, {name: shared_storage, weight: 0}]");
    let tiers = TierWeights { gpu: 0.9, cpu: 0.4, storage: 0.0, other: 1.0 };
    assert_eq!(config.kv_events().unwrap().tier_weights, tiers);
    assert!(!has_notice(&config, Some(7), "isn't a tier"));
    let config = weights("[{name: external, weight: 0.5}]");
    assert_eq!(config.kv_events().unwrap().tier_weights, TierWeights { other: 0.5, ..TierWeights::EQUAL });
    assert!(has_notice(&config, Some(7), "external isn't a tier that is told apart"));
    assert_eq!(weights("[]").kv_events().unwrap().tier_weights, TierWeights::EQUAL);
}

#[test]
fn an_injected_name_never_clashes() {
    let config = checked("plugins:\n- {type: queue-scorer, name: max-score-picker}\n");
    assert_eq!(references(&config), [("max-score-picker", 1.0), ("max-score-picker-injected", 1.0)]);
    assert_eq!(config.plugins[1].plugin_type, "max-score-picker");
}

#[test]
fn the_precise_producer_has_its_parameters() {
    let config = checked(
        "plugins:
- type: precise-prefix-cache-producer
  parameters:
    speculativeIndexing: true
    speculativeTTL: 1m30s
    doubtfulMatchWeight: 0.25
    tokenProcessorConfig: {blockSize: 64, hashSeed: '42'}
    indexerConfig:
      kvBlockIndexConfig: {enableMetrics: true, inMemoryConfig: {size: 100000000, podCacheSize: 10}}
    kvEventsConfig:
      topicFilter: kv@
      concurrency: 8
      discoverPods: true
      podDiscoveryConfig: {socketPort: 5560, replaySocketPort: 5561, podLabelSelector: a=b}
",
    );
    let producer = config.kv_events().unwrap();
    assert!(producer.speculative_indexing);
    assert_eq!(producer.speculative_ttl, Duration::from_secs(90));
    assert_eq!(
        (producer.topic_filter.as_str(), producer.concurrency, producer.socket_port),
        ("kv@", 8, Some(5560))
    );
    assert_eq!((producer.replay_socket_port, producer.doubtful_match_weight), (Some(5561), 0.25));
    let defaults = checked("plugins:\n- type: precise-prefix-cache-producer\n").kv_events().unwrap();
    assert_eq!((defaults.replay_socket_port, defaults.doubtful_match_weight), (None, 0.5));
    assert_eq!(defaults.tier_weights, TierWeights { gpu: 1.0, cpu: 0.8, storage: 1.0, other: 1.0 });
    for (line, part) in [
        (9, "blockSize isn't used: blocks are indexed in each engine's own size"),
        (9, "hashSeed isn't used"),
        (11, "podCacheSize isn't used"),
        (16, "podLabelSelector isn't used"),
    ] {
        assert!(has_notice(&config, Some(line), part), "{part}: {:?}", config.notices);
    }
}

#[test]
fn tokens_and_metrics_have_their_parameters() {
    let config = checked(
        "plugins:
- type: token-producer
  parameters: {modelName: m, local: {path: /models/m}}
- type: metrics-data-source
  name: scrape
  parameters: {path: /prometheus/metrics, port: 9400, interval: 250ms, insecureSkipVerify: true}
- type: core-metrics-extractor
- type: endpoint-notification-source
- type: precise-prefix-cache-producer
dataLayer:
  injectDefaults: true
  sources:
  - pluginRef: scrape
    extractors: [{pluginRef: core-metrics-extractor}]
  - pluginRef: endpoint-notification-source
    extractors: [{pluginRef: precise-prefix-cache-producer}]
",
    );
    let backend = &config.token_producer.as_ref().unwrap().backend;
    assert_eq!(*backend, TokenBackend::Local { path: "/models/m".into() });
    let source = config.metrics_source.as_ref().unwrap();
    assert_eq!((source.name.as_str(), source.path.as_str()), ("scrape", "/prometheus/metrics"));
    assert_eq!((source.port, source.interval), (Some(9400), Some(Duration::from_millis(250))));
    assert!(has_notice(&config, Some(10), "endpoint-notification-source needs no plugin here"));
    assert_eq!(checked("dataLayer: {injectDefaults: false}\n").metrics_source, None);
}

#[test]
fn tokens_come_from_one_backend_or_are_estimated() {
    let backend = |text: &str| checked(text).token_producer.unwrap().backend;
    assert_eq!(
        backend("plugins: [{type: token-producer}]\n"),
        TokenBackend::Estimate(EstimateSpec::default())
    );
    let config = checked("plugins: [{type: tokenizer, parameters: {modelName: m, vllm: {}}}]\n");
    assert!(has_notice(&config, Some(3), "tokenizer is deprecated: use token-producer"));
    let server = VllmBackendSpec {
        url: "http://localhost:8000".to_owned(),
        model_name: "m".to_owned(),
        timeout: Duration::from_secs(5),
        mm_timeout: Duration::from_secs(30),
    };
    assert_eq!(config.token_producer.unwrap().backend, TokenBackend::Vllm(server.clone()));
    let given = "plugins:
- type: token-producer
  parameters: {modelName: m, vllm: {url: 'http://render.svc:8000/', timeout: 1s, mmTimeout: 2s}}
";
    let (timeout, mm_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    let expected =
        VllmBackendSpec { url: "http://render.svc:8000".to_owned(), timeout, mm_timeout, ..server };
    assert_eq!(backend(given), TokenBackend::Vllm(expected));
    let config = checked("plugins: [{type: token-producer}, {type: precise-prefix-cache-producer}]\n");
    assert!(has_notice(&config, Some(3), "can never find a match for a prompt of text"));
    let config =
        checked("plugins: [{type: token-producer, parameters: {estimate: {image: {mode: static}}}}]\n");
    assert!(has_notice(&config, Some(3), "each counts as one token"));
}

#[test]
fn estimates_have_all_their_parameters() {
    let config = checked(
        "plugins:
- type: token-producer
  parameters:
    estimate:
      image: {mode: static, static: {staticToken: 256}, dynamic: {factor: 784}, defaultResolution: {width: 1, height: 2}}
      video:
        tokensPerFrame: {mode: dynamic, dynamic: {factor: 512}, static: {numTokensPerFrame: 3}}
        frames:
          mode: strided
          minFrames: 4
          maxFrames: 32
          sampled: {sampleFPS: 1.5, temporalPatchSize: 2}
          strided: {defaultSourceFPS: 30, frameStride: 10}
        defaultResolution: 1280x720
        defaultDuration: 20s
        maxVideoTokens: 12288
",
    );
    let video = VideoEstimateSpec {
        tokens_per_frame: PictureTokensSpec::Dynamic(512),
        frames: FramesSpec::Strided { default_source_fps: 30.0, frame_stride: 10 },
        min_frames: 4,
        max_frames: 32,
        default_resolution: (1280, 720),
        default_duration_s: 20.0,
        max_video_tokens: 12_288,
    };
    let image = ImageEstimateSpec { tokens: PictureTokensSpec::Static(256), default_resolution: (1, 2) };
    let backend = config.token_producer.unwrap().backend;
    assert_eq!(backend, TokenBackend::Estimate(EstimateSpec { image, video }));
    let config = checked(
        "plugins:
- type: token-producer
  parameters: {estimate: {video: {defaultDuration: 7, frames: {sampled: {sampleFPS: 1.5, temporalPatchSize: 2}}}}}
",
    );
    let frames = FramesSpec::Sampled { sample_fps: 1.5, temporal_patch_size: 2 };
    let video = VideoEstimateSpec { default_duration_s: 7.0, frames, ..VideoEstimateSpec::default() };
    let backend = config.token_producer.unwrap().backend;
    assert_eq!(backend, TokenBackend::Estimate(EstimateSpec { video, ..EstimateSpec::default() }));
}

#[test]
fn every_http_parser_can_be_named() {
    let config = checked(
        "plugins:
- {type: sglanghttp-parser, name: sg}
requestHandler:
  parsers: [{pluginRef: sg}, {pluginRef: vllmhttp-parser}, {pluginRef: anthropic-parser}, {pluginRef: openai-parser}]
",
    );
    let expected = [Parser::SglangHttp, Parser::VllmHttp, Parser::Anthropic, Parser::OpenAi];
    assert_eq!(config.parsers, expected);
}

#[test]
fn defaults_of_other_sections_are_taken() {
    let config = checked(
        "featureGates: [flowControl=false, haPopulateNonLeaderDatastore]
plugins:
flowControl:
  maxRequests: 0
  defaultRequestTTL: 60s
  saturationDetector: {pluginRef: utilization-detector}
  priorityBands: []
requestHandler:
  parsers: [{pluginRef: passthrough-parser}]
",
    );
    assert_eq!(config.parsers, [Parser::Passthrough]);
    assert!(has_notice(&config, Some(6), "of flowControl only saturationDetector has an effect"));
}

#[test]
fn the_saturation_detector_is_the_one_that_is_referred_to() {
    let of = |body: &str| {
        let detector = checked(body).saturation_detector;
        (detector.name, detector.plugin_type, detector.parameters.to_string())
    };
    let expected = |name: &str, plugin_type: &str, parameters: &str| {
        (name.to_owned(), plugin_type.to_owned(), parameters.to_owned())
    };
    let (utilization, concurrency) = ("utilization-detector", "concurrency-detector");
    let section = |name: &str| format!("flowControl: {{saturationDetector: {{pluginRef: {name}}}}}\n");
    let plugins = "plugins:
- {type: concurrency-detector, name: ours, parameters: {maxConcurrency: 7}}
- {type: utilization-detector, parameters: {headroom: 0.5}}
";
    let ours = expected("ours", concurrency, "{\"maxConcurrency\":7}");
    assert_eq!(of(""), expected(utilization, utilization, "{}"));
    assert_eq!(of(&section(concurrency)), expected(concurrency, concurrency, "{}"));
    assert_eq!(of(plugins), expected(utilization, utilization, "{\"headroom\":0.5}"));
    assert_eq!(of(&format!("{plugins}{}", section("ours"))), ours);
    // The old place, which the new one wins over.
    assert_eq!(of(&format!("{plugins}saturationDetector: {{pluginRef: ours}}\n")), ours);
    let both = format!("{plugins}{}saturationDetector: {{pluginRef: {utilization}}}\n", section("ours"));
    assert_eq!(of(&both), ours);
    assert!(has_notice(&checked(&both), Some(7), "saturationDetector at the top is deprecated"));
    // Being the detector is being used, in a profile or not.
    let profile =
        "- type: queue-scorer\nschedulingProfiles: [{name: p, plugins: [{pluginRef: queue-scorer}]}]\n";
    let config = checked(&format!("{plugins}{profile}{}", section("ours")));
    assert!(has_notice(
        &config,
        Some(5),
        "in no scheduling profile, nor is it flowControl.saturationDetector"
    ));
    assert!(!has_notice(&config, Some(4), ""));
    let wrong = section("ours").replace("ours", "queue-scorer");
    let (line, text) = mistake(&format!("plugins:\n- type: queue-scorer\n{wrong}"));
    assert!(line == 5 && text.contains("use utilization-detector or concurrency-detector"), "{text}");
    let parameters = "plugins:\n- {type: concurrency-detector, parameters: {maxConcurrency: 0}}\n";
    assert!(mistake(parameters).1.contains("maxConcurrency: must be 1 or more"));
}

#[test]
fn notices_come_with_mistakes_too() {
    let error = refused("plugins:\n- type: inflight-load-producer\n- type: quue-scorer\n");
    assert_eq!(error.mistakes.len(), 1);
    let notice = |what: &str| error.notices.iter().any(|notice| notice.message.contains(what));
    assert!(notice("inflight-load-producer needs no plugin here"), "{:?}", error.notices);
    assert!(!error.to_string().contains("needs no plugin"), "the error's text is about mistakes");
}

#[test]
fn a_weight_of_what_is_no_scorer_is_noticed() {
    let config = checked(
        "plugins:
- type: queue-scorer
- type: max-score-picker
schedulingProfiles:
- name: p
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: max-score-picker, weight: 2}
",
    );
    assert!(has_notice(&config, Some(10), "the weight of max-score-picker means nothing"));
    assert!(!has_notice(&config, Some(9), ""));
}

#[test]
fn eight_mistakes_are_reported_at_once() {
    let error = refused(
        "plugins:
- type: queue-scorrer
- type: kv-cache-utilization-scorer
  parameters: {foo: 1}
- type: max-score-picker
  parameters:
    maxNumOfEndpoints: many
- type: max-score-picker
- type: predicted-latency-producer
- type: token-producer
  parameters: {udsTokenizerConfig: {}}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: max-score-picer
    wieght: 2
",
    );
    let expected = [
        (4, "there is no plugin type \"queue-scorrer\" (did you mean \"queue-scorer\"?)"),
        (6, "plugin kv-cache-utilization-scorer: foo: unknown field `foo`"),
        (9, "plugin max-score-picker: maxNumOfEndpoints: invalid type: string \"many\", expected i64"),
        (10, "two plugins are called \"max-score-picker\" (the first is in line 7;"),
        (
            11,
            "plugin type predicted-latency-producer is known, but not available in this version (remove it)",
        ),
        (13, "the tokenizer sidecar is not available"),
        (17, "there is no plugin called \"max-score-picer\" (did you mean \"max-score-picker\"?)"),
        (18, "a plugin of a profile has no field \"wieght\" (did you mean \"weight\"?)"),
    ];
    let got = mistakes(&error);
    assert_eq!(got.len(), expected.len(), "{error}");
    for ((line, text), (expected_line, expected_text)) in got.iter().zip(expected) {
        assert_eq!(*line, expected_line, "{text}");
        assert!(text.starts_with(expected_text), "{text}");
    }
    assert!(got[1].1.contains("the llm-d EPP ignores parameters of this type"), "{}", got[1].1);
}

#[test]
fn an_error_shows_the_line_with_a_caret() {
    let error = refused("plugins:\n- type: queue-scorrer\n");
    let expected = "test.yaml:4:9: there is no plugin type \"queue-scorrer\"
  |
4 | - type: queue-scorrer
  |         ^
  hint: did you mean \"queue-scorer\"?";
    assert_eq!(error.to_string(), expected);
}

/// A body, the line of its only mistake, and how what is said of it begins.
const SINGLE_MISTAKES: &[(&str, u32, &str)] = &[
    ("plugin: []\n", 3, "the configuration has no field \"plugin\" (did you mean \"plugins\"?)"),
    ("plugins: {}\n", 3, "plugins of the configuration must be a list, not a map"),
    ("plugins:\n- queue-scorer\n", 4, "a plugin must be a map, not \"queue-scorer\""),
    ("plugins:\n- name: a\n", 4, "a plugin needs a type (add `type: …`)"),
    ("plugins:\n- tpye: queue-scorer\n", 4, "a plugin has no field \"tpye\" (did you mean \"type\"?)"),
    ("plugins:\n- type: 12\n", 4, "type of a plugin must be a text, not 12 (put it in quotes)"),
    ("plugins:\n- type: acme\n", 4, "there is no plugin type \"acme\" (no crate that is linked"),
    (
        "plugins:\n- type: multicluster-approx-prefix-cache-producer\n",
        4,
        "plugin type multicluster-approx-prefix-cache-producer is known, but not available in this version (use approx-prefix-cache-producer)",
    ),
    (
        "plugins:\n- type: single-profile-handler\n- {type: single-profile-handler, name: b}\n",
        5,
        "there can be one profile handler, and b is another (the first is single-profile-handler in line 4;",
    ),
    (
        "plugins:\n- type: single-profile-handler\n  parameters: {a: 1}\n",
        5,
        "single-profile-handler has no field \"a\" (it takes no parameters;",
    ),
    (
        "plugins:\n- type: prefix-cache-scorer\n  parameters:\n    prefixMatchInfoProducerName: other\n",
        6,
        "plugin prefix-cache-scorer: there is no prefix producer called \"other\" (remove prefixMatchInfoProducerName, or add a producer of this name)",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters:\n    kvEventsConfig:\n      zmqEndpoint: tcp://engines:5557\n",
        7,
        "zmqEndpoint must be an address of this host to listen at, not \"tcp://engines:5557\" (tcp://*:5557,",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters: {speculativeTTL: 2}\n",
        5,
        "speculativeTTL of precise-prefix-cache-producer must be a duration like 500ms or 1m30s, not 2",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters: {kvEventsConfig: {podDiscoveryConfig: {socketPort: 70000}}}\n",
        5,
        "socketPort of podDiscoveryConfig must be a whole number from 1 to 65535, not 70000",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters: {indexerConfig: {kvCacheBackendConfigs: [{name: cpu, weight: 8}]}}\n",
        5,
        "weight must be from 0 to 1, not 8",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters: {indexerConfig: {kvCacheBackendConfigs: [{name: cpu}]}}\n",
        5,
        "an entry of kvCacheBackendConfigs needs a weight",
    ),
    (
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters: {doubtfulMatchWeight: 1.5}\n",
        5,
        "doubtfulMatchWeight must be from 0 to 1, not 1.5",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {vllm: {url: http://x}}\n",
        5,
        "the vllm backend needs the name of the model to ask for (add modelName beside vllm)",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {modelName: m, vllm: {url: https://x}}\n",
        5,
        "asking vLLM for tokens over https is not available in this version (use http)",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {modelName: m, vllm: {url: x:8000}}\n",
        5,
        "url of vllm must be one like http://host:8000",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {modelName: m, vllm: {mmTimeout: 0s}}\n",
        5,
        "mmTimeout must be more than 0",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {local: {path: /m}, estimate: {}}\n",
        5,
        "local and estimate are two backends of token-producer (leave one of them)",
    ),
    ("plugins:\n- type: tokenizer\n  parameters: {local: {}}\n", 5, "local needs a path"),
    (
        "plugins:\n- type: tokenizer\n- type: token-producer\n",
        5,
        "there can be one tokenizer, and token-producer is another",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {estimate: {image: {mode: fixed}}}\n",
        5,
        "there is no mode \"fixed\" (there are dynamic, static)",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {estimate: {image: {defaultResolution: 640}}}\n",
        5,
        "defaultResolution must be one like 640x360, not 640",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {estimate: {video: {frames: {sampled: {sampleFPS: 0}}}}}\n",
        5,
        "sampleFPS must be more than 0",
    ),
    (
        "plugins:\n- type: token-producer\n  parameters: {estimate: {audio: {}}}\n",
        5,
        "estimate has no field \"audio\"",
    ),
    (
        "plugins:\n- type: metrics-data-source\n  parameters: {scheme: ftp}\n",
        5,
        "scheme must be http or https, not \"ftp\"",
    ),
    (
        "plugins:\n- type: queue-scorer\n  parameters: {unknownMetrics: no}\n",
        5,
        "no is a boolean to some readers of YAML and a text to others (write false, or put it in quotes)",
    ),
    (
        "plugins:\n- type: max-score-picker\n  parameters: {maxNumOfEndpoints: 010}\n",
        5,
        "readers of YAML don't agree on the number \"010\"",
    ),
    (
        "plugins:\n- type: max-score-picker\n- type: random-picker\n",
        5,
        "there are two pickers, max-score-picker and random-picker, and no scheduling profile",
    ),
    (
        "plugins:\n- type: max-score-picker\n- type: random-picker\nschedulingProfiles:\n- name: a\n  plugins: [{pluginRef: max-score-picker}, {pluginRef: random-picker}]\n",
        8,
        "the profile has two pickers",
    ),
    ("schedulingProfiles:\n- plugins: []\n", 4, "a scheduling profile needs a name"),
    ("schedulingProfiles:\n- name: a\n- name: b\n", 5, "there is more than one scheduling profile"),
    (
        "schedulingProfiles:\n- name: a\n  plugins:\n  - weight: 1\n",
        6,
        "a plugin of a profile needs a pluginRef",
    ),
    (
        "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- name: a\n  plugins: [{pluginRef: queue-scorer, weight: heavy}]\n",
        7,
        "weight of a plugin of a profile must be a number, not \"heavy\"",
    ),
    ("featureGates: [flowControl]\n", 3, "the feature gate flowControl is not available"),
    (
        "featureGates: [flowcontrol]\n",
        3,
        "there is no feature gate \"flowcontrol\" (did you mean \"flowControl\"?)",
    ),
    ("flowControl: {maxRequests: 5}\n", 3, "maxRequests of flowControl is not available"),
    (
        "flowControl: {saturationDetector: {pluginRef: concurency-detector}}\n",
        3,
        "\"concurency-detector\" is no saturation detector",
    ),
    (
        "requestHandler: {parsers: [{pluginRef: vllmgrpc-parser}]}\n",
        3,
        "\"vllmgrpc-parser\" is no parser of this version (gRPC bodies aren't read; remove it,",
    ),
    (
        "dataLayer: {discovery: {endpoints: {pluginRef: file-discovery}}}\n",
        3,
        "there is no plugin called \"file-discovery\" (add it to plugins",
    ),
    ("dataLayer: {discovery: {}}\n", 3, "discovery names no plugin (write `discovery: {endpoints:"),
    ("dataLayer: {discovery: {endpoints: {}}}\n", 3, "endpoints of discovery needs a pluginRef"),
    (
        "dataLayer: {discovery: {endpoint: {}}}\n",
        3,
        "discovery has no field \"endpoint\" (did you mean \"endpoints\"?)",
    ),
    (
        "plugins: [{type: queue-scorer}]\ndataLayer: {discovery: {pluginRef: queue-scorer}}\n",
        4,
        "\"queue-scorer\" is of type queue-scorer, which is no discovery of endpoints",
    ),
    (
        "plugins: [{type: file-discovery, parameters: {path: p}}]\ndataLayer:\n  discovery:\n    \
         endpoints: {pluginRef: file-discovery}\n    pluginRef: file-discovery\n",
        7,
        "pluginRef of discovery is the old spelling of endpoints.pluginRef, and both are given (remove it)",
    ),
    ("plugins:\n- type: file-discovery\n", 4, "file-discovery needs to know which file the endpoints are in"),
    (
        "plugins:\n- type: file-discovery\n  parameters: {watchFile: true}\n",
        5,
        "file-discovery needs a path (add `path: …`)",
    ),
    (
        "plugins:\n- type: file-discovery\n  parameters: {path: p, watchFile: 1}\n",
        5,
        "watchFile of file-discovery must be true or false, not 1",
    ),
    (
        "plugins:\n- type: file-discovery\n  parameters: {path: p, watch: true}\n",
        5,
        "file-discovery has no field \"watch\"",
    ),
    (
        "plugins:\n- type: multicluster-file-discovery\n",
        4,
        "plugin type multicluster-file-discovery is known",
    ),
    ("dataLayer: {crossReplicaSyncInterval: 1s}\n", 3, "crossReplicaSyncInterval of dataLayer is known"),
    (
        "dataLayer: {sources: [{pluginRef: metrics-data-source}]}\n",
        3,
        "there is no plugin called \"metrics-data-source\" (add it to plugins",
    ),
    ("plugins: []\nplugins: []\n", 4, "\"plugins\" is given twice (it is also in line 3)"),
    ("plugins: &a []\nschedulingProfiles: *a\n? [x]\n: y\n", 5, "a key must be a text"),
    ("plugins: !custom []\n", 3, "the tag !custom means nothing here"),
    ("---\n", 3, "a file has one document, and here begins a second one"),
    ("plugins: [\n", 3, "this is not YAML: unclosed bracket"),
];

#[test]
fn single_mistakes_are_placed_and_explained() {
    for &(body, line, text) in SINGLE_MISTAKES {
        let (got_line, got) = mistake(body);
        assert!(got.starts_with(text), "{body}\n{got}");
        assert_eq!(got_line, line, "{body}\n{got}");
    }
}

#[test]
fn the_envelope_is_checked() {
    let of = |text: &str| mistakes(&check("f", text.as_bytes(), &known()).unwrap_err());
    assert_eq!(
        of(""),
        [(1, "there is no configuration in it (begin with `kind: EndpointPickerConfig`)".to_owned())]
    );
    assert_eq!(of("# nothing\n").len(), 1);
    assert_eq!(
        of("- a\n"),
        [
            (1, "the configuration must be a map, not a list".to_owned()),
            (1, "apiVersion is missing (add `apiVersion: llm-d.ai/v1`)".to_owned()),
            (1, "kind is missing (add `kind: EndpointPickerConfig`)".to_owned()),
        ]
    );
    let wrong = of("apiVersion: v1\nkind: InferencePool\n");
    assert_eq!(wrong.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn types_of_third_parties_are_taken_if_they_are_linked() {
    let text = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: acme-scorer\n  parameters: {a: [1, {b: '2'}]}\n";
    let known = KnownTypes::new([
        ("acme-scorer", SchedulingKind::Scorer),
        ("max-score-picker", SchedulingKind::Picker),
    ]);
    let config = check("f", text.as_bytes(), &known).unwrap();
    assert_eq!(config.plugins[0].parameters, json!({"a": [1, {"b": "2"}]}));
    let place = |path: &str| config.plugins[0].mistake(path, "").place.column;
    assert_eq!((place("a"), place("a[0]"), place("a[1].b"), place("a[1].c")), (16, 20, 24, 23));
}

#[test]
fn mistakes_found_later_are_placed_by_their_path() {
    let config = checked("plugins:\n- type: queue-scorer\n  parameters:\n    unknownMetrics: as-peer\n");
    let spec = &config.plugins[0];
    let line = |path: &str| spec.mistake(path, "x").place.line;
    assert_eq!((line("unknownMetrics"), line("unknownMetrics.a[0]"), line(""), line("other")), (6, 6, 6, 6));
    let error = config.refuse(vec![spec.mistake("unknownMetrics", "doesn't fit")]);
    assert!(error.to_string().starts_with("test.yaml:6:5: plugin queue-scorer: doesn't fit"), "{error}");
}

#[test]
fn endpoints_may_come_from_a_file_in_both_spellings() {
    let plugin =
        "plugins:\n- {type: file-discovery, name: f, parameters: {path: pool/e.yaml, watchFile: true}}\n";
    let new = checked(&format!("{plugin}dataLayer: {{discovery: {{endpoints: {{pluginRef: f}}}}}}\n"));
    let spec = new.discovery.as_ref().unwrap();
    assert_eq!((spec.name.as_str(), spec.path.to_str(), spec.watch_file), ("f", Some("pool/e.yaml"), true));
    assert!(new.summary().contains("\n  endpoints: f with pool/e.yaml, watched"), "{}", new.summary());
    assert!(!has_notice(&new, Some(5), "old spelling"));

    let old = checked(&format!("{plugin}dataLayer: {{discovery: {{pluginRef: f}}}}\n"));
    assert_eq!(old.discovery, new.discovery);
    assert!(has_notice(&old, Some(5), "pluginRef of discovery is the old spelling"));
}

#[test]
fn a_file_is_read_once_unless_it_is_watched_and_an_unused_discovery_is_told() {
    let config = checked(
        "plugins:\n- {type: file-discovery, parameters: {path: /e}}\n- {type: file-discovery, name: b, parameters: {path: /f}}\n\
         dataLayer: {discovery: {endpoints: {pluginRef: file-discovery}}}\n",
    );
    assert!(!config.discovery.as_ref().unwrap().watch_file);
    assert!(has_notice(&config, Some(5), "doesn't name b, so it does nothing"));
    let unused = checked("plugins:\n- {type: file-discovery, parameters: {path: /e}}\n");
    assert_eq!(unused.discovery, None);
    assert!(has_notice(&unused, Some(4), "doesn't name file-discovery, so it does nothing"));
}

#[test]
fn deprecated_filters_are_taken_with_a_notice() {
    let text = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: by-label-selector\n  \
                parameters: {matchLabels: {zone: a}}\n- type: max-score-picker\n";
    let config = check("f", text.as_bytes(), &known()).unwrap();
    assert!(has_notice(&config, Some(4), "use label-selector-filter"));
}

#[test]
fn every_reader_of_prefix_matches_gets_the_exact_producer() {
    for reader in ["no-hit-lru-scorer", "prefix-cache-affinity-filter", "token-load-scorer"] {
        let text = format!(
            "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: precise-prefix-cache-producer\n  \
             name: exact\n- type: {reader}\n- type: max-score-picker\n"
        );
        let config = check("f", text.as_bytes(), &known()).unwrap();
        let plugin = config.plugins.iter().find(|plugin| plugin.plugin_type == reader).unwrap();
        assert_eq!(plugin.parameters["prefixMatchInfoProducerName"], "exact", "{reader}");
    }
}
