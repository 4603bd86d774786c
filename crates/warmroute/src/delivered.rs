//! Predicted against delivered: what a picked engine was predicted to serve from its cache, beside what it says that
//! it did.
//!
//! Every finished request with a prediction and a reported usage counts in the [`Deliveries`] of its endpoint, per
//! model; where answers don't show their usage, the engine's own counters are compared between two readings. From these
//! and what is known of the engine [`findings`] says what is wrong, and [`Diagnosis`] tells it once per change, and
//! trusts a view less whose promises are lastingly broken. The [`LossAccount`] of a pool says where on the way from
//! what the workload allows to what is delivered cached tokens are lost. Nothing of it needs, or keeps, request text.

mod comparison;
mod counter_ledger;
mod deliveries;
mod diagnosis;
mod finding;
mod loss_account;
mod record;
mod seen_blocks;

pub use comparison::{Comparison, Prediction, PredictionBasis};
pub use counter_ledger::{CounterVerdict, PrefixCounters};
pub use deliveries::Deliveries;
pub use diagnosis::{DIAGNOSIS_INTERVAL, Diagnosis};
pub use finding::{Cause, EngineFacts, Finding, ModelFacts, findings};
pub use loss_account::{LossAccount, LossReport, LossSums, PrefixReach};
pub use record::{
    BIAS_LIMIT, BIAS_REQUESTS, Compared, DeliveryTotals, KEPT_AGAIN_SHARE, ModelDeliveries, OTHER_LENGTHS,
    Telling, WINDOW_REQUESTS, Window,
};
