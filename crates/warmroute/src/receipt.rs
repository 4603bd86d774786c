//! Receipts: the record of each decision, kept in a bounded ring and shown to people.
//!
//! A receipt never holds request text: names, counts, scores and times only.

mod later_count;
mod offloaded_line;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use warmroute_kv_events::{Trust, TrustReason};
use warmroute_plugin::MetricsState;

pub use later_count::LaterCount;
pub use offloaded_line::OffloadedLine;

/// Candidates listed in one receipt; of more, the best by total score are kept and the rest only counted.
pub const LISTED_CANDIDATES: usize = 32;

/// Why a request was decided with less than the profile asked for. Each has a metric and a line in the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// No tokenizer is configured and the prompt is text.
    NoTokenizer,
    /// The tokenizer or the chat template can't say what the engine will see.
    NotTokenizable,
    /// The prompt has images, sounds or videos: it was matched up to the first of them, since the engine alone knows how
    /// what follows is kept.
    MatchedUpToMedia,
    /// The engine is expected to refuse the request (it says so itself); it was picked without tokens.
    LikelyRefusedByEngine,
    /// Tokens and block keys took longer than their deadline.
    TokenizeDeadline,
    /// All tokenising slots were busy until the deadline.
    TokenizeBusy,
    /// The server that renders prompts gave no tokens, or not in time.
    RenderFailed,
    /// Too many requests to that server were under way.
    RenderBusy,
    /// No engine has told its block size yet, so nothing can be matched.
    BlockSizeUnknown,
    /// The API isn't one whose prompts can be turned into tokens.
    NoPromptApi,
    /// The body was not complete when the decision was due.
    BodyIncomplete,
    /// The picker failed inside; the endpoint was picked by load alone.
    PickedByLoad,
    /// The request has no body: it is spread by load, no profile runs.
    NoBody,
    /// A prefix match was asked for and the view of at least one candidate's engine is doubtful: events are missing, so
    /// it may lack blocks or claim lost ones.
    EventGaps,
    /// A prefix match was asked for and at least one candidate's engine lastingly delivers less of this model than its
    /// events promise, so its matches count less.
    DeliversLess,
    /// A prefix match was asked for and at least one candidate's engine isn't subscribed to, or tells nothing though it
    /// was sent requests: what it holds isn't seen.
    NoEvents,
    /// At least one candidate had no fresh metrics.
    MetricsNotFresh,
    /// A scorer gave a score that is not a number; it counted as 0.
    ScoreNotANumber,
    /// The prompt was to be computed at an endpoint of its own and there was none: the decode endpoint does it.
    NoPrefillEndpoint,
    /// Media were to be encoded at an endpoint of its own and there was none: another stage's endpoint does it.
    NoEncodeEndpoint,
    /// The request goes to a data-parallel rank that shares its address, and to a helper that counts ranks by itself, so
    /// the header that says which rank is meant isn't set: the engine chooses.
    RankNotPinned,
    /// The request could have been refused had the pool been full, and too little is known to say whether it is.
    SaturationUnknown,
    /// The request names an objective that isn't known, so its priority is 0.
    UnknownObjective,
    /// The client asks for another model by a header, and the body isn't one in which it could be replaced.
    ModelRewriteIgnored,
    /// A plugin had to do with less than it is configured for; the detail says which and why.
    Plugin,
}

impl Fallback {
    /// Whether it is why the exact tokens of a prompt aren't known though they could be.
    pub fn leaves_no_tokens(self) -> bool {
        matches!(
            self,
            Self::NoTokenizer
                | Self::NotTokenizable
                | Self::LikelyRefusedByEngine
                | Self::TokenizeDeadline
                | Self::TokenizeBusy
                | Self::RenderFailed
                | Self::RenderBusy
        )
    }

    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::NoTokenizer,
        Self::NotTokenizable,
        Self::MatchedUpToMedia,
        Self::LikelyRefusedByEngine,
        Self::TokenizeDeadline,
        Self::TokenizeBusy,
        Self::RenderFailed,
        Self::RenderBusy,
        Self::BlockSizeUnknown,
        Self::NoPromptApi,
        Self::BodyIncomplete,
        Self::PickedByLoad,
        Self::NoBody,
        Self::EventGaps,
        Self::DeliversLess,
        Self::NoEvents,
        Self::MetricsNotFresh,
        Self::ScoreNotANumber,
        Self::NoPrefillEndpoint,
        Self::NoEncodeEndpoint,
        Self::RankNotPinned,
        Self::SaturationUnknown,
        Self::UnknownObjective,
        Self::ModelRewriteIgnored,
        Self::Plugin,
    ];

    /// The word used in metrics, receipts and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoTokenizer => "no-tokenizer",
            Self::NotTokenizable => "not-tokenizable",
            Self::MatchedUpToMedia => "matched-up-to-media",
            Self::LikelyRefusedByEngine => "likely-refused-by-engine",
            Self::TokenizeDeadline => "tokenize-deadline",
            Self::TokenizeBusy => "tokenize-busy",
            Self::RenderFailed => "render-failed",
            Self::RenderBusy => "render-busy",
            Self::BlockSizeUnknown => "block-size-unknown",
            Self::NoPromptApi => "no-prompt-api",
            Self::BodyIncomplete => "body-incomplete",
            Self::PickedByLoad => "picked-by-load",
            Self::NoBody => "no-body",
            Self::EventGaps => "event-gaps",
            Self::DeliversLess => "delivers-less",
            Self::NoEvents => "no-events",
            Self::MetricsNotFresh => "metrics-not-fresh",
            Self::ScoreNotANumber => "score-not-a-number",
            Self::NoPrefillEndpoint => "no-prefill-endpoint",
            Self::NoEncodeEndpoint => "no-encode-endpoint",
            Self::RankNotPinned => "rank-not-pinned",
            Self::SaturationUnknown => "saturation-unknown",
            Self::UnknownObjective => "unknown-objective",
            Self::ModelRewriteIgnored => "model-rewrite-ignored",
            Self::Plugin => "plugin",
        }
    }
}

/// One fallback of one decision, with what is known about the cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackNote {
    /// Which one.
    pub kind: Fallback,
    /// Detail without request text; empty if the kind says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What one scorer said of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScorerLine {
    /// Name of the scorer in the config.
    pub scorer: Arc<str>,
    /// Score, 0 to 1.
    pub score: f64,
    /// Weight in the profile.
    pub weight: f64,
    /// Score × weight, as it went into the total.
    pub weighted: f64,
}

/// How recent an endpoint's metrics are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// No scrape has succeeded yet.
    #[default]
    NeverScraped,
    /// Recent enough to act on.
    Fresh,
    /// Too old to act on.
    Stale,
}

impl Freshness {
    /// Of a state.
    pub fn of(state: &MetricsState) -> Self {
        match state {
            MetricsState::NeverScraped => Self::NeverScraped,
            MetricsState::Fresh(_) => Self::Fresh,
            MetricsState::Stale(_) => Self::Stale,
        }
    }

    /// The word used in receipts and on the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeverScraped => "never-scraped",
            Self::Fresh => "fresh",
            Self::Stale => "stale",
        }
    }
}

/// One candidate of one decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CandidateLine {
    /// Address as Envoy gets it, with `-rank-N` behind it for one of several data-parallel ranks there.
    pub endpoint: Arc<str>,
    /// Name of the filter that removed it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtered_by: Option<Arc<str>>,
    /// One entry per scorer, in the profile's order; empty if filtered or if no profile ran.
    #[serde(default)]
    pub scores: Vec<ScorerLine>,
    /// Sum of the weighted scores.
    pub total: f64,
    /// Whether its metrics were recent.
    pub metrics: Freshness,
    /// Requests waiting in the engine, last known.
    pub waiting_requests: u32,
    /// Requests running in the engine, last known.
    pub running_requests: u32,
    /// Share of the KV cache in use, 0 to 1, last known.
    pub kv_cache_utilization: f64,
    /// Requests that this picker had in flight there before the pick.
    pub in_flight_requests: u32,
    /// Leading blocks of the prompt that the engine is known to hold, as [`Receipt::prefix_producer`] sees it.
    pub known_blocks: u32,
    /// Leading blocks that it holds or is expected to hold soon.
    pub expected_blocks: u32,
    /// Those of the known blocks that aren't in GPU memory; nothing is said where all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offloaded_blocks: Option<OffloadedLine>,
    /// Whether these are blocks that were sent there, since its events aren't seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blocks_are_approximate: bool,
    /// How far what is known of its cache can be trusted, unless that is exact or nothing was asked of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustNote>,
}

/// What a profile handler that runs several profiles made of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerLine {
    /// Name of the handler in the config.
    pub name: Arc<str>,
    /// Its type.
    pub plugin_type: Arc<str>,
    /// The stages that have an endpoint of their own: `decode-only`, `prefill-decode`, `encode-decode` or
    /// `encode-prefill-decode`.
    pub decision: String,
    /// What the deciders said.
    pub deciders: Vec<DeciderLine>,
}

/// What one decider said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeciderLine {
    /// `prefill` or `encode`.
    pub stage: String,
    /// Name of the decider in the config.
    pub decider: Arc<str>,
    /// Whether it wants the stage at an endpoint of its own.
    pub disaggregates: bool,
    /// Yes or no, and why.
    pub verdict: String,
}

/// What a profile beside the one that decides where the request goes picked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileLine {
    /// The profile.
    pub profile: Arc<str>,
    /// `prefill` or `encode`.
    pub stage: String,
    /// The picked endpoint; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick: Option<Arc<str>>,
    /// The best endpoint that was not picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<Arc<str>>,
    /// Why there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Endpoints that its filters kept.
    pub kept: usize,
    /// The listed candidates, best total first, filtered ones last.
    pub candidates: Vec<CandidateLine>,
    /// Prompt tokens that the picked engine should serve from its cache, by what it is known to hold.
    pub predicted_cached_tokens: u32,
    /// The same if what it is expected to hold soon counts too.
    pub expected_cached_tokens: u32,
}

/// How far the view of an engine's cache could be trusted at a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustNote {
    /// How far.
    pub trust: Trust,
    /// Why.
    pub reason: TrustReason,
}

/// Time spent in each step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// From the first message to the complete request: waiting for Envoy.
    pub receive_us: u64,
    /// Parsing, tokens and block keys, with waiting for a slot.
    pub prompt_us: u64,
    /// Look-up, scores, pick and charge, with waiting for the pool's lock.
    pub decide_us: u64,
}

/// What the pool's saturation meant for a request that may be refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdmissionLine {
    /// Name of the saturation detector in the config.
    pub detector: Arc<str>,
    /// How full the pool was, from 0; 1 and more is full. Absent if too little was known.
    pub saturation: Option<f64>,
    /// Endpoints of which too little was known.
    pub unknown_endpoints: u32,
    /// Whether the request was let in.
    pub admitted: bool,
}

/// The record of one decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Number of the decision in this process, from 1.
    pub id: u64,
    /// The request's x-request-id.
    pub request_id: String,
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The API whose schema the body follows, like `chat-completions`; `other` if it passes unread.
    pub api: String,
    /// Model that the client named; empty if none.
    pub model: String,
    /// Model that the engine is asked for instead, because a rule or a header says so; empty if none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_model: String,
    /// The InferenceModelRewrite that says so; empty if none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_rewrite: String,
    /// Objective that the client named; empty if none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub objective: String,
    /// The objective's priority; below 0 the request may be refused.
    #[serde(default)]
    pub priority: i32,
    /// Whose request it is, as the client says.
    #[serde(default)]
    pub fairness_id: String,
    /// Present if the request's priority is below 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<AdmissionLine>,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// Bytes of the request body.
    pub body_bytes: usize,
    /// Tokens of the prompt, all prompts of the request together; absent if unknown.
    pub prompt_tokens: Option<u32>,
    /// Whether that is a guess from the length of the text.
    #[serde(default)]
    pub prompt_tokens_estimated: bool,
    /// KV blocks of the prompt as they are looked up for the picked engine: full ones in its block size, or if what was
    /// sent counts, all in that producer's.
    pub prompt_blocks: u32,
    /// The producer of prefix matches by which blocks held and cached tokens are given; absent if none were looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_producer: Option<Arc<str>>,
    /// The scheduling profile; empty if none ran.
    pub profile: Arc<str>,
    /// Endpoints considered, kept and filtered.
    pub candidates_considered: usize,
    /// The listed candidates, best total first, filtered ones last.
    pub candidates: Vec<CandidateLine>,
    /// The picked endpoint; absent if the request was refused.
    pub pick: Option<Arc<str>>,
    /// The best endpoint that was not picked.
    pub runner_up: Option<Arc<str>>,
    /// Prompt tokens that the picked engine should serve from its cache, by what it is known to hold.
    pub predicted_cached_tokens: u32,
    /// The same if what it is expected to hold soon counts too.
    pub expected_cached_tokens: u32,
    /// Prompt tokens that the engine says it served from its cache; absent until the answer has ended, and where it
    /// doesn't pass through the picker.
    #[serde(default, skip_serializing_if = "LaterCount::is_absent")]
    pub delivered_cached_tokens: LaterCount,
    /// Tokens of the prompt by the engine's own count, with the same reservations.
    #[serde(default, skip_serializing_if = "LaterCount::is_absent")]
    pub engine_prompt_tokens: LaterCount,
    /// Whether the engine was asked to announce again what the request hits in its cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked_for_report: bool,
    /// What the handler decided, if it is one that has several stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<HandlerLine>,
    /// The other profiles that ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_profiles: Vec<ProfileLine>,
    /// Everything that made this decision poorer than the profile asked for.
    pub fallbacks: Vec<FallbackNote>,
    /// Why the request was refused, if it was.
    pub refusal: Option<String>,
    /// Time spent per step.
    pub steps: StepTimes,
}

/// The newest receipts, at most a fixed number.
#[derive(Debug)]
pub struct ReceiptRing {
    kept: usize,
    state: Mutex<RingState>,
}

#[derive(Debug, Default)]
struct RingState {
    next_id: u64,
    receipts: VecDeque<Arc<Receipt>>,
}

impl Receipt {
    /// The model that the engine is asked for.
    pub fn engine_model(&self) -> &str {
        if self.target_model.is_empty() { &self.model } else { &self.target_model }
    }
}

impl ReceiptRing {
    /// A ring of the newest `kept` receipts; 0 keeps none but still numbers them.
    pub fn new(kept: usize) -> Self {
        Self { kept, state: Mutex::new(RingState { next_id: 1, receipts: VecDeque::new() }) }
    }

    /// Numbers, dates and keeps a receipt; the oldest makes room. Returns it as kept.
    pub fn push(&self, mut receipt: Receipt) -> Arc<Receipt> {
        receipt.at_unix_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        let (receipt, oldest) = {
            let mut state = self.state.lock();
            receipt.id = state.next_id;
            state.next_id += 1;
            let receipt = Arc::new(receipt);
            let is_full = state.receipts.len() == self.kept;
            let oldest = if is_full { state.receipts.pop_front() } else { None };
            if self.kept > 0 {
                state.receipts.push_back(receipt.clone());
            }
            (receipt, oldest)
        };
        // Freed without the lock: it has many parts.
        drop(oldest);
        receipt
    }

    /// The newest `count` receipts, newest first.
    pub fn newest(&self, count: usize) -> Vec<Arc<Receipt>> {
        self.state.lock().receipts.iter().rev().take(count).cloned().collect()
    }

    /// A receipt by its number, by its request id (the newest one of it), or the newest by `last`.
    pub fn find(&self, id: &str) -> Option<Arc<Receipt>> {
        let state = self.state.lock();
        if id == "last" {
            return state.receipts.back().cloned();
        }
        if let Ok(number) = id.parse::<u64>() {
            let first = state.receipts.front()?.id;
            if let Some(receipt) = number.checked_sub(first).and_then(|at| state.receipts.get(at as usize)) {
                return Some(receipt.clone());
            }
        }
        state.receipts.iter().rev().find(|receipt| receipt.request_id == id).cloned()
    }

    /// Decisions numbered so far.
    pub fn decided(&self) -> u64 {
        self.state.lock().next_id - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(request_id: &str) -> Receipt {
        Receipt { request_id: request_id.to_owned(), ..Receipt::default() }
    }

    #[test]
    fn the_ring_keeps_the_newest_and_finds_them() {
        let ring = ReceiptRing::new(2);
        for id in ["a", "b", "c"] {
            ring.push(receipt(id));
        }
        assert_eq!(ring.newest(9).iter().map(|r| r.id).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(ring.find("2").unwrap().request_id, "b");
        assert_eq!(ring.find("c").unwrap().id, 3);
        assert_eq!(ring.find("last").unwrap().id, 3);
        assert!(ring.find("1").is_none() && ring.find("a").is_none());
        assert_eq!(ring.decided(), 3);
    }

    #[test]
    fn a_ring_of_none_still_numbers() {
        let ring = ReceiptRing::new(0);
        assert_eq!(ring.push(receipt("a")).id, 1);
        assert!(ring.newest(1).is_empty());
    }

    #[test]
    fn what_is_known_later_is_seen_by_all_who_share_the_receipt() {
        let ring = ReceiptRing::new(1);
        let kept = ring.push(receipt("a"));
        assert!(!serde_json::to_string(&kept).unwrap().contains("delivered"));
        kept.delivered_cached_tokens.set(48);
        kept.delivered_cached_tokens.set(64);
        let shown = serde_json::to_string(&ring.find("a").unwrap()).unwrap();
        assert!(shown.contains("\"delivered_cached_tokens\":48"), "{shown}");
        let read: Receipt = serde_json::from_str(&shown).unwrap();
        assert_eq!(read.delivered_cached_tokens.get(), Some(48));
    }

    #[test]
    fn fallbacks_are_spelt_the_same_everywhere() {
        for kind in Fallback::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.as_str()));
        }
    }
}
