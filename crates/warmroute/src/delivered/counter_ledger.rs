//! The engine's own counters beside what was sent to it, for gateways that hide response bodies.
//!
//! An engine counts the prompt tokens that it looks up in its prefix cache, and those that it finds there
//! (`vllm:prefix_cache_queries_total`, `vllm:prefix_cache_hits_total`). Between two readings these can be laid beside
//! the requests that ended in between, if nobody else sends to the engine: that shows in the tokens looked up. When a
//! request was looked up isn't known, only that it was between its pick and its end; so what was looked up by a moment
//! lies between two bounds, and a comparison waits until these are close, or nothing was under way.

use super::{Prediction, PredictionBasis};

/// Lookups beyond what was sent, or short of it, as a share, that still make a comparison: engines look some requests
/// up twice (preempted ones, and those that find no room). Tokens beyond may all have been hits, so
/// they widen what counts as expected.
const OTHER_TOKENS_SHARE: f64 = 0.05;
/// The bounds are close enough if what is uncertain is at most this share of what is certain.
const UNCERTAIN_SHARE: f64 = 0.1;
/// Most of an interval's tokens that may belong to other models than the one that it is counted for.
const OTHER_MODELS_SHARE: f64 = 0.1;

/// What an engine counts of its prefix cache, in tokens since its start, all data-parallel ranks of the page together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounters {
    /// Prompt tokens looked up.
    pub queried_tokens: u64,
    /// Those of them that were there.
    pub hit_tokens: u64,
}

/// What came of one interval between readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CounterVerdict {
    /// Predicted and delivered could be compared.
    Compared,
    /// The engine looked up clearly more tokens than were sent from here: somebody else sends to it too, or it looks
    /// requests up repeatedly.
    OtherTraffic,
    /// It looked up clearly fewer: it refused requests, they were broken off, or it sees other tokens.
    FewerTokens,
    /// Requests of which the exact tokens aren't known were among them.
    UnknownTokens,
    /// Requests for several models were among them, which the counters don't tell apart.
    SeveralModels,
}

impl CounterVerdict {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Compared, Self::OtherTraffic, Self::FewerTokens, Self::UnknownTokens, Self::SeveralModels];

    /// The word used in metrics and on the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::OtherTraffic => "other-traffic",
            Self::FewerTokens => "fewer-tokens",
            Self::UnknownTokens => "unknown-tokens",
            Self::SeveralModels => "several-models",
        }
    }
}

/// What was predicted and delivered of the requests of one interval, all of one model and basis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CounterInterval {
    pub(super) model: Box<str>,
    pub(super) basis: PredictionBasis,
    pub(super) generation: u64,
    pub(super) requests: u64,
    /// The least that the engine was known to hold.
    pub(super) predicted_tokens: u64,
    /// The most that it may have held, with what others may have hit.
    pub(super) expected_tokens: u64,
    /// What it was expected to hold, as well as that is known.
    pub(super) promised_tokens: u64,
    pub(super) delivered_tokens: u64,
}

/// Requests picked, or ended, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    requests: u64,
    prompt_tokens: u64,
    predicted_tokens: u64,
    expected_tokens: u64,
    /// Requests of which the tokens aren't known.
    unknown: u64,
}

impl Sums {
    fn add(&mut self, prediction: &Prediction) {
        self.requests += 1;
        match prediction.prompt_tokens.filter(|_| is_counted(prediction)) {
            Some(tokens) => {
                self.prompt_tokens += u64::from(tokens);
                self.predicted_tokens += u64::from(prediction.predicted_tokens);
                self.expected_tokens +=
                    u64::from(prediction.expected_tokens.max(prediction.predicted_tokens));
            }
            None => self.unknown += 1,
        }
    }

    /// What is more here; nothing is less than 0.
    fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            prompt_tokens: self.prompt_tokens.saturating_sub(before.prompt_tokens),
            predicted_tokens: self.predicted_tokens.saturating_sub(before.predicted_tokens),
            expected_tokens: self.expected_tokens.saturating_sub(before.expected_tokens),
            unknown: self.unknown.saturating_sub(before.unknown),
        }
    }
}

fn is_counted(prediction: &Prediction) -> bool {
    !matches!(prediction.basis, PredictionBasis::Nothing | PredictionBasis::NoTokens)
}

/// A reading of the counters, and what the engine has looked up by then: at least and at most.
#[derive(Clone, Copy, Debug)]
struct Reading {
    counters: PrefixCounters,
    least: Sums,
    most: Sums,
}

/// Whose requests an interval has.
#[derive(Clone, Debug, Default)]
struct Subject {
    /// Of the first one: model, basis, view.
    first: Option<(Box<str>, PredictionBasis, u64)>,
    tokens: u64,
    other_tokens: u64,
}

/// What was sent to one incarnation of an endpoint, between readings of its counters. Bounded: sums only.
#[derive(Debug, Default)]
pub(super) struct CounterLedger {
    picked: Sums,
    ended: Sums,
    /// What had ended at the last reading: by now the engine has surely counted it.
    ended_before: Sums,
    from: Option<Reading>,
    subject: Subject,
    /// Requests per verdict, in the order of [`CounterVerdict::ALL`].
    verdicts: [u64; CounterVerdict::ALL.len()],
}

impl CounterLedger {
    /// A request is on its way to the engine.
    pub(super) fn picked(&mut self, prediction: &Prediction) {
        self.picked.add(prediction);
        let Some(tokens) = prediction.prompt_tokens.map(u64::from) else { return };
        let Prediction { model, basis, generation, .. } = prediction;
        let subject = &mut self.subject;
        let (first, first_basis, view) =
            subject.first.get_or_insert_with(|| (model.clone(), *basis, *generation));
        match first == model && first_basis == basis && view == generation {
            true => subject.tokens += tokens,
            false => subject.other_tokens += tokens,
        }
    }

    /// It is over.
    pub(super) fn ended(&mut self, prediction: &Prediction) {
        self.ended.add(prediction);
    }

    /// Requests per verdict.
    pub(super) fn verdicts(&self) -> [(CounterVerdict, u64); CounterVerdict::ALL.len()] {
        let mut at = 0..;
        CounterVerdict::ALL.map(|verdict| (verdict, self.verdicts[at.next().unwrap_or(0)]))
    }

    /// Takes a reading of the engine's counters. Returns what can be compared of the requests since an earlier one.
    pub(super) fn read(&mut self, counters: PrefixCounters) -> Option<CounterInterval> {
        let least = std::mem::replace(&mut self.ended_before, self.ended);
        let now = Reading { counters, least, most: self.picked };
        let Some(from) = self.from else {
            self.begin(now);
            return None;
        };
        let has_restarted = counters.queried_tokens < from.counters.queried_tokens
            || counters.hit_tokens < from.counters.hit_tokens;
        let (least, most) = (now.least.since(&from.most), now.most.since(&from.least));
        if has_restarted || most.requests == 0 {
            self.begin(now);
            return None;
        }
        let uncertain = most.prompt_tokens - least.prompt_tokens.min(most.prompt_tokens);
        let is_close = uncertain as f64 <= UNCERTAIN_SHARE * least.prompt_tokens as f64;
        if least.requests == 0 || !is_close {
            return None;
        }
        let (verdict, interval) = self.compare(&from, &now, least, most);
        let at = CounterVerdict::ALL.iter().position(|known| *known == verdict).unwrap_or(0);
        self.verdicts[at] += least.requests;
        self.begin(now);
        interval
    }

    fn begin(&mut self, at: Reading) {
        self.from = Some(at);
        self.subject = Subject::default();
    }

    fn compare(
        &self,
        from: &Reading,
        now: &Reading,
        least: Sums,
        most: Sums,
    ) -> (CounterVerdict, Option<CounterInterval>) {
        let queried = now.counters.queried_tokens - from.counters.queried_tokens;
        let subject = &self.subject;
        let others = subject.other_tokens as f64 / (subject.tokens + subject.other_tokens).max(1) as f64;
        if most.unknown > 0 {
            return (CounterVerdict::UnknownTokens, None);
        }
        if queried as f64 > most.prompt_tokens as f64 * (1.0 + OTHER_TOKENS_SHARE) {
            return (CounterVerdict::OtherTraffic, None);
        }
        if (queried as f64) < least.prompt_tokens as f64 * (1.0 - OTHER_TOKENS_SHARE) {
            return (CounterVerdict::FewerTokens, None);
        }
        let Some((model, basis, generation)) = subject.first.clone().filter(|_| others <= OTHER_MODELS_SHARE)
        else {
            return (CounterVerdict::SeveralModels, None);
        };
        let from_others = queried.saturating_sub(least.prompt_tokens);
        let interval = CounterInterval {
            model,
            basis,
            generation,
            requests: least.requests,
            predicted_tokens: least.predicted_tokens,
            expected_tokens: most.expected_tokens + from_others,
            promised_tokens: least.expected_tokens.midpoint(most.expected_tokens),
            delivered_tokens: now.counters.hit_tokens - from.counters.hit_tokens,
        };
        (CounterVerdict::Compared, Some(interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: u64 = 100;

    fn request(model: &str, predicted: u32) -> Prediction {
        Prediction {
            basis: PredictionBasis::Events,
            model: model.into(),
            predicted_tokens: predicted,
            expected_tokens: predicted,
            prompt_tokens: Some(PROMPT as u32),
            ..Prediction::default()
        }
    }

    /// An engine with its ledger, read when nothing is under way.
    #[derive(Default)]
    struct Engine {
        ledger: CounterLedger,
        counters: PrefixCounters,
    }

    impl Engine {
        fn new() -> Self {
            let mut engine = Self::default();
            assert_eq!(engine.read(), None);
            engine
        }

        fn read(&mut self) -> Option<CounterInterval> {
            self.ledger.read(self.counters)
        }

        fn looks_up(&mut self, tokens: u64, hits: u64) {
            self.counters.queried_tokens += tokens;
            self.counters.hit_tokens += hits;
        }

        fn serve(&mut self, request: &Prediction, hits: u64) {
            self.ledger.picked(request);
            self.looks_up(PROMPT, hits);
            self.ledger.ended(request);
        }

        fn verdict(&self, verdict: CounterVerdict) -> u64 {
            self.ledger.verdicts().into_iter().find(|(known, _)| *known == verdict).unwrap().1
        }
    }

    #[test]
    fn what_ended_is_compared_once_the_engine_has_surely_counted_it() {
        let mut engine = Engine::new();
        for hits in [64, 64, 0] {
            engine.serve(&request("m", 64), hits);
        }
        assert_eq!(engine.read(), None, "the last one's end may be newer than the page");
        let interval = engine.read().unwrap();
        assert_eq!((interval.requests, &*interval.model), (3, "m"));
        assert_eq!((interval.predicted_tokens, interval.expected_tokens), (192, 192));
        assert_eq!(interval.delivered_tokens, 128);
        assert_eq!(engine.read(), None);
        assert_eq!(engine.verdict(CounterVerdict::Compared), 3);
    }

    #[test]
    fn requests_under_way_widen_the_bounds_until_they_are_few() {
        let mut engine = Engine::new();
        let first = request("m", 64);
        engine.ledger.picked(&first);
        assert_eq!(engine.read(), None);
        for _ in 0..9 {
            engine.serve(&request("m", 64), 64);
            engine.read();
            assert_eq!(engine.read(), None, "one of so few is too many");
        }
        engine.serve(&request("m", 64), 64);
        engine.read();
        // The first one may have been looked up or not.
        let interval = engine.read().unwrap();
        assert_eq!((interval.requests, interval.predicted_tokens, interval.expected_tokens), (10, 640, 704));
        engine.looks_up(PROMPT, 64);
        engine.ledger.ended(&first);
        for _ in 0..10 {
            engine.read();
            assert_eq!(engine.read(), None);
            engine.serve(&request("m", 64), 64);
        }
        engine.read();
        let interval = engine.read().unwrap();
        assert_eq!((interval.requests, interval.delivered_tokens), (10, 704));
        assert!(interval.predicted_tokens <= 704 && interval.expected_tokens >= 704, "{interval:?}");
    }

    #[test]
    fn a_busy_engine_is_compared_too() {
        let mut engine = Engine::new();
        let busy: Vec<Prediction> = (0..4).map(|_| request("m", 64)).collect();
        busy.iter().for_each(|request| engine.ledger.picked(request));
        let mut compared = 0;
        for at in 0..400 {
            // Always four under way, of which two have been looked up.
            engine.ledger.picked(&busy[at % 4]);
            engine.looks_up(PROMPT, 64);
            engine.ledger.ended(&busy[at % 4]);
            if let Some(interval) = engine.read() {
                compared += interval.requests;
                let (low, high) = (interval.predicted_tokens, interval.expected_tokens);
                assert!((low..=high).contains(&interval.delivered_tokens), "{interval:?}");
                assert!(high - low <= interval.requests * 64 / 5, "{interval:?}");
            }
        }
        assert!(compared > 200, "{compared}");
    }

    #[test]
    fn traffic_of_others_is_told_and_not_compared() {
        let mut engine = Engine::new();
        engine.serve(&request("m", 64), 64);
        engine.looks_up(PROMPT, PROMPT);
        engine.read();
        assert_eq!(engine.read(), None);
        assert_eq!(engine.verdict(CounterVerdict::OtherTraffic), 1);
        // A little of it is allowed for.
        for _ in 0..100 {
            engine.serve(&request("m", 64), 64);
        }
        engine.looks_up(4 * PROMPT, 4 * PROMPT);
        engine.read();
        let interval = engine.read().unwrap();
        assert_eq!((interval.predicted_tokens, interval.expected_tokens), (6400, 6800));
        assert_eq!(interval.delivered_tokens, 6800);
    }

    #[test]
    fn what_cannot_be_told_apart_is_named() {
        let mut engine = Engine::new();
        for verdict in
            [CounterVerdict::FewerTokens, CounterVerdict::UnknownTokens, CounterVerdict::SeveralModels]
        {
            engine.serve(&request("m", 64), 64);
            match verdict {
                CounterVerdict::FewerTokens => {
                    engine.ledger.picked(&request("m", 64));
                    engine.ledger.ended(&request("m", 64));
                }
                CounterVerdict::UnknownTokens => {
                    engine.serve(&Prediction { prompt_tokens: None, ..request("m", 0) }, 0);
                }
                _ => engine.serve(&request("other", 64), 64),
            }
            engine.read();
            assert_eq!(engine.read(), None);
            assert_eq!(engine.verdict(verdict), 2, "{verdict:?}");
        }
        assert_eq!(engine.verdict(CounterVerdict::Compared), 0);
    }

    #[test]
    fn a_restarted_engine_counts_from_zero() {
        let mut engine = Engine::new();
        engine.serve(&request("m", 64), 64);
        engine.counters = PrefixCounters::default();
        engine.read();
        assert_eq!(engine.read(), None);
        engine.serve(&request("m", 64), 0);
        engine.read();
        assert_eq!(engine.read().unwrap().delivered_tokens, 0);
    }
}
