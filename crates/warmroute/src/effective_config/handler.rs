//! The profile handler and its deciders, written out.

use serde_json::{Map, Value, json};
use warmroute_config::{DeciderKind, DeciderSpec, DisaggregationSpec, HandlerKind, ProfileHandlerSpec};

use super::{PluginEntry, entry};

/// The handler, then its deciders, each once.
pub(super) fn handler_entries(handler: &ProfileHandlerSpec) -> Vec<PluginEntry> {
    let parameters = match &handler.kind {
        HandlerKind::Disaggregated(stages) if handler.plugin_type == "pd-profile-handler" => {
            old_parameters(stages)
        }
        HandlerKind::Disaggregated(stages) => parameters(stages),
        HandlerKind::DataParallel { primary_port } => json!({"primaryPort": primary_port}),
        HandlerKind::ByHeader { header_name, default_profile } => {
            json!({"headerName": header_name, "defaultProfile": default_profile})
        }
        _ => json!({}),
    };
    let mut entries = vec![entry(&handler.plugin_type, &handler.name, parameters)];
    if let HandlerKind::Disaggregated(stages) = &handler.kind {
        let deciders = [&stages.prefill, &stages.encode].into_iter().flatten();
        for decider in deciders.filter_map(|stage| stage.decider.as_ref()) {
            if !entries.iter().any(|entry| entry.name == decider.name) {
                entries.push(decider_entry(decider));
            }
        }
    }
    entries
}

fn parameters(stages: &DisaggregationSpec) -> Value {
    let mut parameters = json!({"stageOrder": stages.stage_order.as_str()});
    let mut profiles = Map::from_iter([("decode".to_owned(), json!(stages.decode_profile))]);
    let mut deciders = Map::new();
    for (name, failure, stage) in
        [("prefill", "onPrefillFailure", &stages.prefill), ("encode", "onEncodeFailure", &stages.encode)]
    {
        let Some(stage) = stage else { continue };
        profiles.insert(name.to_owned(), json!(stage.profile));
        if let Some(decider) = &stage.decider {
            deciders.insert(name.to_owned(), json!(decider.name));
        }
        parameters[failure] = json!(stage.on_failure.as_str());
    }
    parameters["profiles"] = Value::Object(profiles);
    if !deciders.is_empty() {
        parameters["deciders"] = Value::Object(deciders);
    }
    parameters
}

/// Those of `pd-profile-handler`, which always has a prefill stage with a decider.
fn old_parameters(stages: &DisaggregationSpec) -> Value {
    let mut parameters = json!({"decodeProfile": stages.decode_profile});
    if let Some(prefill) = &stages.prefill {
        parameters["prefillProfile"] = json!(prefill.profile);
        parameters["onPrefillFailure"] = json!(prefill.on_failure.as_str());
        if let Some(decider) = &prefill.decider {
            parameters["deciderPluginName"] = json!(decider.name);
        }
    }
    parameters["primaryPort"] = json!(stages.primary_port.unwrap_or(0));
    parameters
}

fn decider_entry(decider: &DeciderSpec) -> PluginEntry {
    let parameters = match &decider.kind {
        DeciderKind::UncachedTokens { non_cached_tokens, prompt_tokens, producer } => json!({
            "nonCachedTokens": non_cached_tokens,
            "promptTokens": prompt_tokens,
            "prefixMatchInfoProducerName": producer,
        }),
        _ => json!({}),
    };
    entry(decider.kind.plugin_type(), &decider.name, parameters)
}
