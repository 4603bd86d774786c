//! `context-length-aware` is a scorer and a filter in one at the llm-d Router EPP. Here a plugin is one of them, so the
//! filter's side becomes a plugin of its own.

use serde_json::{Map, Value};

use crate::fields::Mistakes;
use crate::plugins::Declared;
use crate::profiles::free_name;
use crate::{KnownTypes, Place, PluginRef, PluginSpec, ProfileSpec};

const SCORER: &str = "context-length-aware";
const FILTER: &str = "context-length-filter";
const SWITCH: &str = "enableFiltering";
const LABEL: &str = "label";

/// Takes the filter's side out of a scorer that has one, as a filter of the same label.
pub(crate) fn take(
    spec: &mut PluginSpec,
    declared: &[Declared<'_>],
    known: &KnownTypes,
    mistakes: &mut Mistakes,
) -> Option<PluginSpec> {
    if spec.plugin_type != SCORER || known.kind(FILTER).is_none() {
        return None;
    }
    let parameters = spec.parameters.as_object_mut()?;
    if parameters.get(SWITCH) != Some(&Value::Bool(true)) {
        return None;
    }
    parameters.remove(SWITCH);
    let label = parameters.get(LABEL).map(|label| (LABEL.to_owned(), label.clone()));
    let name = free_name(&format!("{}-filter", spec.name), declared);
    let place = spec.place.unwrap_or(Place::START);
    let message = format!(
        "{} filters, too: here that is the work of a plugin of its own, {name} of type {FILTER}, which is added",
        spec.name
    );
    mistakes.notice(place, message);
    Some(PluginSpec {
        name,
        plugin_type: FILTER.to_owned(),
        parameters: Value::Object(Map::from_iter(label)),
        place: spec.place,
        parameter_places: spec.parameter_places.clone(),
    })
}

/// Puts each filter into the profiles before the scorer that it was taken from. `filters` are scorers' names, each with
/// its filter.
pub(crate) fn refer(filters: &[(String, PluginSpec)], profiles: &mut [ProfileSpec]) {
    for (scorer, filter) in filters {
        for profile in profiles.iter_mut() {
            let Some(at) = profile.plugins.iter().position(|plugin| plugin.plugin_ref == *scorer) else {
                continue;
            };
            profile.plugins.insert(at, PluginRef { plugin_ref: filter.name.clone(), weight: 1.0 });
        }
    }
}
