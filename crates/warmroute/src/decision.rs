//! The decision: look up, score, pick and charge, in one step under the pool's one short lock.
//!
//! One lock, because a burst must see its own charges: two requests decided side by side on the same figures would both
//! go to the endpoint that looked best.

mod charging;
mod conditional_decode;
mod endpoint_scores;
mod explanation;
mod in_effect;
mod prefix_signals;
mod profile_times;
mod routing;
mod saturation;
mod signals;
mod trusted_match;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use warmroute_kv_index::KvIndex;
use warmroute_plugin::{Endpoint, InferenceRequest, PickHeaders};
use warmroute_scheduler::{Decision, ScheduleError, Scheduler, Scratch, Stage};

use crate::approximate_producer::ApproximateStatus;
use crate::delivered::{Deliveries, PredictionBasis, PrefixReach};
use crate::engine_events::{Expectation, Expectations};
use crate::lease::{Charge, HelperLease};
use crate::metrics::Metrics;
use crate::plugin_names::PluginNames;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::prefix_plan::{PrefixPlan, WantedProducer};
use crate::prompt::{KeysWanted, ReadRequest};
use crate::receipt::{CandidateLine, Fallback, HandlerLine, ProfileLine};
use charging::Charging;
use endpoint_scores::endpoint_scores;
use in_effect::{InEffect, Outgoing};
use prefix_signals::PrefixLookup;
pub use profile_times::{Lookup, PluginCall, ProfileTimes};
use signals::Signals;

/// Reading a clock between plugins costs as much as the plugins over ten endpoints, so few decisions pay it.
const TIMED_EVERY: u32 = 16;

/// Decides for one pool.
pub struct Decider {
    pool: Arc<Pool>,
    in_effect: ArcSwap<InEffect>,
    index: Arc<KvIndex>,
    expectations: Arc<Expectations>,
    stale_after: Duration,
    metrics: Arc<Metrics>,
    /// Plugins are timed in one of so many decisions.
    timed_every: u32,
    /// Whether decisions name the scores of all endpoints.
    tells_scores: bool,
    table: Mutex<Table>,
}

/// Columns and scratch of one decision, reused for the next.
#[derive(Debug, Default)]
struct Table {
    signals: Signals,
    scratch: Scratch,
    /// Decisions until plugins are timed again.
    untimed_left: u32,
}

impl Table {
    fn take_times(&mut self, timed_every: u32) {
        let is_timed = self.untimed_left == 0;
        self.untimed_left = if is_timed { timed_every.saturating_sub(1) } else { self.untimed_left - 1 };
        self.scratch.set_clock(is_timed.then_some(profile_times::clock));
    }
}

/// What a decision gives.
pub struct Decided {
    /// The picked endpoints, best first; the first one is charged.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// What the first one is called in the receipt.
    pub label: Arc<str>,
    /// The charge of the first one.
    pub charge: Charge,
    /// What the engine is expected to hold because of this.
    pub expectation: Option<Expectation>,
    /// Endpoints that help the first one.
    pub helpers: Vec<HelperPick>,
    /// Where the gateway sends the request, best first: the endpoints' addresses unless the handler wants another
    /// port.
    pub destinations: Vec<String>,
    /// Headers that the plugins want to have set, and those by which the handler tells endpoints of each other.
    pub headers: PickHeaders,
    /// Where what the first one delivers is counted.
    pub deliveries: Arc<Deliveries>,
    /// Address and score of every scored endpoint, if these are to be told.
    pub scores: Vec<(Arc<str>, f64)>,
    /// For the receipt.
    pub explanation: Explanation,
}

/// An endpoint that does a stage of a request for the one that the request goes to.
pub struct HelperPick {
    /// Which stage.
    pub stage: Stage,
    /// The profile that picked it.
    pub profile: Arc<str>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// What the request holds there.
    pub lease: HelperLease,
}

/// What the receipt says of a decision.
#[derive(Debug, Default)]
pub struct Explanation {
    /// The scheduling profile; empty if none ran.
    pub profile: Arc<str>,
    /// Endpoints considered.
    pub considered: usize,
    /// The listed candidates.
    pub candidates: Vec<CandidateLine>,
    /// The best endpoint that was not picked.
    pub runner_up: Option<Arc<str>>,
    /// The producer of the prefix matches that are shown; None if none were looked up.
    pub prefix_producer: Option<Arc<str>>,
    /// Blocks of the prompt in the block size in which the picked endpoint is looked up.
    pub prompt_blocks: u32,
    /// Tokens that the picked engine should serve from its cache by what it is known to hold.
    pub predicted_cached_tokens: u32,
    /// The same with what it is expected to hold soon.
    pub expected_cached_tokens: u32,
    /// What these predictions rest on.
    pub prediction_basis: PredictionBasis,
    /// Which of the picked engine's views that was.
    pub view_generation: u64,
    /// What could have been served from a cache; None unless matches by events were asked for and the exact tokens are
    /// known.
    pub reach: Option<PrefixReach>,
    /// Whether the engine is asked to announce again what the request hits in its cache.
    pub asks_for_report: bool,
    /// Whether this picker had nothing in flight at the picked endpoint, so that nothing is expected there that events
    /// should not have confirmed by now.
    pub was_idle: bool,
    /// What the handler decided, if it has several stages.
    pub handler: Option<HandlerLine>,
    /// The profiles beside the one that decides where the request goes.
    pub other_profiles: Vec<ProfileLine>,
    /// What each producer of prefix matches knew of the prompt at the picked endpoint.
    pub prefix_hits: Vec<PrefixHit>,
    /// Fallbacks that showed during the decision.
    pub fallbacks: Vec<Fallback>,
    /// What plugins had to do without: name of the plugin and reason.
    pub plugin_fallbacks: Vec<String>,
    /// The profiles that ran.
    pub profiles: Vec<ProfileTimes>,
    /// The look-up of prefix matches, if there was one.
    pub lookup: Option<Lookup>,
    /// What the plugins are called; None if no profile ran.
    pub plugins: Option<Arc<PluginNames>>,
}

/// What a producer of prefix matches knew of a prompt at the picked endpoint, for the metrics `prefix_indexer_hit_ratio`
/// and `prefix_indexer_hit_bytes` of the llm-d Router EPP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixHit {
    /// Name of the producer.
    pub producer: Arc<str>,
    /// Its type in configurations.
    pub plugin_type: &'static str,
    /// Leading blocks that the endpoint is known to hold, or was sent.
    pub matched_blocks: u32,
    /// Blocks of the prompt.
    pub total_blocks: u32,
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Tokens that the endpoint should serve from its cache by that.
    pub cached_tokens: u32,
}

/// Why no endpoint was picked.
#[derive(Debug, thiserror::Error)]
pub enum NotDecided {
    /// The pool, or the subset of it that the request allows, is empty.
    #[error("failed to find endpoint candidates for serving the request")]
    NoCandidates,
    /// The request goes nowhere unless its prompt is cached there, and it isn't.
    #[error(
        "the picked endpoint holds nothing of the prompt, and the request prefers no other (Prefer: if-available)"
    )]
    NotCached,
    /// The profile left or picked nothing.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The table's columns don't fit: a mistake in this program.
    #[error("inner mistake: {0}")]
    Columns(#[from] warmroute_plugin::ColumnMismatch),
}

impl Decider {
    /// A decider over a pool.
    pub fn new(
        pool: Arc<Pool>,
        policy: Arc<Policy>,
        index: Arc<KvIndex>,
        expectations: Arc<Expectations>,
        stale_after: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let in_effect = ArcSwap::from_pointee(InEffect::new(policy, None));
        let table = Mutex::default();
        let timed_every = TIMED_EVERY;
        let tells_scores = false;
        Self { pool, in_effect, index, expectations, stale_after, metrics, timed_every, tells_scores, table }
    }

    /// The same decider, whose decisions name the scores of all endpoints if `tells` says so.
    #[must_use]
    pub fn telling_scores(self, tells: bool) -> Self {
        Self { tells_scores: tells, ..self }
    }

    /// The same decider, which times plugins in one of so many decisions; 1 times them always.
    #[must_use]
    pub fn timing_every(self, decisions: u32) -> Self {
        Self { timed_every: decisions, ..self }
    }

    /// The policy in effect.
    pub fn policy(&self) -> Arc<Policy> {
        self.in_effect.load().policy.clone()
    }

    /// Puts another policy into effect: for decisions that begin from now on. Index, leases and expectations stay, and
    /// what producers of approximate matches know if the new policy has them with the same parameters.
    pub fn swap(&self, policy: Arc<Policy>) {
        let old = self.in_effect.load();
        self.in_effect.store(Arc::new(InEffect::new(policy, Some(&old))));
    }

    /// Forgets what was sent to endpoints that have left the pool.
    pub fn forget_gone(&self) {
        self.in_effect.load().approximate.iter().for_each(|producer| producer.forget_gone());
    }

    /// How full the producers of approximate matches are.
    pub fn approximate_status(&self) -> Vec<ApproximateStatus> {
        self.in_effect.load().approximate.iter().map(|producer| producer.status()).collect()
    }

    /// Name, type and blocks of every producer of prefix matches that is read.
    pub fn prefix_sizes(&self) -> Vec<(Arc<str>, &'static str, usize)> {
        self.in_effect.load().prefix_sizes(self.index.stats().entries)
    }

    /// What the profile needs to know of a prompt, and the block sizes in use now.
    pub fn keys_wanted(&self) -> KeysWanted {
        self.in_effect.load().keys_wanted(&self.pool.snapshot())
    }

    /// Looks up, scores, picks and charges. `read` is what the request's body said.
    ///
    /// # Errors
    /// There is nothing to pick from, or the profile picks nothing. Nothing is charged then.
    pub fn decide(
        &self,
        request: &InferenceRequest,
        read: &ReadRequest,
        subset: Option<&[String]>,
    ) -> Result<Decided, NotDecided> {
        let in_effect = self.in_effect.load_full();
        let (decided, outgoing) = self.decide_locked(&in_effect, request, read, subset)?;
        // Not under the lock: it takes time with the prompt's length, and the next pick knows what to expect.
        if let Some(keys) = &read.approximate {
            outgoing.into_iter().for_each(|outgoing| outgoing.send(keys));
        }
        if in_effect.policy.prefix.reads_events() {
            self.count_reach(decided.explanation.reach, read);
        }
        Ok(decided)
    }

    /// Counts what could have been served from a cache in the pool's account of losses.
    fn count_reach(&self, reach: Option<PrefixReach>, read: &ReadRequest) {
        let now = Instant::now();
        let keyed = read.prompt.as_ref().zip(reach);
        let keyed =
            keyed.and_then(|(prompt, reach)| Some((prompt, prompt.set(reach.block_size_tokens)?, reach)));
        match keyed {
            Some((prompt, set, reach)) => {
                let prompts = prompt.prompt_tokens.iter().copied().zip(set.prompts.iter().map(Vec::as_slice));
                self.pool.loss.decided(now, prompts, reach);
            }
            None => self.pool.loss.unknown(now),
        }
    }

    /// The part that picks take turns in.
    fn decide_locked(
        &self,
        in_effect: &InEffect,
        request: &InferenceRequest,
        read: &ReadRequest,
        subset: Option<&[String]>,
    ) -> Result<(Decided, Vec<Outgoing>), NotDecided> {
        let (policy, snapshot) = (&in_effect.policy, self.pool.snapshot());
        let subset_rows = subset.map(|subset| snapshot.subset_rows(subset));
        let model = self.metrics.requests.model_label(&request.target_model);
        let mut table = self.table.lock();
        table.take_times(self.timed_every);
        let Table { signals, scratch, .. } = &mut *table;
        signals.read(&snapshot, subset_rows.as_deref(), Instant::now(), self.stale_after);
        if signals.is_empty() {
            return Err(NotDecided::NoCandidates);
        }
        let mut lookup = None;
        if !policy.prefix.producers.is_empty() {
            let started_at = Instant::now();
            let best_blocks = signals.look_up(&PrefixLookup {
                index: &self.index,
                approximate: &in_effect.approximate,
                plan: &policy.prefix,
                snapshot: &snapshot,
                rows: &[],
                prompt: read.prompt.as_ref(),
                sent: read.approximate.as_ref(),
                model,
                metrics: &self.metrics,
            });
            let took = started_at.elapsed();
            let is_looked_up = read.prompt.is_some() || read.approximate.is_some();
            lookup = is_looked_up.then_some(Lookup { started_at, took, best_blocks });
        }
        signals.read_attributes(&snapshot, policy, &request.target_model);
        let candidates = signals.candidates(&snapshot.endpoints)?;
        let decided = policy.scheduler.decide(request, &candidates, scratch);
        let mut outgoing = Vec::new();
        let decided = decided.map_err(NotDecided::from).and_then(|decision| {
            let picked = signals.prefix.main(decision.table_row());
            if conditional_decode::is_asked_for(request) && picked.known_blocks == 0 {
                return Err(NotDecided::NotCached);
            }
            let charging = Charging {
                request,
                model,
                prompt: read.prompt.as_ref().filter(|_| policy.prefix.reads_events()),
                expects_for: policy.expects_for,
                expectations: &self.expectations,
                snapshot: &snapshot,
                signals,
            };
            let rows = charging.computing_rows(&decision);
            outgoing.extend(rows.flat_map(|row| in_effect.outgoing(&charging, row, read)));
            let mut decided = charge(policy, &charging, &decision);
            if self.tells_scores {
                decided.scores = endpoint_scores(&charging, &decision);
            }
            // Two engines would be asked by the same body.
            decided.explanation.asks_for_report = decided.helpers.is_empty()
                && charging.asks_for_report(&policy.prefix, decision.table_row(), read);
            decided.explanation.profiles = ProfileTimes::of(&decision);
            decided.explanation.lookup = lookup;
            decided.explanation.plugins = Some(policy.plugins.clone());
            Ok(decided)
        });
        Ok((self.with_plugin_fallbacks(&policy.scheduler, decided)?, outgoing))
    }

    /// What was decided, with what plugins had to do without. To be called under the same lock, so that what was
    /// counted is this decision's, refused or not.
    fn with_plugin_fallbacks(
        &self,
        scheduler: &Scheduler,
        mut decided: Result<Decided, NotDecided>,
    ) -> Result<Decided, NotDecided> {
        let plugin_fallbacks = plugin_fallbacks(scheduler);
        match &mut decided {
            Ok(decided) => decided.explanation.plugin_fallbacks = plugin_fallbacks,
            Err(_) => {
                let metric = &self.metrics.requests.fallbacks;
                metric.with_label_values(&[Fallback::Plugin.as_str()]).inc_by(plugin_fallbacks.len() as u64);
            }
        }
        decided
    }

    /// Picks the endpoint with the fewest requests in flight, ties at random, without running the profile.
    ///
    /// # Errors
    /// The pool, or the subset, is empty.
    pub fn decide_by_load(
        &self,
        prompt_tokens: u64,
        subset: Option<&[String]>,
    ) -> Result<Decided, NotDecided> {
        let snapshot = self.pool.snapshot();
        let rows = match subset {
            Some(subset) => snapshot.subset_rows(subset),
            None => (0..snapshot.states.len() as u32).collect(),
        };
        // The lock makes a burst of these spread too.
        let _table = self.table.lock();
        let requests = |row: u32| snapshot.states[row as usize].load.in_flight().requests;
        let fewest = rows.iter().map(|row| requests(*row)).min().ok_or(NotDecided::NoCandidates)?;
        let best: Vec<u32> = rows.iter().copied().filter(|row| requests(*row) == fewest).collect();
        let state = &snapshot.states[best[fastrand::usize(..best.len())] as usize];
        let mut headers = PickHeaders::default();
        routing::pin(state, &mut headers.request);
        Ok(Decided {
            endpoints: vec![state.endpoint.clone()],
            charge: state.load.charge(prompt_tokens),
            expectation: None,
            helpers: Vec::new(),
            destinations: vec![state.endpoint.address.to_string()],
            headers,
            label: state.label.clone(),
            deliveries: state.deliveries.clone(),
            scores: Vec::new(),
            explanation: Explanation { considered: rows.len(), ..Explanation::default() },
        })
    }
}

/// Charges every picked endpoint and says what is to be done about the decision.
fn charge(policy: &Policy, charging: &Charging<'_>, decision: &Decision<'_>) -> Decided {
    let (snapshot, signals) = (charging.snapshot, charging.signals);
    let row = decision.table_row();
    let mut explanation = explanation::explain(policy, decision, charging);
    let held = signals.prefix.main(row);
    explanation.prompt_blocks = held.matched.total_blocks;
    explanation.predicted_cached_tokens = held.known_tokens;
    explanation.expected_cached_tokens = held.expected_tokens;
    explanation.reach = charging.reach(decision);
    explanation.view_generation = charging.state(row).engine.generation();
    let deliveries = charging.state(row).deliveries.clone();
    explanation.prefix_hits = prefix_hits(&policy.prefix, signals, row);
    explanation.was_idle = signals.in_flight[row].requests == 0;
    let expectation = charging.expectation(row);
    let helpers: Vec<HelperPick> = charging.helpers(decision).collect();
    let prefills = helpers.iter().any(|helper| helper.stage == Stage::Prefill);
    // An engine that gets blocks from another one reports those too.
    if helpers.is_empty() {
        explanation.prediction_basis = charging.prediction_basis(&policy.prefix, row);
    }
    let charge = charging.charge(row, !prefills);
    let mut headers = PickHeaders::default();
    decision.report_picked(charging.request, &mut headers);
    let handler = policy.scheduler.handler();
    routing::set_headers(handler, decision, &mut headers.request);
    let first = charging.state(row);
    match first.spec.ranks.header() {
        // What helps gets the same headers, and counts its ranks by itself.
        Some(_) if !helpers.is_empty() => explanation.fallbacks.push(Fallback::RankNotPinned),
        _ => routing::pin(first, &mut headers.request),
    }
    let endpoint = |row: usize| snapshot.endpoints[signals.pool_row(row)].clone();
    let endpoints: Vec<_> = decision.table_rows().map(endpoint).collect();
    let picked = decision.table_rows().map(|row| &**charging.state(row));
    let destinations = routing::destinations(handler, picked);
    let label = first.label.clone();
    let scores = Vec::new();
    Decided {
        endpoints,
        label,
        charge,
        expectation,
        helpers,
        destinations,
        headers,
        deliveries,
        scores,
        explanation,
    }
}

/// What plugins counted since this was last asked.
fn plugin_fallbacks(scheduler: &Scheduler) -> Vec<String> {
    let counted = scheduler.fallbacks().iter().filter_map(|fallback| match fallback.counter.take() {
        0 => None,
        times => Some(format!("{}: {} ({times}×)", fallback.plugin, fallback.reason)),
    });
    counted.collect()
}

fn prefix_hits(plan: &PrefixPlan, signals: &Signals, row: usize) -> Vec<PrefixHit> {
    let hit = |(at, producer): (usize, &WantedProducer)| {
        let held = signals.prefix.by_producer(at, row);
        PrefixHit {
            producer: producer.name.clone(),
            plugin_type: producer.plugin_type,
            matched_blocks: held.known_blocks,
            total_blocks: held.matched.total_blocks,
            block_size_tokens: held.matched.block_size_tokens,
            cached_tokens: held.known_tokens,
        }
    };
    plan.producers.iter().enumerate().map(hit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_timed_in_one_of_so_many_decisions() {
        let timed = |every: u32| {
            let mut table = Table::default();
            let is_timed = |_: &u32| {
                let is_timed = table.untimed_left == 0;
                table.take_times(every);
                is_timed
            };
            (0..33).filter(is_timed).collect::<Vec<_>>()
        };
        assert_eq!(timed(16), [0, 16, 32]);
        assert_eq!(timed(1).len(), 33);
    }
}
