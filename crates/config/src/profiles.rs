//! The `schedulingProfiles` section, and what stands for it where it isn't given.

use std::collections::HashMap;

use crate::fields::{Fields, Mistakes};
use crate::plugins::{Declared, Kind};
use crate::sections::undeclared;
use crate::yaml::{Node, shown};
use crate::{Place, PluginRef, ProfileSpec, SchedulingKind};

const DEFAULT_PICKER: &str = "max-score-picker";

/// The profiles, and the name of a `max-score-picker` to add to the plugins if one needs it.
pub(crate) struct Profiles {
    pub(crate) profiles: Vec<ProfileSpec>,
    pub(crate) injected_picker: Option<String>,
}

/// Reads the section, or makes up what the peer would, in the order of the file.
pub(crate) fn read(list: &[Node], declared: &[Declared<'_>], mistakes: &mut Mistakes) -> Profiles {
    let mut names: HashMap<&str, Place> = HashMap::new();
    let mut profiles = Vec::new();
    for node in list {
        let mut fields = Fields::of(node, "a scheduling profile", mistakes);
        let references = fields.list("plugins", mistakes);
        let name = fields.required_text("name", mistakes);
        fields.finish(mistakes);
        if let Some((name, place)) = name
            && let Some(first) = names.insert(name, place)
        {
            let message = format!("two scheduling profiles are called {}", shown(name));
            mistakes.hinted(place, message, format!("the first is in line {}", first.line));
        }
        let name = name.map_or("", |(name, _)| name);
        let plugins = references_of(references, declared, mistakes);
        profiles.push(ProfileSpec { name: name.to_owned(), plugins, place: Some(node.place) });
    }
    if list.is_empty() {
        profiles.push(default_profile(declared, mistakes));
    }
    let mut injected_picker = None;
    for profile in &mut profiles {
        inject_picker(profile, declared, &mut injected_picker, mistakes);
    }
    Profiles { profiles, injected_picker }
}

fn references_of(list: &[Node], declared: &[Declared<'_>], mistakes: &mut Mistakes) -> Vec<PluginRef> {
    let mut references: Vec<PluginRef> = Vec::new();
    let mut picker: Option<&Declared<'_>> = None;
    for node in list {
        let mut fields = Fields::of(node, "a plugin of a profile", mistakes);
        let weight = fields.number("weight", mistakes);
        let reference = fields.required_text("pluginRef", mistakes);
        fields.finish(mistakes);
        let Some((name, place)) = reference else { continue };
        let Some(plugin) = declared.iter().find(|plugin| plugin.name == name) else {
            undeclared(name, place, declared, mistakes);
            continue;
        };
        match plugin.kind {
            Kind::Broken => continue,
            Kind::Host(_) => {
                mistakes.notice(
                    place,
                    format!("{name} does nothing in a profile: it is no filter, scorer or picker"),
                );
                continue;
            }
            Kind::Scheduling(SchedulingKind::Picker) => match picker {
                None => picker = Some(plugin),
                Some(first) => {
                    let message = format!("the profile has two pickers: {} and {name}", first.name);
                    mistakes.hinted(place, message, "keep one");
                }
            },
            Kind::Scheduling(_) => {}
        }
        if let (Some((_, place)), Kind::Scheduling(kind)) = (weight, plugin.kind)
            && kind != SchedulingKind::Scorer
        {
            mistakes.notice(place, format!("the weight of {name} means nothing: it is no scorer"));
        }
        if references.iter().any(|earlier| earlier.plugin_ref == name) {
            mistakes.notice(place, format!("{name} is in the profile more than once, and counts each time"));
        }
        let weight = weight.map_or(1.0, |(weight, _)| weight);
        references.push(PluginRef { plugin_ref: name.to_owned(), weight });
    }
    references
}

/// One profile with all filters, scorers and pickers. The peer goes through them in the order of a Go
/// map; here it is the order of the file.
fn default_profile(declared: &[Declared<'_>], mistakes: &mut Mistakes) -> ProfileSpec {
    let plugins: Vec<_> = declared.iter().filter(|plugin| plugin.scheduling().is_some()).collect();
    let mut pickers = plugins.iter().filter(|plugin| plugin.scheduling() == Some(SchedulingKind::Picker));
    if let (Some(first), Some(second)) = (pickers.next(), pickers.next()) {
        let message =
            format!("there are two pickers, {} and {}, and no scheduling profile", first.name, second.name);
        mistakes.hinted(second.place, message, "say in schedulingProfiles which one to use");
    }
    let reference = |plugin: &&Declared<'_>| PluginRef { plugin_ref: plugin.name.clone(), weight: 1.0 };
    let profile = ProfileSpec {
        name: "default".to_owned(),
        plugins: plugins.iter().map(reference).collect(),
        place: None,
    };
    let names: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    let all = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    mistakes.notice(None, format!("there is no scheduling profile, so one called default has {all}"));
    profile
}

/// Gives a profile without a picker the first one of the file, or else `max-score-picker`.
fn inject_picker(
    profile: &mut ProfileSpec,
    declared: &[Declared<'_>],
    injected: &mut Option<String>,
    mistakes: &mut Mistakes,
) {
    let kind = |name: &str| declared.iter().find(|plugin| plugin.name == name).and_then(Declared::scheduling);
    if profile.plugins.iter().any(|plugin| kind(&plugin.plugin_ref) == Some(SchedulingKind::Picker)) {
        return;
    }
    let first = declared.iter().find(|plugin| plugin.scheduling() == Some(SchedulingKind::Picker));
    let name = match (first, &injected) {
        (Some(plugin), _) => plugin.name.clone(),
        (None, Some(name)) => name.clone(),
        (None, None) => injected.insert(free_name(DEFAULT_PICKER, declared)).clone(),
    };
    mistakes.notice(profile.place, format!("profile {} has no picker, so it gets {name}", profile.name));
    profile.plugins.push(PluginRef { plugin_ref: name, weight: 1.0 });
}

/// `name`, or if the file has a plugin of that name, one like it.
pub(crate) fn free_name(name: &str, declared: &[Declared<'_>]) -> String {
    let mut free = name.to_owned();
    while declared.iter().any(|plugin| plugin.name == free) {
        free.push_str("-injected");
    }
    free
}
