//! Where metrics and models are fetched, and what is read of them.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::path::PathBuf;

use warmroute_config::{CheckedConfig, KnownTypes, RankSeries, SchedulingKind, check};

fn read(plugins: &str) -> Result<CheckedConfig, String> {
    let text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nschedulingProfiles: [{{name: p, plugins: [{{pluginRef: \
         max-score-picker}}]}}]\nplugins:\n- type: max-score-picker\n{plugins}"
    );
    let known = KnownTypes::new([("max-score-picker", SchedulingKind::Picker)]);
    check("t", text.as_bytes(), &known).map_err(|error| error.to_string())
}

fn source(parameters: &str) -> Result<CheckedConfig, String> {
    read(&format!("- type: metrics-data-source\n  parameters: {parameters}\n"))
}

fn extractor(parameters: &str) -> Result<CheckedConfig, String> {
    read(&format!("- type: core-metrics-extractor\n  parameters: {parameters}\n"))
}

fn engines(entries: &str) -> Result<CheckedConfig, String> {
    extractor(&format!("{{engineConfigs: [{entries}]}}"))
}

#[test]
fn https_has_its_parameters() {
    let tls = |parameters| source(parameters).unwrap().metrics_source.unwrap().tls;
    assert_eq!(tls("{scheme: http, insecureSkipVerify: false}"), None);
    let plain = tls("{scheme: https}").unwrap();
    assert!(plain.insecure_skip_verify && plain.ca_cert_path.is_none() && plain.client_identity.is_none());
    let whole = tls(
        "{scheme: https, insecureSkipVerify: false, caCertPath: /ca, clientCertPath: /c, clientKeyPath: /k}",
    )
    .unwrap();
    assert!(!whole.insecure_skip_verify);
    assert_eq!(whole.ca_cert_path, Some(PathBuf::from("/ca")));
    assert_eq!(whole.client_identity, Some((PathBuf::from("/c"), PathBuf::from("/k"))));
    let unused = source("{scheme: https, caCertPath: /ca}").unwrap();
    assert!(unused.notices.iter().any(|notice| notice.message.contains("insecureSkipVerify: false")));
    for (parameters, expected) in [
        ("{caCertPath: /ca}", "caCertPath means nothing without https"),
        ("{scheme: https, clientCertPath: /c}", "clientCertPath needs its key"),
        ("{scheme: https, clientKeyPath: /k}", "clientKeyPath needs its certificate"),
        ("{scheme: ftp}", "scheme must be http or https"),
    ] {
        let error = source(parameters).unwrap_err();
        assert!(error.contains(expected), "{parameters}: {error}");
    }
}

#[test]
fn engines_of_the_file_come_first_and_replace_built_in_ones() {
    let config =
        engines("{name: own, queuedRequestsSpec: q}, {name: sglang, kvUsageSpec: 'u{a=b}'}").unwrap();
    let spec = config.metrics_extractor;
    let names: Vec<&str> = spec.engines.iter().map(|engine| engine.name.as_str()).collect();
    assert_eq!(names, ["own", "sglang", "vllm", "trtllm-serve", "triton-tensorrt-llm", "triton"]);
    assert_eq!(spec.engines[1].queued_requests, None);
    assert_eq!(spec.engines[1].kv_usage.as_ref().unwrap().to_string(), "u{a=b}");
    assert_eq!((spec.default_engine.as_str(), spec.rank_series), ("vllm", RankSeries::Combined));
    assert_eq!(spec.engine_label_key, "llm-d.ai/engine-type");

    let config = extractor(
        "{defaultEngine: own, engineLabelKey: engine, rankSeries: first, engineConfigs: [{name: own, loraSpec: '', \
         customMetrics: [{attributeKey: lag, metricSpec: m}]}]}",
    )
    .unwrap();
    let summary = config.summary();
    assert!(
        summary.contains("of engine own unless engine says otherwise, with the attributes lag"),
        "{summary}"
    );
    let spec = config.metrics_extractor;
    assert_eq!((spec.default_engine.as_str(), spec.rank_series), ("own", RankSeries::First));
    assert_eq!((spec.engine_label_key.as_str(), &spec.engines[0].lora), ("engine", &None));
    assert_eq!(spec.attribute_keys(), ["lag"]);
}

#[test]
fn mistakes_in_engines_have_their_place_and_reason() {
    let metric = |spec: &str| format!("{{name: e, kvUsageSpec: '{spec}'}}");
    let custom = |entry: &str| format!("{{name: e, customMetrics: [{entry}]}}");
    for (entries, expected) in [
        (metric("a{b=c"), "7:55: kvUsageSpec: braces must enclose the labels"),
        (metric("a{b}"), "kvUsageSpec: \"b\" is not label=value"),
        (metric("1"), "kvUsageSpec: \"1\" is no name of a metric"),
        ("{name: default}".to_owned(), "an engine can't be called default"),
        ("{name: a}, {name: a}".to_owned(), "engine \"a\" is described twice"),
        ("{kvUsageSpec: a}".to_owned(), "an engine needs a name"),
        ("{name: e, queueSpec: a}".to_owned(), "an engine has no field \"queueSpec\""),
        (custom("{attributeKey: a}"), "a custom metric needs a metricSpec"),
        (custom("{metricSpec: a}"), "a custom metric needs an attributeKey"),
        (custom("{attributeKey: a, metricSpec: ''}"), "metricSpec of a custom metric must not be empty"),
        (custom("{attributeKey: a, metricSpec: 'a b'}"), "metricSpec: \"a b\" is no name of a metric"),
        (
            custom("{attributeKey: a, metricSpec: a}, {attributeKey: a, metricSpec: b}"),
            "two custom metrics have the attributeKey \"a\"",
        ),
    ] {
        let error = engines(&entries).unwrap_err();
        assert!(error.contains(expected), "{entries}: {error}");
    }
    for (parameters, expected) in [
        ("{defaultEngine: vlm}", "there is no engine \"vlm\""),
        ("{defaultEngine: vlm}", "hint: did you mean \"vllm\"?"),
        ("{rankSeries: all}", "rankSeries must be combined or first, not \"all\""),
    ] {
        let error = extractor(parameters).unwrap_err();
        assert!(error.contains(expected), "{parameters}: {error}");
    }
    let too_many: Vec<String> = (0..33).map(|at| format!("{{attributeKey: a{at}, metricSpec: m}}")).collect();
    let error = engines(&custom(&too_many.join(", "))).unwrap_err();
    assert!(error.contains("at most 32 are read"), "{error}");
}

#[test]
fn models_are_asked_for_where_the_data_layer_says_so() {
    let plugins = "- {type: models-data-source, parameters: {interval: 1s}}\n- type: models-data-extractor\n";
    let layer = "dataLayer: {sources: [{pluginRef: models-data-source, extractors: [{pluginRef: \
                 models-data-extractor}]}]}\n";
    let source = read(&format!("{plugins}{layer}")).unwrap().models_source.unwrap();
    assert_eq!((source.path.as_str(), source.interval.unwrap().as_secs()), ("/v1/models", 1));
    for (text, notice) in [
        (plugins, "no source of dataLayer names models-data-source with the extractor models-data-extractor"),
        ("- type: models-data-source\n", "models-data-source does nothing"),
        ("- type: models-data-extractor\n", "models-data-extractor does nothing"),
    ] {
        let config = read(text).unwrap();
        assert_eq!(config.models_source, None);
        assert!(config.notices.iter().any(|known| known.message.starts_with(notice)), "{:?}", config.notices);
    }
    for left_out in ["k8s-notification-source", "dcgm-data-source", "multicluster-metrics-data-source"] {
        let error = read(&format!("- type: {left_out}\n")).unwrap_err();
        assert!(error.contains(&format!("plugin type {left_out} is known, but not available")), "{error}");
    }
}
