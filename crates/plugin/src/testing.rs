//! For the unit tests of a scorer crate: tables of candidates without a host.
//!
//! ```
//! use serde_json::json;
//! use warmroute_plugin::testing::{CandidatesFixture, Row, build_scorer, scores};
//! use warmroute_plugin::{
//!     BuildContext, BuildError, Candidates, InferenceRequest, NoParameters, Registry, Scorer,
//! };
//!
//! struct IdleScorer;
//!
//! impl Scorer for IdleScorer {
//!     fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
//!         for (score, in_flight) in scores.iter_mut().zip(candidates.in_flight()) {
//!             *score = f64::from(u8::from(in_flight.requests == 0));
//!         }
//!     }
//! }
//!
//! let mut registry = Registry::default();
//! let build = |_: NoParameters, _: &mut BuildContext<'_>| Ok::<_, BuildError>(IdleScorer);
//! registry.scorer("idle-scorer", "1 for an idle endpoint", build).unwrap();
//!
//! let table = CandidatesFixture::new([Row::fresh(0, 0, 0.0), Row::fresh(0, 0, 0.0).requests_in_flight(2)]);
//! let scorer = build_scorer(&registry, "idle-scorer", json!({})).unwrap();
//! assert_eq!(scores(&*scorer, &table), [1.0, 0.0]);
//! ```

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::{
    AdapterState, BuildContext, BuildError, Candidates, Endpoint, EndpointId, EndpointMetrics, Filter,
    InFlight, InferenceRequest, MetricsState, Needs, Picker, Plugin, PrefixMatch, Registry, Scorer,
};

/// One row of a [`CandidatesFixture`].
#[derive(Clone, Debug, Default)]
pub struct Row {
    name: Option<String>,
    labels: Vec<(String, String)>,
    metrics: MetricsState,
    in_flight: InFlight,
    prefix_matches: Vec<PrefixMatch>,
    attributes: Vec<Option<f64>>,
    adapter: AdapterState,
}

impl Row {
    /// An endpoint with fresh metrics.
    pub fn fresh(waiting_requests: u32, running_requests: u32, kv_cache_utilization: f64) -> Self {
        let metrics = EndpointMetrics::new(waiting_requests, running_requests, kv_cache_utilization);
        Self { metrics: MetricsState::Fresh(metrics), ..Self::default() }
    }

    /// An endpoint whose metrics are too old to act on: an hour overdue.
    pub fn stale(waiting_requests: u32, running_requests: u32, kv_cache_utilization: f64) -> Self {
        let metrics = EndpointMetrics::new(waiting_requests, running_requests, kv_cache_utilization);
        let metrics = metrics.overdue_by(Duration::from_secs(3600));
        Self { metrics: MetricsState::Stale(metrics), ..Self::default() }
    }

    /// An endpoint that was never scraped.
    pub fn never_scraped() -> Self {
        Self::default()
    }

    /// The same row, whose metrics have been waiting for newer ones for this long.
    #[must_use]
    pub fn overdue_by(mut self, overdue: Duration) -> Self {
        self.metrics = match self.metrics {
            MetricsState::NeverScraped => MetricsState::NeverScraped,
            MetricsState::Fresh(metrics) => MetricsState::Fresh(metrics.overdue_by(overdue)),
            MetricsState::Stale(metrics) => MetricsState::Stale(metrics.overdue_by(overdue)),
        };
        self
    }

    /// The same row with a name; without one it is `endpoint-N`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The same row with one more label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// The same row with requests in flight.
    #[must_use]
    pub fn requests_in_flight(mut self, requests: u32) -> Self {
        self.in_flight.requests = requests;
        self
    }

    /// The same row with prompt tokens in flight.
    #[must_use]
    pub fn prompt_tokens_in_flight(mut self, prompt_tokens: u64) -> Self {
        self.in_flight.prompt_tokens = prompt_tokens;
        self
    }

    /// The same row with a value for one more prefix column: the first call is for the producer that was
    /// asked for first. A row with fewer values than others matches nothing in the missing columns.
    #[must_use]
    pub fn prefix_match(mut self, matched_blocks: u32, total_blocks: u32, block_size_tokens: u32) -> Self {
        self.prefix_matches.push(PrefixMatch::new(matched_blocks, total_blocks, block_size_tokens));
        self
    }

    /// The same row with a value for one more attribute column: the first call is for the attribute that was asked
    /// for first. A row with fewer values than others has none in the missing columns.
    #[must_use]
    pub fn attribute(mut self, value: impl Into<Option<f64>>) -> Self {
        self.attributes.push(value.into());
        self
    }

    /// The same row, which stands so with the request's LoRA adapter.
    #[must_use]
    pub fn adapter(mut self, adapter: AdapterState) -> Self {
        self.adapter = adapter;
        self
    }
}

/// A table of candidates that owns its rows.
#[derive(Clone, Debug)]
pub struct CandidatesFixture {
    endpoints: Vec<Arc<Endpoint>>,
    metrics: Vec<MetricsState>,
    in_flight: Vec<InFlight>,
    prefix_matches: Vec<PrefixMatch>,
    attributes: Vec<Option<f64>>,
    adapters: Vec<AdapterState>,
    peer: Option<Arc<Endpoint>>,
}

impl CandidatesFixture {
    /// A table with these rows. Endpoint ids count from 0, addresses from `10.0.0.0:8000`.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        let rows: Vec<Row> = rows.into_iter().collect();
        let columns = rows.iter().map(|row| row.prefix_matches.len()).max().unwrap_or(0);
        let column = |column: usize| {
            rows.iter().map(move |row| row.prefix_matches.get(column).copied().unwrap_or_default())
        };
        let attributes = rows.iter().map(|row| row.attributes.len()).max().unwrap_or(0);
        let attribute =
            |column: usize| rows.iter().map(move |row| row.attributes.get(column).copied().flatten());
        Self {
            peer: None,
            attributes: (0..attributes).flat_map(attribute).collect(),
            adapters: rows.iter().map(|row| row.adapter).collect(),
            prefix_matches: (0..columns).flat_map(column).collect(),
            metrics: rows.iter().map(|row| row.metrics).collect(),
            in_flight: rows.iter().map(|row| row.in_flight).collect(),
            endpoints: (0u32..).zip(&rows).map(|(id, row)| Arc::new(endpoint(id, row))).collect(),
        }
    }

    /// The same table for a profile that runs after another one picked `peer`.
    #[must_use]
    pub fn after(mut self, peer: Endpoint) -> Self {
        self.peer = Some(Arc::new(peer));
        self
    }

    /// The table, borrowed.
    ///
    /// # Panics
    ///
    /// Never: the columns are of one length.
    #[allow(clippy::expect_used, reason = "for tests only, and the columns are built of one length")]
    pub fn candidates(&self) -> Candidates<'_> {
        Candidates::builder(&self.endpoints)
            .metrics(&self.metrics)
            .in_flight(&self.in_flight)
            .prefix_matches(&self.prefix_matches)
            .attributes(&self.attributes)
            .adapters(&self.adapters)
            .peer(self.peer.as_ref())
            .build()
            .expect("columns of one length")
    }
}

fn endpoint(id: u32, row: &Row) -> Endpoint {
    let name = row.name.clone().unwrap_or_else(|| format!("endpoint-{id}"));
    let address = format!("10.0.{}.{}:8000", id / 256, id % 256);
    let endpoint = Endpoint::new(EndpointId(id), name, address);
    row.labels.iter().fold(endpoint, |endpoint, (key, value)| endpoint.with_label(key, value))
}

/// A request for model `model` with the id `request`.
pub fn request() -> InferenceRequest {
    InferenceRequest::new("request", "model")
}

/// What `scorer` says of every row, for [`request()`].
pub fn scores(scorer: &dyn Scorer, table: &CandidatesFixture) -> Vec<f64> {
    let candidates = table.candidates();
    let mut scores = vec![0.0; candidates.len()];
    scorer.score(&request(), &candidates, &mut scores);
    scores
}

/// The rows that `filter` keeps, for [`request()`].
pub fn kept(filter: &dyn Filter, table: &CandidatesFixture) -> Vec<usize> {
    let candidates = table.candidates();
    let mut keep = vec![true; candidates.len()];
    filter.filter(&request(), &candidates, &mut keep);
    (0..keep.len()).filter(|&row| keep[row]).collect()
}

/// The rows that `picker` picks, best first, for [`request()`] and these totals.
pub fn picked(picker: &dyn Picker, table: &CandidatesFixture, totals: &[f64]) -> Vec<u32> {
    let mut order = Vec::new();
    picker.pick(&request(), &table.candidates(), totals, &mut order);
    order
}

/// Builds a plugin as the host does.
///
/// # Errors
///
/// What [`Registry::build`] says.
pub fn build(registry: &Registry, plugin_type: &str, parameters: Value) -> Result<Plugin, BuildError> {
    registry.build(plugin_type, parameters, &mut BuildContext::new(plugin_type, &mut Needs::default()))
}

/// Builds a scorer as the host does.
///
/// # Errors
///
/// What [`Registry::build`] says.
///
/// # Panics
///
/// If the type isn't a scorer.
#[allow(clippy::panic, reason = "for tests only")]
pub fn build_scorer(
    registry: &Registry,
    plugin_type: &str,
    parameters: Value,
) -> Result<Arc<dyn Scorer>, BuildError> {
    match build(registry, plugin_type, parameters)? {
        Plugin::Scorer(scorer) => Ok(scorer),
        other => panic!("{plugin_type} is a {}", other.kind()),
    }
}

/// Builds a filter as the host does.
///
/// # Errors
///
/// What [`Registry::build`] says.
///
/// # Panics
///
/// If the type isn't a filter.
#[allow(clippy::panic, reason = "for tests only")]
pub fn build_filter(
    registry: &Registry,
    plugin_type: &str,
    parameters: Value,
) -> Result<Arc<dyn Filter>, BuildError> {
    match build(registry, plugin_type, parameters)? {
        Plugin::Filter(filter) => Ok(filter),
        other => panic!("{plugin_type} is a {}", other.kind()),
    }
}

/// Builds a picker as the host does.
///
/// # Errors
///
/// What [`Registry::build`] says.
///
/// # Panics
///
/// If the type isn't a picker.
#[allow(clippy::panic, reason = "for tests only")]
pub fn build_picker(
    registry: &Registry,
    plugin_type: &str,
    parameters: Value,
) -> Result<Arc<dyn Picker>, BuildError> {
    match build(registry, plugin_type, parameters)? {
        Plugin::Picker(picker) => Ok(picker),
        other => panic!("{plugin_type} is a {}", other.kind()),
    }
}
