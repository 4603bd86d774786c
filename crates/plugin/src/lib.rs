//! The contract between the endpoint picker and its plugins.
//!
//! A plugin is a [`Filter`], a [`Scorer`] or a [`Picker`]. It is written against this crate alone,
//! registered by name in a [`Registry`], and built from its parameters in the configuration. On the
//! request path it sees the [`InferenceRequest`] and a borrowed table of [`Candidates`]; it is
//! synchronous, can't fail, and works on all rows of the table in one call.
//!
//! The signals in the table are the host's: metrics with their age ([`MetricsState`]), our own
//! in-flight counts ([`InFlight`]), and columns that are there only if somebody asked for them while being built:
//! prefix matches ([`PrefixMatch`]) per named producer ([`BuildContext::prefix_match`]), numeric attributes
//! ([`BuildContext::attribute`]), and where an engine stands with a LoRA adapter ([`BuildContext::adapters`]).

mod build;
mod candidates;
mod contract;
mod endpoint;
mod fallback_counter;
mod parameters;
mod registry;
mod request;
mod shared_states;
pub mod testing;

pub use build::{BuildContext, BuildError, Needs, Plugin, PluginKind, Task};
pub use candidates::{
    AdapterColumn, AttributeColumn, Candidates, CandidatesBuilder, ColumnMismatch, Pick, PickHeaders,
    PrefixColumn,
};
pub use contract::{Filter, Picker, Scorer};
pub use endpoint::{
    AdapterState, Endpoint, EndpointId, EndpointMetrics, InFlight, MetricsState, PrefixMatch,
};
pub use fallback_counter::{FallbackCounter, PluginFallback};
pub use parameters::{NoParameters, Parameter};
pub use registry::{DuplicateType, PluginType, Registry};
pub use request::InferenceRequest;
pub use shared_states::SharedStates;
