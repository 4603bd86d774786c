//! From the text to the checked configuration.

use serde_json::{Map, Value};

use crate::fields::{Fields, Mistakes};
use crate::peer_types::{DETECTORS, HostType, PRECISE_SCORER};
use crate::place::Source;
use crate::plugins::{self, Declared, Kind};
use crate::prefix_binding::PrefixBinding;
use crate::profiles;
use crate::sections::SourceRef;
use crate::yaml::Node;
use crate::{
    CheckedConfig, ConfigError, FileDiscoverySpec, HttpSourceSpec, KnownTypes, MetricsExtractorSpec, Place,
    PluginSpec, PrefixProducerSpec, ProfileSpec, TokenBackend, TokenProducerSpec, filter_side, handlers,
    host_plugins, sections, text,
};

const KIND: &str = "EndpointPickerConfig";
const API_VERSIONS: [&str; 3] =
    ["llm-d.ai/v1", "llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"];

/// Types that the peer is about to drop.
const DEPRECATED_FILTERS: [&str; 2] = ["by-label", "by-label-selector"];
/// Types with one block of parameters per strategy.
const SESSION_AFFINITY: [&str; 2] = ["session-affinity-scorer", "session-affinity-filter"];
const METRICS_EXTRACTOR: &str = "core-metrics-extractor";

/// Reads and checks a configuration: YAML or JSON. `name` is what to call it in errors, usually its path.
///
/// Accepted are the apiVersions `llm-d.ai/v1`, `llm-d.ai/v1alpha1` and
/// `inference.networking.x-k8s.io/v1alpha1`; the schema is that of `apix/config/v1alpha1` in
/// github.com/llm-d/llm-d-router. What this version doesn't have is refused by name.
///
/// # Errors
///
/// Everything that is wrong with it, each mistake with its place. If the text isn't YAML, only that.
pub fn check(name: &str, text: &[u8], known: &KnownTypes) -> Result<CheckedConfig, ConfigError> {
    let mut mistakes = Mistakes::default();
    let (source, root) = text::read(name, text, &mut mistakes);
    let config = match &root {
        Some(root) => Some(document(&source, root, known, &mut mistakes)),
        None => {
            if mistakes.is_empty() {
                mistakes.hinted(
                    Place::START,
                    "there is no configuration in it",
                    format!("begin with `kind: {KIND}`"),
                );
            }
            None
        }
    };
    match config {
        Some(mut config) if mistakes.is_empty() => {
            config.notices = mistakes.take_notices();
            Ok(config)
        }
        _ => {
            let notices = mistakes.take_notices();
            Err(ConfigError::new(source, mistakes.into_list()).with_notices(notices))
        }
    }
}

fn document(source: &Source, root: &Node, known: &KnownTypes, mistakes: &mut Mistakes) -> CheckedConfig {
    let mut fields = Fields::of(root, "the configuration", mistakes);
    envelope(&mut fields, mistakes);
    sections::feature_gates(fields.list("featureGates", mistakes), mistakes);
    let declared = plugins::read(fields.list("plugins", mistakes), known, mistakes);
    let mut profiles = profiles::read(fields.list("schedulingProfiles", mistakes), &declared, mistakes);
    let layer = sections::data_layer(fields.node("dataLayer"), &declared, mistakes);
    let flow_control = fields.node("flowControl");
    let detector = flow_control.and_then(|node| sections::flow_control(node, &declared, mistakes));
    let handler = fields.node("requestHandler");
    let parsers = sections::parsers(handler, fields.node("parser"), &declared, mistakes);
    let old_detector = fields.node("saturationDetector").and_then(|node| {
        mistakes.notice(node.place, "saturationDetector at the top is deprecated: it belongs to flowControl");
        sections::saturation_detector(node, &declared, mistakes)
    });
    fields.finish(mistakes);

    let mut binding = PrefixBinding::read(&declared, mistakes);
    let mut plugins = scheduling_plugins(&declared, &mut profiles.profiles, &mut binding, known, mistakes);
    let in_flight_prefix_producer = in_flight_prefix_producer(&declared, &binding, mistakes);
    let saturation_detector = saturation_detector(detector.or(old_detector), &plugins);
    plugins.extend(profiles.injected_picker.map(|name| injected(name, "max-score-picker")));
    let around = handlers::Surroundings {
        declared: &declared,
        profiles: &profiles.profiles,
        plugins: &plugins,
        prefixes: &binding,
    };
    let handler = handlers::read(&around, mistakes);
    note_unused(&declared, &profiles.profiles, &saturation_detector, mistakes);
    let token_producer = plugins::only(&declared, HostType::TokenProducer, mistakes)
        .and_then(|plugin| host_plugins::token_producer(plugin, mistakes));
    let prefix_producers = binding.finish(&declared, mistakes);
    note_estimate(&declared, &prefix_producers, token_producer.as_ref(), mistakes);
    let metrics_source = metrics_source(&declared, layer.inject_defaults, mistakes);
    let metrics_extractor = match plugins::only(&declared, HostType::MetricsExtractor, mistakes) {
        Some(plugin) => host_plugins::metrics_extractor(plugin, mistakes),
        None => MetricsExtractorSpec::new(METRICS_EXTRACTOR),
    };
    let models_source = models_source(&declared, &layer.sources, mistakes);
    let discovery = discovery(&declared, layer.discovery.as_deref(), mistakes);
    let session_ids = declared.iter().filter(|plugin| plugin.is_host(HostType::SessionIdProducer));
    let session_id_producers =
        session_ids.filter_map(|plugin| host_plugins::session_id_producer(plugin, mistakes)).collect();
    CheckedConfig {
        source: source.clone(),
        plugins,
        profiles: profiles.profiles,
        handler,
        prefix_producers,
        in_flight_prefix_producer,
        token_producer,
        metrics_source,
        metrics_extractor,
        models_source,
        discovery,
        session_id_producers,
        reports_served_endpoint: reports_served_endpoint(&declared, mistakes),
        parsers,
        saturation_detector,
        notices: Vec::new(),
    }
}

fn envelope(fields: &mut Fields<'_>, mistakes: &mut Mistakes) {
    let place = fields.place();
    match fields.entry("apiVersion").map(|entry| &entry.value) {
        None => {
            mistakes.hinted(place, "apiVersion is missing", format!("add `apiVersion: {}`", API_VERSIONS[0]))
        }
        Some(node) => match node.as_text() {
            Some(version) if version == API_VERSIONS[2] => {
                let message = format!("apiVersion {version} is deprecated: write {}", API_VERSIONS[0]);
                mistakes.notice(node.place, message);
            }
            Some(version) if API_VERSIONS.contains(&version) => {}
            _ => {
                let message =
                    format!("apiVersion must be one of {}, not {}", API_VERSIONS.join(", "), node.kind());
                mistakes.at(node.place, message);
            }
        },
    }
    match fields.entry("kind").map(|entry| &entry.value) {
        None => mistakes.hinted(place, "kind is missing", format!("add `kind: {KIND}`")),
        Some(node) if node.as_text() == Some(KIND) => {}
        Some(node) => mistakes.at(node.place, format!("kind must be {KIND}, not {}", node.kind())),
    }
}

/// The producer whose matches say what a request costs, if `inflight-load-producer` names one.
fn in_flight_prefix_producer(
    declared: &[Declared<'_>],
    binding: &PrefixBinding,
    mistakes: &mut Mistakes,
) -> Option<String> {
    let plugin = plugins::only(declared, HostType::InFlightProducer, mistakes)?;
    let named = host_plugins::in_flight(plugin, mistakes);
    binding.resolve(named, mistakes)
}

/// Whether there is a `destination-endpoint-served-verifier`, which has no parameters.
fn reports_served_endpoint(declared: &[Declared<'_>], mistakes: &mut Mistakes) -> bool {
    let plugin = plugins::only(declared, HostType::ServedVerifier, mistakes);
    if let Some((plugin, node)) = plugin.and_then(|plugin| Some((plugin, plugin.parameters?))) {
        Fields::of(node, &plugin.name, mistakes).finish(mistakes);
    }
    plugin.is_some()
}

/// The plugins to build, each with the producer that it reads prefix matches from.
fn scheduling_plugins(
    declared: &[Declared<'_>],
    profiles: &mut [ProfileSpec],
    binding: &mut PrefixBinding,
    known: &KnownTypes,
    mistakes: &mut Mistakes,
) -> Vec<PluginSpec> {
    let mut specs = Vec::new();
    let (mut badly_written, mut filters) = (Vec::new(), Vec::new());
    for plugin in declared.iter().filter(|plugin| plugin.scheduling().is_some()) {
        if DEPRECATED_FILTERS.contains(&plugin.plugin_type.as_str()) {
            let message = format!("{} is deprecated: use label-selector-filter", plugin.plugin_type);
            mistakes.notice(plugin.place, message);
        }
        let before = mistakes.len();
        let mut spec = plugin_spec(plugin, mistakes);
        let filter = filter_side::take(&mut spec, declared, known, mistakes);
        filters.extend(filter.map(|filter| (spec.name.clone(), filter)));
        note_unread_session_ids(&spec, mistakes);
        specs.push(spec);
        if mistakes.len() > before {
            badly_written.push(plugin.name.clone());
        }
    }
    let unbound = binding.bind(&mut specs, mistakes);
    for spec in
        specs.iter().filter(|spec| !unbound.contains(&spec.name) && !badly_written.contains(&spec.name))
    {
        if let Err(mistake) = known.check(spec) {
            mistakes.push(spec.mistake(&mistake.path, mistake.message));
        }
    }
    filter_side::refer(&filters, profiles);
    specs.extend(filters.into_iter().map(|(_, filter)| filter));
    specs
}

/// Says so if a session-affinity plugin has parameters for session ids, and no strategy that reads them.
fn note_unread_session_ids(spec: &PluginSpec, mistakes: &mut Mistakes) {
    let is_given = |name| spec.parameters.get(name).is_some();
    if SESSION_AFFINITY.contains(&spec.plugin_type.as_str())
        && is_given("sessionIdConfig")
        && !is_given("strategy")
    {
        let message = "sessionIdConfig isn't read: the strategy is encoded_endpoint_header unless the parameters \
                       say `strategy: session_id`";
        let place = spec.parameter_places.get("sessionIdConfig").copied().or(spec.place);
        mistakes.notice(place, format!("{}: {message}", spec.name));
    }
}

fn plugin_spec(plugin: &Declared<'_>, mistakes: &mut Mistakes) -> PluginSpec {
    let mut parameter_places = std::collections::BTreeMap::new();
    // The parameters of this type are its producer's.
    let is_precise_scorer = plugin.plugin_type == PRECISE_SCORER;
    let parameters = match plugin.parameters.filter(|_| !is_precise_scorer) {
        Some(node) => node.to_json(&mut parameter_places, mistakes),
        None => Value::Object(Map::new()),
    };
    let plugin_type = if is_precise_scorer { "prefix-cache-scorer" } else { &plugin.plugin_type };
    PluginSpec {
        name: plugin.name.clone(),
        plugin_type: plugin_type.to_owned(),
        parameters,
        place: Some(plugin.place),
        parameter_places,
    }
}

/// The pool's saturation detector: the one that is referred to by name or, if it isn't declared, by type; else, as at
/// the peer, the one that is called as the default one is, or the default one.
fn saturation_detector(referred_to: Option<String>, plugins: &[PluginSpec]) -> PluginSpec {
    let name = referred_to.unwrap_or_else(|| DETECTORS[0].to_owned());
    let is_it = |plugin: &&PluginSpec| plugin.name == name && is_detector(plugin);
    let plugin_type = DETECTORS.into_iter().find(|known| *known == name).unwrap_or(DETECTORS[0]);
    plugins.iter().find(is_it).cloned().unwrap_or_else(|| injected(name, plugin_type))
}

fn is_detector(plugin: &PluginSpec) -> bool {
    DETECTORS.contains(&plugin.plugin_type.as_str())
}

fn injected(name: String, plugin_type: &str) -> PluginSpec {
    PluginSpec {
        name,
        plugin_type: plugin_type.to_owned(),
        parameters: Value::Object(Map::new()),
        place: None,
        parameter_places: std::collections::BTreeMap::new(),
    }
}

fn note_unused(
    declared: &[Declared<'_>],
    profiles: &[crate::ProfileSpec],
    detector: &PluginSpec,
    mistakes: &mut Mistakes,
) {
    for plugin in declared {
        match plugin.kind {
            Kind::Scheduling(_) => {
                let mut references = profiles.iter().flat_map(|profile| &profile.plugins);
                let is_used = references.any(|reference| reference.plugin_ref == plugin.name);
                if !is_used && plugin.name != detector.name {
                    let nor = match DETECTORS.contains(&plugin.plugin_type.as_str()) {
                        true => ", nor is it flowControl.saturationDetector",
                        false => "",
                    };
                    mistakes.notice(
                        plugin.place,
                        format!("{} is in no scheduling profile{nor}, so it does nothing", plugin.name),
                    );
                }
            }
            Kind::Host(HostType::Always(why)) => {
                host_plugins::none(plugin, mistakes);
                mistakes.notice(plugin.place, format!("{} needs no plugin here: {why}", plugin.name));
            }
            Kind::Host(HostType::Parser(_)) => host_plugins::none(plugin, mistakes),
            Kind::Host(_) | Kind::Broken => {}
        }
    }
}

/// Says that exact matches need exact tokens, where the file asks for both matches and an estimate.
fn note_estimate(
    declared: &[Declared<'_>],
    prefix: &[PrefixProducerSpec],
    tokens: Option<&TokenProducerSpec>,
    mistakes: &mut Mistakes,
) {
    let is_exact = |producer: &&PrefixProducerSpec| matches!(producer, PrefixProducerSpec::Precise(_));
    if let (Some(prefix), Some(tokens)) = (prefix.iter().find(is_exact), tokens)
        && matches!(tokens.backend, TokenBackend::Estimate(_))
        && let Some(plugin) = declared.iter().find(|plugin| plugin.is_host(HostType::TokenProducer))
    {
        let message = format!(
            "{} only estimates tokens, so {} can never find a match for a prompt of text; it needs `local: {{path: …}}` \
             or vllm",
            tokens.name,
            prefix.name()
        );
        mistakes.notice(plugin.place, message);
    }
}

fn metrics_source(
    declared: &[Declared<'_>],
    inject_defaults: bool,
    mistakes: &mut Mistakes,
) -> Option<HttpSourceSpec> {
    // The peer looks at the name of the reference here, and scrapes twice if the source is renamed.
    match plugins::only(declared, HostType::MetricsSource, mistakes) {
        Some(plugin) => Some(HttpSourceSpec::metrics(&plugin.name).read(plugin, mistakes)),
        None => inject_defaults.then(|| HttpSourceSpec::metrics("metrics-data-source")),
    }
}

/// The source of models, if `dataLayer` has it with its extractor, as at the peer.
fn models_source(
    declared: &[Declared<'_>],
    sources: &[SourceRef],
    mistakes: &mut Mistakes,
) -> Option<HttpSourceSpec> {
    let extractor = plugins::only(declared, HostType::ModelsExtractor, mistakes);
    if let Some(extractor) = extractor {
        host_plugins::none(extractor, mistakes);
    }
    let source = plugins::only(declared, HostType::ModelsSource, mistakes);
    let spec = source.map(|source| HttpSourceSpec::models(&source.name).read(source, mistakes));
    let (Some(source), Some(extractor)) = (source, extractor) else {
        for lone in source.iter().chain(&extractor) {
            let message = "does nothing: it takes models-data-source and models-data-extractor together";
            mistakes.notice(lone.place, format!("{} {message}", lone.name));
        }
        return None;
    };
    let is_used =
        sources.iter().any(|used| used.name == source.name && used.extractors.contains(&extractor.name));
    if !is_used {
        let message = format!(
            "no source of dataLayer names {} with the extractor {}, so endpoints aren't asked for their models",
            source.name, extractor.name
        );
        mistakes.notice(source.place, message);
        return None;
    }
    spec
}

/// The discovery that `dataLayer` refers to. Others are checked too, and do nothing.
fn discovery(
    declared: &[Declared<'_>],
    referred_to: Option<&str>,
    mistakes: &mut Mistakes,
) -> Option<FileDiscoverySpec> {
    let mut found = None;
    for plugin in declared.iter().filter(|plugin| plugin.is_host(HostType::FileDiscovery)) {
        let spec = host_plugins::file_discovery(plugin, mistakes);
        if referred_to == Some(plugin.name.as_str()) {
            found = spec;
        } else {
            let message = format!(
                "dataLayer.discovery.endpoints.pluginRef doesn't name {}, so it does nothing",
                plugin.name
            );
            mistakes.notice(plugin.place, message);
        }
    }
    found
}
