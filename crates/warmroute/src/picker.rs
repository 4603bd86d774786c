//! The path of a request, top-down: read the body, make tokens and keys, decide, answer, write the receipt.

mod admission;
mod model_rewriting;
mod report_request;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use warmroute_ext_proc::{EndpointPicker, HttpRequest, Picked, Refusal};
use warmroute_inference_api::{Api, Rejection};
use warmroute_plugin::InferenceRequest;
use warmroute_scheduler::ScheduleError;
use warmroute_tokenize::VideoHints;

use crate::control_headers::ControlHeaders;
use crate::decision::{Decided, Decider, Explanation, NotDecided};
use crate::delivered::{Comparison, Prediction, PredictionBasis};
use crate::lease::Lease;
use crate::metrics::{
    ExtensionPoint, Metrics, PluginLabels, PrefixPrediction, RequestFigure, namespace_and_name,
};
use crate::model_rewrites::ModelRewrites;
use crate::objectives::Objectives;
use crate::prompt::{PromptReader, ReadRequest};
use crate::receipt::{Fallback, FallbackNote, HandlerLine, Receipt, ReceiptRing, StepTimes};
use crate::response_watch::ResponseWatch;
use crate::telemetry::{RequestTrace, Telemetry, TracedDecision};
use report_request::with_full_report;

/// Picks endpoints for requests: what the ext-proc service calls.
pub struct Picker {
    reader: PromptReader,
    decider: Arc<Decider>,
    receipts: Arc<ReceiptRing>,
    metrics: Arc<Metrics>,
    objectives: Arc<Objectives>,
    rewrites: Arc<ModelRewrites>,
    heeds_subsets: bool,
    telemetry: Telemetry,
}

impl Picker {
    /// A picker from its parts.
    pub fn new(
        reader: PromptReader,
        decider: Arc<Decider>,
        receipts: Arc<ReceiptRing>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (objectives, rewrites, telemetry) = (Arc::default(), Arc::default(), Telemetry::off());
        Self { reader, decider, receipts, metrics, objectives, rewrites, heeds_subsets: true, telemetry }
    }

    /// The same picker, for which the gateway's subset hints mean nothing.
    #[must_use]
    pub fn ignoring_subsets(self, ignores: bool) -> Self {
        Self { heeds_subsets: !ignores, ..self }
    }

    /// The same picker, which takes the priorities of requests from there.
    #[must_use]
    pub fn with_objectives(self, objectives: Arc<Objectives>) -> Self {
        Self { objectives, ..self }
    }

    /// The same picker, which asks engines for other models as these rules say.
    #[must_use]
    pub fn with_rewrites(self, rewrites: Arc<ModelRewrites>) -> Self {
        Self { rewrites, ..self }
    }

    /// The same picker, which makes traces.
    #[must_use]
    pub fn traced(self, telemetry: Telemetry) -> Self {
        Self { telemetry, ..self }
    }

    fn subset<'r>(&self, request: &'r HttpRequest) -> Option<&'r [String]> {
        request.subset.as_deref().filter(|_| self.heeds_subsets)
    }

    /// The API by which the body is read.
    fn api_of(&self, request: &HttpRequest) -> Result<Api, Rejection> {
        self.decider.policy().parsers.api_of_path(request.path())
    }
}

impl EndpointPicker for Picker {
    type Lease = Lease;

    async fn pick(&self, request: HttpRequest) -> Result<Picked<Lease>, Refusal> {
        let mut draft = Draft::new(&request, self.telemetry.request(&request));
        draft.control(&ControlHeaders::of(&request.headers), &self.objectives);
        let outcome = self.read_and_decide(&request, &mut draft).await;
        self.finish(draft, outcome)
    }

    async fn pick_by_load(&self, request: HttpRequest) -> Result<Picked<Lease>, Refusal> {
        let mut draft = Draft::new(&request, self.telemetry.request(&request));
        draft.control(&ControlHeaders::of(&request.headers), &self.objectives);
        draft.fallback(Fallback::PickedByLoad, "picking failed inside");
        tracing::error!(request_id = %request.request_id, "picking failed inside: the request is picked by load alone");
        let outcome =
            self.decider.decide_by_load(0, self.subset(&request)).map_err(|error| refusal_of(&error));
        self.finish(draft, outcome)
    }

    fn stream_ended(&self, open_for: Duration, status: &'static str) {
        self.metrics.streams.ended(open_for, status);
    }
}

impl Picker {
    async fn read_and_decide(&self, request: &HttpRequest, draft: &mut Draft) -> Result<Decided, Refusal> {
        let subset = self.subset(request);
        if request.body.is_empty() && request.body.is_complete() && !self.expects_body(request) {
            draft.fallback(Fallback::NoBody, "");
            return self.decider.decide_by_load(0, subset).map_err(|error| refusal_of(&error));
        }
        let api = self.api_of(request).map_err(|rejection| bad_request(&rejection))?;
        api.as_str().clone_into(&mut draft.receipt.api);
        self.admit(request, api, draft).await?;
        let read = self.read(request, api, draft).await?;
        self.rewrite(request, api, &read, draft);
        let mut inference_request = inference_request(request, &read);
        inference_request.priority = draft.receipt.priority;
        for producer in &self.decider.policy().session_ids {
            producer.add_to(&mut inference_request);
        }
        draft.read(&read);
        let decided = self.decider.decide(&inference_request, &read, subset);
        draft.decided_now();
        if let Ok(decided) = &decided
            && decided.explanation.asks_for_report
            && draft.ask_for_report(request)
            && let Some(endpoint) = decided.endpoints.first()
        {
            self.metrics.reports_asked.with_label_values(&[&*endpoint.address]).inc();
        }
        self.count_attempt(draft.receipt.engine_model(), decided.as_ref().ok());
        decided.map_err(|error| refusal_of(&error))
    }

    async fn read(&self, request: &HttpRequest, api: Api, draft: &mut Draft) -> Result<ReadRequest, Refusal> {
        if !request.body.is_complete() {
            draft.fallback(
                Fallback::BodyIncomplete,
                "the gateway's body mode asks for an answer before the body's end",
            );
            draft.read_now();
            return Ok(ReadRequest::default());
        }
        let hints = VideoHints::from_headers(|name| request.headers.get_str(name));
        let mut wanted = self.decider.keys_wanted();
        wanted.target = self.model_target(request, api);
        let read = self.reader.read(api, request.body.contiguous(), hints, wanted).await;
        draft.read_now();
        read.map_err(|rejection| bad_request(&rejection))
    }

    /// Requests that must have a body: an empty one is a mistake that the parser names.
    fn expects_body(&self, request: &HttpRequest) -> bool {
        matches!(request.method(), "POST" | "PUT" | "PATCH")
            && self.api_of(request).is_ok_and(|api| !api.is_raw())
    }

    fn count_attempt(&self, model: &str, decided: Option<&Decided>) {
        let model = self.metrics.requests.model_label(model);
        let picked = decided.and_then(|decided| decided.endpoints.first()).map(|endpoint| {
            let (namespace, name) = namespace_and_name(&endpoint.name);
            [name, namespace, endpoint.address.rsplit_once(':').map_or("", |(_, port)| port)]
        });
        self.metrics.scheduling.count_attempt(model, picked);
    }

    /// Writes metrics and the receipt, and makes the answer.
    fn finish(&self, mut draft: Draft, outcome: Result<Decided, Refusal>) -> Result<Picked<Lease>, Refusal> {
        let (model, flow) = (draft.receipt.model.as_str(), draft.receipt.fairness_id.as_str());
        let target = draft.receipt.engine_model();
        let series = self.metrics.requests.series(model, target, flow, draft.receipt.priority);
        series.total.inc();
        let decided = match outcome {
            Ok(mut decided) => {
                series.observe(RequestFigure::RequestSize, draft.receipt.body_bytes as f64);
                if let Some(handler) = &decided.explanation.handler {
                    self.count_stages(handler, model);
                }
                draft.explain(std::mem::take(&mut decided.explanation), decided.label.clone());
                Ok(decided)
            }
            Err(refusal) => {
                series.count_error(refusal.code);
                draft.trace.failed(refusal.code);
                draft.receipt.refusal =
                    Some(format!("{} {}: {}", refusal.status, refusal.code, refusal.message));
                Err(refusal)
            }
        };
        self.observe(&draft);
        let streams = draft.receipt.stream;
        let prompt_tokens = draft.receipt.prompt_tokens.filter(|_| !draft.receipt.prompt_tokens_estimated);
        let prediction = draft.prediction(&self.metrics);
        let body = draft.body.take();
        let received_at = draft.received_at;
        let (receipt, trace) = draft.done(&self.receipts);
        let decided = decided?;
        let headers = trace.headers();
        let comparison = Comparison::of(prediction, decided.deliveries, Arc::downgrade(&receipt));
        let watch = ResponseWatch::new(self.metrics.clone(), series, received_at, trace).compared(comparison);
        let helpers = decided.helpers.into_iter().map(|helper| helper.lease).collect();
        let lease = Lease::new(decided.charge, decided.expectation, watch.asked(streams, prompt_tokens));
        let mut picked = Picked::new(String::new(), lease.with_helpers(helpers));
        picked.destinations = decided.destinations;
        picked.scores = decided.scores;
        picked.body = body;
        picked.set_headers = header_list(&decided.headers.request);
        picked.set_headers.extend(headers);
        picked.response_headers = header_list(&decided.headers.response);
        picked.served_header = self.decider.policy().served_header;
        Ok(picked)
    }

    /// Counts a decision about stages.
    fn count_stages(&self, handler: &HandlerLine, model: &str) {
        let model = self.metrics.requests.model_label(model);
        let labels = [&*handler.name, &*handler.plugin_type, model, &handler.decision];
        self.metrics.requests.disaggregation.with_label_values(&labels).inc();
        if &*handler.plugin_type == "pd-profile-handler" {
            self.metrics.requests.prefill_decode.with_label_values(&labels).inc();
        }
    }

    fn observe(&self, draft: &Draft) {
        let receipt = &draft.receipt;
        for note in &receipt.fallbacks {
            self.metrics.requests.fallbacks.with_label_values(&[note.kind.as_str()]).inc();
        }
        if receipt.pick.is_some() {
            // Guessed tokens have no part in the hit ratio.
            let exact = receipt.prompt_tokens.filter(|_| !receipt.prompt_tokens_estimated);
            self.metrics.requests.prompt_tokens.inc_by(u64::from(exact.unwrap_or(0)));
            self.metrics.requests.predicted_cached_tokens.inc_by(u64::from(receipt.predicted_cached_tokens));
        }
        self.observe_plugins(&draft.explanation, receipt);
        let seconds = |us: u64| us as f64 / 1e6;
        self.metrics.requests.prompt_seconds.observe(seconds(receipt.steps.prompt_us));
        self.metrics.scheduling.e2e_seconds.observe(seconds(receipt.steps.decide_us));
        let whole = draft.started.elapsed().as_secs_f64();
        self.metrics.requests.processing_seconds.observe(whole);
        self.metrics.requests.decision_seconds.observe(whole);
    }

    fn observe_plugins(&self, explanation: &Explanation, receipt: &Receipt) {
        let Some(plugins) = &explanation.plugins else { return };
        let scheduling = &self.metrics.scheduling;
        for call in explanation.profiles.iter().flat_map(|profile| &profile.plugins) {
            scheduling.observe_plugin(call.point, plugins.labels(&call.name), call.took.as_secs_f64());
        }
        let Some(lookup) = &explanation.lookup else { return };
        let point = ExtensionPoint::DataProducer;
        scheduling.observe_plugin(point, plugins.token_producer(), receipt.steps.prompt_us as f64 / 1e6);
        for hit in &explanation.prefix_hits {
            let producer = PluginLabels { name: &hit.producer, plugin_type: hit.plugin_type };
            // All are looked up together.
            scheduling.observe_plugin(point, producer, lookup.took.as_secs_f64());
            let prediction = PrefixPrediction {
                matched_blocks: hit.matched_blocks,
                total_blocks: hit.total_blocks,
                block_size_tokens: hit.block_size_tokens,
                cached_tokens: hit.cached_tokens,
                prompt_tokens: receipt.prompt_tokens.unwrap_or(0),
            };
            scheduling.observe_prefix(producer, prediction);
        }
    }
}

/// The receipt while it is being written.
struct Draft {
    receipt: Receipt,
    received_at: Instant,
    started: Instant,
    step: Instant,
    /// What the receipt doesn't show: times of plugins.
    explanation: Explanation,
    trace: RequestTrace,
    /// What the engine gets instead of the client's body.
    body: Option<Bytes>,
    has_media: bool,
    prompts: usize,
}

impl Draft {
    fn new(request: &HttpRequest, trace: RequestTrace) -> Self {
        let started = Instant::now();
        let receipt = Receipt {
            request_id: request.request_id.to_string(),
            api: Api::Other.as_str().to_owned(),
            body_bytes: request.body.len_bytes(),
            steps: StepTimes {
                receive_us: micros(started.saturating_duration_since(request.received_at)),
                ..StepTimes::default()
            },
            ..Receipt::default()
        };
        let (received_at, explanation) = (request.received_at, Explanation::default());
        let (step, body) = (started, None);
        let (has_media, prompts) = (false, 0);
        Self { receipt, received_at, started, step, explanation, trace, body, has_media, prompts }
    }

    /// Notes what the client said of the request, and its priority.
    fn control(&mut self, headers: &ControlHeaders<'_>, objectives: &Objectives) {
        headers.fairness_id.clone_into(&mut self.receipt.fairness_id);
        let Some(objective) = headers.objective else { return };
        objective.clone_into(&mut self.receipt.objective);
        match objectives.priority_of(objective) {
            Some(priority) => self.receipt.priority = priority,
            None => self.fallback(Fallback::UnknownObjective, format!("{objective:?} counts as priority 0")),
        }
    }

    /// Asks the engine to announce again what the request hits in its cache, if the body lets that be said.
    fn ask_for_report(&mut self, request: &HttpRequest) -> bool {
        let body = match &self.body {
            Some(rewritten) => with_full_report(rewritten),
            None => with_full_report(request.body.contiguous()),
        };
        self.receipt.asked_for_report = body.is_some();
        self.body = body.or(self.body.take());
        self.receipt.asked_for_report
    }

    fn fallback(&mut self, kind: Fallback, detail: impl Into<String>) {
        self.receipt.fallbacks.push(FallbackNote { kind, detail: detail.into() });
    }

    fn read_now(&mut self) {
        self.receipt.steps.prompt_us = micros(self.step.elapsed());
        self.step = Instant::now();
    }

    fn decided_now(&mut self) {
        self.receipt.steps.decide_us = micros(self.step.elapsed());
    }

    fn read(&mut self, read: &ReadRequest) {
        self.receipt.model.clone_from(&read.model);
        self.has_media = read.media_parts > 0;
        self.prompts = read.prompts();
        self.receipt.stream = read.stream;
        self.receipt.prompt_tokens = read.prompt_tokens();
        self.receipt.prompt_tokens_estimated = read.is_estimated();
        self.receipt.fallbacks.extend(read.fallback.clone());
    }

    fn explain(&mut self, mut explanation: Explanation, pick: Arc<str>) {
        let receipt = &mut self.receipt;
        receipt.profile.clone_from(&explanation.profile);
        receipt.candidates_considered = explanation.considered;
        receipt.candidates = std::mem::take(&mut explanation.candidates);
        receipt.runner_up = explanation.runner_up.take();
        receipt.prompt_blocks = explanation.prompt_blocks;
        receipt.prefix_producer.clone_from(&explanation.prefix_producer);
        receipt.predicted_cached_tokens = explanation.predicted_cached_tokens;
        receipt.expected_cached_tokens = explanation.expected_cached_tokens;
        receipt.handler = explanation.handler.take();
        receipt.other_profiles = std::mem::take(&mut explanation.other_profiles);
        receipt.pick = Some(pick);
        for kind in explanation.fallbacks.drain(..) {
            receipt.fallbacks.push(FallbackNote { kind, detail: String::new() });
        }
        for detail in explanation.plugin_fallbacks.drain(..) {
            receipt.fallbacks.push(FallbackNote { kind: Fallback::Plugin, detail });
        }
        self.explanation = explanation;
    }

    /// What is to be laid beside what the engine delivers.
    fn prediction(&self, metrics: &Metrics) -> Prediction {
        let receipt = &self.receipt;
        let reasons = receipt.fallbacks.iter().map(|note| note.kind);
        let no_tokens = reasons.filter(|_| !self.has_media).find(|kind| kind.leaves_no_tokens());
        let basis = match self.explanation.prediction_basis {
            // vLLM reports what of one of them was cached (`vllm/entrypoints/openai`, `serving_completion.py`).
            _ if self.prompts > 1 => PredictionBasis::Nothing,
            // Some prompts have no tokens that anybody here could know.
            PredictionBasis::NoTokens if no_tokens.is_none() => PredictionBasis::Nothing,
            basis => basis,
        };
        Prediction {
            basis,
            model: metrics.requests.model_label(receipt.engine_model()).into(),
            predicted_tokens: receipt.predicted_cached_tokens,
            expected_tokens: match self.explanation.was_idle {
                // What the engine keeps of media isn't foreseen.
                _ if self.has_media => u32::MAX,
                true => receipt.predicted_cached_tokens,
                false => receipt.expected_cached_tokens,
            },
            prompt_tokens: receipt.prompt_tokens.filter(|_| !receipt.prompt_tokens_estimated),
            no_tokens,
            generation: self.explanation.view_generation,
            promised_tokens: self.explanation.reach.map(|reach| reach.promised_tokens),
        }
    }

    /// Keeps the receipt, and in the trace what its spans are made from.
    fn done(self, receipts: &ReceiptRing) -> (Arc<Receipt>, RequestTrace) {
        let Self { receipt, started, explanation, mut trace, .. } = self;
        let priority = receipt.priority;
        let receipt = receipts.push(receipt);
        if trace.is_recording() {
            trace.decided(TracedDecision {
                receipt: receipt.clone(),
                started_at: started,
                decided_at: Instant::now(),
                profiles: explanation.profiles,
                lookup: explanation.lookup,
                plugins: explanation.plugins,
                priority,
            });
        }
        (receipt, trace)
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

fn inference_request(request: &HttpRequest, read: &ReadRequest) -> InferenceRequest {
    let mut inference_request = InferenceRequest::new(request.request_id.clone(), read.model.as_str());
    inference_request.target_model = read.target_model().into();
    inference_request.headers = header_map(request);
    inference_request.prompt_tokens = read.prompt_tokens();
    inference_request.prompt_tokens_estimated = read.is_estimated();
    inference_request.max_tokens = read.max_tokens;
    inference_request.media_parts = read.media_parts;
    inference_request.stream = read.stream;
    inference_request
}

/// The headers of a plugin as the stream takes them; values that are no text are left out.
fn header_list(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(text).collect()
}

/// The headers as plugins get them; pseudo-headers and ones that aren't valid HTTP are left out.
fn header_map(request: &HttpRequest) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for (name, value) in request.headers.iter() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn bad_request(rejection: &Rejection) -> Refusal {
    Refusal::new(400, "BadRequest", rejection.to_string())
}

fn refusal_of(error: &NotDecided) -> Refusal {
    match error {
        NotDecided::NoCandidates => {
            Refusal::new(503, "ServiceUnavailable", error.to_string()).with_reason("rejected-no-endpoints")
        }
        NotDecided::NotCached => Refusal::new(412, "PreconditionFailed", error.to_string()),
        NotDecided::Schedule(error @ ScheduleError::StageFailed { .. }) => {
            Refusal::new(429, "ResourceExhausted", error.to_string()).with_reason("rejected-saturated")
        }
        NotDecided::Schedule(ScheduleError::FilteredOut { .. }) => {
            Refusal::new(429, "ResourceExhausted", "no endpoints available for the given request")
                .with_reason("rejected-saturated")
        }
        NotDecided::Schedule(error) => {
            Refusal::new(429, "ResourceExhausted", format!("failed to find target endpoint: {error}"))
        }
        NotDecided::Columns(error) => {
            tracing::error!(%error, "the candidate table is inconsistent");
            Refusal::inner_failure()
        }
    }
}
