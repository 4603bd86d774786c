//! The spans of one request.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::Span as SdkSpan;
use warmroute_ext_proc::{HeaderList, HttpRequest};

use super::TracedDecision;
use super::exporting::Tracing;
use crate::decision::{Lookup, ProfileTimes};
use crate::metrics::ExtensionPoint;
use crate::receipt::{CandidateLine, Receipt};

/// Endpoints that the span of the pick names, as at the peer.
const TOP_ENDPOINTS: usize = 5;

/// The request's own span while it lives, and what the others will be made from.
#[derive(Debug)]
pub(super) struct LiveRequest {
    tracing: Arc<Tracing>,
    span: SdkSpan,
    clock: WallClock,
    request_id: Arc<str>,
    decision: Option<TracedDecision>,
}

/// One moment by two clocks.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    instant: Instant,
    time: SystemTime,
}

impl WallClock {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn at(self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.time + later,
            None => self.time - self.instant.duration_since(instant),
        }
    }
}

impl LiveRequest {
    pub(super) fn new(tracing: Arc<Tracing>, request: &HttpRequest) -> Self {
        let clock = WallClock::now();
        let parent = tracing.propagator.extract_with_context(&Context::new(), &Headers(&request.headers));
        let span = SpanBuilder::from_name("gateway.request")
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at(request.received_at));
        let span = tracing.tracer.build_with_context(span, &parent);
        Self { tracing, span, clock, request_id: request.request_id.clone(), decision: None }
    }

    pub(super) fn is_recording(&self) -> bool {
        self.span.is_recording()
    }

    /// Also without a span to send: the caller's decision not to sample is handed on.
    pub(super) fn headers(&self) -> Vec<(String, String)> {
        let mut headers = HeaderPairs(Vec::with_capacity(2));
        let context = Context::new().with_remote_span_context(self.span.span_context().clone());
        self.tracing.propagator.inject_context(&context, &mut headers);
        // No state is no header.
        headers.0.retain(|(_, value)| !value.is_empty());
        headers.0
    }

    pub(super) fn decided(&mut self, decision: TracedDecision) {
        if self.is_recording() {
            self.decision = Some(decision);
        }
    }

    pub(super) fn failed(&mut self, code: &'static str) {
        self.span.set_status(Status::error(code));
    }
}

impl Drop for LiveRequest {
    fn drop(&mut self) {
        let Some(decision) = self.decision.take() else { return };
        let common = common_attributes(&decision.receipt, &self.request_id);
        self.span.set_attributes(common.clone());
        let parent = self.span.span_context().clone();
        let spans = DecisionSpans { tracing: &self.tracing, clock: self.clock, decision: &decision, common };
        spans.make(&parent);
    }
}

/// On most spans, as at the peer.
fn common_attributes(receipt: &Receipt, request_id: &Arc<str>) -> Vec<KeyValue> {
    let mut common = vec![KeyValue::new("gen_ai.request.id", request_id.clone())];
    if !receipt.model.is_empty() {
        common.push(KeyValue::new("gen_ai.request.model", receipt.model.clone()));
    }
    common
}

/// Makes the spans below the request's own after the fact.
struct DecisionSpans<'a> {
    tracing: &'a Tracing,
    clock: WallClock,
    decision: &'a TracedDecision,
    common: Vec<KeyValue>,
}

impl DecisionSpans<'_> {
    fn make(&self, request: &SpanContext) {
        let TracedDecision { receipt, started_at, decided_at, profiles, lookup, priority, .. } =
            self.decision;
        let mut attributes = self.common.clone();
        attributes.push(KeyValue::new("target_model", receipt.engine_model().to_owned()));
        attributes.push(KeyValue::new("request_prio", i64::from(*priority)));
        if let Some(tokens) = receipt.prompt_tokens {
            attributes.push(KeyValue::new("llm_d.epp.token_producer.token_count", i64::from(tokens)));
        }
        if let Some(handler) = &receipt.handler {
            let decision = KeyValue::new("llm_d.epp.profile_handler.decision", handler.decision.to_string());
            attributes.push(decision);
        }
        let took = decided_at.duration_since(*started_at);
        let all = self.span(
            "gateway.request_orchestration",
            (SpanKind::Server, request),
            (*started_at, took),
            attributes,
            receipt.refusal.is_some(),
        );
        if let Some(lookup) = lookup {
            self.lookup(&all, lookup);
        }
        for profile in profiles {
            self.profile(&all, profile);
        }
    }

    /// Makes one span and ends it.
    fn span(
        &self,
        name: impl Into<std::borrow::Cow<'static, str>>,
        (kind, parent): (SpanKind, &SpanContext),
        (started_at, took): (Instant, Duration),
        attributes: Vec<KeyValue>,
        failed: bool,
    ) -> SpanContext {
        let started_at = self.clock.at(started_at);
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_start_time(started_at)
            .with_attributes(attributes);
        let parent = Context::new().with_remote_span_context(parent.clone());
        let mut span = self.tracing.tracer.build_with_context(builder, &parent);
        if failed {
            span.set_status(Status::error("refused"));
        }
        span.end_with_timestamp(started_at + took);
        span.span_context().clone()
    }

    fn inner(
        &self,
        name: impl Into<std::borrow::Cow<'static, str>>,
        parent: &SpanContext,
        time: (Instant, Duration),
        attributes: impl IntoIterator<Item = KeyValue>,
    ) -> SpanContext {
        let attributes = self.common.iter().cloned().chain(attributes).collect();
        self.span(name, (SpanKind::Internal, parent), time, attributes, false)
    }

    fn lookup(&self, parent: &SpanContext, lookup: &Lookup) {
        let count = |name, value: usize| KeyValue::new(name, value as i64);
        let attributes = [
            count("llm_d.epp.producer.candidate_endpoints", self.decision.receipt.candidates_considered),
            count("llm_d.epp.producer.max_match_blocks", lookup.best_blocks as usize),
            count("llm_d.epp.producer.total_blocks", self.decision.receipt.prompt_blocks as usize),
        ];
        self.inner("produce_precise_prefix_cache", parent, (lookup.started_at, lookup.took), attributes);
    }

    fn profile(&self, parent: &SpanContext, profile: &ProfileTimes) {
        let count = |name, value: usize| KeyValue::new(name, value as i64);
        let name = KeyValue::new("llm_d.epp.scheduling.profile.name", profile.name.clone());
        let run = self.inner("run_scheduler_profile", parent, (profile.started_at, profile.took()), [name]);

        let filters = profile.took_by(ExtensionPoint::Filter);
        let attributes = [
            count("llm_d.epp.filter.candidate_endpoints", profile.candidates),
            count("llm_d.epp.filter.filtered_endpoints", profile.kept),
        ];
        self.inner("filter_endpoints", &run, (profile.started_at, filters), attributes);

        let scoring_at = profile.started_at + filters;
        let scorers = profile.took_by(ExtensionPoint::Scorer);
        let attributes = [
            count("llm_d.epp.scorer.count", profile.calls(ExtensionPoint::Scorer).count()),
            count("llm_d.epp.scoring.candidate_endpoints", profile.kept),
        ];
        let scoring = self.inner("llm_d.epp.scoring", &run, (scoring_at, scorers), attributes);
        self.scorers(&scoring, scoring_at, profile);

        let time = (scoring_at + scorers, profile.took_by(ExtensionPoint::Picker));
        let mut attributes = vec![count("llm_d.epp.picker.candidate_endpoints", profile.kept)];
        if profile.name == self.decision.receipt.profile {
            attributes.extend(top_endpoints(&self.decision.receipt.candidates));
        }
        self.inner("pick_endpoints", &run, time, attributes);
    }

    fn scorers(&self, scoring: &SpanContext, scoring_at: Instant, profile: &ProfileTimes) {
        let mut at = scoring_at;
        for call in profile.calls(ExtensionPoint::Scorer) {
            let plugin_type =
                self.decision.plugins.as_ref().map_or("", |plugins| plugins.type_of(&call.name)).to_owned();
            let mut attributes = vec![
                KeyValue::new("llm_d.epp.scorer.type", plugin_type.clone()),
                KeyValue::new("llm_d.epp.scorer.name", call.name.clone()),
                KeyValue::new("llm_d.epp.scorer.endpoints_scored", profile.kept as i64),
            ];
            let lines = self.decision.receipt.candidates.iter().flat_map(|candidate| &candidate.scores);
            let lines = lines.filter(|line| line.scorer == call.name);
            if let Some(best) = lines.max_by(|a, b| a.score.total_cmp(&b.score)) {
                attributes.push(KeyValue::new("llm_d.epp.scorer.weight", best.weight));
                attributes.push(KeyValue::new("llm_d.epp.scorer.score.max", best.score));
            }
            self.inner(format!("llm_d.epp.scorer.{plugin_type}"), scoring, (at, call.took), attributes);
            at += call.took;
        }
    }
}

/// The best candidates by total.
fn top_endpoints(candidates: &[CandidateLine]) -> [KeyValue; 2] {
    let mut kept: Vec<&CandidateLine> = candidates.iter().filter(|line| line.filtered_by.is_none()).collect();
    kept.sort_by(|a, b| b.total.total_cmp(&a.total));
    kept.truncate(TOP_ENDPOINTS);
    let names: Vec<StringValue> = kept.iter().map(|line| line.endpoint.clone().into()).collect();
    let scores: Vec<f64> = kept.iter().map(|line| line.total).collect();
    [
        KeyValue::new("llm_d.epp.picker.top_endpoints", Value::Array(Array::String(names))),
        KeyValue::new("llm_d.epp.picker.top_scores", Value::Array(Array::F64(scores))),
    ]
}

/// The request's headers as a propagator reads them.
struct Headers<'a>(&'a HeaderList);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get_str(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

/// Headers as a propagator writes them.
struct HeaderPairs(Vec<(String, String)>);

impl Injector for HeaderPairs {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_ascii_lowercase(), value));
    }
}
