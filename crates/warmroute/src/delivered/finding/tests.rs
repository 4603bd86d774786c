use super::*;
use crate::delivered::{Compared, ModelDeliveries, Prediction, PredictionBasis};

/// Some requests of a model: predicted, delivered.
fn model(name: &str, basis: PredictionBasis, requests: &[(u32, u32)]) -> ModelFacts {
    let mut deliveries = ModelDeliveries::default();
    for (predicted, delivered) in requests.iter().copied() {
        let prediction = Prediction {
            basis,
            predicted_tokens: predicted,
            prompt_tokens: Some(100),
            no_tokens: Some(Fallback::NoTokenizer),
            ..Prediction::default()
        };
        deliveries.add(&prediction, Compared::of(&prediction, Some(delivered), Some(100)));
    }
    ModelFacts { name: name.to_owned(), is_adapter: false, window: deliveries.window() }
}

fn by_events(name: &str, requests: &[(u32, u32)]) -> ModelFacts {
    model(name, PredictionBasis::Events, requests)
}

/// A healthy engine that delivered this.
fn engine(models: Vec<ModelFacts>) -> EngineFacts {
    EngineFacts {
        endpoint: "10.0.0.1:8000".to_owned(),
        follows_events: true,
        is_connected: true,
        is_seen: true,
        trust: Trust::Exact,
        trust_reason: TrustReason::FollowedFromStart,
        events_block_tokens: 16,
        metrics_block_tokens: 16,
        models,
        ..EngineFacts::default()
    }
}

fn causes(engine: EngineFacts) -> Vec<Cause> {
    findings(&[engine]).into_iter().map(|finding| finding.cause).collect()
}

const RIGHT: [(u32, u32); 40] = [(96, 96); 40];
const MORE: [(u32, u32); 40] = [(0, 96); 40];
const LESS: [(u32, u32); 40] = [(96, 0); 40];

#[test]
fn a_healthy_engine_has_no_findings_whatever_else_is_known() {
    for found in [
        engine(vec![by_events("m", &RIGHT)]),
        engine(vec![by_events("m", &[(0, 0); 100])]),
        engine(vec![by_events("m", &[(96, 0); 19])]),
        EngineFacts { missed_batches: 1, trust: Trust::Doubtful, ..engine(vec![by_events("m", &RIGHT)]) },
        EngineFacts { metrics_block_tokens: 32, ..engine(vec![by_events("m", &RIGHT)]) },
        EngineFacts { is_seen: false, ..engine(vec![by_events("m", &RIGHT)]) },
        engine(vec![]),
    ] {
        assert_eq!(causes(found), []);
    }
}

#[test]
fn each_difference_has_its_cause() {
    use PredictionBasis::{NoTokens, Sent, Unseen};
    let partly: Vec<_> = [(96, 96), (32, 96), (0, 96)].into_iter().cycle().take(60).collect();
    let offload: Vec<_> =
        [(96, 96), (32, 96), (96, 96), (0, 96), (0, 96)].into_iter().cycle().take(60).collect();
    let partial = |trust_reason, requests: &[_]| EngineFacts {
        trust: Trust::Partial,
        trust_reason,
        ..engine(vec![by_events("m", requests)])
    };
    let adapter = |requests| ModelFacts { is_adapter: true, ..by_events("lora", requests) };
    for (at, (found, cause)) in [
        (engine(vec![by_events("m", &MORE)]), Cause::TokensDiffer),
        (engine(vec![by_events("m", &LESS)]), Cause::TokensDiffer),
        (engine(vec![by_events("m", &[(96, 48); 40])]), Cause::BlocksGone),
        (engine(vec![by_events("m", &RIGHT), by_events("lora", &MORE)]), Cause::Adapter),
        (engine(vec![adapter(&LESS)]), Cause::Adapter),
        (EngineFacts { missed_batches: 3, ..engine(vec![by_events("m", &MORE)]) }, Cause::EventsLost),
        (EngineFacts { missed_batches: 3, ..engine(vec![by_events("m", &LESS)]) }, Cause::EventsLost),
        (EngineFacts { trust: Trust::Doubtful, ..engine(vec![by_events("m", &MORE)]) }, Cause::EventsLost),
        (partial(TrustReason::JoinedLate, &partly), Cause::EventsLost),
        (partial(TrustReason::OtherTiers, &partly), Cause::OtherTiers),
        (EngineFacts { metrics_block_tokens: 64, ..engine(vec![by_events("m", &MORE)]) }, Cause::BlockSize),
        (partial(TrustReason::JoinedLate, &MORE), Cause::TokensDiffer),
        (engine(vec![by_events("m", &partly)]), Cause::OtherTiers),
        (engine(vec![by_events("m", &offload)]), Cause::OtherTiers),
        (
            EngineFacts { has_unsupported_groups: true, ..engine(vec![by_events("m", &LESS)]) },
            Cause::HybridGroups,
        ),
        (EngineFacts { is_seen: false, ..engine(vec![model("m", Unseen, &MORE)]) }, Cause::EventsNotSeen),
        (
            EngineFacts {
                is_seen: false,
                has_unsupported_groups: true,
                ..engine(vec![model("m", Unseen, &MORE)])
            },
            Cause::HybridGroups,
        ),
        (engine(vec![model("m", NoTokens, &MORE)]), Cause::NoExactTokens),
        (engine(vec![model("m", Sent, &LESS)]), Cause::SentNotDelivered),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(causes(found), [cause], "case {at}");
    }
}

#[test]
fn equal_findings_of_many_engines_are_one() {
    let engines = [1, 2, 3].map(|at| EngineFacts {
        endpoint: format!("10.0.0.{at}:8000"),
        ..engine(vec![by_events("m", if at == 2 { &RIGHT } else { &MORE })])
    });
    let found = findings(&engines);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].endpoints, ["10.0.0.1:8000", "10.0.0.3:8000"]);
    assert_eq!(found[0].seen, "7680 cached tokens delivered and 0 predicted in 80 requests");
}

#[test]
fn other_lengths_are_other_tokens_whatever_is_delivered() {
    let mut deliveries = ModelDeliveries::default();
    for at in 0..30 {
        let prediction =
            Prediction { basis: PredictionBasis::Unseen, prompt_tokens: Some(100), ..Prediction::default() };
        deliveries.add(&prediction, Compared::of(&prediction, None, Some(100 + 7 * (at % 3))));
    }
    let model = ModelFacts { name: "m".to_owned(), is_adapter: false, window: deliveries.window() };
    let found = findings(&[engine(vec![model])]);
    assert_eq!(found[0].cause, Cause::TokensDiffer);
    assert_eq!(
        found[0].seen,
        "20 of 30 prompts have another length in the engine, the newest 114 tokens instead of 100"
    );
}

#[test]
fn causes_are_spelt_the_same_everywhere() {
    for cause in Cause::ALL {
        assert_eq!(serde_json::to_string(&cause).unwrap(), format!("{:?}", cause.as_str()));
    }
}
