use prometheus::{Error, IntCounterVec};

use super::bounded_names::BoundedNames;
use super::maker::Maker;

/// Most InferenceModelRewrites told apart; later ones are `other`.
const NAMES: usize = 256;

/// Metrics of rules that ask for another model.
#[derive(Debug)]
pub struct RewriteMetrics {
    decisions: IntCounterVec,
    names: BoundedNames,
}

impl RewriteMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        let decisions = make.counters(
            "llm_d_epp_model_rewrite_decisions_total",
            "Requests whose model was replaced by an InferenceModelRewrite.",
            &["model_rewrite_name", "model_name", "target_model"],
        )?;
        Ok(Self { decisions, names: BoundedNames::new(NAMES) })
    }

    /// Counts a request: the rule's name, the label of the client's model and of the one that the engine is asked for.
    pub fn count(&self, rewrite: &str, [model, target]: [&str; 2]) {
        self.decisions.with_label_values(&[self.names.label(rewrite), model, target]).inc();
    }
}
