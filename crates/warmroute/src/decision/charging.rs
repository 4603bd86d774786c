//! What a picked endpoint is charged, and what its engine is expected to hold because of the pick.

use std::sync::Arc;
use std::time::Duration;

use warmroute_kv_events::TrustReason;
use warmroute_plugin::InferenceRequest;
use warmroute_scheduler::{Decision, Stage};

use super::HelperPick;
use super::signals::Signals;
use crate::delivered::{PredictionBasis, PrefixReach};
use crate::engine_events::{Expectation, Expectations};
use crate::lease::{Charge, HelperLease};
use crate::pool::{EndpointState, PoolSnapshot};
use crate::prefix_plan::PrefixPlan;
use crate::prompt::{PromptKeys, ReadRequest};

/// Everything that a charge depends on.
pub(super) struct Charging<'a> {
    pub(super) request: &'a InferenceRequest,
    /// The model that the engine is asked for, as deliveries are counted.
    pub(super) model: &'a str,
    /// What engines are expected to hold by their events; None if nobody reads those.
    pub(super) prompt: Option<&'a PromptKeys>,
    pub(super) expects_for: Option<Duration>,
    pub(super) expectations: &'a Arc<Expectations>,
    pub(super) snapshot: &'a PoolSnapshot,
    pub(super) signals: &'a Signals,
}

impl<'a> Charging<'a> {
    /// The endpoint of a row.
    pub(super) fn state(&self, row: usize) -> &'a Arc<EndpointState> {
        &self.snapshot.states[self.signals.pool_row(row)]
    }

    /// Expects the prompt's blocks at a row's engine.
    pub(super) fn expectation(&self, row: usize) -> Option<Expectation> {
        let (prompt, shortest) = self.prompt.zip(self.expects_for)?;
        let state = self.state(row);
        let size = state.block_size_tokens()?;
        prompt.set(size)?;
        if !state.engine.further_ranks().is_empty() {
            // Nobody knows which of the ranks will hold them.
            return None;
        }
        let known_blocks = |at| self.signals.prefix.known_by_events(row, at);
        Some(self.expectations.expect(state.engine.slot()?, prompt, size, known_blocks, shortest))
    }

    /// Charges one request, and if the endpoint computes the prompt what of it isn't in its cache, nor will be when
    /// the engine gets there.
    pub(super) fn charge(&self, row: usize, computes_prompt: bool) -> Charge {
        let prompt_tokens = self.request.prompt_tokens.unwrap_or(0);
        let uncached = prompt_tokens.saturating_sub(self.signals.prefix.main(row).expected_tokens);
        self.state(row).load.charge(if computes_prompt { uncached.into() } else { 0 })
    }

    /// Whether the request asks the engine of a row to announce again what it hits there: if that may teach something.
    pub(super) fn asks_for_report(&self, plan: &PrefixPlan, row: usize, read: &ReadRequest) -> bool {
        let (true, Some(prompt), true) = (plan.relearns, self.prompt, read.takes_engine_arguments) else {
            return false;
        };
        let state = self.state(row);
        let Some(set) = state.block_size_tokens().and_then(|size| prompt.set(size)) else { return false };
        // The last token is always computed, so its block is never hit.
        let can_be_hit = |tokens: &u32| tokens.saturating_sub(1) / set.block_size_tokens.max(1);
        let known = |at: usize| self.signals.prefix.known_by_events(row, at);
        let lacks =
            prompt.prompt_tokens.iter().enumerate().any(|(at, tokens)| known(at) < can_be_hit(tokens));
        lacks && state.engine.may_hold_unknown() && state.engine.relearning.asks()
    }

    /// What of the prompt could have been served from a cache, by this decision and better ones.
    pub(super) fn reach(&self, decision: &Decision<'_>) -> Option<PrefixReach> {
        let picked = self.signals.prefix.main(decision.table_row());
        let block_size_tokens = picked.matched.block_size_tokens;
        self.prompt?.set(block_size_tokens)?;
        let expected = |row: usize| self.signals.prefix.main(row).expected_tokens;
        let kept = decision.primary().kept().iter().map(|row| expected(*row as usize));
        let reachable_tokens = kept.max().unwrap_or(0).max(picked.expected_tokens);
        let held_tokens = (0..self.signals.len()).map(expected).max().unwrap_or(0).max(reachable_tokens);
        let promised_tokens = picked.expected_tokens;
        Some(PrefixReach { block_size_tokens, held_tokens, reachable_tokens, promised_tokens })
    }

    /// What the prediction for a row rests on.
    pub(super) fn prediction_basis(&self, plan: &PrefixPlan, row: usize) -> PredictionBasis {
        let state = self.state(row);
        let (is_seen, is_approximate) =
            (state.engine.is_seen(), self.signals.prefix.main(row).is_approximate);
        let shortest = state.block_size_tokens().unwrap_or(0);
        let is_followed = || state.engine.trust_state().reason != TrustReason::NotFollowed;
        match self.prompt {
            // An engine has nothing to tell of these.
            Some(prompt) if !is_seen && prompt.total_tokens() < shortest => PredictionBasis::Nothing,
            _ if is_approximate && !state.engine.further_ranks().is_empty() => PredictionBasis::Nothing,
            Some(_) if !is_seen && is_approximate && !is_followed() => PredictionBasis::Sent,
            Some(_) if !is_seen => PredictionBasis::Unseen,
            Some(_) if !is_approximate => PredictionBasis::Events,
            None if plan.reads_events() => PredictionBasis::NoTokens,
            _ if plan.main().is_some() => PredictionBasis::Sent,
            _ => PredictionBasis::Nothing,
        }
    }

    /// The rows whose engines will hold the prompt: those of the primary endpoint and of the one that computes it for
    /// that.
    pub(super) fn computing_rows(&self, decision: &Decision<'_>) -> impl Iterator<Item = usize> {
        let prefills = decision.helpers().filter(|helper| helper.stage == Stage::Prefill);
        let rows = prefills.filter_map(|helper| helper.run.table_rows().next());
        std::iter::once(decision.table_row()).chain(rows)
    }

    /// Charges the endpoints that help the primary one.
    pub(super) fn helpers(&self, decision: &Decision<'_>) -> impl Iterator<Item = HelperPick> {
        decision.helpers().filter_map(|helper| {
            let row = helper.run.table_rows().next()?;
            let prefills = helper.stage == Stage::Prefill;
            // A helper's sidecar isn't told which rank is meant.
            let is_told = self.state(row).spec.ranks.sharing().is_none();
            let expectation = if prefills && is_told { self.expectation(row) } else { None };
            Some(HelperPick {
                stage: helper.stage,
                profile: helper.run.name().clone(),
                endpoint: self.state(row).endpoint.clone(),
                lease: HelperLease::new(self.charge(row, prefills), expectation),
            })
        })
    }
}
