//! Profile handlers: which profiles run. One per configuration; what it names must be there.

mod deciders;
mod disaggregation;

use crate::fields::{Fields, Mistakes};
use crate::handler_spec::{HandlerKind, ProfileHandlerSpec};
use crate::host_plugins::{PORT, none};
use crate::peer_types::{HandlerType, HostType};
use crate::plugins::{Declared, Kind};
use crate::prefix_binding::PrefixBinding;
use crate::suggest::did_you_mean;
use crate::yaml::shown;
use crate::{Place, PluginSpec, ProfileSpec};

/// What handlers are checked against.
pub(crate) struct Surroundings<'a, 'n> {
    pub(crate) declared: &'a [Declared<'n>],
    pub(crate) profiles: &'a [ProfileSpec],
    /// Bound to their prefix producers.
    pub(crate) plugins: &'a [PluginSpec],
    pub(crate) prefixes: &'a PrefixBinding,
}

/// Reads the handler and its deciders.
pub(crate) fn read(around: &Surroundings<'_, '_>, mistakes: &mut Mistakes) -> ProfileHandlerSpec {
    let mut handlers = around.declared.iter().filter_map(|plugin| match plugin.kind {
        Kind::Host(HostType::Handler(handler)) => Some((plugin, handler)),
        _ => None,
    });
    let Some((plugin, handler)) = handlers.next() else {
        // A misspelt plugin may be the handler.
        if !around.declared.iter().any(|plugin| plugin.kind == Kind::Broken) {
            several_without_handler(around.profiles, mistakes);
        }
        deciders::note_unused(around, &[], mistakes);
        disaggregation::header_writers(around, None, mistakes);
        return ProfileHandlerSpec::single();
    };
    for (other, _) in handlers {
        let message = format!("there can be one profile handler, and {} is another", other.name);
        let first = format!("the first is {} in line {}; keep one", plugin.name, plugin.place.line);
        mistakes.hinted(other.place, message, first);
    }
    let kind = match handler {
        HandlerType::Single => {
            none(plugin, mistakes);
            only_one_profile(plugin, around.profiles, mistakes);
            HandlerKind::Single
        }
        HandlerType::DataParallel => data_parallel(plugin, around.profiles, mistakes),
        HandlerType::Header => by_header(plugin, around.profiles, mistakes),
        HandlerType::Disagg => disaggregation::current(plugin, around, mistakes),
        HandlerType::Pd => disaggregation::pd(plugin, around, mistakes),
    };
    let spec =
        ProfileHandlerSpec { name: plugin.name.clone(), plugin_type: plugin.plugin_type.clone(), kind };
    if handler == HandlerType::Pd || handler == HandlerType::DataParallel {
        let instead = match handler {
            HandlerType::Pd => "disagg-profile-handler",
            _ => "an endpoint per rank, each with its port",
        };
        let message = format!("{} is deprecated: use {instead}", plugin.plugin_type);
        mistakes.notice(plugin.place, message);
    }
    let stages = match &spec.kind {
        HandlerKind::Disaggregated(stages) => Some(stages),
        _ => None,
    };
    let helpers = stages.into_iter().flat_map(|stages| [&stages.prefill, &stages.encode]).flatten();
    let used: Vec<&str> = helpers.filter_map(|stage| Some(stage.decider.as_ref()?.name.as_str())).collect();
    deciders::note_unused(around, &used, mistakes);
    disaggregation::header_writers(around, stages, mistakes);
    for profile in around.profiles.iter().filter(|profile| !spec.runs(&profile.name)) {
        mistakes.notice(profile.place, format!("{} never runs profile {}", spec.name, profile.name));
    }
    spec
}

fn several_without_handler(profiles: &[ProfileSpec], mistakes: &mut Mistakes) {
    if let Some(second) = profiles.get(1) {
        let message = "there is more than one scheduling profile, and no profile handler that chooses";
        let hint = "add a disagg-profile-handler or a header-profile-handler to plugins, or keep one profile";
        mistakes.hinted(second.place.unwrap_or(Place::START), message, hint);
    }
}

fn only_one_profile(plugin: &Declared<'_>, profiles: &[ProfileSpec], mistakes: &mut Mistakes) {
    if let Some(second) = profiles.get(1) {
        let count = profiles.len();
        let message = format!("{} runs one scheduling profile, and there are {count}", plugin.name);
        let hint = "keep one, or use a disagg-profile-handler or a header-profile-handler instead";
        mistakes.hinted(second.place.unwrap_or(Place::START), message, hint);
    }
}

fn data_parallel(plugin: &Declared<'_>, profiles: &[ProfileSpec], mistakes: &mut Mistakes) -> HandlerKind {
    only_one_profile(plugin, profiles, mistakes);
    let mut port = None;
    if let Some(node) = plugin.parameters {
        let mut fields = Fields::of(node, &plugin.name, mistakes);
        port = fields.whole("primaryPort", PORT, mistakes);
        fields.finish(mistakes);
    }
    let port = port.and_then(|(port, _)| u16::try_from(port).ok());
    HandlerKind::DataParallel { primary_port: port.unwrap_or(8000) }
}

fn by_header(plugin: &Declared<'_>, profiles: &[ProfileSpec], mistakes: &mut Mistakes) -> HandlerKind {
    let (mut header, mut default) = (None, None);
    if let Some(node) = plugin.parameters {
        let mut fields = Fields::of(node, &plugin.name, mistakes);
        header = fields.text("headerName", mistakes).filter(|(name, _)| !name.trim().is_empty());
        default = fields.text("defaultProfile", mistakes).filter(|(name, _)| !name.trim().is_empty());
        fields.finish(mistakes);
    }
    let header_name = header.map_or("epp-profile", |(name, _)| name.trim()).to_ascii_lowercase();
    if let Some((_, place)) = header
        && !is_header_name(&header_name)
    {
        let message = format!("{} can't be the name of a header", shown(&header_name));
        mistakes.hinted(place, message, "use letters, digits and hyphens, like EPP-Profile");
    }
    let default = default.map(|(name, place)| (name.trim(), place));
    // The only profile runs whatever the header says.
    let default_profile = match (default, profiles) {
        (None, [only]) => only.name.clone(),
        _ => profile_ref("defaultProfile", default, "decode", plugin, profiles, mistakes),
    };
    HandlerKind::ByHeader { header_name, default_profile }
}

fn is_header_name(name: &str) -> bool {
    // The characters of a token in RFC 9110, 5.6.2.
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The profile that a parameter names, or the one of that default; it must be there.
fn profile_ref(
    parameter: &str,
    given: Option<(&str, Place)>,
    default: &str,
    plugin: &Declared<'_>,
    profiles: &[ProfileSpec],
    mistakes: &mut Mistakes,
) -> String {
    let (name, place) = given.unwrap_or((default, plugin.place));
    // A profile without a name is a mistake already, and may be the one that is meant.
    if !profiles.iter().any(|profile| profile.name == name || profile.name.is_empty()) {
        let names = profiles.iter().map(|profile| profile.name.as_str());
        let there_are = || format!("there are {}", names.clone().collect::<Vec<_>>().join(", "));
        match given {
            Some(_) => {
                let message = format!("there is no scheduling profile called {}", shown(name));
                let hint = did_you_mean(name, names.clone()).unwrap_or_else(there_are);
                mistakes.hinted(place, message, hint);
            }
            None => {
                let message = format!("{} runs profile {name}, and there is no such profile", plugin.name);
                let hint =
                    format!("add it to schedulingProfiles, or name one in {parameter}; {}", there_are());
                mistakes.hinted(place, message, hint);
            }
        }
    }
    name.to_owned()
}
