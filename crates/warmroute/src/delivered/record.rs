use std::collections::VecDeque;

use super::counter_ledger::CounterInterval;
use super::{Prediction, PredictionBasis};
use crate::receipt::Fallback;

/// Requests of one model at one endpoint that are looked back on.
pub const WINDOW_REQUESTS: usize = 128;
/// A bias is lasting if at least so many requests of the window had cached tokens, predicted or delivered, and the
/// median of their relative errors is beyond [`BIAS_LIMIT`].
pub const BIAS_REQUESTS: usize = 20;
/// See [`BIAS_REQUESTS`].
pub const BIAS_LIMIT: f64 = 0.1;
/// Promises that are broken are kept again when at most this share of the requests that tell is short by more than
/// [`BIAS_LIMIT`]. They are broken when half are, so a share in between changes nothing.
pub const KEPT_AGAIN_SHARE: f64 = 0.25;
/// Prompts of the window that the engine counted otherwise than we did: so many are no accident, since exact tokens
/// have exactly one length.
pub const OTHER_LENGTHS: usize = 10;

/// Sums since the endpoint is in the pool, of requests whose cached tokens are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryTotals {
    /// Such requests.
    pub requests: u64,
    /// Requests of which the engine didn't tell, beside those.
    pub unreported: u64,
    /// Requests whose answers weren't seen; those that the engine's counters tell of are among `requests` too.
    pub hidden: u64,
    /// Prompt tokens that the engine was known to hold.
    pub predicted_tokens: u64,
    /// Prompt tokens that it says it took from its cache.
    pub delivered_tokens: u64,
    /// Tokens predicted and not delivered.
    pub over_tokens: u64,
    /// Tokens delivered that were neither known nor expected to be there.
    pub under_tokens: u64,
}

/// One request of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    basis: PredictionBasis,
    predicted_tokens: u32,
    expected_tokens: u32,
    delivered_tokens: Option<u32>,
    /// Tokens of the prompt by the engine's count and by ours, if both are known.
    lengths: Option<(u32, u32)>,
    no_tokens: Option<Fallback>,
}

/// What one endpoint delivered of one model.
#[derive(Clone, Debug, Default)]
pub struct ModelDeliveries {
    /// Since the endpoint is in the pool.
    pub totals: DeliveryTotals,
    newest: VecDeque<Compared>,
    promises_tell: bool,
    breaks_promises: bool,
}

/// The newest requests of one model at one endpoint, at most [`WINDOW_REQUESTS`], in figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// All of them.
    pub requests: usize,
    /// Those with cached tokens, predicted by events or delivered.
    pub by_events: Telling,
    /// The same of those that were predicted by what was sent.
    pub by_sending: Telling,
    /// Requests to the engine while what it holds wasn't seen.
    pub unseen: usize,
    /// Requests without exact tokens.
    pub without_tokens: usize,
    /// The most frequent reason.
    pub why_without: Option<Fallback>,
    /// Requests whose prompt was counted by the engine and here.
    pub lengths: usize,
    /// Of those: counted otherwise.
    pub other_lengths: usize,
    /// The newest of these: by the engine, and here.
    pub other_length: Option<(u32, u32)>,
}

/// Requests with cached tokens, predicted or delivered; others say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Telling {
    /// How many.
    pub requests: usize,
    /// Of those: something was predicted, and as much was delivered.
    pub right: usize,
    /// Of those: less was delivered, by more than [`BIAS_LIMIT`] of what was predicted.
    pub short: usize,
    /// Tokens predicted.
    pub predicted_tokens: u64,
    /// Tokens delivered.
    pub delivered_tokens: u64,
    /// Median of the relative errors: below 0 less is delivered than predicted, down to −1; above 0 more, up to 1.
    pub median_error: f64,
}

impl Compared {
    /// Of a prediction; what the engine told is None where it didn't.
    pub fn of(
        prediction: &Prediction,
        delivered_tokens: Option<u32>,
        engine_prompt_tokens: Option<u32>,
    ) -> Self {
        Self {
            basis: prediction.basis,
            predicted_tokens: prediction.predicted_tokens,
            expected_tokens: prediction.expected_tokens.max(prediction.predicted_tokens),
            delivered_tokens,
            lengths: engine_prompt_tokens.zip(prediction.prompt_tokens),
            no_tokens: prediction.no_tokens,
        }
    }

    /// How far what was delivered is outside of what was known and what was expected, as a share of the larger number.
    /// None if nothing was predicted nor delivered, or the engine didn't tell.
    fn relative_error(&self) -> Option<f64> {
        let delivered = self.delivered_tokens?;
        let most = f64::from(delivered.max(self.predicted_tokens));
        let error = match delivered {
            less if less < self.predicted_tokens => -f64::from(self.predicted_tokens - less),
            more if more > self.expected_tokens => f64::from(more - self.expected_tokens),
            _ => 0.0,
        };
        (most > 0.0).then(|| error / most)
    }
}

impl ModelDeliveries {
    /// Counts a finished request.
    pub(super) fn add(&mut self, prediction: &Prediction, compared: Compared) {
        let totals = &mut self.totals;
        match compared.delivered_tokens {
            None => totals.unreported += 1,
            Some(delivered) if prediction.basis != PredictionBasis::NoTokens => {
                totals.requests += 1;
                totals.predicted_tokens += u64::from(compared.predicted_tokens);
                totals.delivered_tokens += u64::from(delivered);
                totals.over_tokens += u64::from(compared.predicted_tokens.saturating_sub(delivered));
                totals.under_tokens += u64::from(delivered.saturating_sub(compared.expected_tokens));
            }
            Some(_) => {}
        }
        self.push(compared);
        if prediction.basis == PredictionBasis::Events {
            self.judge();
        }
    }

    /// Counts a finished request whose answer wasn't seen. What was delivered may come from the engine's counters; that
    /// a request couldn't be matched at all shows without.
    pub(super) fn add_hidden(&mut self, prediction: &Prediction) {
        self.totals.hidden += 1;
        if matches!(prediction.basis, PredictionBasis::Unseen | PredictionBasis::NoTokens) {
            self.push(Compared::of(prediction, None, None));
        }
    }

    /// Counts the requests of an interval, of which sums are known: each counts as their mean.
    pub(super) fn add_interval(&mut self, interval: &CounterInterval) {
        let CounterInterval { requests, predicted_tokens, expected_tokens, delivered_tokens, .. } = *interval;
        let totals = &mut self.totals;
        totals.requests += requests;
        totals.predicted_tokens += predicted_tokens;
        totals.delivered_tokens += delivered_tokens;
        totals.over_tokens += predicted_tokens.saturating_sub(delivered_tokens);
        totals.under_tokens += delivered_tokens.saturating_sub(expected_tokens);
        let mean = |tokens: u64| u32::try_from(tokens / requests.max(1)).unwrap_or(u32::MAX);
        let compared = Compared {
            basis: interval.basis,
            predicted_tokens: mean(predicted_tokens),
            expected_tokens: mean(expected_tokens),
            delivered_tokens: Some(mean(delivered_tokens)),
            ..Compared::default()
        };
        for _ in 0..requests.min(WINDOW_REQUESTS as u64) {
            self.push(compared);
        }
        if interval.basis == PredictionBasis::Events {
            self.judge();
        }
    }

    fn push(&mut self, compared: Compared) {
        if self.newest.len() == WINDOW_REQUESTS {
            self.newest.pop_front();
        }
        self.newest.push_back(compared);
    }

    /// Judges whether promises are broken, by the newest requests.
    fn judge(&mut self) {
        let telling = Telling::of(self.of(PredictionBasis::Events));
        let has_enough = telling.requests >= BIAS_REQUESTS;
        let is_short = telling.lasting_error().is_some_and(|error| error < 0.0);
        let is_kept = telling.short as f64 <= KEPT_AGAIN_SHARE * telling.requests as f64;
        (self.promises_tell, self.breaks_promises) =
            (has_enough, has_enough && (is_short || (self.breaks_promises && !is_kept)));
    }

    /// Forgets the newest requests: they say nothing of the view that the engine has now.
    pub(super) fn forget_newest(&mut self) {
        self.newest.clear();
        (self.promises_tell, self.breaks_promises) = (false, false);
    }

    /// Whether the engine lastingly delivers less of this model than its events promise. Once it does, it goes on until
    /// most promises are kept again: see [`KEPT_AGAIN_SHARE`].
    pub fn breaks_promises(&self) -> bool {
        self.breaks_promises
    }

    /// Whether enough requests tell whether it does.
    pub(super) fn promises_tell(&self) -> bool {
        self.promises_tell
    }

    fn of(&self, basis: PredictionBasis) -> impl Iterator<Item = &Compared> {
        self.newest.iter().filter(move |compared| compared.basis == basis)
    }

    /// The newest requests in figures.
    pub fn window(&self) -> Window {
        let of = |basis| self.of(basis);
        let lengths = || self.newest.iter().filter_map(|compared| compared.lengths);
        let others = || lengths().filter(|(engine, ours)| engine != ours);
        Window {
            requests: self.newest.len(),
            by_events: Telling::of(of(PredictionBasis::Events)),
            by_sending: Telling::of(of(PredictionBasis::Sent)),
            unseen: of(PredictionBasis::Unseen).count(),
            without_tokens: of(PredictionBasis::NoTokens).count(),
            why_without: most_frequent(
                of(PredictionBasis::NoTokens).filter_map(|compared| compared.no_tokens),
            ),
            lengths: lengths().count(),
            other_lengths: others().count(),
            other_length: others().next_back(),
        }
    }
}

fn most_frequent(reasons: impl Iterator<Item = Fallback>) -> Option<Fallback> {
    let mut counts = std::collections::BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_insert(0) += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(reason, _)| reason)
}

impl Window {
    /// Median of the relative errors of predictions, by events if there are enough; None if too few requests tell.
    pub fn bias(&self) -> Option<f64> {
        let enough = |telling: &&Telling| telling.requests >= BIAS_REQUESTS;
        [&self.by_events, &self.by_sending].into_iter().find(enough).map(|telling| telling.median_error)
    }
}

impl Telling {
    fn of<'a>(compared: impl Iterator<Item = &'a Compared>) -> Self {
        let (mut telling, mut errors) = (Self::default(), Vec::new());
        for compared in compared {
            let Some(error) = compared.relative_error() else { continue };
            errors.push(error);
            telling.requests += 1;
            telling.right += usize::from(compared.predicted_tokens > 0 && error == 0.0);
            telling.short += usize::from(error < -BIAS_LIMIT);
            telling.predicted_tokens += u64::from(compared.predicted_tokens);
            telling.delivered_tokens += u64::from(compared.delivered_tokens.unwrap_or(0));
        }
        let middle = errors.len() / 2;
        if !errors.is_empty() {
            telling.median_error = *errors.select_nth_unstable_by(middle, f64::total_cmp).1;
        }
        telling
    }

    /// The median, if there are enough requests and it is beyond the limit.
    pub fn lasting_error(&self) -> Option<f64> {
        let is_lasting = self.requests >= BIAS_REQUESTS && self.median_error.abs() > BIAS_LIMIT;
        is_lasting.then_some(self.median_error)
    }

    /// Whether there are enough requests and they are as predicted.
    pub fn is_right(&self) -> bool {
        self.requests >= BIAS_REQUESTS && self.lasting_error().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(predicted_tokens: u32, expected_tokens: u32, delivered: u32) -> Compared {
        Compared {
            basis: PredictionBasis::Events,
            predicted_tokens,
            expected_tokens,
            delivered_tokens: Some(delivered),
            ..Compared::default()
        }
    }

    #[test]
    fn an_error_is_what_lies_outside_of_known_and_expected() {
        for (known, expected, delivered, error) in [
            (0, 0, 0, None),
            (64, 64, 64, Some(0.0)),
            (0, 64, 64, Some(0.0)),
            (0, 64, 32, Some(0.0)),
            (64, 64, 0, Some(-1.0)),
            (64, 64, 48, Some(-0.25)),
            (0, 0, 64, Some(1.0)),
            (48, 48, 64, Some(0.25)),
        ] {
            let compared = compared(known, expected, delivered);
            assert_eq!(compared.relative_error(), error, "{known} {expected} {delivered}");
        }
    }

    #[test]
    fn a_bias_is_lasting_if_the_median_of_enough_requests_is_off() {
        let of = |off: usize, right: usize, silent: usize| {
            let all = std::iter::repeat_n(compared(64, 64, 0), off)
                .chain(std::iter::repeat_n(compared(64, 64, 64), right))
                .chain(std::iter::repeat_n(compared(0, 0, 0), silent));
            Telling::of(all.collect::<Vec<_>>().iter())
        };
        assert_eq!(of(19, 0, 100).lasting_error(), None);
        assert_eq!(of(20, 0, 100).lasting_error(), Some(-1.0));
        assert_eq!(of(20, 25, 0).lasting_error(), None);
        assert!(of(20, 25, 0).is_right() && !of(5, 5, 100).is_right());
        assert_eq!(of(3, 2, 0).right, 2);
    }

    #[test]
    fn the_window_forgets() {
        let prediction = Prediction { basis: PredictionBasis::Events, ..Prediction::default() };
        let mut model = ModelDeliveries::default();
        (0..50).for_each(|_| model.add(&prediction, compared(64, 64, 0)));
        assert_eq!(model.window().bias(), Some(-1.0));
        (0..WINDOW_REQUESTS).for_each(|_| model.add(&prediction, compared(64, 64, 64)));
        assert_eq!((model.window().bias(), model.window().requests), (Some(0.0), WINDOW_REQUESTS));
        assert_eq!(model.totals.over_tokens, 50 * 64);
    }
}
