//! The contract between Warmroute and its plugins: everything that a crate with plugins needs.
//!
//! Warmroute picks an endpoint for every inference request. A *scheduling profile* in its configuration says how: filters
//! take endpoints out, scorers say how good each of the rest is, the weighted sum of the scores is an endpoint's total,
//! and a picker chooses by the totals. A plugin is a [`Filter`], a [`Scorer`] or a [`Picker`].
//!
//! # What a plugin sees
//!
//! - The [`InferenceRequest`]: model, headers, length of the prompt, priority. Not the prompt.
//! - The [`Candidates`], a borrowed table with a row per endpoint. A column is a slice with a value per row: metrics with
//!   their age ([`MetricsState`]), what this picker has in flight ([`InFlight`]), and those that somebody asked for while
//!   being built: how much of the prompt an engine holds ([`BuildContext::prefix_match`]), numeric attributes
//!   ([`BuildContext::attribute`]), where it stands with a LoRA adapter ([`BuildContext::adapters`]).
//! - The [`Pick`], once the request was given to an endpoint, where a plugin may set headers
//!   ([`PickHeaders`]).
//!
//! Filters see the rows that the filters before them left; scorers and the picker see those that all filters left.
//!
//! # Rules
//!
//! - **A plugin doesn't wait.** Plugins run on the request path, one request at a time per pool. They read memory; what
//!   comes from afar is kept fresh by a task ([`BuildContext::spawn`]). They allocate nothing per row.
//! - **It doesn't fail.** What makes no sense is refused while a plugin is built ([`BuildError`]). On the request path
//!   there is always an answer; one that is poorer than configured is counted ([`FallbackCounter`]), which receipts and
//!   metrics show. A panic is a mistake: the request is then picked by load alone.
//! - **A score is from 0 to 1,** higher is better. Others are cut off; NaN counts as 0 and is reported.
//! - **No data is neither idle nor full.** Metrics may be missing or too old; each plugin says what it makes of that.
//! - **What is remembered is bounded,** and remembered by [`EndpointId`], which is never given to another endpoint.
//!
//! # Life of a plugin
//!
//! 1. A crate registers its types: a name, a line of description, a function that builds one ([`Registry`]). The
//!    program's `main` names the crate: `Warmroute::new().plugin(acme::register).main()`.
//! 2. When a configuration is loaded, every plugin in it is built from its parameters and a [`BuildContext`], by which it
//!    asks for columns, tasks and memory. This happens for checks too, whose plugins are dropped unused, so building
//!    has no effects of its own.
//! 3. Its tasks start when the whole configuration is built. Plugins are shared by the profiles that name them.
//! 4. When the configuration changes, all plugins are built anew and the old ones are dropped, with their tasks, after
//!    the last decision that uses them. What should outlive that is asked for with [`BuildContext::shared`].
//!
//! # A filter
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use warmroute_plugin::{BuildContext, BuildError, Candidates, Filter, InferenceRequest};
//!
//! /// Keeps the endpoints of the zone that a header names; all if it names none.
//! struct ZoneFilter {
//!     header: String,
//! }
//!
//! #[derive(Deserialize, Serialize)]
//! #[serde(rename_all = "camelCase", deny_unknown_fields)]
//! struct Parameters {
//!     header_name: String,
//! }
//!
//! impl ZoneFilter {
//!     fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
//!         if parameters.header_name.is_empty() {
//!             return Err(BuildError::invalid("headerName", "must not be empty"));
//!         }
//!         Ok(Self { header: parameters.header_name })
//!     }
//! }
//!
//! impl Filter for ZoneFilter {
//!     fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
//!         let Some(zone) = request.headers.get(&self.header) else { return };
//!         for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
//!             *keep = endpoint.labels.get("zone").is_some_and(|label| zone == label.as_str());
//!         }
//!     }
//! }
//!
//! # let mut registry = warmroute_plugin::Registry::default();
//! registry.filter("zone-filter", "keeps the endpoints of a zone", ZoneFilter::build)?;
//! # Ok::<(), warmroute_plugin::DuplicateType>(())
//! ```
//!
//! # A scorer with a background task
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use warmroute_plugin::{
//!     BuildContext, BuildError, Candidates, InferenceRequest, NoParameters, PrefixColumn, Scorer,
//! };
//!
//! /// Half how much of the prompt an endpoint holds, half how few requests it runs, measured by a limit from afar.
//! struct BalanceScorer {
//!     prefix: PrefixColumn,
//!     limit: Arc<AtomicU64>,
//! }
//!
//! impl BalanceScorer {
//!     fn build(_: NoParameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
//!         let limit = context.shared("limit", || AtomicU64::new(100));
//!         let newest = limit.clone();
//!         context.spawn(async move {
//!             loop {
//!                 newest.store(ask_for_the_limit().await, Ordering::Relaxed);
//!             }
//!         });
//!         Ok(Self { prefix: context.prefix_match("precise-prefix-cache-producer"), limit })
//!     }
//! }
//!
//! # async fn ask_for_the_limit() -> u64 { std::future::pending().await }
//! impl Scorer for BalanceScorer {
//!     fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
//!         let limit = self.limit.load(Ordering::Relaxed).max(1) as f64;
//!         let rows = candidates.prefix_match(self.prefix).iter().zip(candidates.in_flight());
//!         for (score, (matched, in_flight)) in scores.iter_mut().zip(rows) {
//!             let idle = 1.0 - f64::from(in_flight.requests).min(limit) / limit;
//!             *score = 0.5 * matched.ratio() + 0.5 * idle;
//!         }
//!     }
//! }
//!
//! # let mut registry = warmroute_plugin::Registry::default();
//! registry.scorer("balance-scorer", "half warm, half idle", BalanceScorer::build)?;
//! # Ok::<(), warmroute_plugin::DuplicateType>(())
//! ```
//!
//! # A picker
//!
//! ```
//! use warmroute_plugin::{
//!     BuildContext, BuildError, Candidates, InferenceRequest, NoParameters, Picker,
//! };
//!
//! /// Takes the best two rows: the endpoint, and one to fall back to.
//! struct TwoBestPicker;
//!
//! impl Picker for TwoBestPicker {
//!     fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
//!         order.extend(0..totals.len() as u32);
//!         order.sort_by(|a, b| totals[*b as usize].total_cmp(&totals[*a as usize]));
//!         order.truncate(2);
//!     }
//! }
//!
//! # let mut registry = warmroute_plugin::Registry::default();
//! let build = |_: NoParameters, _: &mut BuildContext<'_>| Ok::<_, BuildError>(TwoBestPicker);
//! registry.picker("two-best-picker", "the best two", build)?;
//! # Ok::<(), warmroute_plugin::DuplicateType>(())
//! ```
//!
//! [`testing`] makes tables for unit tests. `deploy/custom` in Warmroute's repository is a whole crate to copy, and
//! `docs/writing-a-scorer.md` leads through it.

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
