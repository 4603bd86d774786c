//! A row of the table of configurations: what is expected of one file.

/// One configuration of the llm-d Router EPP or its guides, as rewritten under `tests/data/configs`.
pub(super) struct Row {
    /// File under `tests/data/configs`.
    pub(super) file: &'static str,
    /// What it is equivalent to: a path at the peer, for guides with the commit.
    pub(super) peer: &'static str,
    /// What is expected once nothing of `until` is refused any more.
    pub(super) verdict: Verdict,
    /// What is still missing for the verdict: plugin types, or names from [`PHRASES`]. As long as there is one, the
    /// file is refused, by these and by nothing that isn't named.
    pub(super) until: &'static [&'static str],
}

pub(super) enum Verdict {
    /// It is taken, built, and decides as computed by hand.
    Works {
        /// What differs from the peer, beside what the check's notices say.
        differs: &'static [&'static str],
        /// The endpoints to decide about.
        pool: PoolKind,
        decisions: &'static [Decision],
    },
    /// It is refused, by these and by nothing else.
    Refused { by: &'static [&'static str], why: &'static str },
}

/// The endpoints of [`super::testbed`] that a row decides about.
#[derive(Clone, Copy)]
pub(super) enum PoolKind {
    /// Four endpoints without roles.
    Unified,
    /// Two that prefill, three that decode, two that encode.
    Roles,
}

/// A request, and what the formulas of the peer make of it.
pub(super) struct Decision {
    pub(super) request: Prompt,
    /// The endpoints that the primary profile's filters leave, with the weighted sum of their scores.
    pub(super) totals: &'static [(&'static str, f64)],
    /// Those of the highest sum: one of them is picked.
    pub(super) picks: &'static [&'static str],
    /// Request headers that name another endpoint; headers of [`ENDPOINT_HEADERS`] that aren't here aren't set.
    pub(super) headers: &'static [(&'static str, &'static str)],
}

/// Headers in which the peer names endpoints beside the destination.
pub(super) const ENDPOINT_HEADERS: [&str; 4] = [
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// 1,024 tokens, of which some endpoints hold the first 896 or 512.
    Warm,
    /// The first 896 tokens of it and no more.
    Held,
    /// `Warm`, while those that hold 896 have to compute a million tokens more.
    WarmButBusy,
    /// 1,024 tokens that nobody holds.
    Cold,
    /// `Cold`, of a session whose last request u1 got.
    Session,
}

/// What refuses something and isn't a plugin type, and how its mistake is recognised.
pub(super) const PHRASES: &[(&str, &str)] = &[
    ("flowControl", "flowControl"),
    ("token-producer: udsTokenizerConfig", "the tokenizer sidecar"),
    ("ttftSource: latencyPredictor", "there is no latency predictor"),
    ("maxTokensInFlightPenalty", "unknown field `maxTokensInFlightPenalty`"),
    ("active-request-scorer, which is not declared", "there is no plugin called \"active-request-scorer\""),
];

/// Whether a mistake is that this is refused.
pub(super) fn refuses(message: &str, name: &str) -> bool {
    match PHRASES.iter().find(|(phrase, _)| *phrase == name) {
        Some((_, part)) => message.contains(part),
        None => message.starts_with(&format!("plugin type {name} is known, but not available")),
    }
}

/// Whether a mistake is a consequence of this being refused.
pub(super) fn follows_from(message: &str, name: &str) -> bool {
    let is_handler = name.ends_with("-profile-handler");
    message.contains(name) || (is_handler && message.contains("more than one scheduling profile"))
}
