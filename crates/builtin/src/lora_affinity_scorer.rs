//! `lora-affinity-scorer`.

use warmroute_plugin::{
    AdapterColumn, AdapterState, BuildContext, BuildError, Candidates, InferenceRequest, NoParameters, Scorer,
};

/// Prefers endpoints that have the request's LoRA adapter in their batch: 1. Where it isn't, endpoints with room for
/// another one get 0.8, those where requests for it wait 0.6, all others 0.
///
/// An endpoint that tells nothing of adapters, or whose metrics aren't fresh, gets 0, as at the peer one without LoRA.
#[derive(Clone, Debug)]
pub struct LoraAffinityScorer {
    adapters: AdapterColumn,
}

impl LoraAffinityScorer {
    pub(crate) fn build(_: NoParameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self { adapters: context.adapters() })
    }
}

impl Scorer for LoraAffinityScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        for (score, adapter) in scores.iter_mut().zip(candidates.adapters(self.adapters)) {
            *score = match adapter {
                AdapterState::Active => 1.0,
                AdapterState::Room => 0.8,
                AdapterState::Waiting => 0.6,
                _ => 0.0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::AdapterState;
    use warmroute_plugin::testing::{CandidatesFixture, Row, scores};

    use crate::built;

    #[test]
    fn a_loaded_adapter_is_better_than_room_and_room_than_a_queue() {
        use AdapterState::{Active, Full, Room, Unknown, Waiting};
        let rows =
            [Unknown, Full, Waiting, Room, Active].map(|adapter| Row::fresh(0, 0, 0.0).adapter(adapter));
        let scorer = built::scorer("lora-affinity-scorer", json!({}));
        assert_eq!(scores(&*scorer, &CandidatesFixture::new(rows)), [0.0, 0.0, 0.6, 0.8, 1.0]);
        let got = built::mistake("lora-affinity-scorer", json!({"weight": 1}));
        assert!(got.contains("unknown field `weight`"), "{got}");
    }
}
