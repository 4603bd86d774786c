//! Which plugin types of the llm-d Router EPP the host knows, for listings.

use crate::peer_types::{HOST_TYPES, HostType, PRECISE_SCORER, unavailable, unavailable_names};

/// What a configuration gets when it names a plugin type of the llm-d Router EPP that isn't linked as a filter,
/// scorer or picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerType {
    /// A part of the host.
    Host {
        /// Why nothing can be set, for something that happens anyway.
        always: Option<&'static str>,
    },
    /// Refused by name.
    Unavailable {
        /// What to do instead.
        hint: &'static str,
    },
}

/// The plugin types of the llm-d Router EPP that aren't filters, scorers or pickers linked here: first the host's,
/// then those that are refused.
pub fn peer_types() -> impl Iterator<Item = (&'static str, PeerType)> {
    // One type is ours.
    let host = HOST_TYPES.iter().filter(|(_, host)| *host != HostType::ExactFirstProducer);
    let host = host.map(|(name, host)| {
        let always = match host {
            HostType::Always(why) => Some(*why),
            _ => None,
        };
        (*name, PeerType::Host { always })
    });
    let refused = unavailable_names()
        .filter_map(|name: &'static str| Some((name, PeerType::Unavailable { hint: unavailable(name)? })));
    host.chain([(PRECISE_SCORER, PeerType::Host { always: None })]).chain(refused)
}
