//! `session-affinity-scorer`.

use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Pick, PickHeaders, Scorer};

use crate::session_affinity::{Parameters, SessionAffinity};

/// Prefers the endpoint where the request's session is: 1 for it, 0 for others, and 0 for all if the request has no
/// session or its endpoint is no candidate.
///
/// With the strategy `encoded_endpoint_header` the session is a token that the client got with an earlier response:
/// the base64 of an endpoint's name. It works as long as the gateway shows response headers to the picker. With
/// `session_id` it is an id that the client makes, and this scorer remembers where it was picked to last, per
/// replica; it survives a change of the configuration if the sources and the profile stay the same.
#[derive(Debug)]
pub struct SessionAffinityScorer(SessionAffinity);

impl SessionAffinityScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        SessionAffinity::build(parameters, context).map(Self)
    }
}

impl Scorer for SessionAffinityScorer {
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        if let Some(row) = self.0.row(request, candidates) {
            scores[row] = 1.0;
        }
    }

    fn picked(&self, request: &InferenceRequest, pick: &Pick<'_>, headers: &mut PickHeaders) {
        self.0.picked(request, pick, headers);
    }
}
