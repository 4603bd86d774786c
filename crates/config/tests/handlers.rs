//! Profile handlers and deciders: every form that is taken, and what is refused, where and why.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use warmroute_config::{
    CheckedConfig, ConfigError, DeciderKind, DisaggregationSpec, HandlerKind, KnownTypes, OnFailureSpec,
    SchedulingKind, StageOrderSpec, check,
};
use warmroute_plugin::{PluginKind, Registry};

fn known() -> KnownTypes {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry).unwrap();
    KnownTypes::new(registry.types().map(|plugin_type| {
        let kind = match plugin_type.kind() {
            PluginKind::Filter => SchedulingKind::Filter,
            PluginKind::Scorer => SchedulingKind::Scorer,
            _ => SchedulingKind::Picker,
        };
        (plugin_type.name(), kind)
    }))
}

/// Profiles called so, each with a picker. What comes before is `plugins`, each a line from line 4 on.
fn text(plugins: &str, profiles: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n{plugins}- type: max-score-picker\nschedulingProfiles:\n"
    );
    for profile in profiles {
        text.push_str(&format!("- {{name: {profile}, plugins: [{{pluginRef: max-score-picker}}]}}\n"));
    }
    text
}

fn taken(plugins: &str, profiles: &[&str]) -> CheckedConfig {
    check("f", text(plugins, profiles).as_bytes(), &known()).unwrap_or_else(|error| panic!("{error}"))
}

fn mistakes(error: &ConfigError) -> Vec<(u32, String)> {
    let text = |m: &warmroute_config::Mistake| match &m.hint {
        Some(hint) => format!("{} ({hint})", m.message),
        None => m.message.clone(),
    };
    error.mistakes.iter().map(|mistake| (mistake.place.line, text(mistake))).collect()
}

fn stages(config: &CheckedConfig) -> &DisaggregationSpec {
    match &config.handler.kind {
        HandlerKind::Disaggregated(stages) => stages,
        other => panic!("{other:?}"),
    }
}

fn has_notice(config: &CheckedConfig, line: u32, part: &str) -> bool {
    let fits = |notice: &&warmroute_config::Notice| {
        notice.place.map(|place| place.line) == Some(line) && notice.message.contains(part)
    };
    config.notices.iter().find(fits).is_some()
}

const PD: [&str; 2] = ["prefill", "decode"];

#[test]
fn without_a_handler_one_profile_is_the_one() {
    let config = taken("", &["any"]);
    assert_eq!(
        (config.handler.kind.clone(), config.handler.name.as_str()),
        (HandlerKind::Single, "single-profile-handler")
    );
    assert!(!config.summary().contains("handler"), "{}", config.summary());
}

#[test]
fn the_new_form_and_the_old_one_say_the_same() {
    let deciders = "- {type: always-disagg-pd-decider, name: pd}\n- {type: always-disagg-multimodal-decider, name: mm}\n";
    let new = "- type: disagg-profile-handler\n  parameters: {stageOrder: decode-first, profiles: {decode: d, prefill: p, encode: e}, deciders: {prefill: pd, encode: mm}}\n";
    let old = "- type: disagg-profile-handler\n  parameters: {decodeProfile: d, prefillProfile: p, encodeProfile: e, deciderPluginName: pd, encodeDeciderPluginName: mm}\n";
    let profiles = ["d", "p", "e"];
    let config = taken(&format!("{new}{deciders}"), &profiles);
    let spec = stages(&config);
    assert_eq!((spec.stage_order, spec.decode_profile.as_str()), (StageOrderSpec::DecodeFirst, "d"));
    let (prefill, encode) = (spec.prefill.as_ref().unwrap(), spec.encode.as_ref().unwrap());
    assert_eq!((prefill.profile.as_str(), encode.profile.as_str()), ("p", "e"));
    assert_eq!(prefill.decider.as_ref().unwrap().kind, DeciderKind::Always);
    assert_eq!(encode.decider.as_ref().unwrap().kind, DeciderKind::Multimodal);
    assert_eq!(prefill.on_failure, OnFailureSpec::Aggregate);
    assert!(
        config
            .summary()
            .contains("handler: disagg-profile-handler, d, then e if mm says so, then p if pd says so\n")
    );
    assert_eq!(config.notices, []);

    let same = taken(&format!("{old}{deciders}"), &profiles);
    assert_eq!(same.handler, config.handler);
    assert!(has_notice(&same, 5, "decodeProfile is the old spelling of profiles.decode"));
}

#[test]
fn stages_have_the_peers_defaults() {
    let config = taken("- {type: disagg-profile-handler}\n", &PD);
    assert_eq!((stages(&config).decode_profile.as_str(), &stages(&config).prefill), ("decode", &None));
    assert!(has_notice(&config, 7, "disagg-profile-handler never runs profile prefill"));

    let order = "- {type: disagg-profile-handler, parameters: {stageOrder: Prefill_First, onPrefillFailure: refuse}}\n";
    let config = taken(order, &PD);
    let prefill = stages(&config).prefill.as_ref().unwrap();
    assert_eq!((&prefill.decider, prefill.on_failure), (&None, OnFailureSpec::Refuse));
    assert!(config.summary().contains("prefill, or refuse, then decode"), "{}", config.summary());
    assert_eq!(
        stages(&taken(order.replace(", onPrefillFailure: refuse", "").as_str(), &["decode"])).prefill,
        None
    );
}

#[test]
fn the_old_handler_has_a_decider_and_may_have_a_port() {
    let of = |parameters: &str| {
        format!(
            "- {{type: pd-profile-handler, parameters: {{{parameters}}}}}\n- {{type: prefix-based-pd-decider, parameters: {{nonCachedTokens: 16, promptTokens: 500}}}}\n- {{type: prefill-header-handler, parameters: {{prefillProfile: prefill}}}}\n"
        )
    };
    let config = taken(&of("primaryPort: 8000, prefixPluginType: x"), &PD);
    assert_eq!(stages(&config).primary_port, Some(8000));
    let decider = stages(&config).prefill.as_ref().unwrap().decider.as_ref().unwrap();
    let producer = "approx-prefix-cache-producer".to_owned();
    assert_eq!(
        decider.kind,
        DeciderKind::UncachedTokens { non_cached_tokens: 16, prompt_tokens: 500, producer }
    );
    assert_eq!(config.prefix_producers[0].name(), "approx-prefix-cache-producer");
    for (line, part) in [
        (4, "pd-profile-handler is deprecated: use disagg-profile-handler"),
        (4, "prefixPluginType isn't used"),
        (5, "reads prefix matches from approx-prefix-cache-producer, which is added with its defaults"),
        (6, "prefill-header-handler is deprecated"),
    ] {
        assert!(has_notice(&config, line, part), "{part}: {:?}", config.notices);
    }
    assert_eq!(stages(&taken(&of("primaryPort: 0"), &PD)).primary_port, None);
}

#[test]
fn a_decider_reads_what_the_decode_profile_reads_or_what_it_is_told_to() {
    let of = |decider: &str| {
        let plugins = format!(
            "- {{type: precise-prefix-cache-producer, name: exact}}\n- {{type: disagg-profile-handler, parameters: {{deciders: {{prefill: d}}}}}}\n- {{type: prefix-based-pd-decider, name: d, parameters: {{nonCachedTokens: 1{decider}}}}}\n- type: prefix-cache-scorer\n"
        );
        let config = taken(&plugins, &PD);
        let decider = stages(&config).prefill.as_ref().unwrap().decider.clone().unwrap();
        let DeciderKind::UncachedTokens { producer, .. } = decider.kind else { panic!("{decider:?}") };
        (producer, has_notice(&config, 6, "reads prefix matches from exact"))
    };
    assert_eq!(of(""), ("exact".to_owned(), true));
    assert_eq!(of(", prefixMatchInfoProducerName: exact"), ("exact".to_owned(), false));
}

#[test]
fn one_profile_may_be_named_by_a_header_or_have_ranks() {
    let by_header = |parameters: &str, profiles: &[&str]| {
        taken(&format!("- {{type: header-profile-handler, parameters: {{{parameters}}}}}\n"), profiles)
            .handler
            .kind
    };
    let kind = |header: &str, default: &str| HandlerKind::ByHeader {
        header_name: header.to_owned(),
        default_profile: default.to_owned(),
    };
    assert_eq!(by_header("", &PD), kind("epp-profile", "decode"));
    assert_eq!(by_header("headerName: X-Stage, defaultProfile: prefill", &PD), kind("x-stage", "prefill"));
    assert_eq!(by_header("", &["only"]), kind("epp-profile", "only"));
    let ranks = taken("- {type: data-parallel-profile-handler}\n", &["only"]);
    assert_eq!(ranks.handler.kind, HandlerKind::DataParallel { primary_port: 8000 });
    assert!(has_notice(&ranks, 4, "data-parallel-profile-handler is deprecated"));
    let text = "- {type: data-parallel-profile-handler, parameters: {primaryPort: 9}}\n";
    assert!(taken(text, &["only"]).summary().contains("requests go to port 9"));
}

#[test]
fn what_nobody_refers_to_is_told() {
    let config = taken("- type: always-disagg-pd-decider\n- type: disagg-headers-handler\n", &["only"]);
    assert!(has_notice(&config, 4, "no profile handler refers to always-disagg-pd-decider"));
    assert!(has_notice(&config, 5, "disagg-headers-handler does nothing without a disagg-profile-handler"));
    let unused = "- {type: disagg-profile-handler, parameters: {profiles: {prefill: prefill}, onEncodeFailure: refuse}}\n";
    let config = taken(unused, &PD);
    assert!(has_notice(&config, 4, "has no prefill stage, since deciders.prefill names no decider"));
    assert!(has_notice(&config, 4, "has no encode stage, since deciders.encode"));
    let topology = taken("- type: topology-extractor\n", &["only"]);
    assert!(has_notice(&topology, 4, "topology-extractor needs no plugin here"));
}

/// Plugins, profiles, the line of the only mistake, and how what is said of it begins.
const SINGLE_MISTAKES: &[(&str, &[&str], u32, &str)] = &[
    (
        "",
        &["a", "b"],
        7,
        "there is more than one scheduling profile, and no profile handler that chooses (add a disagg-profile-handler",
    ),
    (
        "- type: single-profile-handler\n",
        &["a", "b"],
        8,
        "single-profile-handler runs one scheduling profile, and there are 2 (keep one, or use",
    ),
    ("- type: data-parallel-profile-handler\n", &["a", "b"], 8, "data-parallel-profile-handler runs one"),
    (
        "- {type: data-parallel-profile-handler, parameters: {primaryPort: 0}}\n",
        &["a"],
        4,
        "primaryPort of data-parallel-profile-handler must be a whole number from 1 to 65535, not 0",
    ),
    (
        "- type: single-profile-handler\n- type: disagg-profile-handler\n",
        &["decode"],
        5,
        "there can be one profile handler, and disagg-profile-handler is another (the first is single-profile-handler in line 4; keep one)",
    ),
    (
        "- type: disagg-profile-handler\n",
        &["dekode"],
        4,
        "disagg-profile-handler runs profile decode, and there is no such profile (add it to schedulingProfiles, or name one in profiles.decode; there are dekode)",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {profiles: {decode: decod}}}\n",
        &["decode"],
        4,
        "there is no scheduling profile called \"decod\" (did you mean \"decode\"?)",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {deciders: {prefill: pd}}}\n- {type: always-disagg-pd-decider, name: pd}\n",
        &["decode"],
        4,
        "disagg-profile-handler runs profile prefill, and there is no such profile",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disag-pd-decider}}}\n- {type: always-disagg-pd-decider}\n",
        &["decode", "prefill"],
        4,
        "there is no plugin called \"always-disag-pd-decider\" (did you mean \"always-disagg-pd-decider\"?)",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {deciders: {prefill: max-score-picker}}}\n",
        &["decode", "prefill"],
        4,
        "\"max-score-picker\" is of type max-score-picker, which is no decider (there are always-disagg-pd-decider,",
    ),
    (
        "- type: disagg-profile-handler\n  parameters:\n    profiles: {decode: decode}\n    decodeProfile: decode\n",
        &["decode"],
        7,
        "decodeProfile is of the old form, which can't be mixed with profiles and deciders (write it as profiles.decode)",
    ),
    (
        "- type: disagg-profile-handler\n  parameters:\n    stageOrder: prefill-first\n    deciders: {prefill: pd}\n- {type: always-disagg-pd-decider, name: pd}\n",
        &["decode", "prefill"],
        7,
        "with stageOrder prefill-first there is no decider for prefill",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {stageOrder: prefil-first}}\n",
        &["decode"],
        4,
        "stageOrder must be decode-first or prefill-first, not \"prefil-first\" (did you mean \"prefill-first\"?)",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {onPrefillFailure: ignore}}\n",
        &["decode"],
        4,
        "onPrefillFailure must be aggregate or refuse, not \"ignore\" (aggregate serves the request",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {decider: {}}}\n",
        &["decode"],
        4,
        "disagg-profile-handler has no field \"decider\" (did you mean \"deciders\"?)",
    ),
    (
        "- type: disagg-profile-handler\n  parameters: {deciders: {prefill: d}}\n- type: prefix-based-pd-decider\n  name: d\n  parameters: {nonCachedTokens: -1}\n",
        &["decode", "prefill"],
        8,
        "nonCachedTokens of d must be a whole number from 0 to 4294967295, not -1",
    ),
    (
        "- type: disagg-profile-handler\n  parameters: {deciders: {prefill: d}}\n- type: prefix-based-pd-decider\n  name: d\n  parameters: {nonCachedTokens: 1, prefixMatchInfoProducerName: other}\n",
        &["decode", "prefill"],
        8,
        "there is no prefix producer called \"other\" (did you mean \"approx-prefix-cache-producer\"?)",
    ),
    (
        "- type: pd-profile-handler\n",
        &["decode", "prefill"],
        4,
        "there is no plugin called \"prefix-based-pd-decider\" (add it to plugins",
    ),
    (
        "- {type: disagg-profile-handler, parameters: {deciders: {prefill: pd}}}\n- {type: always-disagg-pd-decider, name: pd}\n- type: disagg-headers-handler\n  parameters: {prefillProfile: p2}\n",
        &["decode", "prefill"],
        7,
        "disagg-headers-handler wants the header from profile \"p2\", and the handler's prefill profile is prefill",
    ),
    (
        "- {type: header-profile-handler, parameters: {headerName: a b}}\n",
        &["decode"],
        4,
        "\"a b\" can't be the name of a header",
    ),
    (
        "- {type: header-profile-handler}\n",
        &["a", "b"],
        4,
        "header-profile-handler runs profile decode, and there is no such profile (add it to schedulingProfiles, or name one in defaultProfile; there are a, b)",
    ),
    (
        "- {type: always-disagg-pd-decider, parameters: {x: 1}}\n",
        &["a"],
        4,
        "always-disagg-pd-decider has no field \"x\"",
    ),
    (
        "- type: disag-profile-handler\n",
        &["a", "b"],
        4,
        "there is no plugin type \"disag-profile-handler\" (did you",
    ),
];

#[test]
fn single_mistakes_are_placed_and_explained() {
    for (plugins, profiles, line, begins) in SINGLE_MISTAKES {
        let error = check("f", text(plugins, profiles).as_bytes(), &known()).unwrap_err();
        let got = mistakes(&error);
        assert_eq!(got.len(), 1, "{plugins}{error}");
        assert!(got[0].1.starts_with(begins), "{plugins}{}", got[0].1);
        assert_eq!(got[0].0, *line, "{plugins}{}", got[0].1);
    }
}
