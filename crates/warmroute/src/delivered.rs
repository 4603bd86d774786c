//! Predicted against delivered: what a picked engine was predicted to serve from its cache, beside what it says that
//! it did.
//!
//! Every finished request with a prediction and a reported usage counts in the [`Deliveries`] of its endpoint, per
//! model. From these and what is known of the engine [`findings`] says what is wrong, and [`Diagnosis`] tells it once
//! per change. Nothing of it needs, or keeps, request text.

mod comparison;
mod deliveries;
mod diagnosis;
mod finding;
mod record;

pub use comparison::{Comparison, Prediction, PredictionBasis};
pub use deliveries::Deliveries;
pub use diagnosis::{DIAGNOSIS_INTERVAL, Diagnosis};
pub use finding::{Cause, EngineFacts, Finding, ModelFacts, findings};
pub use record::{
    BIAS_LIMIT, BIAS_REQUESTS, Compared, DeliveryTotals, ModelDeliveries, OTHER_LENGTHS, Telling,
    WINDOW_REQUESTS, Window,
};
