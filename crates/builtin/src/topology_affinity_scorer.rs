//! `topology-affinity-scorer`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Scorer};

use crate::TopologyLevel;

/// Prefers endpoints near the one that an earlier profile picked: 1 on the same host, 0.2 in the same rack, 0.05 in
/// the same zone, 0.02 in the same region, else 0. If nothing was picked yet all get 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopologyAffinityScorer;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    /// Labels are read as they are, so there is nothing to choose from.
    #[serde(default)]
    topology_producer_name: Option<String>,
}

impl TopologyAffinityScorer {
    pub(crate) fn build(_: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self)
    }
}

fn score_of(level: TopologyLevel) -> f64 {
    match level {
        TopologyLevel::Host => 1.0,
        TopologyLevel::Rack => 0.2,
        TopologyLevel::Zone => 0.05,
        TopologyLevel::Region => 0.02,
    }
}

impl Scorer for TopologyAffinityScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let Some(peer) = candidates.peer() else { return };
        for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
            *score = TopologyLevel::shared(peer, endpoint).map_or(0.0, score_of);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, request};
    use warmroute_plugin::{Endpoint, EndpointId};

    use crate::{TopologyLevel, built};

    #[test]
    fn nearer_is_better() {
        let labels = TopologyLevel::ALL.map(TopologyLevel::label);
        let peer = labels.iter().fold(Endpoint::new(EndpointId(9), "peer", "10.9.9.9:1"), |peer, label| {
            peer.with_label(*label, "here")
        });
        // Row n shares level n and what is wider; the last but one shares nothing, the last one has no labels.
        let row = |shared_from: usize| {
            let place = |at: usize| if at >= shared_from { "here" } else { "there" };
            labels
                .iter()
                .enumerate()
                .fold(Row::never_scraped(), |row, (at, label)| row.label(*label, place(at)))
        };
        let table = CandidatesFixture::new((0..=4).map(row).chain([Row::never_scraped()]));
        let scorer = built::scorer("topology-affinity-scorer", json!({"topologyProducerName": "t"}));
        assert_eq!(built::scores(&*scorer, &request(), &table), [0.0; 6]);
        let after = built::scores(&*scorer, &request(), &table.after(peer));
        assert_eq!(after, [1.0, 0.2, 0.05, 0.02, 0.0, 0.0]);
    }
}
