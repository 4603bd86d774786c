//! `topology-affinity-filter`.

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};

use crate::TopologyLevel;

/// Keeps the endpoints that are nearest to the one that an earlier profile picked: those that share the tightest
/// level that anybody shares with it, if that is `least` or tighter. If nobody is that near, or nothing was picked
/// yet, all are kept.
#[derive(Clone, Copy, Debug)]
pub struct TopologyAffinityFilter {
    least: TopologyLevel,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    #[serde(default)]
    min_affinity: TopologyLevel,
    /// Labels are read as they are, so there is nothing to choose from.
    #[serde(default)]
    topology_producer_name: Option<String>,
}

impl TopologyAffinityFilter {
    /// A filter for which `least` is still near.
    pub fn new(least: TopologyLevel) -> Self {
        Self { least }
    }

    pub(crate) fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Self::new(parameters.min_affinity))
    }
}

impl Filter for TopologyAffinityFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        let Some(peer) = candidates.peer() else { return };
        let near = |endpoint| TopologyLevel::shared(peer, endpoint).filter(|level| *level <= self.least);
        let Some(tightest) = candidates.endpoints().filter_map(|endpoint| near(endpoint)).min() else {
            return;
        };
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            *keep = near(endpoint) == Some(tightest);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warmroute_plugin::testing::{CandidatesFixture, Row, kept};
    use warmroute_plugin::{Endpoint, EndpointId};

    use crate::built;

    /// Endpoints on (host, rack, zone), beside a peer on a, r1, z1.
    fn kept_of(parameters: serde_json::Value, places: &[(&str, &str, &str)]) -> Vec<usize> {
        let rows = places.iter().map(|(host, rack, zone)| {
            let row = Row::never_scraped().label("kubernetes.io/hostname", *host);
            let row = row.label("topology.kubernetes.io/rack", *rack);
            row.label("topology.kubernetes.io/zone", *zone)
        });
        let peer = Endpoint::new(EndpointId(9), "peer", "10.9.9.9:1")
            .with_label("kubernetes.io/hostname", "a")
            .with_label("topology.kubernetes.io/rack", "r1")
            .with_label("topology.kubernetes.io/zone", "z1");
        let table = CandidatesFixture::new(rows);
        let filter = built::filter("topology-affinity-filter", parameters);
        assert_eq!(kept(&*filter, &table).len(), places.len(), "nothing was picked yet");
        kept(&*filter, &table.after(peer))
    }

    #[test]
    fn the_nearest_are_kept_if_they_are_near_enough() {
        let spread = [("a", "r1", "z1"), ("b", "r1", "z1"), ("c", "r2", "z1"), ("d", "r3", "z2")];
        assert_eq!(kept_of(json!({}), &spread), [0]);
        assert_eq!(kept_of(json!({"minAffinity": "zone"}), &spread), [0]);
        assert_eq!(kept_of(json!({"minAffinity": "rack"}), &spread[1..]), [0]);
        assert_eq!(kept_of(json!({"minAffinity": "zone"}), &spread[2..]), [0]);
        assert_eq!(kept_of(json!({"minAffinity": "rack"}), &spread[2..]), [0, 1], "nobody is near");
        assert_eq!(kept_of(json!({"minAffinity": "region"}), &spread[3..]), [0], "no label, no place");
        assert_eq!(kept_of(json!({"topologyProducerName": "topology-extractor"}), &spread), [0]);
    }

    #[test]
    fn parameters_are_checked() {
        let got = built::mistake("topology-affinity-filter", json!({"minAffinity": "room"}));
        assert!(
            got.starts_with("minAffinity: unknown variant `room`, expected one of `host`, `rack`"),
            "{got}"
        );
    }
}
