//! `disagg-profile-handler` in its two forms, `pd-profile-handler`, and the header handlers that are built into them.

use super::deciders::{ProducerWanted, referred_to};
use super::{Surroundings, profile_ref};
use crate::Place;
use crate::fields::{Fields, Mistakes};
use crate::handler_spec::{DisaggregationSpec, HandlerKind, OnFailureSpec, StageOrderSpec, StageSpec};
use crate::host_plugins::PORT;
use crate::peer_types::HostType;
use crate::plugins::Declared;
use crate::suggest::did_you_mean;
use crate::yaml::shown;

type Given<'n> = Option<(&'n str, Place)>;

/// The parameters of either form, not yet checked against anything.
#[derive(Default)]
struct Written<'n> {
    stage_order: StageOrderSpec,
    decode: Given<'n>,
    prefill: Given<'n>,
    encode: Given<'n>,
    prefill_decider: Given<'n>,
    encode_decider: Given<'n>,
    on_prefill_failure: Option<(OnFailureSpec, Place)>,
    on_encode_failure: Option<(OnFailureSpec, Place)>,
    producer: Given<'n>,
    primary_port: Option<u16>,
}

/// The old spellings, and what they are now. `deciderPluginName` is the oldest.
const FLAT: [(&str, &str); 6] = [
    ("decodeProfile", "profiles.decode"),
    ("prefillProfile", "profiles.prefill"),
    ("encodeProfile", "profiles.encode"),
    ("prefillDeciderPluginName", "deciders.prefill"),
    ("encodeDeciderPluginName", "deciders.encode"),
    ("deciderPluginName", "deciders.prefill"),
];

/// `disagg-profile-handler`.
pub(super) fn current(
    plugin: &Declared<'_>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> HandlerKind {
    let mut written = Written::default();
    if let Some(node) = plugin.parameters {
        let mut fields = Fields::of(node, &plugin.name, mistakes);
        written.stage_order = stage_order(&mut fields, mistakes);
        written.on_prefill_failure = on_failure("onPrefillFailure", &mut fields, mistakes);
        written.on_encode_failure = on_failure("onEncodeFailure", &mut fields, mistakes);
        let nested = ["profiles", "deciders"].map(|name| fields.node(name));
        flat(&mut fields, nested.iter().any(Option::is_some), &mut written, mistakes);
        if let Some(node) = nested[0] {
            let mut profiles = Fields::of(node, "profiles", mistakes);
            written.decode = name(&mut profiles, "decode", mistakes);
            written.prefill = name(&mut profiles, "prefill", mistakes);
            written.encode = name(&mut profiles, "encode", mistakes);
            profiles.finish(mistakes);
        }
        if let Some(node) = nested[1] {
            let mut deciders = Fields::of(node, "deciders", mistakes);
            written.prefill_decider = name(&mut deciders, "prefill", mistakes);
            written.encode_decider = name(&mut deciders, "encode", mistakes);
            deciders.finish(mistakes);
        }
        fields.finish(mistakes);
    }
    HandlerKind::Disaggregated(resolve(plugin, &written, around, mistakes))
}

/// `pd-profile-handler`: what `disagg-profile-handler` was before it knew of encoding.
pub(super) fn pd(
    plugin: &Declared<'_>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> HandlerKind {
    let mut written = Written::default();
    if let Some(node) = plugin.parameters {
        let mut fields = Fields::of(node, &plugin.name, mistakes);
        written.decode = name(&mut fields, "decodeProfile", mistakes);
        written.prefill = name(&mut fields, "prefillProfile", mistakes);
        written.prefill_decider = name(&mut fields, "deciderPluginName", mistakes);
        written.producer = name(&mut fields, "prefixMatchInfoProducerName", mistakes);
        written.on_prefill_failure = on_failure("onPrefillFailure", &mut fields, mistakes);
        let port = fields.whole("primaryPort", 0..=*PORT.end(), mistakes);
        written.primary_port = port.and_then(|(port, _)| u16::try_from(port).ok()).filter(|port| *port > 0);
        for old in ["prefixPluginType", "prefixPluginName"] {
            if let Some((_, place)) = fields.text(old, mistakes) {
                mistakes.notice(place, format!("{old} isn't used: name a producer in the decider"));
            }
        }
        fields.finish(mistakes);
    }
    written.prefill_decider = written.prefill_decider.or(Some(("prefix-based-pd-decider", plugin.place)));
    HandlerKind::Disaggregated(resolve(plugin, &written, around, mistakes))
}

/// The flat form, which can't be mixed with the nested one.
fn flat<'n>(fields: &mut Fields<'n>, has_nested: bool, written: &mut Written<'n>, mistakes: &mut Mistakes) {
    let given = FLAT.map(|(old, _)| name(fields, old, mistakes));
    for ((old, new), (_, place)) in
        FLAT.iter().zip(&given).filter_map(|(names, given)| Some((names, given.as_ref()?)))
    {
        if has_nested {
            let message =
                format!("{old} is of the old form, which can't be mixed with profiles and deciders");
            mistakes.hinted(*place, message, format!("write it as {new}"));
        } else {
            mistakes.notice(*place, format!("{old} is the old spelling of {new}"));
        }
    }
    if let (Some(_), Some((_, place))) = (given[3], given[5]) {
        let message = "deciderPluginName is the old spelling of prefillDeciderPluginName, and both are given";
        mistakes.hinted(place, message, "remove it");
    }
    if !has_nested {
        let [decode, prefill, encode, prefill_decider, encode_decider, oldest] = given;
        (written.decode, written.prefill, written.encode) = (decode, prefill, encode);
        (written.prefill_decider, written.encode_decider) = (prefill_decider.or(oldest), encode_decider);
    }
}

fn name<'n>(fields: &mut Fields<'n>, field: &'static str, mistakes: &mut Mistakes) -> Given<'n> {
    fields.text(field, mistakes).filter(|(name, _)| !name.is_empty())
}

fn stage_order(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> StageOrderSpec {
    let Some((word, place)) = name(fields, "stageOrder", mistakes) else { return StageOrderSpec::default() };
    // As the peer reads it: whatever the case, hyphens and underscores.
    let plain: String = word.chars().filter(|c| !['-', '_'].contains(c)).collect();
    match plain.to_lowercase().as_str() {
        "decodefirst" | "decode" => StageOrderSpec::DecodeFirst,
        "prefillfirst" | "prefill" => StageOrderSpec::PrefillFirst,
        _ => {
            let message = format!("stageOrder must be decode-first or prefill-first, not {}", shown(word));
            let hint = did_you_mean(word, ["decode-first", "prefill-first"]);
            match hint {
                Some(hint) => mistakes.hinted(place, message, hint),
                None => mistakes.at(place, message),
            }
            StageOrderSpec::default()
        }
    }
}

fn on_failure(
    field: &'static str,
    fields: &mut Fields<'_>,
    mistakes: &mut Mistakes,
) -> Option<(OnFailureSpec, Place)> {
    let (word, place) = fields.text(field, mistakes)?;
    match word {
        "aggregate" => Some((OnFailureSpec::Aggregate, place)),
        "refuse" => Some((OnFailureSpec::Refuse, place)),
        _ => {
            let message = format!("{field} must be aggregate or refuse, not {}", shown(word));
            let hint = "aggregate serves the request without the stage, refuse answers it with 429";
            mistakes.hinted(place, message, hint);
            None
        }
    }
}

fn resolve(
    plugin: &Declared<'_>,
    written: &Written<'_>,
    around: &Surroundings<'_, '_>,
    mistakes: &mut Mistakes,
) -> DisaggregationSpec {
    let decode = profile_ref("profiles.decode", written.decode, "decode", plugin, around.profiles, mistakes);
    let is_there = |name: &str| around.profiles.iter().any(|profile| profile.name == name);
    let wanted = ProducerWanted { decode_profile: &decode, named: written.producer };
    let prefill_first = written.stage_order == StageOrderSpec::PrefillFirst;
    let mut prefill_decider = written.prefill_decider;
    if let (true, Some((_, place))) = (prefill_first, prefill_decider) {
        let message = "with stageOrder prefill-first there is no decider for prefill: it picks first";
        mistakes.hinted(place, message, "remove it, or use decode-first");
        prefill_decider = None;
    }
    // In this order prefill needs no decider, only its profile.
    let always = prefill_first && (written.prefill.is_some() || is_there("prefill"));
    let prefill = Stage {
        parameter: "profiles.prefill",
        default: "prefill",
        profile: written.prefill,
        decider: prefill_decider,
        always,
        on_failure: written.on_prefill_failure,
    };
    let encode = Stage {
        parameter: "profiles.encode",
        default: "encode",
        profile: written.encode,
        decider: written.encode_decider,
        always: false,
        on_failure: written.on_encode_failure,
    };
    DisaggregationSpec {
        stage_order: written.stage_order,
        prefill: prefill.resolve(plugin, wanted, around, mistakes),
        encode: encode.resolve(plugin, wanted, around, mistakes),
        primary_port: written.primary_port,
        decode_profile: decode,
    }
}

/// A stage beside decode as it is written.
struct Stage<'n> {
    parameter: &'static str,
    default: &'static str,
    profile: Given<'n>,
    decider: Given<'n>,
    /// Whether it runs without a decider.
    always: bool,
    on_failure: Option<(OnFailureSpec, Place)>,
}

impl Stage<'_> {
    fn resolve(
        &self,
        plugin: &Declared<'_>,
        wanted: ProducerWanted<'_>,
        around: &Surroundings<'_, '_>,
        mistakes: &mut Mistakes,
    ) -> Option<StageSpec> {
        if self.decider.is_none() && !self.always {
            self.note_never_run(plugin, mistakes);
            return None;
        }
        let profile =
            profile_ref(self.parameter, self.profile, self.default, plugin, around.profiles, mistakes);
        let decider = match self.decider {
            Some((name, place)) => Some(referred_to(name, place, wanted, around, mistakes)?),
            None => None,
        };
        let on_failure = self.on_failure.map_or(OnFailureSpec::default(), |(on_failure, _)| on_failure);
        Some(StageSpec { profile, decider, on_failure })
    }

    fn note_never_run(&self, plugin: &Declared<'_>, mistakes: &mut Mistakes) {
        let given = self.profile.map(|(_, place)| place).or(self.on_failure.map(|(_, place)| place));
        if let Some(place) = given {
            let message = format!(
                "{} has no {stage} stage, since deciders.{stage} names no decider",
                plugin.name,
                stage = self.default
            );
            mistakes.notice(place, message);
        }
    }
}

/// `disagg-headers-handler` and `prefill-header-handler`: what they did is built in. What they say must not be
/// something else.
pub(super) fn header_writers(
    around: &Surroundings<'_, '_>,
    stages: Option<&DisaggregationSpec>,
    mistakes: &mut Mistakes,
) {
    for plugin in around.declared.iter().filter(|plugin| plugin.is_host(HostType::HeaderWriter)) {
        let (mut prefill, mut encode) = (None, None);
        if let Some(node) = plugin.parameters {
            let mut fields = Fields::of(node, &plugin.name, mistakes);
            prefill = name(&mut fields, "prefillProfile", mistakes);
            encode = name(&mut fields, "encodeProfile", mistakes);
            fields.finish(mistakes);
        }
        let Some(stages) = stages else {
            let message = format!(
                "{} does nothing without a disagg-profile-handler, which has it built in",
                plugin.name
            );
            mistakes.notice(plugin.place, message);
            continue;
        };
        let message =
            format!("{} is deprecated: the profile handler writes these headers itself", plugin.name);
        mistakes.notice(plugin.place, message);
        for (given, stage, what) in
            [(prefill, &stages.prefill, "prefill"), (encode, &stages.encode, "encode")]
        {
            if let (Some((name, place)), Some(stage)) = (given, stage)
                && name != stage.profile
            {
                let message = format!(
                    "{} wants the header from profile {}, and the handler's {what} profile is {}",
                    plugin.name,
                    shown(name),
                    stage.profile
                );
                mistakes.hinted(place, message, "remove it");
            }
        }
    }
}
