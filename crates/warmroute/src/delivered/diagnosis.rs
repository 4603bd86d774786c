use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use warmroute_kv_events::{Trust, TrustReason};

use super::finding::{Cause, EngineFacts, Finding, ModelFacts, findings};
use crate::decision::Decider;
use crate::metrics::Metrics;
use crate::pool::{EndpointState, Pool};
use crate::prompt::AdapterNames;

/// How often findings are made anew.
pub const DIAGNOSIS_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the findings of a pool, and tells of each that comes or goes.
pub struct Diagnosis {
    pool: Arc<Pool>,
    decider: Arc<Decider>,
    adapters: Arc<AdapterNames>,
    metrics: Arc<Metrics>,
    /// The findings of the last time.
    known: Mutex<BTreeSet<(Cause, String)>>,
    /// Endpoints and models whose promises alone were broken the last time.
    doubted: Mutex<BTreeSet<(Arc<str>, Box<str>)>>,
}

impl Diagnosis {
    /// Of a pool under the decider's policy; `adapters` are those that engines list or whose blocks they announce.
    pub fn new(
        pool: Arc<Pool>,
        decider: Arc<Decider>,
        adapters: Arc<AdapterNames>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { pool, decider, adapters, metrics, known: Mutex::default(), doubted: Mutex::default() }
    }

    /// The findings as of now. Sets their metric, and logs those that weren't there the last time and those that are
    /// gone since.
    pub fn refresh(&self) -> Vec<Finding> {
        let follows_events = self.decider.policy().prefix.reads_events();
        let snapshot = self.pool.snapshot();
        self.judge_promises(&snapshot.states);
        let facts: Vec<EngineFacts> =
            snapshot.states.iter().map(|state| self.facts(state, follows_events)).collect();
        let found = findings(&facts);
        let mut known = self.known.lock();
        for finding in &found {
            if !known.contains(&(finding.cause, finding.model.clone())) {
                tracing::warn!(
                    cause = finding.cause.as_str(),
                    model = finding.model,
                    endpoints = ?finding.endpoints,
                    seen = finding.seen,
                    advice = finding.advice,
                    "finding: {}",
                    finding.likely
                );
            }
        }
        let now: BTreeSet<_> = found.iter().map(|finding| (finding.cause, finding.model.clone())).collect();
        for (cause, model) in known.difference(&now) {
            tracing::info!(cause = cause.as_str(), model, "a finding is gone");
        }
        *known = now;
        let mut counts: BTreeMap<Cause, i64> = Cause::ALL.into_iter().map(|cause| (cause, 0)).collect();
        found.iter().for_each(|finding| *counts.entry(finding.cause).or_default() += 1);
        for (cause, count) in counts {
            self.metrics.findings.with_label_values(&[cause.as_str()]).set(count);
        }
        found
    }

    /// Lets promises that are broken, or kept again, lower and raise trust, and tells of each change once.
    fn judge_promises(&self, states: &[Arc<EndpointState>]) {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut doubted = BTreeSet::new();
        for state in states {
            let endpoint = &state.endpoint.address;
            let breaks = state.deliveries.breaks_promises();
            let change = state.engine.set_delivers_less(breaks, now_ms);
            change.tell(endpoint, &state.engine, &self.metrics.events);
            if !breaks && !state.deliveries.is_kept() {
                let models = state.deliveries.models().into_iter();
                let models = models.filter(|(_, deliveries)| deliveries.breaks_promises());
                doubted.extend(models.map(|(model, _)| (endpoint.clone(), model)));
            }
        }
        let mut known = self.doubted.lock();
        for (endpoint, model) in doubted.difference(&known) {
            tracing::warn!(%endpoint, model, "this engine delivers less of this model than its events promise: its \
                matches count less for such requests");
        }
        for (endpoint, model) in known.difference(&doubted) {
            tracing::info!(%endpoint, model, "matches of this model aren't doubted alone any more at this engine");
        }
        *known = doubted;
    }

    /// What is known of one engine.
    fn facts(&self, state: &EndpointState, follows_events: bool) -> EngineFacts {
        let engine = &state.engine;
        let events = engine.status(None);
        // What deliveries did to it is no cause of theirs.
        let by_events = engine.trust_by_events();
        let (is_connected, is_seen) = (engine.is_connected(), engine.is_seen());
        let events_block_tokens = engine.block_size_tokens();
        let is_followed = by_events.trust != Trust::Blind || by_events.reason != TrustReason::NotFollowed;
        let is_heard = by_events.trust != Trust::Blind && events.batches > 0 && events_block_tokens > 0;
        let models = state.deliveries.models().into_iter().map(|(name, deliveries)| ModelFacts {
            is_adapter: self.is_adapter(state, &name),
            name: name.into(),
            window: deliveries.window(),
        });
        let models: Vec<ModelFacts> = models.collect();
        let more =
            |model: &ModelFacts| model.window.by_events.lasting_error().is_some_and(|error| error > 0.0);
        if models.iter().any(more) {
            engine.relearning.is_worthwhile();
        }
        EngineFacts {
            endpoint: state.label.to_string(),
            follows_events: follows_events && is_followed,
            is_connected,
            is_seen,
            has_unsupported_groups: is_heard && !is_seen,
            trust: by_events.trust,
            trust_reason: by_events.reason,
            missed_batches: events.missed_batches,
            events_block_tokens,
            metrics_block_tokens: state.of_scrape(|scrape| scrape.metrics.block_size_tokens).unwrap_or(0),
            models,
        }
    }

    /// Whether events, the engine's list of models or its metrics call a model an adapter.
    fn is_adapter(&self, state: &EndpointState, model: &str) -> bool {
        let is_listed = state
            .models()
            .is_some_and(|models| models.get(model).is_some_and(|served| served.adapter_of.is_some()));
        let is_active = || state.of_scrape(|scrape| Some(scrape.adapters.as_ref()?.names(model))).flatten();
        self.adapters.contains(model) || is_listed || is_active().unwrap_or(false)
    }
}
