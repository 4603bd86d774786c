use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use warmroute_inference_api::Usage;

use super::record::{Compared, ModelDeliveries};
use super::{Prediction, PredictionBasis};

/// Models that are told apart at one endpoint; later ones are counted as `other`.
const MODELS: usize = 32;
/// What they are counted as.
const OTHER: &str = "other";

/// What one incarnation of an endpoint delivered, per model. Bounded by models × window.
#[derive(Debug, Default)]
pub struct Deliveries {
    models: Mutex<Models>,
    breaks_promises: AtomicBool,
}

#[derive(Debug, Default)]
struct Models {
    by_name: BTreeMap<Box<str>, ModelDeliveries>,
    /// Whether the engine has reported cached tokens at all. vLLM reports only with
    /// `--enable-prompt-tokens-details`, and leaves a zero out (`vllm/entrypoints/openai`), so before this is known an
    /// absent number may be either.
    reports: bool,
}

impl Deliveries {
    /// Counts a finished request. Returns the tokens that the engine served from its cache, if that is known.
    pub fn record(&self, prediction: &Prediction, usage: Option<Usage>) -> Option<u32> {
        let mut models = self.models.lock();
        let reported = usage.and_then(|usage| usage.cached_tokens);
        models.reports |= reported.is_some();
        let zero = (models.reports && usage.is_some()).then_some(0);
        let delivered = reported.or(zero);
        let engine_prompt_tokens = usage.map(|usage| usage.prompt_tokens).filter(|tokens| *tokens > 0);
        let record = models.of(&prediction.model);
        record.add(prediction, Compared::of(prediction, delivered, engine_prompt_tokens));
        if prediction.basis == PredictionBasis::Events {
            let breaks = models.by_name.values().any(ModelDeliveries::breaks_promises);
            self.breaks_promises.store(breaks, Ordering::Relaxed);
        }
        delivered
    }

    /// Whether the engine lastingly delivers less than its own events promise, so that its view deserves less trust.
    pub fn breaks_promises(&self) -> bool {
        self.breaks_promises.load(Ordering::Relaxed)
    }

    /// Whether the engine has reported cached tokens.
    pub fn reports(&self) -> bool {
        self.models.lock().reports
    }

    /// The records, by model name.
    pub fn models(&self) -> BTreeMap<Box<str>, ModelDeliveries> {
        self.models.lock().by_name.clone()
    }
}

impl Models {
    fn of(&mut self, model: &str) -> &mut ModelDeliveries {
        let is_told_apart = self.by_name.len() < MODELS || self.by_name.contains_key(model);
        self.by_name.entry(if is_told_apart { model } else { OTHER }.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cached_tokens: Option<u32>) -> Option<Usage> {
        Some(Usage { prompt_tokens: 100, completion_tokens: 1, cached_tokens })
    }

    fn by_events(model: &str, predicted: u32) -> Prediction {
        Prediction {
            basis: PredictionBasis::Events,
            model: model.into(),
            predicted_tokens: predicted,
            expected_tokens: predicted,
            prompt_tokens: Some(100),
            no_tokens: None,
        }
    }

    #[test]
    fn an_absent_number_is_zero_once_the_engine_has_reported_one() {
        let deliveries = Deliveries::default();
        assert_eq!(deliveries.record(&by_events("m", 16), usage(None)), None);
        assert_eq!(deliveries.record(&by_events("m", 16), usage(Some(16))), Some(16));
        assert_eq!(deliveries.record(&by_events("m", 16), usage(None)), Some(0));
        assert_eq!(deliveries.record(&by_events("m", 16), None), None);
        let totals = deliveries.models()["m"].totals;
        assert_eq!((totals.requests, totals.unreported), (2, 2));
        assert_eq!((totals.predicted_tokens, totals.delivered_tokens, totals.over_tokens), (32, 16, 16));
    }

    #[test]
    fn models_are_bounded() {
        let deliveries = Deliveries::default();
        for model in 0..100 {
            deliveries.record(&by_events(&format!("m{model}"), 0), usage(Some(0)));
        }
        let models = deliveries.models();
        assert_eq!(models.len(), MODELS + 1);
        assert_eq!(models[OTHER].totals.requests, 100 - MODELS as u64);
    }

    #[test]
    fn promises_are_broken_by_a_lasting_lack_alone() {
        let deliveries = Deliveries::default();
        let ask = |times: usize, delivered| {
            for _ in 0..times {
                deliveries.record(&by_events("m", 64), usage(Some(delivered)));
            }
        };
        ask(19, 0);
        assert!(!deliveries.breaks_promises(), "too few to tell");
        ask(1, 0);
        assert!(deliveries.breaks_promises());
        ask(60, 64);
        assert!(!deliveries.breaks_promises(), "most are kept again");
        ask(200, 96);
        assert!(!deliveries.breaks_promises(), "more is no lack");
    }
}
