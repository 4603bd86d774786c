//! The three things that a plugin can be.

use crate::{Candidates, InferenceRequest, Pick, PickHeaders};

/// Takes endpoints out of consideration.
///
/// Filters of a profile run one after the other, in the order of the configuration. If one leaves no
/// row, the request is refused.
///
/// ```
/// use warmroute_plugin::{Candidates, Filter, InferenceRequest};
///
/// /// Keeps the endpoints of one zone.
/// struct ZoneFilter {
///     zone: String,
/// }
///
/// impl Filter for ZoneFilter {
///     fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
///         for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
///             *keep = endpoint.labels.get("zone") == Some(&self.zone);
///         }
///     }
/// }
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Says for every row whether it stays. `keep` has one value per row and is `true` throughout at
    /// the call.
    fn filter(&self, request: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]);

    /// Called once after the request was given to an endpoint, and only then; see [`Scorer::picked`].
    fn picked(&self, _request: &InferenceRequest, _pick: &Pick<'_>, _headers: &mut PickHeaders) {}
}

/// Says how good each endpoint is for a request.
///
/// A scorer runs on the request path under a lock: it reads memory, and neither waits nor allocates.
///
/// ```
/// use warmroute_plugin::{Candidates, InferenceRequest, Scorer};
///
/// /// Prefers endpoints whose running batch is small.
/// struct SmallBatchScorer {
///     max_running: u32,
/// }
///
/// impl Scorer for SmallBatchScorer {
///     fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
///         for (score, state) in scores.iter_mut().zip(candidates.metrics()) {
///             // A row whose metrics aren't fresh keeps the 0 that it came with.
///             if let Some(metrics) = state.fresh() {
///                 let running = metrics.running_requests.min(self.max_running);
///                 *score = 1.0 - f64::from(running) / f64::from(self.max_running);
///             }
///         }
///     }
/// }
/// ```
pub trait Scorer: Send + Sync + 'static {
    /// Writes one score per row, 0 to 1, higher is better. `scores` has one value per row and is 0
    /// throughout at the call. Values outside of 0 to 1 are clamped; NaN counts as 0 and is reported.
    fn score(&self, request: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]);

    /// Called once after the request was given to an endpoint, and only then. For scorers that
    /// remember, or that tell the client or the engine something by a header; it runs on the request path too.
    ///
    /// Each plugin is told of the pick of every profile that it is in.
    fn picked(&self, _request: &InferenceRequest, _pick: &Pick<'_>, _headers: &mut PickHeaders) {}
}

/// Chooses among the scored endpoints.
///
/// ```
/// use warmroute_plugin::{Candidates, InferenceRequest, Picker};
///
/// /// Takes the best row; the first one of several.
/// struct FirstBestPicker;
///
/// impl Picker for FirstBestPicker {
///     fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
///         let rows = 0..totals.len() as u32;
///         order.extend(rows.rev().max_by(|a, b| totals[*a as usize].total_cmp(&totals[*b as usize])));
///     }
/// }
/// ```
pub trait Picker: Send + Sync + 'static {
    /// Pushes the picked rows to `order`, best first: the endpoint, then fallbacks if the picker is
    /// configured to name some. `totals` has the weighted sum of the scores, one per row, without NaN.
    /// `order` is empty at the call; leaving it empty refuses the request.
    fn pick(
        &self,
        request: &InferenceRequest,
        candidates: &Candidates<'_>,
        totals: &[f64],
        order: &mut Vec<u32>,
    );
}
