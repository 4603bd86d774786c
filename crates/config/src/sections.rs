//! The sections beside `plugins` and `schedulingProfiles`.

use crate::fields::{Fields, Mistakes};
use crate::peer_types::{DETECTORS, HostType, host_type, unavailable};
use crate::plugins::{Declared, Kind};
use crate::suggest::did_you_mean;
use crate::yaml::{Node, NodeValue, shown};
use crate::{Parser, Place};

/// `featureGates`: a list of `name` or `name=bool`.
pub(crate) fn feature_gates(list: &[Node], mistakes: &mut Mistakes) {
    const GATES: [&str; 2] = ["flowControl", "haPopulateNonLeaderDatastore"];
    for node in list {
        let NodeValue::Scalar { text, .. } = &node.value else {
            mistakes.at(node.place, format!("a feature gate must be a text, not {}", node.kind()));
            continue;
        };
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        // What Go's strconv.ParseBool takes.
        let value = match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                mistakes.at(node.place, format!("feature gate {} must be true or false", shown(name)));
                continue;
            }
        };
        match name {
            "flowControl" if value => {
                let message =
                    "the feature gate flowControl is not available in this version: requests aren't queued";
                mistakes.hinted(node.place, message, "remove it");
            }
            "flowControl" => {}
            "haPopulateNonLeaderDatastore" => {
                mistakes.notice(
                    node.place,
                    "haPopulateNonLeaderDatastore isn't used: no replica waits to be leader",
                );
            }
            _ => {
                let hint =
                    did_you_mean(name, GATES).unwrap_or_else(|| format!("there are {}", GATES.join(", ")));
                mistakes.hinted(node.place, format!("there is no feature gate {}", shown(name)), hint);
            }
        }
    }
}

/// What a field of `flowControl` may say, since it is what happens anyway.
enum Default {
    Text(&'static str),
    /// Any duration.
    Duration,
    /// 0, for no limit.
    Zero,
    False,
    EmptyList,
    Nothing,
}

const FLOW_CONTROL: &[(&str, Default)] = &[
    ("maxBytes", Default::Zero),
    ("maxRequests", Default::Zero),
    ("defaultRequestTTL", Default::Duration),
    ("noEndpointRequestTTL", Default::Duration),
    ("defaultPriorityBand", Default::Nothing),
    ("defaultNegativePriorityBand", Default::Nothing),
    ("priorityBands", Default::EmptyList),
    ("usageLimitPolicyPluginRef", Default::Text("static-usage-limit-policy")),
    ("enableEviction", Default::False),
];

/// `flowControl`: the name of the pool's saturation detector, if there is one. The rest is taken as long as it says
/// nothing but defaults.
pub(crate) fn flow_control(
    node: &Node,
    declared: &[Declared<'_>],
    mistakes: &mut Mistakes,
) -> Option<String> {
    let mut fields = Fields::of(node, "flowControl", mistakes);
    let detector = fields.node("saturationDetector");
    let detector = detector.and_then(|node| saturation_detector(node, declared, mistakes));
    let mut is_more_said = false;
    for (name, default) in FLOW_CONTROL {
        let Some(node) = fields.node(name) else { continue };
        is_more_said = true;
        let text = match &node.value {
            NodeValue::Scalar { text, .. } => Some(text.as_str()),
            _ => None,
        };
        let is_default = match default {
            Default::Text(expected) => text == Some(expected),
            Default::Duration => text.is_some_and(|text| crate::scalar::duration(text).is_some()),
            Default::Zero => text == Some("0"),
            Default::False => text == Some("false"),
            Default::EmptyList => node.value == NodeValue::List(Vec::new()),
            Default::Nothing => node.value == NodeValue::Map(Vec::new()),
        };
        if !is_default {
            let message =
                format!("{name} of flowControl is not available in this version: requests aren't queued");
            mistakes.hinted(node.place, message, "remove it");
        }
    }
    if is_more_said {
        let message =
            "requests aren't queued in this version, so of flowControl only saturationDetector has an effect";
        mistakes.notice(node.place, message);
    }
    fields.finish(mistakes);
    detector
}

/// `saturationDetector`, in `flowControl` or, as it was, at the top: the name of the detector.
pub(crate) fn saturation_detector(
    node: &Node,
    declared: &[Declared<'_>],
    mistakes: &mut Mistakes,
) -> Option<String> {
    let mut fields = Fields::of(node, "saturationDetector", mistakes);
    let reference = fields.text("pluginRef", mistakes);
    fields.finish(mistakes);
    let (name, place) = reference?;
    let plugin = declared.iter().find(|plugin| plugin.name == name);
    // A detector needs no entry in `plugins` if it is referred to by its type.
    let plugin_type = plugin.map_or(name, |plugin| &plugin.plugin_type);
    let broken = plugin.is_some_and(|plugin| plugin.kind == Kind::Broken);
    if !DETECTORS.contains(&plugin_type) && !broken {
        let message = format!("{} is no saturation detector of this version", shown(name));
        let hint = did_you_mean(name, DETECTORS).unwrap_or_else(|| format!("use {}", DETECTORS.join(" or ")));
        mistakes.hinted(place, message, hint);
    }
    Some(name.to_owned())
}

/// `requestHandler`: the parsers in the order in which they are tried.
pub(crate) fn parsers(
    request_handler: Option<&Node>,
    parser: Option<&Node>,
    declared: &[Declared<'_>],
    mistakes: &mut Mistakes,
) -> Vec<Parser> {
    let mut parsers = Vec::new();
    if let Some(node) = request_handler {
        let mut fields = Fields::of(node, "requestHandler", mistakes);
        for node in fields.list("parsers", mistakes) {
            parser_ref(node, declared, &mut parsers, mistakes);
        }
        fields.finish(mistakes);
    }
    if let Some(node) = parser {
        mistakes.notice(node.place, "parser at the top is deprecated: name it in requestHandler.parsers");
        let mut old = Vec::new();
        parser_ref(node, declared, &mut old, mistakes);
        if parsers.is_empty() {
            parsers = old;
        }
    }
    if parsers.is_empty() {
        parsers = vec![Parser::OpenAi, Parser::Anthropic, Parser::VllmHttp, Parser::Passthrough];
    }
    parsers
}

fn parser_ref(node: &Node, declared: &[Declared<'_>], parsers: &mut Vec<Parser>, mistakes: &mut Mistakes) {
    const PARSERS: [&str; 5] =
        ["openai-parser", "anthropic-parser", "vllmhttp-parser", "sglanghttp-parser", "passthrough-parser"];
    let mut fields = Fields::of(node, "a parser", mistakes);
    let reference = fields.required_text("pluginRef", mistakes);
    fields.finish(mistakes);
    let Some((name, place)) = reference else { return };
    let plugin = declared.iter().find(|plugin| plugin.name == name);
    // A parser needs no entry in `plugins` if it is referred to by its type.
    let kind = plugin.map_or_else(|| host_type(name).map_or(Kind::Broken, Kind::Host), |plugin| plugin.kind);
    let parser = match kind {
        Kind::Host(HostType::Parser(parser)) => parser,
        Kind::Broken if plugin.is_some() => return,
        _ => {
            let hint = unavailable(name).map(str::to_owned);
            let hint = hint.or_else(|| did_you_mean(name, PARSERS));
            let hint = hint.unwrap_or_else(|| format!("there are {}", PARSERS.join(", ")));
            mistakes.hinted(place, format!("{} is no parser of this version", shown(name)), hint);
            return;
        }
    };
    if !parsers.contains(&parser) {
        parsers.push(parser);
    }
}

/// What `dataLayer` says that matters here.
pub(crate) struct DataLayer {
    /// Whether a metrics source is made up if none is named.
    pub(crate) inject_defaults: bool,
    /// The sources with their extractors.
    pub(crate) sources: Vec<SourceRef>,
    /// Name of the plugin that endpoints come from.
    pub(crate) discovery: Option<String>,
}

/// A source and its extractors, by name.
pub(crate) struct SourceRef {
    pub(crate) name: String,
    pub(crate) extractors: Vec<String>,
}

/// `dataLayer`, with both spellings of what was renamed between v1alpha1 and v1.
pub(crate) fn data_layer(
    node: Option<&Node>,
    declared: &[Declared<'_>],
    mistakes: &mut Mistakes,
) -> DataLayer {
    let mut layer = DataLayer { inject_defaults: true, sources: Vec::new(), discovery: None };
    let Some(node) = node else { return layer };
    let mut fields = Fields::of(node, "dataLayer", mistakes);
    if let Some((value, _)) = fields.boolean("injectDefaults", mistakes) {
        layer.inject_defaults = value;
    }
    for node in fields.list("sources", mistakes) {
        let mut source = Fields::of(node, "a source", mistakes);
        let reference = source.required_text("pluginRef", mistakes);
        check_ref(reference, SOURCES, declared, mistakes);
        let name = reference.map_or("", |(name, _)| name).to_owned();
        let mut used = SourceRef { name, extractors: Vec::new() };
        for node in source.list("extractors", mistakes) {
            let mut extractor = Fields::of(node, "an extractor", mistakes);
            let reference = extractor.required_text("pluginRef", mistakes);
            check_ref(reference, EXTRACTORS, declared, mistakes);
            used.extractors.extend(reference.map(|(name, _)| name.to_owned()));
            extractor.finish(mistakes);
        }
        layer.sources.push(used);
        source.finish(mistakes);
    }
    if let Some(node) = fields.node("discovery") {
        layer.discovery = discovery(node, declared, mistakes);
    }
    for (name, hint) in [
        ("peerDiscovery", "remove it; replicas don't need each other"),
        ("crossReplicaSyncerPluginRef", "remove it; replicas don't need each other"),
        ("crossReplicaSyncInterval", "remove it; replicas don't need each other"),
        ("crossReplica", "remove it; replicas don't need each other"),
    ] {
        if let Some(entry) = fields.entry(name) {
            let message = format!("{name} of dataLayer is known, but not available in this version");
            mistakes.hinted(entry.place, message, hint);
        }
    }
    fields.finish(mistakes);
    layer
}

/// `dataLayer.discovery`: the name of the plugin that endpoints come from, as `endpoints.pluginRef` or, as it was
/// before `llm-d.ai/v1`, as `pluginRef`.
fn discovery(node: &Node, declared: &[Declared<'_>], mistakes: &mut Mistakes) -> Option<String> {
    const HINT: &str = "write `discovery: {endpoints: {pluginRef: …}}`";
    let mut fields = Fields::of(node, "discovery", mistakes);
    let old = fields.node("pluginRef").and_then(|_| fields.required_text("pluginRef", mistakes));
    let new = fields.node("endpoints");
    let reference = match (old, new) {
        (Some((_, place)), Some(_)) => {
            let message =
                "pluginRef of discovery is the old spelling of endpoints.pluginRef, and both are given";
            mistakes.hinted(place, message, "remove it");
            None
        }
        (Some((_, place)), None) => {
            mistakes.notice(place, format!("pluginRef of discovery is the old spelling: {HINT}"));
            old
        }
        (None, Some(node)) => {
            let mut endpoints = Fields::of(node, "endpoints of discovery", mistakes);
            let reference = endpoints.required_text("pluginRef", mistakes);
            endpoints.finish(mistakes);
            reference
        }
        (None, None) => {
            if matches!(&node.value, NodeValue::Map(entries) if entries.is_empty()) {
                mistakes.hinted(node.place, "discovery names no plugin", HINT);
            }
            None
        }
    };
    fields.finish(mistakes);
    check_ref(reference, DISCOVERIES, declared, mistakes);
    reference.map(|(name, _)| name.to_owned())
}

/// What a reference in `dataLayer` may point to.
struct Expected {
    what: &'static str,
    types: &'static [&'static str],
}

const SOURCES: &Expected = &Expected {
    what: "source",
    types: &["metrics-data-source", "models-data-source", "endpoint-notification-source"],
};
const EXTRACTORS: &Expected = &Expected {
    what: "extractor",
    types: &[
        "core-metrics-extractor",
        "models-data-extractor",
        "precise-prefix-cache-producer",
        "precise-prefix-cache-scorer",
        "topology-extractor",
    ],
};
const DISCOVERIES: &Expected = &Expected { what: "discovery of endpoints", types: &["file-discovery"] };

fn check_ref(
    reference: Option<(&str, Place)>,
    expected: &Expected,
    declared: &[Declared<'_>],
    mistakes: &mut Mistakes,
) {
    let Some((name, place)) = reference else { return };
    match declared.iter().find(|plugin| plugin.name == name) {
        Some(plugin)
            if plugin.kind == Kind::Broken || expected.types.contains(&plugin.plugin_type.as_str()) => {}
        Some(plugin) => {
            mistakes.at(
                place,
                format!("{} is of type {}, which is no {}", shown(name), plugin.plugin_type, expected.what),
            );
        }
        None => undeclared(name, place, declared, mistakes),
    }
}

/// A reference to a plugin that isn't there.
pub(crate) fn undeclared(name: &str, place: Place, declared: &[Declared<'_>], mistakes: &mut Mistakes) {
    let hint = did_you_mean(name, declared.iter().map(|plugin| plugin.name.as_str()));
    let hint = hint
        .unwrap_or_else(|| format!("add it to plugins, `- type: {}` or with a name", name.escape_debug()));
    mistakes.hinted(place, format!("there is no plugin called {}", shown(name)), hint);
}
