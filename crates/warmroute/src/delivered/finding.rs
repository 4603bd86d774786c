use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warmroute_kv_events::{Trust, TrustReason};

use super::record::{BIAS_REQUESTS, OTHER_LENGTHS, Telling, Window};
use crate::receipt::Fallback;

/// What is known of one engine, for [`findings`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineFacts {
    /// Address of the endpoint.
    pub endpoint: String,
    /// Whether the policy reads engines' events, and this one's are asked for.
    pub follows_events: bool,
    /// Whether its events arrive.
    pub is_connected: bool,
    /// Whether what it holds is seen, so that predictions rest on its events.
    pub is_seen: bool,
    /// Whether it has KV cache groups for which nothing can be claimed.
    pub has_unsupported_groups: bool,
    /// How far the view of its cache can be trusted.
    pub trust: Trust,
    /// Why.
    pub trust_reason: TrustReason,
    /// Batches known to be missing.
    pub missed_batches: u64,
    /// Tokens per block by events; 0 if unknown.
    pub events_block_tokens: u32,
    /// Tokens per block by metrics; 0 if unknown.
    pub metrics_block_tokens: u32,
    /// What it delivered.
    pub models: Vec<ModelFacts>,
}

/// What one engine delivered of one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Whether it is known to be a LoRA adapter.
    pub is_adapter: bool,
    /// The newest requests.
    pub window: Window,
}

/// The likely cause of a lasting difference between predicted and delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The engine sees other tokens than the picker makes.
    TokensDiffer,
    /// Exact tokens aren't known where exact matches are wanted.
    NoExactTokens,
    /// Only requests for an adapter are off.
    Adapter,
    /// Events and metrics tell different block sizes.
    BlockSize,
    /// Events are missing.
    EventsLost,
    /// Events are wanted, and this engine's aren't seen.
    EventsNotSeen,
    /// The engine has KV cache groups that can't be matched, or not by their full-attention part alone.
    HybridGroups,
    /// The engine takes blocks from a tier of which its events don't tell.
    OtherTiers,
    /// Blocks are gone by the time the prompt is computed.
    BlocksGone,
    /// What was sent isn't there any more, or never was kept.
    SentNotDelivered,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::TokensDiffer,
        Self::NoExactTokens,
        Self::Adapter,
        Self::BlockSize,
        Self::EventsLost,
        Self::EventsNotSeen,
        Self::HybridGroups,
        Self::OtherTiers,
        Self::BlocksGone,
        Self::SentNotDelivered,
    ];

    /// The word used in metrics, on the status page and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokensDiffer => "tokens-differ",
            Self::NoExactTokens => "no-exact-tokens",
            Self::Adapter => "adapter",
            Self::BlockSize => "block-size",
            Self::EventsLost => "events-lost",
            Self::EventsNotSeen => "events-not-seen",
            Self::HybridGroups => "hybrid-groups",
            Self::OtherTiers => "other-tiers",
            Self::BlocksGone => "blocks-gone",
            Self::SentNotDelivered => "sent-not-delivered",
        }
    }

    /// The cause in a sentence.
    fn likely(self) -> &'static str {
        match self {
            Self::TokensDiffer => {
                "the engine sees other tokens than the picker: another tokenizer, another chat template, or an option that changes it"
            }
            Self::NoExactTokens => {
                "the picker can't make the tokens of these prompts, so nothing can be matched exactly"
            }
            Self::Adapter => {
                "blocks of this model are keyed otherwise than the engine's: its LoRA adapter isn't told apart, or by another name"
            }
            Self::BlockSize => "the engine counts its cache in other blocks than its events announce",
            Self::EventsLost => {
                "events of stored or removed blocks are missing, so the view of the cache has holes"
            }
            Self::EventsNotSeen => "the engine doesn't publish KV events, or not where the picker listens",
            Self::HybridGroups => {
                "the model has sliding-window, Mamba or several KV cache groups, of which less can be reused than one group's events tell"
            }
            Self::OtherTiers => {
                "the engine loads blocks from a tier of which its events don't tell (CPU offload, storage, a connector)"
            }
            Self::BlocksGone => {
                "the engine evicts blocks between the pick and the computing of the prompt, or its events come late"
            }
            Self::SentNotDelivered => {
                "prefix caching is off in the engine, or it evicts sooner than the producer of approximate matches supposes"
            }
        }
    }

    /// What to do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::TokensDiffer => {
                "give --tokenizer the files that the engine serves (tokenizer.json, tokenizer_config.json, chat_template.jinja), and the engine no --chat-template of its own; or take tokens from the engine with a token-producer of type vllm"
            }
            Self::NoExactTokens => "see the named fallback under \"Fallbacks\" in docs/operations.md",
            Self::Adapter => {
                "request the adapter by the name that --lora-modules gives it; vLLM tells adapter names in its events from 0.14 on"
            }
            Self::BlockSize => {
                "look at the engine's --block-size and at what rewrites its events; all ranks of one endpoint need one size"
            }
            Self::EventsLost => {
                "look for event-gaps and warmroute_kv_event_batches_missed_total; give the engine a replay_endpoint and the picker --kv-replay-port, or clear its cache once (POST /reset_prefix_cache)"
            }
            Self::EventsNotSeen => {
                "check the engine's --kv-events-config, --kv-events-port and the network policy; /status shows the subscription"
            }
            Self::HybridGroups => {
                "route such models by an approximate prefix producer, which counts what was sent"
            }
            Self::OtherTiers => {
                "nothing breaks, but such blocks aren't routed to: have the tier publish its events, or route by an approximate prefix producer"
            }
            Self::BlocksGone => {
                "give the engine more KV cache, shorten its queue (weight of queue-scorer), or spread prefixes over more endpoints"
            }
            Self::SentNotDelivered => {
                "check --enable-prefix-caching; lower lruCapacityPerServer or let autoTune set it; publish KV events"
            }
        }
    }
}

/// Something that keeps requests from hitting the caches that they could hit, or predictions from being right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The likely cause.
    pub cause: Cause,
    /// The model whose requests show it.
    pub model: String,
    /// Addresses of the endpoints that show it.
    pub endpoints: Vec<String>,
    /// What is seen, in figures of the newest requests.
    pub seen: String,
    /// The cause in a sentence.
    pub likely: String,
    /// What to do about it.
    pub advice: String,
}

/// What is wrong with these engines, each cause once per model. Empty for a healthy pool, and as long as too few
/// requests tell: see [`BIAS_REQUESTS`](super::BIAS_REQUESTS).
pub fn findings(engines: &[EngineFacts]) -> Vec<Finding> {
    let mut groups: BTreeMap<(Cause, &str), Vec<(&EngineFacts, &Window)>> = BTreeMap::new();
    for engine in engines {
        for model in &engine.models {
            if let Some(cause) = cause_of(engine, model) {
                groups.entry((cause, &model.name)).or_default().push((engine, &model.window));
            }
        }
    }
    let finding = |((cause, model), shown): ((Cause, &str), Vec<(&EngineFacts, &Window)>)| Finding {
        cause,
        model: model.to_owned(),
        endpoints: shown.iter().map(|(engine, _)| engine.endpoint.clone()).collect(),
        seen: seen(cause, &shown),
        likely: cause.likely().to_owned(),
        advice: cause.advice().to_owned(),
    };
    groups.into_iter().map(finding).collect()
}

/// What is wrong with one model at one engine; the surest cause first.
fn cause_of(engine: &EngineFacts, model: &ModelFacts) -> Option<Cause> {
    let window = &model.window;
    let is_most = |requests: usize| requests >= BIAS_REQUESTS && 2 * requests >= window.requests;
    if window.other_lengths >= OTHER_LENGTHS {
        return Some(Cause::TokensDiffer);
    }
    if engine.follows_events && is_most(window.without_tokens) {
        return Some(Cause::NoExactTokens);
    }
    if engine.follows_events && !engine.is_seen && is_most(window.unseen) {
        let groups = engine.has_unsupported_groups;
        return Some(if groups { Cause::HybridGroups } else { Cause::EventsNotSeen });
    }
    if let Some(error) = window.by_events.lasting_error() {
        return Some(cause_of_bias(engine, model, error));
    }
    let is_short = window.by_sending.lasting_error().is_some_and(|error| error < 0.0);
    is_short.then_some(Cause::SentNotDelivered)
}

/// Why predictions by events are lastingly off.
fn cause_of_bias(engine: &EngineFacts, model: &ModelFacts, error: f64) -> Cause {
    let others = || engine.models.iter().filter(|other| other.name != model.name);
    let is_alone = others().any(|other| other.window.by_events.is_right());
    if is_alone {
        return Cause::Adapter;
    }
    let sizes = [engine.events_block_tokens, engine.metrics_block_tokens];
    let telling = &model.window.by_events;
    let some_right = 10 * telling.right >= telling.requests;
    let has_tiers = engine.trust_reason == TrustReason::OtherTiers;
    if engine.missed_batches > 0 || engine.trust == Trust::Doubtful {
        Cause::EventsLost
    } else if engine.has_unsupported_groups {
        Cause::HybridGroups
    } else if sizes[0] != sizes[1] && !sizes.contains(&0) {
        Cause::BlockSize
    } else if model.is_adapter && !others().any(|other| other.window.by_events.lasting_error().is_some()) {
        Cause::Adapter
    } else if error > 0.0 && (some_right || (has_tiers && telling.right > 0)) {
        // Some matches are right, so the tokens are: what is more was stored unseen, or comes from elsewhere.
        if engine.trust == Trust::Partial && !has_tiers { Cause::EventsLost } else { Cause::OtherTiers }
    } else if error < 0.0 && telling.delivered_tokens > 0 {
        Cause::BlocksGone
    } else {
        Cause::TokensDiffer
    }
}

/// What is seen at the engines that share a cause.
fn seen(cause: Cause, shown: &[(&EngineFacts, &Window)]) -> String {
    let sum = |of: fn(&Window) -> usize| shown.iter().map(|(_, window)| of(window)).sum::<usize>();
    let requests = sum(|window| window.requests);
    let first = shown.first().copied();
    match cause {
        Cause::TokensDiffer if sum(|window| window.other_lengths) > 0 => {
            let (lengths, others) = (sum(|window| window.lengths), sum(|window| window.other_lengths));
            let example = shown.iter().rev().find_map(|(_, window)| window.other_length);
            let (engine, ours) = example.unwrap_or_default();
            format!(
                "{others} of {lengths} prompts have another length in the engine, the newest {engine} tokens instead of {ours}"
            )
        }
        Cause::NoExactTokens => {
            let why = shown.iter().find_map(|(_, window)| window.why_without).map_or("", Fallback::as_str);
            format!(
                "{} of {requests} requests without exact tokens, mostly {why}",
                sum(|window| window.without_tokens)
            )
        }
        Cause::EventsNotSeen | Cause::HybridGroups if sum(|window| window.unseen) > 0 => {
            let connected = shown.iter().filter(|(engine, _)| engine.is_connected).count();
            let unseen = sum(|window| window.unseen);
            format!(
                "{unseen} of {requests} requests to engines whose cache isn't seen; {connected} of {} are connected",
                shown.len()
            )
        }
        Cause::SentNotDelivered => bias_words(shown.iter().map(|(_, window)| &window.by_sending)),
        Cause::BlockSize => {
            let sizes = first.map(|(engine, _)| (engine.events_block_tokens, engine.metrics_block_tokens));
            let (events, metrics) = sizes.unwrap_or_default();
            let bias = bias_words(shown.iter().map(|(_, window)| &window.by_events));
            format!("blocks of {events} tokens by events, {metrics} by metrics; {bias}")
        }
        Cause::EventsLost => {
            let missed: u64 = shown.iter().map(|(engine, _)| engine.missed_batches).sum();
            let (trust, reason) =
                first.map(|(engine, _)| (engine.trust, engine.trust_reason)).unwrap_or_default();
            let bias = bias_words(shown.iter().map(|(_, window)| &window.by_events));
            format!("{missed} batches missed, trust {} ({}); {bias}", trust.as_str(), reason.as_str())
        }
        _ => bias_words(shown.iter().map(|(_, window)| &window.by_events)),
    }
}

/// Predicted and delivered in words.
fn bias_words<'a>(of: impl Iterator<Item = &'a Telling>) -> String {
    let (mut requests, mut predicted, mut delivered) = (0, 0, 0);
    for telling in of {
        requests += telling.requests;
        predicted += telling.predicted_tokens;
        delivered += telling.delivered_tokens;
    }
    format!("{delivered} cached tokens delivered and {predicted} predicted in {requests} requests")
}

#[cfg(test)]
mod tests;
