//! The path of a request, top-down: read the body, make tokens and keys, decide, answer, write the receipt.

mod admission;

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use warmroute_ext_proc::{EndpointPicker, HttpRequest, Picked, Refusal};
use warmroute_inference_api::{Api, Rejection};
use warmroute_plugin::{Endpoint, InferenceRequest};
use warmroute_scheduler::ScheduleError;
use warmroute_tokenize::VideoHints;

use crate::control_headers::ControlHeaders;
use crate::decision::{Decided, Decider, Explanation, NotDecided};
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::objectives::Objectives;
use crate::prompt::{PromptReader, ReadRequest};
use crate::receipt::{Fallback, FallbackNote, HandlerLine, Receipt, ReceiptRing, StepTimes};

/// Picks endpoints for requests: what the ext-proc service calls.
pub struct Picker {
    reader: PromptReader,
    decider: Arc<Decider>,
    receipts: Arc<ReceiptRing>,
    metrics: Arc<Metrics>,
    objectives: Arc<Objectives>,
    heeds_subsets: bool,
}

impl Picker {
    /// A picker from its parts.
    pub fn new(
        reader: PromptReader,
        decider: Arc<Decider>,
        receipts: Arc<ReceiptRing>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { reader, decider, receipts, metrics, objectives: Arc::default(), heeds_subsets: true }
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
        let mut draft = Draft::new(&request);
        draft.control(&ControlHeaders::of(&request.headers), &self.objectives);
        let outcome = self.read_and_decide(&request, &mut draft).await;
        self.finish(draft, outcome)
    }

    async fn pick_by_load(&self, request: HttpRequest) -> Result<Picked<Lease>, Refusal> {
        let mut draft = Draft::new(&request);
        draft.control(&ControlHeaders::of(&request.headers), &self.objectives);
        draft.fallback(Fallback::PickedByLoad, "picking failed inside");
        tracing::error!(request_id = %request.request_id, "picking failed inside: the request is picked by load alone");
        let outcome =
            self.decider.decide_by_load(0, self.subset(&request)).map_err(|error| refusal_of(&error));
        self.finish(draft, outcome)
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
        let mut inference_request = inference_request(request, &read);
        inference_request.priority = draft.receipt.priority;
        draft.read(&read);
        let decided = self.decider.decide(&inference_request, read.prompt.as_ref(), subset);
        draft.decided_now();
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
        let read = self.reader.read(api, request.body.contiguous(), hints, self.decider.keys_wanted()).await;
        draft.read_now();
        read.map_err(|rejection| bad_request(&rejection))
    }

    /// Requests that must have a body: an empty one is a mistake that the parser names.
    fn expects_body(&self, request: &HttpRequest) -> bool {
        matches!(request.method(), "POST" | "PUT" | "PATCH")
            && self.api_of(request).is_ok_and(|api| !api.is_raw())
    }

    /// Writes metrics and the receipt, and makes the answer.
    fn finish(&self, mut draft: Draft, outcome: Result<Decided, Refusal>) -> Result<Picked<Lease>, Refusal> {
        let model = self.metrics.model_label(&draft.receipt.model).to_owned();
        let fairness_id = self.metrics.fairness_label(&draft.receipt.fairness_id).to_owned();
        let priority = draft.receipt.priority.to_string();
        let labels = [model.as_str(), model.as_str(), fairness_id.as_str(), priority.as_str()];
        self.metrics.requests.total.with_label_values(&labels).inc();
        let answer = match outcome {
            Ok(decided) => {
                if let Some(handler) = &decided.explanation.handler {
                    self.count_stages(handler, &model);
                }
                draft.explain(decided.explanation, &decided.endpoints);
                let running = self.metrics.requests.running.with_label_values(&labels);
                let helpers = decided.helpers.into_iter().map(|helper| helper.lease).collect();
                let lease = Lease::new(decided.charge, decided.expectation, running).with_helpers(helpers);
                let mut picked = Picked::new(String::new(), lease);
                picked.destinations = decided.destinations;
                picked.set_headers = header_list(&decided.headers.request);
                picked.response_headers = header_list(&decided.headers.response);
                Ok(picked)
            }
            Err(refusal) => {
                let [model, target, fairness, priority] = labels;
                let labels = [model, target, fairness, priority, refusal.code];
                self.metrics.requests.errors.with_label_values(&labels).inc();
                draft.receipt.refusal =
                    Some(format!("{} {}: {}", refusal.status, refusal.code, refusal.message));
                Err(refusal)
            }
        };
        self.observe(&draft);
        self.receipts.push(draft.receipt);
        answer
    }

    /// Counts a decision about stages.
    fn count_stages(&self, handler: &HandlerLine, model: &str) {
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
        let seconds = |us: u64| us as f64 / 1e6;
        self.metrics.requests.prompt_seconds.observe(seconds(receipt.steps.prompt_us));
        self.metrics.requests.scheduler_seconds.observe(seconds(receipt.steps.decide_us));
        let whole = draft.started.elapsed().as_secs_f64();
        self.metrics.requests.processing_seconds.observe(whole);
        self.metrics.requests.decision_seconds.observe(whole);
    }
}

/// The receipt while it is being written.
struct Draft {
    receipt: Receipt,
    started: Instant,
    step: Instant,
}

impl Draft {
    fn new(request: &HttpRequest) -> Self {
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
        Self { receipt, started, step: started }
    }

    /// Notes what the client said of the request, and its priority.
    fn control(&mut self, headers: &ControlHeaders<'_>, objectives: &Objectives) {
        headers.fairness_id.clone_into(&mut self.receipt.fairness_id);
        if headers.model_rewrite.is_some() {
            self.fallback(Fallback::ModelRewriteIgnored, "the body's model stays");
        }
        let Some(objective) = headers.objective else { return };
        objective.clone_into(&mut self.receipt.objective);
        match objectives.priority_of(objective) {
            Some(priority) => self.receipt.priority = priority,
            None => self.fallback(Fallback::UnknownObjective, format!("{objective:?} counts as priority 0")),
        }
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
        self.receipt.stream = read.stream;
        self.receipt.prompt_tokens = read.prompt_tokens();
        self.receipt.prompt_tokens_estimated = read.is_estimated();
        self.receipt.fallbacks.extend(read.fallback.clone());
    }

    fn explain(&mut self, explanation: Explanation, endpoints: &[Arc<Endpoint>]) {
        let receipt = &mut self.receipt;
        receipt.profile = explanation.profile;
        receipt.candidates_considered = explanation.considered;
        receipt.candidates = explanation.candidates;
        receipt.runner_up = explanation.runner_up;
        receipt.prompt_blocks = explanation.prompt_blocks;
        receipt.predicted_cached_tokens = explanation.predicted_cached_tokens;
        receipt.expected_cached_tokens = explanation.expected_cached_tokens;
        receipt.handler = explanation.handler;
        receipt.other_profiles = explanation.other_profiles;
        receipt.pick = endpoints.first().map(|endpoint| endpoint.address.clone());
        for kind in explanation.fallbacks {
            receipt.fallbacks.push(FallbackNote { kind, detail: String::new() });
        }
    }
}

fn micros(time: std::time::Duration) -> u64 {
    time.as_micros() as u64
}

fn inference_request(request: &HttpRequest, read: &ReadRequest) -> InferenceRequest {
    let mut inference_request = InferenceRequest::new(request.request_id.clone(), read.model.as_str());
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
