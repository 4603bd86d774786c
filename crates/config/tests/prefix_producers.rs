//! Producers of prefix matches: their parameters, and who reads which.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use warmroute_config::{
    ApproximatePrefixSpec, CheckedConfig, ConfigError, KnownTypes, PrefixLimit, PrefixProducerSpec,
    SchedulingKind, check,
};

fn read(plugins: &str) -> Result<CheckedConfig, ConfigError> {
    let text = format!("apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n{plugins}");
    let known = KnownTypes::new([
        ("prefix-cache-scorer", SchedulingKind::Scorer),
        ("no-hit-lru-scorer", SchedulingKind::Scorer),
        ("token-load-scorer", SchedulingKind::Scorer),
        ("prefix-cache-affinity-filter", SchedulingKind::Filter),
        ("max-score-picker", SchedulingKind::Picker),
    ]);
    check("test.yaml", text.as_bytes(), &known)
}

fn checked(plugins: &str) -> CheckedConfig {
    read(plugins).unwrap_or_else(|error| panic!("{error}"))
}

/// The producer that a plugin reads.
fn reads<'a>(config: &'a CheckedConfig, plugin: &str) -> Option<&'a str> {
    let spec = config.plugins.iter().find(|spec| spec.name == plugin).unwrap();
    let name = spec.parameters.get("prefixMatchInfoProducerName")?.as_str()?;
    assert!(config.prefix_producer(name).is_some(), "{plugin} reads {name}, which isn't there");
    Some(name)
}

/// Types and names.
fn producers(config: &CheckedConfig) -> Vec<(&str, &str)> {
    config.prefix_producers.iter().map(|producer| (producer.plugin_type(), producer.name())).collect()
}

fn approximate<'a>(config: &'a CheckedConfig, name: &str) -> &'a ApproximatePrefixSpec {
    config.prefix_producer(name).unwrap().approximate().unwrap()
}

fn has_notice(config: &CheckedConfig, line: u32, part: &str) -> bool {
    let is_there = |place: Option<warmroute_config::Place>| place.is_some_and(|place| place.line == line);
    config.notices.iter().any(|notice| is_there(notice.place) && notice.message.contains(part))
}

fn mistake(plugins: &str) -> (u32, String) {
    let error = read(plugins).unwrap_err();
    assert_eq!(error.mistakes.len(), 1, "{error}");
    let mistake = &error.mistakes[0];
    (mistake.place.line, format!("{} ({})", mistake.message, mistake.hint.as_deref().unwrap_or_default()))
}

const INJECTED: (&str, &str) = ("prefix-cache-producer", "approx-prefix-cache-producer");

#[test]
fn without_a_producer_one_is_added_that_reads_events_where_it_can() {
    let config = checked("- type: prefix-cache-scorer\n- type: token-load-scorer\n");
    assert_eq!(producers(&config), [INJECTED]);
    assert_eq!(reads(&config, "prefix-cache-scorer"), Some(INJECTED.1));
    assert_eq!(reads(&config, "token-load-scorer"), Some(INJECTED.1));
    assert!(has_notice(&config, 4, "which is added with its defaults: they are exact where"));
    let events = config.kv_events().unwrap();
    assert!(events.speculative_indexing && events.socket_port.is_none());

    // The peer adds it for whoever names it.
    let named = "- {type: no-hit-lru-scorer, parameters: {prefixMatchInfoProducerName: approx-prefix-cache-producer}}\n";
    let config = checked(named);
    assert_eq!((producers(&config), reads(&config, "no-hit-lru-scorer")), (vec![INJECTED], Some(INJECTED.1)));

    let config = checked("- type: token-load-scorer\n");
    assert_eq!((producers(&config), reads(&config, "token-load-scorer")), (Vec::new(), None));
    assert!(config.kv_events().is_none() && config.in_flight_prefix_producer.is_none());
}

#[test]
fn an_exact_producer_is_read_by_all_who_name_none() {
    let config = checked(
        "- type: prefix-cache-scorer\n- type: prefix-cache-affinity-filter\n- type: approx-prefix-cache-producer\n\
         - {type: precise-prefix-cache-producer, name: exact}\n\
         - {type: no-hit-lru-scorer, parameters: {prefixMatchInfoProducerName: approx-prefix-cache-producer}}\n",
    );
    assert_eq!(
        producers(&config),
        [
            ("precise-prefix-cache-producer", "exact"),
            ("approx-prefix-cache-producer", "approx-prefix-cache-producer")
        ]
    );
    assert_eq!(reads(&config, "prefix-cache-scorer"), Some("exact"));
    assert_eq!(reads(&config, "prefix-cache-affinity-filter"), Some("exact"));
    assert_eq!(reads(&config, "no-hit-lru-scorer"), Some("approx-prefix-cache-producer"));
    assert!(has_notice(&config, 4, "reads exact prefix matches from exact;"));
    assert!(!config.notices.iter().any(|notice| notice.message.contains("no-hit-lru-scorer reads")));
    assert_eq!(config.kv_events().unwrap().name, "exact");
    let error =
        mistake("- type: precise-prefix-cache-producer\n- {type: precise-prefix-cache-producer, name: b}\n");
    assert!(error.1.starts_with("there can be one precise-prefix-cache-producer"), "{error:?}");
}

#[test]
fn a_tier_that_another_scorer_names_is_not_the_default() {
    // As in the guides: one scorer for GPU memory, which names nothing, and one for main memory.
    let config = checked(
        "- type: prefix-cache-scorer\n- {type: approx-prefix-cache-producer, name: cpu, parameters: {autoTune: false, lruCapacityPerServer: 1000}}\n\
         - {type: prefix-cache-scorer, name: on-cpu, parameters: {prefixMatchInfoProducerName: cpu}}\n",
    );
    assert_eq!(producers(&config), [("approx-prefix-cache-producer", "cpu"), INJECTED]);
    assert_eq!(reads(&config, "prefix-cache-scorer"), Some(INJECTED.1));
    assert_eq!(reads(&config, "on-cpu"), Some("cpu"));
    assert_eq!(approximate(&config, "cpu").capacity_blocks, 1000);

    let config = checked("- type: prefix-cache-scorer\n- {type: approx-prefix-cache-producer, name: mine}\n");
    assert_eq!(
        (producers(&config).len(), reads(&config, "prefix-cache-scorer")),
        (1, Some("mine")),
        "it is the only one"
    );
    assert!(has_notice(&config, 4, "the only producer that no plugin names"));
    assert!(config.kv_events().is_none());

    let config = checked(
        "- type: prefix-cache-scorer\n- {type: approx-prefix-cache-producer, name: a}\n- type: approx-prefix-cache-producer\n",
    );
    assert_eq!(reads(&config, "prefix-cache-scorer"), Some("approx-prefix-cache-producer"));
    assert!(has_notice(&config, 5, "nothing reads the prefix matches of a"));
    assert!(!has_notice(&config, 4, "reads"));
}

#[test]
fn old_names_of_the_parameter_count_where_they_name_a_producer() {
    let config = checked(
        "- {type: approx-prefix-cache-producer, name: tier}\n\
         - {type: no-hit-lru-scorer, parameters: {prefixPluginType: prefix-cache-scorer, prefixPluginName: tier}}\n",
    );
    assert_eq!(reads(&config, "no-hit-lru-scorer"), Some("tier"));
    let config = checked(
        "- {type: no-hit-lru-scorer, parameters: {prefixPluginType: prefix-cache-scorer, prefixPluginName: prefix-cache-scorer}}\n",
    );
    assert_eq!(reads(&config, "no-hit-lru-scorer"), Some(INJECTED.1));
}

#[test]
fn names_of_nothing_are_refused() {
    let (line, text) = mistake(
        "- {type: approx-prefix-cache-producer, name: cpu-tier}\n- type: prefix-cache-scorer\n  parameters:\n    prefixMatchInfoProducerName: cpu-teir\n",
    );
    assert_eq!(
        (line, &*text),
        (
            7,
            "plugin prefix-cache-scorer: there is no prefix producer called \"cpu-teir\" (did you mean \"cpu-tier\"?)"
        )
    );
    let (line, text) =
        mistake("- type: inflight-load-producer\n  parameters: {prefixMatchInfoProducerName: other}\n");
    assert_eq!((line, text.contains("there is no prefix producer called \"other\"")), (5, true), "{text}");
}

#[test]
fn approximate_producers_have_the_peers_parameters() {
    let defaults = checked("- type: approx-prefix-cache-producer\n");
    let spec = approximate(&defaults, "approx-prefix-cache-producer");
    assert!(spec.auto_tune);
    assert_eq!((spec.block_size_tokens, spec.min_block_size_tokens, spec.capacity_blocks), (16, 1, 31_250));
    assert_eq!(spec.limit, PrefixLimit::Tokens(131_072));
    assert_eq!((spec.limit.blocks(16), PrefixLimit::Tokens(17).blocks(16)), (8192, 2));

    let of = |parameters: &str| {
        let config =
            checked(&format!("- {{type: approx-prefix-cache-producer, parameters: {parameters}}}\n"));
        (approximate(&config, "approx-prefix-cache-producer").clone(), config)
    };
    let (spec, _) =
        of("{autoTune: false, blockSizeTokens: 32, minBlockSizeTokens: 64, maxPrefixTokensToMatch: 100}");
    assert!(!spec.auto_tune);
    assert_eq!((spec.block_size_tokens, spec.min_block_size_tokens), (32, 64));
    assert_eq!(spec.limit, PrefixLimit::Tokens(100));
    let (spec, config) = of("{blockSize: 64}");
    assert_eq!(spec.block_size_tokens, 16);
    assert!(has_notice(&config, 4, "blockSize is deprecated and counts characters"));
    let limit = |parameters: &str| of(parameters).0.limit;
    assert_eq!(limit("{maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 0}"), PrefixLimit::None);
    assert_eq!(limit("{maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 7}"), PrefixLimit::Blocks(7));
    assert_eq!(limit("{maxPrefixTokensToMatch: 0}"), PrefixLimit::Blocks(2048));
    assert_eq!(limit("{maxPrefixBlocksToMatch: 7}"), PrefixLimit::Tokens(131_072));

    for (parameters, part) in [
        ("{lruCapacityPerServer: 0}", "must be a whole number from 1"),
        ("{autoTune: false, blockSizeTokens: 0}", "must be at least 1 token"),
        ("{blockSizeToken: 16}", "has no field \"blockSizeToken\" (did you mean \"blockSizeTokens\"?)"),
        ("{autoTune: maybe}", "must be true or false"),
    ] {
        let (line, text) =
            mistake(&format!("- type: approx-prefix-cache-producer\n  parameters: {parameters}\n"));
        assert!(line == 5 && text.contains(part), "{text}");
    }
}

#[test]
fn our_own_type_may_be_declared_and_takes_the_same_parameters() {
    let config = checked(
        "- type: prefix-cache-scorer\n- {type: prefix-cache-producer, name: both, parameters: {lruCapacityPerServer: 9}}\n\
         - type: precise-prefix-cache-producer\n  parameters: {kvEventsConfig: {podDiscoveryConfig: {socketPort: 5560}}}\n\
         - {type: no-hit-lru-scorer, parameters: {prefixMatchInfoProducerName: both}}\n",
    );
    assert_eq!(approximate(&config, "both").capacity_blocks, 9);
    assert!(matches!(config.prefix_producer("both"), Some(PrefixProducerSpec::ExactFirst(_))));
    assert_eq!(config.kv_events().unwrap().socket_port, Some(5560), "the exact producer says which events");
}

#[test]
fn a_burst_producer_counts_what_was_sent_and_says_what_means_nothing() {
    let config = checked(
        "- type: prefix-cache-scorer\n- type: burst-prefix-cache-producer\n  parameters: {windowDurationMs: 50, \
         maxPerReplica: -1, blockSizeTokens: 32, maxPrefixTokensToMatch: 4096, minColocateBlocks: 1, maxBatchSize: 9, \
         balanceBy: tokens}\n",
    );
    assert!(matches!(&*config.prefix_producers, [PrefixProducerSpec::Burst(_)]));
    assert_eq!(reads(&config, "prefix-cache-scorer"), Some("burst-prefix-cache-producer"));
    let spec = approximate(&config, "burst-prefix-cache-producer");
    assert_eq!((spec.auto_tune, spec.block_size_tokens), (false, 32));
    assert_eq!(spec.limit, PrefixLimit::Tokens(4096));
    assert!(has_notice(&config, 5, "delays no request"));
    for name in ["windowDurationMs", "maxPerReplica", "minColocateBlocks", "maxBatchSize", "balanceBy"] {
        assert!(has_notice(&config, 6, &format!("{name} isn't used")), "{name}: {:?}", config.notices);
    }
    let config = checked("- type: burst-prefix-cache-producer\n");
    let spec = approximate(&config, "burst-prefix-cache-producer");
    assert_eq!((spec.block_size_tokens, spec.limit), (64, PrefixLimit::None));
    let text = mistake(
        "- type: burst-prefix-cache-producer\n  parameters: {windowDurationMs: 0, balanceBy: tokens}\n",
    );
    assert!(text.1.contains("from 1 to 10000"), "{text:?}");
}

#[test]
fn the_old_exact_scorer_is_a_producer_and_a_scorer() {
    let config = checked(
        "- type: precise-prefix-cache-scorer\n  parameters:\n    speculativeTTL: 5s\n    indexerConfig: {tokenizersPoolConfig: {modelName: m}}\n\
         - type: no-hit-lru-scorer\n",
    );
    assert_eq!(producers(&config), [("precise-prefix-cache-producer", "precise-prefix-cache-producer")]);
    let scorer = &config.plugins[0];
    assert_eq!((&*scorer.name, &*scorer.plugin_type), ("precise-prefix-cache-scorer", "prefix-cache-scorer"));
    assert_eq!(reads(&config, "precise-prefix-cache-scorer"), Some("precise-prefix-cache-producer"));
    assert_eq!(reads(&config, "no-hit-lru-scorer"), Some("precise-prefix-cache-producer"));
    assert_eq!(config.kv_events().unwrap().speculative_ttl.as_secs(), 5);
    assert!(has_notice(&config, 4, "is deprecated: use precise-prefix-cache-producer with"));
    assert!(has_notice(&config, 7, "tokenizersPoolConfig isn't used"));

    let config = checked(
        "- {type: precise-prefix-cache-producer, name: exact}\n- type: precise-prefix-cache-scorer\n  parameters: {speculativeTTL: 5s}\n",
    );
    assert_eq!(producers(&config), [("precise-prefix-cache-producer", "exact")]);
    assert_eq!(reads(&config, "precise-prefix-cache-scorer"), Some("exact"));
    assert_eq!(config.kv_events().unwrap().speculative_ttl.as_secs(), 2);
    assert!(has_notice(&config, 6, "parameters of precise-prefix-cache-scorer aren't used"));
}

#[test]
fn counts_in_flight_read_the_producer_that_is_named() {
    let config = checked(
        "- type: prefix-cache-scorer\n- {type: approx-prefix-cache-producer, name: a}\n- type: precise-prefix-cache-producer\n\
         - {type: inflight-load-producer, parameters: {prefixMatchInfoProducerName: a, outputRatio: 1.5, syncCrossReplicaState: true}}\n",
    );
    assert_eq!(config.in_flight_prefix_producer.as_deref(), Some("a"));
    for part in ["outputRatio isn't used", "syncCrossReplicaState isn't used", "are always counted"] {
        assert!(has_notice(&config, 7, part), "{part}: {:?}", config.notices);
    }
    let text = mistake("- {type: inflight-load-producer, parameters: {addEstimatedOutputTokens: true}}\n").1;
    assert!(text.contains("aren't counted in this version"), "{text}");
}
