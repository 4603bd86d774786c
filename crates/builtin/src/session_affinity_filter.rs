//! `session-affinity-filter`.

use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest, Pick, PickHeaders};

use crate::session_affinity::{Parameters, SessionAffinity};

/// Keeps only the endpoint where the request's session is, or all if the request has no session or its endpoint is
/// no candidate. What a session is says [`SessionAffinityScorer`](crate::SessionAffinityScorer).
#[derive(Debug)]
pub struct SessionAffinityFilter(SessionAffinity);

impl SessionAffinityFilter {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        SessionAffinity::build(parameters, context).map(Self)
    }
}

impl Filter for SessionAffinityFilter {
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        if let Some(row) = self.0.row(request, candidates) {
            keep.fill(false);
            keep[row] = true;
        }
    }

    fn picked(&self, request: &InferenceRequest, pick: &Pick<'_>, headers: &mut PickHeaders) {
        self.0.picked(request, pick, headers);
    }
}
