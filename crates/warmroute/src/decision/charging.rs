//! What a picked endpoint is charged, and what its engine is expected to hold because of the pick.

use std::sync::Arc;
use std::time::Duration;

use warmroute_plugin::InferenceRequest;
use warmroute_scheduler::{Decision, Stage};

use super::HelperPick;
use super::signals::Signals;
use crate::engine_events::{Expectation, Expectations};
use crate::lease::{Charge, HelperLease};
use crate::pool::{EndpointState, PoolSnapshot};
use crate::prompt::PromptKeys;

/// Everything that a charge depends on.
pub(super) struct Charging<'a> {
    pub(super) request: &'a InferenceRequest,
    pub(super) prompt: Option<&'a PromptKeys>,
    pub(super) expects_for: Option<Duration>,
    pub(super) expectations: &'a Arc<Expectations>,
    pub(super) snapshot: &'a PoolSnapshot,
    pub(super) signals: &'a Signals,
}

/// How much of the prompt an engine should serve from its cache.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cached {
    /// Full blocks of the prompt in the engine's block size.
    pub(super) prompt_blocks: u32,
    /// That block size; 0 if there is no prompt to match.
    pub(super) block_size_tokens: u32,
    /// Tokens, by what it is known to hold.
    pub(super) known_tokens: u32,
    /// The same with what it is expected to hold soon.
    pub(super) expected_tokens: u32,
}

impl<'a> Charging<'a> {
    fn state(&self, row: usize) -> &'a EndpointState {
        &self.snapshot.states[self.signals.pool_row(row)]
    }

    pub(super) fn cached(&self, row: usize) -> Cached {
        let Some((prompt, size)) = self.prompt.zip(self.state(row).block_size_tokens()) else {
            return Cached::default();
        };
        let Some(set) = prompt.set(size) else { return Cached::default() };
        let (known_tokens, expected_tokens) = self.signals.cached_tokens(row, &prompt.prompt_tokens, size);
        Cached { prompt_blocks: set.total_blocks(), block_size_tokens: size, known_tokens, expected_tokens }
    }

    /// Expects the prompt's blocks at a row's engine.
    pub(super) fn expectation(&self, row: usize) -> Option<Expectation> {
        let (prompt, shortest) = self.prompt.zip(self.expects_for)?;
        let state = self.state(row);
        let size = state.block_size_tokens()?;
        prompt.set(size)?;
        let known_blocks = |at| self.signals.known_blocks(row, at);
        Some(self.expectations.expect(state.engine.slot()?, prompt, size, known_blocks, shortest))
    }

    /// Charges one request, and if the endpoint computes the prompt what of it isn't in its cache, nor will be when
    /// the engine gets there.
    pub(super) fn charge(&self, row: usize, computes_prompt: bool) -> Charge {
        let prompt_tokens = self.request.prompt_tokens.unwrap_or(0);
        let uncached = prompt_tokens.saturating_sub(self.cached(row).expected_tokens);
        self.state(row).load.charge(if computes_prompt { uncached.into() } else { 0 })
    }

    /// Charges the endpoints that help the primary one.
    pub(super) fn helpers(&self, decision: &Decision<'_>) -> impl Iterator<Item = HelperPick> {
        decision.helpers().filter_map(|helper| {
            let row = helper.run.table_rows().next()?;
            let prefills = helper.stage == Stage::Prefill;
            let expectation = if prefills { self.expectation(row) } else { None };
            Some(HelperPick {
                stage: helper.stage,
                profile: helper.run.name().clone(),
                endpoint: self.state(row).endpoint.clone(),
                lease: HelperLease::new(self.charge(row, prefills), expectation),
            })
        })
    }
}
