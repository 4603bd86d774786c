//! The `plugins` section: which plugins there are.

use std::collections::HashMap;

use crate::fields::{Fields, Mistakes};
use crate::peer_types::{HOST_TYPES, HostType, PRECISE_SCORER, host_type, unavailable, unavailable_names};
use crate::suggest::did_you_mean;
use crate::yaml::{Node, shown};
use crate::{KnownTypes, Place, SchedulingKind};

/// A plugin as the file declares it.
pub(crate) struct Declared<'n> {
    pub(crate) name: String,
    pub(crate) plugin_type: String,
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    pub(crate) parameters: Option<&'n Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scheduling(SchedulingKind),
    Host(HostType),
    /// A mistake has been noted; whoever refers to the plugin isn't wrong.
    Broken,
}

impl Declared<'_> {
    pub(crate) fn scheduling(&self) -> Option<SchedulingKind> {
        match self.kind {
            Kind::Scheduling(kind) => Some(kind),
            Kind::Host(_) | Kind::Broken => None,
        }
    }

    pub(crate) fn host(&self) -> Option<HostType> {
        match self.kind {
            Kind::Host(host) => Some(host),
            Kind::Scheduling(_) | Kind::Broken => None,
        }
    }

    pub(crate) fn is_host(&self, host: HostType) -> bool {
        self.kind == Kind::Host(host)
    }
}

/// Reads the section.
pub(crate) fn read<'n>(list: &'n [Node], known: &KnownTypes, mistakes: &mut Mistakes) -> Vec<Declared<'n>> {
    let mut names: HashMap<String, Place> = HashMap::new();
    let mut declared = Vec::with_capacity(list.len());
    for node in list {
        let mut fields = Fields::of(node, "a plugin", mistakes);
        let given_name = fields.text("name", mistakes).filter(|(name, _)| !name.is_empty());
        let parameters = fields.node("parameters");
        let plugin_type = fields.required_text("type", mistakes);
        fields.finish(mistakes);
        let Some((plugin_type, type_place)) = plugin_type else {
            // Whoever refers to it isn't wrong.
            declared.extend(given_name.map(|(name, place)| broken(name, place)));
            continue;
        };
        let (name, name_place) = given_name.unwrap_or((plugin_type, type_place));
        let kind = kind(plugin_type, type_place, known, mistakes);
        if let Some(first) = names.get(name) {
            let message = format!("two plugins are called {}", shown(name));
            let hint = format!("the first is in line {}; give this one a `name` of its own", first.line);
            mistakes.hinted(name_place, message, hint);
            continue;
        }
        names.insert(name.to_owned(), name_place);
        let (name, plugin_type) = (name.to_owned(), plugin_type.to_owned());
        declared.push(Declared { name, plugin_type, place: node.place, kind, parameters });
    }
    declared
}

fn broken<'n>(name: &str, place: Place) -> Declared<'n> {
    let (name, plugin_type) = (name.to_owned(), String::new());
    Declared { name, plugin_type, place, kind: Kind::Broken, parameters: None }
}

fn kind(plugin_type: &str, place: Place, known: &KnownTypes, mistakes: &mut Mistakes) -> Kind {
    let scheduling_type = if plugin_type == PRECISE_SCORER { "prefix-cache-scorer" } else { plugin_type };
    if let Some(kind) = known.kind(scheduling_type) {
        return Kind::Scheduling(kind);
    }
    if let Some(host) = host_type(plugin_type) {
        return Kind::Host(host);
    }
    if let Some(hint) = unavailable(plugin_type) {
        let message = format!("plugin type {plugin_type} is known, but not available in this version");
        mistakes.hinted(place, message, hint);
        return Kind::Broken;
    }
    let host = HOST_TYPES.iter().map(|(name, _)| -> &str { name });
    let hint = did_you_mean(
        plugin_type,
        known.names().chain(host).chain([PRECISE_SCORER]).chain(unavailable_names()),
    );
    let linked = || {
        let names: Vec<&str> = known.names().collect();
        format!("no crate that is linked into this binary registers it; there are {}", names.join(", "))
    };
    let message = format!("there is no plugin type {}", shown(plugin_type));
    mistakes.hinted(place, message, hint.unwrap_or_else(linked));
    Kind::Broken
}

/// What the host takes from its plugins' parameters.
pub(crate) fn only<'d, 'n>(
    declared: &'d [Declared<'n>],
    host: HostType,
    mistakes: &mut Mistakes,
) -> Option<&'d Declared<'n>> {
    let mut all = declared.iter().filter(|declared| declared.is_host(host));
    let first = all.next()?;
    for other in all {
        let message = format!("there can be one {}, and {} is another", first.plugin_type, other.name);
        mistakes.hinted(other.place, message, format!("the first is in line {}", first.place.line));
    }
    Some(first)
}
