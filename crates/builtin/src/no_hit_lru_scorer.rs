//! `no-hit-lru-scorer`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, EndpointId, InferenceRequest, Pick, PickHeaders, PrefixColumn,
    Scorer,
};

use crate::producers;

/// Spreads cold requests, whose prompt no endpoint holds, so that caches grow evenly: the endpoint that got
/// none, or none for the longest time, gets 1, the one that got the last 0, the others steps between. A warm
/// request gives every endpoint 0.5. The order outlives a change of the configuration.
///
/// Endpoints that never got a cold request come in the order of the rows. A request of unknown prompt is
/// cold. What counts is what this scorer's own profile picked.
///
/// Only candidates have a place in the order. At the peer, endpoints that it remembers and that are gone or
/// filtered out have one too, so that long-lived pickers run out of scores above 0.
#[derive(Debug)]
pub struct NoHitLruScorer {
    column: PrefixColumn,
    size: usize,
    uses: Arc<Mutex<Uses>>,
}

const DEFAULT_SIZE: usize = 1024;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How many endpoints to remember; 0 and less count as the default, as at the peer.
    lru_size: i64,
    prefix_match_info_producer_name: String,
    /// Deprecated at the peer and ignored there.
    #[serde(skip_serializing)]
    prefix_plugin_type: serde::de::IgnoredAny,
    #[serde(skip_serializing)]
    prefix_plugin_name: serde::de::IgnoredAny,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            lru_size: DEFAULT_SIZE as i64,
            prefix_match_info_producer_name: producers::default_prefix(),
            prefix_plugin_type: serde::de::IgnoredAny,
            prefix_plugin_name: serde::de::IgnoredAny,
        }
    }
}

/// Who got a cold request when.
#[derive(Debug, Default)]
struct Uses {
    /// Number of the last cold request that an endpoint got; the first is 1.
    last: HashMap<EndpointId, u64>,
    cold_requests: u64,
    /// Use and row of every candidate; kept between requests, so that one doesn't allocate.
    order: Vec<(u64, u32)>,
}

impl Uses {
    fn note(&mut self, endpoint: EndpointId, size: usize) {
        self.cold_requests += 1;
        let is_known = self.last.contains_key(&endpoint);
        // More than one place too many if an earlier configuration had more of them.
        while !is_known
            && self.last.len() >= size
            && let Some(oldest) = self.last.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)
        {
            self.last.remove(&oldest);
        }
        self.last.insert(endpoint, self.cold_requests);
    }

    /// The rows, from never used to last used.
    fn order(&mut self, candidates: &Candidates<'_>) -> &[(u64, u32)] {
        let Self { last, order, .. } = self;
        let used = |id: &EndpointId| last.get(id).copied().unwrap_or(0);
        order.clear();
        order.extend(candidates.endpoints().map(|endpoint| used(&endpoint.id)).zip(0u32..));
        order.sort_unstable();
        order
    }
}

impl NoHitLruScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let column = producers::prefix_column(&parameters.prefix_match_info_producer_name, context)?;
        let size = usize::try_from(parameters.lru_size).ok().filter(|size| *size > 0).unwrap_or(DEFAULT_SIZE);
        let uses = context.shared("", Mutex::default);
        Ok(Self { column, size, uses })
    }

    fn is_cold(&self, candidates: &Candidates<'_>) -> bool {
        candidates.prefix_match(self.column).iter().all(|matched| matched.matched_blocks == 0)
    }
}

impl Scorer for NoHitLruScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        if !self.is_cold(candidates) {
            scores.fill(0.5);
            return;
        }
        let last_place = candidates.len().saturating_sub(1).max(1) as f64;
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, &(_, row)) in uses.order(candidates).iter().enumerate() {
            scores[row as usize] = 1.0 - place as f64 / last_place;
        }
    }

    fn picked(&self, _: &InferenceRequest, pick: &Pick<'_>, _: &mut PickHeaders) {
        if self.is_cold(pick.candidates()) {
            let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            uses.note(pick.endpoint().id, self.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prop_assert, prop_assert_eq, proptest};
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, request, scores};
    use warmroute_plugin::{InFlight, MetricsState, Needs, Plugin, PrefixMatch};

    use super::*;
    use crate::built;

    fn table(matched: &[u32]) -> CandidatesFixture {
        CandidatesFixture::new(matched.iter().map(|&blocks| Row::never_scraped().prefix_match(blocks, 4, 16)))
    }

    fn pick(scorer: &dyn Scorer, table: &CandidatesFixture, row: u32) {
        let order = [row];
        let pick = Pick::try_new("default", table.candidates(), &order).unwrap();
        scorer.picked(&request(), &pick, &mut PickHeaders::default());
    }

    fn scorer(parameters: Value) -> Arc<dyn Scorer> {
        built::scorer("no-hit-lru-scorer", parameters)
    }

    #[test]
    fn endpoints_without_a_cold_request_come_first_and_the_last_used_one_last() {
        let (scorer, cold) = (scorer(json!({})), table(&[0; 5]));
        assert_eq!(scores(&*scorer, &cold), [1.0, 0.75, 0.5, 0.25, 0.0]);
        pick(&*scorer, &cold, 0);
        assert_eq!(scores(&*scorer, &cold), [0.0, 1.0, 0.75, 0.5, 0.25]);
        pick(&*scorer, &cold, 3);
        assert_eq!(scores(&*scorer, &cold), [0.25, 1.0, 0.75, 0.0, 0.5]);
        pick(&*scorer, &cold, 0);
        assert_eq!(scores(&*scorer, &cold), [0.0, 1.0, 0.75, 0.25, 0.5]);
    }

    #[test]
    fn warm_requests_are_neutral_and_not_remembered() {
        let (scorer, warm) = (scorer(json!({})), table(&[0, 1, 0]));
        assert_eq!(scores(&*scorer, &warm), [0.5; 3]);
        pick(&*scorer, &warm, 0);
        assert_eq!(scores(&*scorer, &table(&[0; 3])), [1.0, 0.5, 0.0]);
    }

    #[test]
    fn one_row_gets_1_and_no_row_nothing() {
        let scorer = scorer(json!({}));
        pick(&*scorer, &table(&[0]), 0);
        assert_eq!(scores(&*scorer, &table(&[0])), [1.0]);
        assert_eq!(scores(&*scorer, &table(&[])), [0.0; 0]);
    }

    #[test]
    fn a_table_without_the_column_is_cold() {
        let (scorer, table) = (scorer(json!({})), CandidatesFixture::new([Row::default(), Row::default()]));
        pick(&*scorer, &table, 0);
        assert_eq!(scores(&*scorer, &table), [0.0, 1.0]);
    }

    #[test]
    fn endpoints_are_told_apart_by_id_and_only_candidates_have_a_place() {
        let endpoint = |id| Arc::new(warmroute_plugin::Endpoint::new(EndpointId(id), "same", "10.0.0.1:80"));
        let endpoints = [endpoint(7), endpoint(8), endpoint(9)];
        let scorer = scorer(json!({}));
        let of = |rows: &[u32], picked: Option<u32>| {
            let (metrics, in_flight) =
                (vec![MetricsState::NeverScraped; rows.len()], vec![InFlight::default(); rows.len()]);
            let prefix = vec![PrefixMatch::default(); rows.len()];
            let table = Candidates::builder(&endpoints).rows(rows).metrics(&metrics).in_flight(&in_flight);
            let table = table.prefix_matches(&prefix).build().unwrap();
            if let Some(row) = picked {
                let order = [row];
                let pick = Pick::try_new("default", table, &order).unwrap();
                scorer.picked(&request(), &pick, &mut PickHeaders::default());
            }
            let mut scores = vec![0.0; rows.len()];
            scorer.score(&request(), &table, &mut scores);
            scores
        };
        assert_eq!(of(&[0, 1, 2], Some(0)), [0.0, 1.0, 0.5]);
        assert_eq!(of(&[1, 0], Some(0)), [0.0, 1.0]);
        // 9 wasn't used, 7 before 8; and without 7 there is no gap.
        assert_eq!(of(&[2, 1, 0], None), [1.0, 0.0, 0.5]);
        assert_eq!(of(&[1, 2], None), [0.0, 1.0]);
    }

    #[test]
    fn at_most_lru_size_endpoints_are_remembered() {
        let (scorer, cold) = (scorer(json!({"lruSize": 2})), table(&[0; 3]));
        for row in [0, 1, 0, 2] {
            pick(&*scorer, &cold, row);
        }
        // 1 was used before 0 and 2, so it is forgotten, and counts as never used.
        assert_eq!(scores(&*scorer, &cold), [0.5, 1.0, 0.0]);
    }

    #[test]
    fn parameters_are_as_at_the_peer() {
        let old = json!({"prefixPluginType": "prefix-cache-scorer", "prefixPluginName": "x", "lruSize": -1});
        assert_eq!(built::mistake("no-hit-lru-scorer", old), "");
        let mut needs = Needs::default();
        for parameters in [json!({}), json!({"prefixMatchInfoProducerName": "exact"})] {
            let mut context = BuildContext::new("lru", &mut needs);
            let plugin = built::registry().build("no-hit-lru-scorer", parameters, &mut context).unwrap();
            assert!(matches!(plugin, Plugin::Scorer(_)));
        }
        assert_eq!(needs.prefix_producers(), ["approx-prefix-cache-producer", "exact"]);
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_list_that_moves_what_is_used_to_its_end(
            picks in collection::vec(0..6u32, 0..60), size in 1..8usize,
        ) {
            let (scorer, cold) = (scorer(json!({"lruSize": size})), table(&[0; 6]));
            let mut list: Vec<u32> = Vec::new();
            for row in picks {
                list.retain(|other| *other != row);
                list.push(row);
                if list.len() > size {
                    list.remove(0);
                }
                pick(&*scorer, &cold, row);
            }
            let never = (0..6).filter(|row| !list.contains(row));
            let order: Vec<u32> = never.chain(list.iter().copied()).collect();
            let scores = scores(&*scorer, &cold);
            let mut by_score: Vec<u32> = (0..6).collect();
            by_score.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
            prop_assert_eq!(by_score, order);
            prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
        }
    }
}
