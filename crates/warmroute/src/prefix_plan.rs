//! Whose prefix matches a policy needs.

use std::sync::Arc;

use anyhow::Context;
use warmroute_config::{CheckedConfig, PrefixProducerSpec, TierWeights};

/// The producers of prefix matches that a policy reads, and who reads which.
#[derive(Clone, Debug, Default)]
pub struct PrefixPlan {
    /// The producers to ask, each once.
    pub producers: Vec<WantedProducer>,
    /// Producers that count what is sent; [`MatchSource`] refers to them by place.
    pub approximate: Vec<PrefixProducerSpec>,
    /// For each of the scheduler's columns: the place of its producer in `producers`.
    pub columns: Vec<usize>,
    /// Place of the producer by which a request is charged and which receipts show; None if there is none.
    pub main: Option<usize>,
    /// How much a match by events counts whose engine may have lost it, 0 to 1.
    pub doubtful_match_weight: f64,
    /// How much a matched block counts by where it is.
    pub tier_weights: TierWeights,
    /// Whether requests ask engines to announce again what they hit there.
    pub relearns: bool,
}

/// A producer that is read.
#[derive(Clone, Debug)]
pub struct WantedProducer {
    /// Its name.
    pub name: Arc<str>,
    /// Its type in configurations.
    pub plugin_type: &'static str,
    /// Where its matches come from.
    pub source: MatchSource,
}

/// Where matches come from; numbers are places in [`PrefixPlan::approximate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchSource {
    /// The engines' events.
    Events,
    /// What was sent.
    Sent(usize),
    /// The engine's events where they are seen, else what was sent.
    EventsElseSent(usize),
}

impl MatchSource {
    /// Whether events are read.
    pub fn reads_events(self) -> bool {
        matches!(self, Self::Events | Self::EventsElseSent(_))
    }
}

impl PrefixPlan {
    /// The plan for a scheduler whose plugins asked for these columns.
    ///
    /// # Errors
    /// A plugin asked for a producer that isn't configured.
    pub fn try_new(config: &CheckedConfig, columns: &[String]) -> anyhow::Result<Self> {
        let events = config.kv_events();
        let doubtful_match_weight = events.as_ref().map_or(1.0, |events| events.doubtful_match_weight);
        let tier_weights = events.as_ref().map_or(TierWeights::EQUAL, |events| events.tier_weights);
        let relearns = events.is_some_and(|events| events.relearn_hot_prefixes);
        let mut plan = Self { doubtful_match_weight, tier_weights, relearns, ..Self::default() };
        for name in columns {
            let place = plan.want(config, name)?;
            plan.columns.push(place);
        }
        let named = config.in_flight_prefix_producer.as_deref();
        let named = named.map(|name| plan.want(config, name)).transpose()?;
        let reads_events = |wanted: &WantedProducer| wanted.source.reads_events();
        let first = (!plan.producers.is_empty()).then_some(0);
        plan.main = named.or_else(|| plan.producers.iter().position(reads_events)).or(first);
        Ok(plan)
    }

    /// Whether exact matches are needed.
    pub fn reads_events(&self) -> bool {
        self.producers.iter().any(|wanted| wanted.source.reads_events())
    }

    /// The producer by which a request is charged and which receipts show.
    pub fn main(&self) -> Option<&WantedProducer> {
        self.producers.get(self.main?)
    }

    fn want(&mut self, config: &CheckedConfig, name: &str) -> anyhow::Result<usize> {
        if let Some(place) = self.producers.iter().position(|wanted| &*wanted.name == name) {
            return Ok(place);
        }
        let producer = config.prefix_producer(name).with_context(|| {
            format!("a plugin reads prefix matches of {name:?}, and no such producer is configured")
        })?;
        let mut sent = || {
            self.approximate.push(producer.clone());
            self.approximate.len() - 1
        };
        let source = match producer {
            PrefixProducerSpec::Precise(_) => MatchSource::Events,
            PrefixProducerSpec::ExactFirst(_) => MatchSource::EventsElseSent(sent()),
            _ => MatchSource::Sent(sent()),
        };
        self.producers.push(WantedProducer {
            name: name.into(),
            plugin_type: producer.plugin_type(),
            source,
        });
        Ok(self.producers.len() - 1)
    }
}
