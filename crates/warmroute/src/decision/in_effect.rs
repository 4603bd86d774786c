//! A policy with what its producers of approximate matches know.

use std::sync::Arc;

use super::charging::Charging;
use crate::approximate_producer::{ApproximateProducer, Sending};
use crate::policy::Policy;
use crate::pool::{EndpointState, PoolSnapshot};
use crate::prefix_plan::MatchSource;
use crate::prompt::{ApproximateKeys, ApproximateSize, KeysWanted, ReadRequest};

/// What is in effect.
pub(super) struct InEffect {
    pub(super) policy: Arc<Policy>,
    /// One per entry of the policy's [`PrefixPlan::approximate`](crate::prefix_plan::PrefixPlan::approximate).
    pub(super) approximate: Vec<Arc<ApproximateProducer>>,
}

/// A prompt that is about to be sent to an endpoint, as one producer counts it.
pub(super) struct Outgoing {
    producer: Arc<ApproximateProducer>,
    endpoint: Arc<EndpointState>,
    sending: Sending,
}

impl Outgoing {
    /// Notes it as sent.
    pub(super) fn send(self, keys: &ApproximateKeys) {
        self.producer.send(&self.endpoint, keys, self.sending);
    }
}

impl InEffect {
    /// A producer of `old` that was made from the same configuration goes on; others begin empty.
    pub(super) fn new(policy: Arc<Policy>, old: Option<&Self>) -> Self {
        let running =
            |producer| old?.approximate.iter().find(|running| running.producer() == producer).cloned();
        let wanted = policy.prefix.approximate.iter();
        let approximate = wanted
            .filter_map(|producer| {
                running(producer).or_else(|| ApproximateProducer::new(producer).map(Arc::new))
            })
            .collect();
        Self { policy, approximate }
    }

    /// Name, type and blocks of every producer; `by_events` is what the engines told.
    pub(super) fn prefix_sizes(&self, by_events: usize) -> Vec<(Arc<str>, &'static str, usize)> {
        let sent = |at: usize| self.approximate.get(at).map_or(0, |producer| producer.status().blocks);
        let producers = self.policy.prefix.producers.iter().map(|producer| {
            let blocks = match producer.source {
                MatchSource::Events => by_events,
                MatchSource::Sent(at) => sent(at),
                MatchSource::EventsElseSent(at) => by_events + sent(at),
            };
            (producer.name.clone(), producer.plugin_type, blocks)
        });
        producers.collect()
    }

    /// What the policy needs to know of a prompt: keys in the block sizes in use now.
    pub(super) fn keys_wanted(&self, snapshot: &PoolSnapshot) -> KeysWanted {
        let mut wanted = KeysWanted::default();
        if self.policy.prefix.reads_events() {
            for size in snapshot.states.iter().filter_map(|state| state.block_size_tokens()) {
                if !wanted.block_sizes_tokens.contains(&size) {
                    wanted.block_sizes_tokens.push(size);
                }
            }
            // Without a block size, what was sent is all that can count, where it does.
            let needs_events =
                self.policy.prefix.producers.iter().any(|producer| producer.source == MatchSource::Events);
            wanted.prefix_match = needs_events || !wanted.block_sizes_tokens.is_empty();
        }
        for producer in &self.approximate {
            for state in &snapshot.states {
                add_size(&mut wanted.approximate, producer.size(producer.block_size_tokens(state)));
            }
        }
        // Of engines whose events are seen, the events say it.
        let is_any_unseen = || snapshot.states.iter().any(|state| !state.engine.is_seen());
        let is_sent = |source: MatchSource| matches!(source, MatchSource::Sent(_));
        wanted.approximate_of_exact = !wanted.approximate.is_empty()
            && (self.policy.prefix.producers.iter().any(|producer| is_sent(producer.source))
                || is_any_unseen());
        wanted.token_ids = wanted.approximate_of_exact;
        wanted.estimate = !wanted.approximate.is_empty();
        wanted
    }

    /// The prompt on its way to the endpoint of a row: expected there from now on by every producer that counts it.
    pub(super) fn outgoing(&self, charging: &Charging<'_>, row: usize, read: &ReadRequest) -> Vec<Outgoing> {
        let Some(keys) = &read.approximate else { return Vec::new() };
        let (endpoint, signals) = (charging.state(row), charging.signals);
        let by_events = read.whole_prompt().is_some() && endpoint.engine.is_seen();
        let counts = |at: usize| {
            let uses = |source| source == MatchSource::Sent(at) || source == MatchSource::EventsElseSent(at);
            let producer = self.policy.prefix.producers.iter().find(|producer| uses(producer.source));
            // What events tell needn't be counted.
            !by_events || producer.is_some_and(|producer| producer.source == MatchSource::Sent(at))
        };
        let outgoing = |(at, producer): (usize, &Arc<ApproximateProducer>)| {
            let known_blocks = |prompt| signals.prefix.known_by_sending(at, row, prompt);
            let sending = producer.expect(endpoint, keys, known_blocks)?;
            Some(Outgoing { producer: producer.clone(), endpoint: endpoint.clone(), sending })
        };
        let producers = self.approximate.iter().enumerate().filter(|(at, _)| counts(*at));
        producers.filter_map(outgoing).collect()
    }
}

/// Adds a size, each block size once.
fn add_size(sizes: &mut Vec<ApproximateSize>, size: ApproximateSize) {
    match sizes.iter_mut().find(|other| other.block_size_tokens == size.block_size_tokens) {
        Some(other) => other.max_blocks = other.max_blocks.max(size.max_blocks),
        None => sizes.push(size),
    }
}
