//! What a receipt says of a decision.

use std::sync::Arc;

use warmroute_kv_events::{Trust, TrustReason};
use warmroute_plugin::MetricsState;
use warmroute_scheduler::{Decision, ProfileRun, Stage, StageRun};

use super::Explanation;
use super::charging::Charging;
use super::trusted_match::{trust_in, trust_state_in};
use crate::policy::Policy;
use crate::pool::EndpointState;
use crate::receipt::{
    CandidateLine, DeciderLine, Fallback, Freshness, HandlerLine, LISTED_CANDIDATES, OffloadedLine,
    ProfileLine, ScorerLine, TrustNote,
};

pub(super) fn explain(policy: &Policy, decision: &Decision<'_>, charging: &Charging<'_>) -> Explanation {
    let (snapshot, signals) = (charging.snapshot, charging.signals);
    let run = decision.primary();
    let mut fallbacks = Vec::new();
    if signals.metrics.iter().any(|state| state.fresh().is_none()) {
        fallbacks.push(Fallback::MetricsNotFresh);
    }
    if policy.prefix.reads_events() {
        let states = (0..signals.len()).map(|row| &snapshot.states[signals.pool_row(row)]);
        fallbacks.extend(trust_fallbacks(states, charging.model));
    }
    if decision.stages().any(|stage| stage.run.scorers().any(|scorer| scorer.not_a_number > 0)) {
        fallbacks.push(Fallback::ScoreNotANumber);
    }
    fallbacks.extend(decision.stages().filter(|stage| stage.failure.is_some()).filter_map(|stage| {
        match stage.stage {
            Stage::Primary => None,
            Stage::Prefill => Some(Fallback::NoPrefillEndpoint),
            Stage::Encode => Some(Fallback::NoEncodeEndpoint),
        }
    }));
    let address = |row: usize| snapshot.states[signals.pool_row(row)].label.clone();
    Explanation {
        profile: run.name().clone(),
        considered: signals.len(),
        candidates: candidate_lines(&run, charging),
        runner_up: run.runner_up().map(|kept| address(run.kept()[kept] as usize)),
        handler: handler_line(policy, decision),
        other_profiles: decision.stages().filter_map(|stage| profile_line(&stage, charging)).collect(),
        prefix_producer: policy.prefix.main().map(|producer| producer.name.clone()),
        fallbacks,
        ..Explanation::default()
    }
}

/// Whether events of an engine should arrive and don't. One that is connected and was sent nothing yet has had nothing to
/// tell; what it holds from before, if anything, is unknown, which its line says.
fn lacks_events(state: &EndpointState) -> bool {
    let has_nothing_to_tell =
        || state.engine.trust_state().reason == TrustReason::NothingHeard && !state.load.was_used();
    state.engine.trust() == Trust::Blind && !has_nothing_to_tell()
}

/// What the candidates' views make poorer.
fn trust_fallbacks<'a>(
    states: impl Iterator<Item = &'a Arc<EndpointState>>,
    model: &str,
) -> impl Iterator<Item = Fallback> {
    let fallback_of = |state: &Arc<EndpointState>| {
        let known = trust_state_in(state, model);
        match (known.trust, known.reason) {
            (Trust::Doubtful, TrustReason::DeliversLess) => Some(Fallback::DeliversLess),
            (Trust::Doubtful, _) => Some(Fallback::EventGaps),
            (Trust::Blind, _) if lacks_events(state) => Some(Fallback::NoEvents),
            _ => None,
        }
    };
    let mut is_found = [false; 3];
    const KINDS: [Fallback; 3] = [Fallback::EventGaps, Fallback::DeliversLess, Fallback::NoEvents];
    // Reasons are behind a lock, so only where there is one to tell.
    for state in states.filter(|state| trust_in(state, model) > Trust::Partial) {
        let kind = fallback_of(state);
        for (at, known) in KINDS.into_iter().enumerate() {
            is_found[at] |= kind == Some(known);
        }
    }
    KINDS.into_iter().zip(is_found).filter_map(|(kind, is_found)| is_found.then_some(kind))
}

fn handler_line(policy: &Policy, decision: &Decision<'_>) -> Option<HandlerLine> {
    let deciders = decision.stages().filter_map(|stage| {
        let (decider, verdict) = stage.decider.zip(stage.verdict)?;
        Some(DeciderLine {
            stage: stage.stage.to_string(),
            decider: decider.clone(),
            disaggregates: verdict.runs,
            verdict: verdict.to_string(),
        })
    });
    Some(HandlerLine {
        name: policy.handler_name.clone(),
        plugin_type: policy.handler_type.clone(),
        decision: decision.decision_type()?.to_owned(),
        deciders: deciders.collect(),
    })
}

/// What a profile said that ran and isn't the primary one.
fn profile_line(stage: &StageRun<'_>, charging: &Charging<'_>) -> Option<ProfileLine> {
    let ran = stage.has_picked() || stage.failure.is_some();
    if stage.stage == Stage::Primary || !ran {
        return None;
    }
    let (run, signals) = (&stage.run, charging.signals);
    let address = |row: usize| charging.state(row).label.clone();
    let picked = run.table_rows().next();
    let cached = picked.map(|row| signals.prefix.main(row)).unwrap_or_default();
    Some(ProfileLine {
        profile: run.name().clone(),
        stage: stage.stage.to_string(),
        pick: picked.map(address),
        runner_up: run.runner_up().map(|kept| address(run.kept()[kept] as usize)),
        failure: stage.failure.as_ref().map(ToString::to_string),
        kept: run.kept().len(),
        candidates: candidate_lines(run, charging),
        predicted_cached_tokens: cached.known_tokens,
        expected_cached_tokens: cached.expected_tokens,
    })
}

/// The best candidates by total, then filtered ones, as many as a receipt lists.
fn candidate_lines(run: &ProfileRun<'_>, charging: &Charging<'_>) -> Vec<CandidateLine> {
    let totals = run.totals();
    let picked = run.order().first().copied();
    let mut best: Vec<u32> = (0..totals.len() as u32).collect();
    // The picked one is listed first, whatever its total: a random picker may take any.
    let is_picked = |row: &u32| Some(*row) == picked;
    let better_first = |a: &u32, b: &u32| {
        is_picked(b).cmp(&is_picked(a)).then(totals[*b as usize].total_cmp(&totals[*a as usize]))
    };
    if best.len() > LISTED_CANDIDATES {
        best.select_nth_unstable_by(LISTED_CANDIDATES, better_first);
        best.truncate(LISTED_CANDIDATES);
    }
    best.sort_by(better_first);
    let mut lines = Vec::with_capacity(charging.signals.len().min(LISTED_CANDIDATES));
    for kept in best {
        let kept = kept as usize;
        let mut line = line_of(run.kept()[kept] as usize, charging);
        line.total = totals[kept];
        line.scores = run
            .scorers()
            .map(|scorer| ScorerLine {
                scorer: scorer.name.clone(),
                score: scorer.scores[kept],
                weight: scorer.weight,
                weighted: scorer.weighted(kept),
            })
            .collect();
        lines.push(line);
    }
    for (row, filter) in run.filtered().take(LISTED_CANDIDATES - lines.len()) {
        let mut line = line_of(row, charging);
        line.filtered_by = Some(filter.clone());
        lines.push(line);
    }
    lines
}

fn line_of(row: usize, charging: &Charging<'_>) -> CandidateLine {
    let (snapshot, signals) = (charging.snapshot, charging.signals);
    let state: &MetricsState = &signals.metrics[row];
    let metrics = state.last().copied().unwrap_or_default();
    let held = signals.prefix.main(row);
    CandidateLine {
        endpoint: snapshot.states[signals.pool_row(row)].label.clone(),
        filtered_by: None,
        scores: Vec::new(),
        total: 0.0,
        metrics: Freshness::of(state),
        waiting_requests: metrics.waiting_requests,
        running_requests: metrics.running_requests,
        kv_cache_utilization: metrics.kv_cache_utilization,
        in_flight_requests: signals.in_flight[row].requests,
        known_blocks: held.known_blocks,
        expected_blocks: held.expected_blocks,
        offloaded_blocks: OffloadedLine::of(held.offloaded),
        blocks_are_approximate: held.is_approximate,
        trust: trust_note(row, charging),
    }
}

/// Nothing is said of an exact view, nor where no prefix match by events was asked for.
fn trust_note(row: usize, charging: &Charging<'_>) -> Option<TrustNote> {
    let state = trust_state_in(charging.state(row), charging.model);
    let is_told = charging.signals.prefix.reads_events() && state.trust != Trust::Exact;
    is_told.then_some(TrustNote { trust: state.trust, reason: state.reason })
}
