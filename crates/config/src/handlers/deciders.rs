//! Deciders: plugins that say whether a stage runs, referred to by the handler.

use super::Surroundings;
use crate::fields::{Fields, Mistakes};
use crate::handler_spec::{DeciderKind, DeciderSpec};
use crate::host_plugins::none;
use crate::peer_types::{DeciderType, HostType};
use crate::plugins::{Declared, Kind};
use crate::prefix_binding::{PEERS_PRODUCER, PRODUCER_PARAMETER};
use crate::sections::undeclared;
use crate::yaml::shown;
use crate::{Place, ProfileSpec};

const TOKENS: std::ops::RangeInclusive<u64> = 0..=u32::MAX as u64;

/// What a decider that reads prefix matches reads them of unless it says so itself.
#[derive(Clone, Copy)]
pub(super) struct ProducerWanted<'a> {
    /// The profile that picks before the decider is asked.
    pub(super) decode_profile: &'a str,
    /// What the handler says.
    pub(super) named: Option<(&'a str, Place)>,
}

/// The decider that a handler refers to.
pub(super) fn referred_to(
    name: &str,
    place: Place,
    wanted: ProducerWanted<'_>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> Option<DeciderSpec> {
    let Some(plugin) = around.declared.iter().find(|plugin| plugin.name == name) else {
        undeclared(name, place, around.declared, mistakes);
        return None;
    };
    match plugin.kind {
        Kind::Host(HostType::Decider(decider)) => {
            let kind = kind_of(plugin, decider, Some(wanted), around, mistakes);
            Some(DeciderSpec { name: name.to_owned(), kind })
        }
        Kind::Broken => None,
        _ => {
            let message = format!("{} is of type {}, which is no decider", shown(name), plugin.plugin_type);
            let hint = "there are always-disagg-pd-decider, prefix-based-pd-decider and \
                        always-disagg-multimodal-decider";
            mistakes.hinted(place, message, hint);
            None
        }
    }
}

/// Deciders that no stage asks: their parameters are checked all the same.
pub(super) fn note_unused(around: &Surroundings<'_, '_>, used: &[&str], mistakes: &mut Mistakes) {
    for plugin in around.declared.iter().filter(|plugin| !used.contains(&plugin.name.as_str())) {
        if let Kind::Host(HostType::Decider(decider)) = plugin.kind {
            kind_of(plugin, decider, None, around, mistakes);
            let message = format!("no profile handler refers to {}, so it does nothing", plugin.name);
            mistakes.notice(plugin.place, message);
        }
    }
}

fn kind_of(
    plugin: &Declared<'_>,
    decider: DeciderType,
    wanted: Option<ProducerWanted<'_>>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> DeciderKind {
    let kind = match decider {
        DeciderType::Prefix => return by_tokens(plugin, wanted, around, mistakes),
        DeciderType::Always => DeciderKind::Always,
        DeciderType::Multimodal => DeciderKind::Multimodal,
    };
    none(plugin, mistakes);
    kind
}

fn by_tokens(
    plugin: &Declared<'_>,
    wanted: Option<ProducerWanted<'_>>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> DeciderKind {
    let (mut non_cached, mut prompt, mut named) = (None, None, None);
    if let Some(node) = plugin.parameters {
        let mut fields = Fields::of(node, &plugin.name, mistakes);
        non_cached = fields.whole("nonCachedTokens", TOKENS, mistakes);
        prompt = fields.whole("promptTokens", TOKENS, mistakes);
        named = fields.text(PRODUCER_PARAMETER, mistakes).filter(|(name, _)| !name.is_empty());
        fields.finish(mistakes);
    }
    let tokens = |given: Option<(u64, Place)>| given.map_or(0, |(tokens, _)| tokens as u32);
    let non_cached_tokens = tokens(non_cached);
    if non_cached_tokens == 0 && wanted.is_some() {
        let place = non_cached.map_or(plugin.place, |(_, place)| place);
        mistakes.notice(place, format!("{} never says yes: nonCachedTokens is 0", plugin.name));
    }
    let producer = producer_of(plugin, named, wanted, around, mistakes);
    DeciderKind::UncachedTokens { non_cached_tokens, prompt_tokens: tokens(prompt), producer }
}

/// The producer that the decider reads: the one that it or its handler names, else the one that the decode profile
/// reads, else the one that is read by default.
fn producer_of(
    plugin: &Declared<'_>,
    named: Option<(&str, Place)>,
    wanted: Option<ProducerWanted<'_>>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> String {
    if let Some(named) = named.or(wanted.and_then(|wanted| wanted.named)) {
        return around.prefixes.resolve(Some(named), mistakes).unwrap_or_else(|| named.0.to_owned());
    }
    let of_profile = wanted.and_then(|wanted| read_by(wanted.decode_profile, around));
    // Whoever reads matches has a producer, made up if need be.
    let producer = of_profile.or_else(|| around.prefixes.default_name()).unwrap_or_default();
    if wanted.is_some() && around.prefixes.is_added(&producer) {
        let message = format!(
            "{} reads prefix matches from {producer}, which is added with its defaults: they are exact where an \
             engine's KV events are seen, and elsewhere what was sent there, as at the llm-d EPP",
            plugin.name
        );
        mistakes.notice(plugin.place, message);
        return producer;
    }
    if wanted.is_none() || producer == PEERS_PRODUCER {
        return producer;
    }
    let message = format!(
        "{} reads prefix matches from {producer}; the llm-d EPP reads those of approx-prefix-cache-producer here, \
         whatever the profiles read",
        plugin.name
    );
    mistakes.notice(plugin.place, message);
    producer
}

/// The producer that the first reader in a profile names.
fn read_by(profile: &str, around: &Surroundings<'_, '_>) -> Option<String> {
    let is_meant = |candidate: &&ProfileSpec| candidate.name == profile;
    let profile = around.profiles.iter().find(is_meant)?;
    profile.plugins.iter().find_map(|reference| {
        let plugin = around.plugins.iter().find(|plugin| plugin.name == reference.plugin_ref)?;
        plugin.parameters.get(PRODUCER_PARAMETER)?.as_str().map(str::to_owned)
    })
}
