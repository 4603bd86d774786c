use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use warmroute_inference_api::Usage;

use super::counter_ledger::{CounterInterval, CounterLedger};
use super::record::{Compared, ModelDeliveries};
use super::{CounterVerdict, LossAccount, Prediction, PredictionBasis, PrefixCounters};

/// Models that are told apart at one endpoint; later ones are counted as `other`.
const MODELS: usize = 32;
/// What they are counted as.
const OTHER: &str = "other";

/// What one incarnation of an endpoint delivered, per model. Bounded by models × window.
#[derive(Debug, Default)]
pub struct Deliveries {
    models: Mutex<Models>,
    /// Whether promises of any model are broken.
    breaks_any: AtomicBool,
    ledger: Mutex<CounterLedger>,
    /// The pool's.
    loss: Arc<LossAccount>,
}

#[derive(Debug, Default)]
struct Models {
    by_name: BTreeMap<Box<str>, ModelDeliveries>,
    /// Whether the engine has reported cached tokens at all. vLLM reports only with
    /// `--enable-prompt-tokens-details`, and leaves a zero out (`vllm/entrypoints/openai`), so before this is known an
    /// absent number may be either.
    reports: bool,
    /// The engine's view that the newest requests were predicted by.
    generation: u64,
}

impl Deliveries {
    /// Deliveries that count in the pool's account of losses.
    pub fn new(loss: Arc<LossAccount>) -> Self {
        Self { loss, ..Self::default() }
    }

    /// A request is on its way to the endpoint.
    pub(super) fn picked(&self, prediction: &Prediction) {
        self.ledger.lock().picked(prediction);
    }

    /// It is over, however it ended.
    pub(super) fn ended(&self, prediction: &Prediction) {
        self.ledger.lock().ended(prediction);
    }

    /// Counts a finished request whose answer passed unseen.
    pub(super) fn record_hidden(&self, prediction: &Prediction) {
        let mut models = self.models.lock();
        if models.is_of_this_view(prediction.generation) {
            models.of(&prediction.model).add_hidden(prediction);
        }
    }

    /// The engine's counters were read. They tell what was delivered as long as answers don't.
    pub fn read_counters(&self, counters: PrefixCounters) {
        let Some(interval) = self.ledger.lock().read(counters) else { return };
        let mut models = self.models.lock();
        if models.reports || !models.is_of_this_view(interval.generation) {
            return;
        }
        models.of(&interval.model).add_interval(&interval);
        self.breaks_any.store(models.breaks_any(), Ordering::Relaxed);
        drop(models);
        if interval.basis == PredictionBasis::Events {
            let CounterInterval { promised_tokens, delivered_tokens, .. } = interval;
            self.loss.delivered(Instant::now(), promised_tokens, delivered_tokens);
        }
    }

    /// Requests by what came of reading the engine's counters between which they ended.
    pub fn counter_verdicts(&self) -> [(CounterVerdict, u64); CounterVerdict::ALL.len()] {
        self.ledger.lock().verdicts()
    }

    /// Counts a finished request. Returns the tokens that the engine served from its cache, if that is known.
    pub fn record(&self, prediction: &Prediction, usage: Option<Usage>) -> Option<u32> {
        let mut models = self.models.lock();
        let reported = usage.and_then(|usage| usage.cached_tokens);
        models.reports |= reported.is_some();
        let zero = (models.reports && usage.is_some()).then_some(0);
        let delivered = reported.or(zero);
        let engine_prompt_tokens = usage.map(|usage| usage.prompt_tokens).filter(|tokens| *tokens > 0);
        if models.is_of_this_view(prediction.generation) {
            let compared = Compared::of(prediction, delivered, engine_prompt_tokens);
            models.of(&prediction.model).add(prediction, compared);
            self.breaks_any.store(models.breaks_any(), Ordering::Relaxed);
        }
        drop(models);
        if let Some((promised, delivered)) = prediction.promised_tokens.zip(delivered) {
            self.loss.delivered(Instant::now(), promised.into(), delivered.into());
        }
        delivered
    }

    /// Whether the engine lastingly delivers less than its own events promise, whatever the model, so that its view
    /// deserves less trust. If only some models are off while others are right, the view is right and what is asked of
    /// it isn't: see [`Deliveries::breaks_promises_of`].
    pub fn breaks_promises(&self) -> bool {
        self.breaks_any.load(Ordering::Relaxed) && {
            let models = self.models.lock();
            models.by_name.values().all(|model| model.breaks_promises() || !model.promises_tell())
        }
    }

    /// Whether no promise is broken of any model.
    pub fn is_kept(&self) -> bool {
        !self.breaks_any.load(Ordering::Relaxed)
    }

    /// Whether it does so for requests of this model or adapter. Costs nothing where no promise is broken.
    pub fn breaks_promises_of(&self, model: &str) -> bool {
        self.breaks_any.load(Ordering::Relaxed)
            && self.models.lock().by_name.get(model).is_some_and(ModelDeliveries::breaks_promises)
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
    /// Whether a prediction rests on the view that the engine has now, as far as requests have told; a first one of a
    /// newer view ends what was learnt of the one before.
    fn is_of_this_view(&mut self, generation: u64) -> bool {
        if generation > self.generation {
            self.generation = generation;
            self.by_name.values_mut().for_each(ModelDeliveries::forget_newest);
        }
        generation == self.generation
    }

    fn breaks_any(&self) -> bool {
        self.by_name.values().any(ModelDeliveries::breaks_promises)
    }

    fn of(&mut self, model: &str) -> &mut ModelDeliveries {
        let is_told_apart = self.by_name.len() < MODELS || self.by_name.contains_key(model);
        self.by_name.entry(if is_told_apart { model } else { OTHER }.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivered::PredictionBasis;

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
            ..Prediction::default()
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

    #[test]
    fn a_doubt_stays_until_most_promises_are_kept_and_does_not_flap() {
        let deliveries = Deliveries::default();
        let (mut changes, mut doubted) = (0, false);
        let mut ask = |delivered| {
            deliveries.record(&by_events("m", 64), usage(Some(delivered)));
            changes += usize::from(deliveries.breaks_promises() != doubted);
            doubted = deliveries.breaks_promises();
            (changes, doubted)
        };
        // About half of the promises are kept: it begins to be doubted once, and stays so.
        let last = (0..1000).map(|at| ask(if at % 2 == 0 { 0 } else { 64 })).last();
        assert_eq!(last, Some((1, true)));
        // A third are broken: not yet good enough.
        let last = (0..1000).map(|at| ask(if at % 3 == 0 { 0 } else { 64 })).last();
        assert_eq!(last, Some((1, true)));
        let last = (0..1000).map(|at| ask(if at % 8 == 0 { 0 } else { 64 })).last();
        assert_eq!(last, Some((2, false)));
    }

    #[test]
    fn a_model_that_is_off_alone_is_doubted_alone() {
        let deliveries = Deliveries::default();
        for _ in 0..30 {
            deliveries.record(&by_events("base", 64), usage(Some(64)));
            deliveries.record(&by_events("tuned", 64), usage(Some(0)));
        }
        assert!(deliveries.breaks_promises_of("tuned") && !deliveries.breaks_promises_of("base"));
        assert!(!deliveries.breaks_promises(), "the view is right");
        for _ in 0..200 {
            deliveries.record(&by_events("base", 64), usage(Some(0)));
        }
        assert!(deliveries.breaks_promises());
    }

    #[test]
    fn what_was_found_of_an_earlier_view_says_nothing_of_the_next() {
        let deliveries = Deliveries::default();
        let of_view = |generation| Prediction { generation, ..by_events("m", 64) };
        for _ in 0..30 {
            deliveries.record(&of_view(0), usage(Some(0)));
        }
        assert!(deliveries.breaks_promises());
        deliveries.record(&of_view(1), usage(Some(64)));
        assert!(!deliveries.breaks_promises());
        // Requests that began before the engine did.
        for _ in 0..30 {
            deliveries.record(&of_view(0), usage(Some(0)));
        }
        assert_eq!(deliveries.models()["m"].window().requests, 1);
    }
}
