use std::sync::{Arc, Weak};

use warmroute_inference_api::Usage;

use super::Deliveries;
use crate::receipt::{Fallback, Receipt};

/// What a prediction rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PredictionBasis {
    /// There is nothing to compare: no prefix was asked for, or what the engine reports covers something else.
    #[default]
    Nothing,
    /// The picked engine's events.
    Events,
    /// What was sent to the endpoint, as the policy wants it.
    Sent,
    /// The engine's events are wanted and what it holds isn't seen; what was sent may stand in for it.
    Unseen,
    /// Exact matches are wanted and the prompt's exact tokens aren't known.
    NoTokens,
}

/// What was predicted of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// What it rests on.
    pub basis: PredictionBasis,
    /// The model's name as a label value: the number of names is bounded.
    pub model: Box<str>,
    /// Prompt tokens from the cache by what the engine is known to hold.
    pub predicted_tokens: u32,
    /// The same with what it is expected to hold soon because of requests that are under way there; at least as many, and
    /// as many as can be where more of the prompt may be cached than is foreseen.
    pub expected_tokens: u32,
    /// Exact tokens of the prompt; None if they aren't known.
    pub prompt_tokens: Option<u32>,
    /// Why the exact tokens aren't known, if they should be.
    pub no_tokens: Option<Fallback>,
    /// Which of the engine's views it rests on ([`EngineState::generation`](crate::engine_events::EngineState::generation)).
    pub generation: u64,
    /// Tokens that count as promised in the [`LossAccount`](super::LossAccount); None if the request isn't in it.
    pub promised_tokens: Option<u32>,
}

/// Waits for the end of a request, to lay what was delivered beside what was predicted. While it lives the request
/// counts as under way.
#[derive(Debug)]
pub struct Comparison {
    prediction: Prediction,
    deliveries: Arc<Deliveries>,
    /// Not held: a receipt is kept as long as the ring keeps it.
    receipt: Weak<Receipt>,
}

impl Comparison {
    /// Of a prediction at an endpoint, to be noted in the receipt too.
    pub fn of(prediction: Prediction, deliveries: Arc<Deliveries>, receipt: Weak<Receipt>) -> Box<Self> {
        deliveries.picked(&prediction);
        Box::new(Self { prediction, deliveries, receipt })
    }

    /// The answer is complete and this is the usage that it tells, if any.
    pub fn delivered(&self, usage: Option<Usage>) {
        if self.prediction.basis == PredictionBasis::Nothing {
            return;
        }
        let delivered = self.deliveries.record(&self.prediction, usage);
        let Some(receipt) = self.receipt.upgrade() else { return };
        if let Some(tokens) = delivered {
            receipt.delivered_cached_tokens.set(tokens);
        }
        if let Some(tokens) = usage.map(|usage| usage.prompt_tokens).filter(|tokens| *tokens > 0) {
            receipt.engine_prompt_tokens.set(tokens);
        }
    }

    /// The answer is over, and its body was hidden.
    pub fn hidden(&self) {
        if self.prediction.basis != PredictionBasis::Nothing {
            self.deliveries.record_hidden(&self.prediction);
        }
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        self.deliveries.ended(&self.prediction);
    }
}
