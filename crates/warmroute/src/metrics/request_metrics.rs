use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use hashbrown::{Equivalent, HashMap};
use parking_lot::RwLock;
use prometheus::core::Collector;
use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::bounded_names::{BoundedNames, OTHER};
use super::buckets::{
    GENERAL_SECONDS, ITL_SECONDS, NTPOT_SECONDS, OUTPUT_TOKENS, REQUEST_BYTES, REQUEST_PROCESSING_SECONDS,
    RESPONSE_BYTES, RESPONSE_PROCESSING_SECONDS, STEP_SECONDS, TOKENS, TPOT_SECONDS, TTFT_SECONDS,
};
use super::maker::Maker;

/// Model names and fairness ids that become label values, each; the peer's bound.
const NAMES: usize = 1000;
/// Combinations of labels that are counted apart; later ones are counted under `other`. With all histograms in use one
/// has some 300 lines on the page.
const COMBINATIONS: usize = 2000;

/// The labels of everything about requests.
const LABELS: [&str; 4] = ["model_name", "target_model_name", "fairness_id", "priority"];

/// Labels of decisions about stages.
const DECISION_LABELS: [&str; 4] = ["plugin_name", "plugin_type", "model_name", "decision_type"];

/// Label values of things that come with later features, spelt as the llm-d Router EPP spells their defaults.
pub const DEFAULT_FAIRNESS_ID: &str = "default-flow";

/// Metrics of requests. Labels are the peer's: model, target model, fairness id, priority.
#[derive(Debug)]
pub struct RequestMetrics {
    models: BoundedNames,
    fairness_ids: BoundedNames,
    families: Arc<Families>,
    series: RwLock<HashMap<RequestLabels, Arc<RequestSeries>>>,
    /// Requests refused, and errors of engines, per model, flow, priority and code.
    pub errors: IntCounterVec,
    /// From the complete request to the answer.
    pub processing_seconds: Histogram,
    /// Time spent on a response, where its headers or body pass through the picker.
    pub response_processing_seconds: Histogram,
    /// Parsing, tokens and block keys.
    pub prompt_seconds: Histogram,
    /// From the complete request to the answer, in finer buckets.
    pub decision_seconds: Histogram,
    /// Decisions that were poorer than the profile asked for, per kind.
    pub fallbacks: IntCounterVec,
    /// Where the stages of a request run, per handler, model and decision type.
    pub disaggregation: IntCounterVec,
    /// The same for pd-profile-handler alone, under the name that it had.
    pub prefill_decode: IntCounterVec,
    /// Changes of the configuration, per outcome.
    pub reloads: IntCounterVec,
    /// Prompt tokens of decided requests.
    pub prompt_tokens: IntCounter,
    /// Of those: tokens that the picked engine is known to hold.
    pub predicted_cached_tokens: IntCounter,
    /// Response bodies whose token usage couldn't be read, per reason.
    pub usage_unread: IntCounterVec,
}

/// Figures of requests that are kept as histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFigure {
    /// From the first byte of the request to the end of the response, in seconds.
    Duration,
    /// Body of the request, in bytes.
    RequestSize,
    /// Body of the response, in bytes.
    ResponseSize,
    /// Tokens of the prompt.
    InputTokens,
    /// Tokens of the answer.
    OutputTokens,
    /// Tokens of the prompt that the engine says it took from its cache.
    CachedTokens,
    /// Duration per token of the answer, in seconds.
    SecondsPerOutputToken,
    /// Until the first piece of a response that isn't streamed, in seconds.
    FirstPiece,
    /// Until the first piece of a streamed response, in seconds.
    FirstStreamedPiece,
    /// Time after the first piece per token after the first, in seconds, streamed responses only.
    StreamedSecondsPerToken,
    /// Between two pieces of a streamed response, in seconds.
    StreamedGap,
}

/// The histogram families, shared by all series.
#[derive(Debug)]
struct Families {
    total: IntCounterVec,
    errors: IntCounterVec,
    running: IntGaugeVec,
    histograms: [HistogramVec; 9],
    ttft: HistogramVec,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RequestLabels {
    model: Box<str>,
    target_model: Box<str>,
    fairness_id: Box<str>,
    priority: i32,
}

/// [`RequestLabels`] that are looked for.
#[derive(Clone, Copy, Debug)]
struct LabelsRef<'a> {
    model: &'a str,
    target_model: &'a str,
    fairness_id: &'a str,
    priority: i32,
}

/// What is counted of requests with the same labels: handles that are found once per request.
///
/// A histogram appears on the page once something was observed.
#[derive(Debug)]
pub struct RequestSeries {
    families: Arc<Families>,
    labels: [Box<str>; 4],
    /// Requests decided or refused.
    pub total: IntCounter,
    /// Requests in flight.
    pub running: IntGauge,
    histograms: [OnceLock<Histogram>; 11],
}

impl RequestMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        let families = Arc::new(Families::try_new(make)?);
        Ok(Self {
            models: BoundedNames::new(NAMES),
            fairness_ids: BoundedNames::new(NAMES),
            errors: families.errors.clone(),
            families,
            series: RwLock::default(),
            processing_seconds: make.histogram(
                "llm_d_epp_request_processing_duration_seconds",
                "From the complete request to the answer.",
                &REQUEST_PROCESSING_SECONDS,
            )?,
            response_processing_seconds: make.histogram(
                "llm_d_epp_response_processing_duration_seconds",
                "Time spent on one response, where it passes through the picker.",
                &RESPONSE_PROCESSING_SECONDS,
            )?,
            prompt_seconds: make.histogram(
                "warmroute_prompt_duration_seconds",
                "Parsing, tokens and block keys, with waiting for a slot.",
                &STEP_SECONDS,
            )?,
            decision_seconds: make.histogram(
                "warmroute_decision_duration_seconds",
                "From the complete request to the pick, in finer buckets.",
                &STEP_SECONDS,
            )?,
            fallbacks: make.counters(
                "warmroute_fallbacks_total",
                "Decisions that were poorer than the profile asked for.",
                &["kind"],
            )?,
            disaggregation: make.counters(
                "llm_d_epp_disagg_decision_total",
                "Requests by the stages that had an endpoint of their own.",
                &DECISION_LABELS,
            )?,
            prefill_decode: make.counters(
                "llm_d_epp_pd_decision_total",
                "Requests by whether prefill had an endpoint of its own.",
                &DECISION_LABELS,
            )?,
            reloads: make.counters(
                "warmroute_config_reloads_total",
                "Changes of the configuration file.",
                &["outcome"],
            )?,
            prompt_tokens: make
                .counter("warmroute_prompt_tokens_total", "Prompt tokens of decided requests.")?,
            predicted_cached_tokens: make.counter(
                "warmroute_predicted_cached_tokens_total",
                "Prompt tokens that the picked engine is known to hold.",
            )?,
            usage_unread: make.counters(
                "warmroute_usage_unread_total",
                "Response bodies that passed through and whose token usage couldn't be read.",
                &["reason"],
            )?,
        })
    }

    /// The handles for a request. Names that clients make up are bounded: later ones are counted as `other`.
    pub fn series(
        &self,
        model: &str,
        target_model: &str,
        fairness_id: &str,
        priority: i32,
    ) -> Arc<RequestSeries> {
        let wanted = LabelsRef {
            model: self.models.label(model),
            target_model: self.models.label(target_model),
            fairness_id: self.fairness_ids.label(fairness_id),
            priority,
        };
        if let Some(series) = self.series.read().get(&wanted) {
            return series.clone();
        }
        let mut series = self.series.write();
        let overflow = LabelsRef { model: OTHER, target_model: OTHER, fairness_id: OTHER, priority: 0 };
        let labels = if series.len() < COMBINATIONS { wanted } else { overflow };
        if let Some(series) = series.get(&labels) {
            return series.clone();
        }
        let made = Arc::new(RequestSeries::new(&self.families, labels));
        series.insert(labels.owned(), made.clone());
        made
    }

    /// Requests by the stages that had an endpoint of their own, over all handlers and models.
    pub fn decisions_by_type(&self) -> BTreeMap<String, u64> {
        let mut by_type = BTreeMap::new();
        for metric in self.disaggregation.collect().iter().flat_map(|family| family.get_metric()) {
            let label = metric.get_label().iter().find(|label| label.name() == "decision_type");
            if let Some(label) = label {
                *by_type.entry(label.value().to_owned()).or_default() +=
                    metric.get_counter().get_value() as u64;
            }
        }
        by_type
    }

    /// A model's name as a label value.
    pub fn model_label<'a>(&self, model: &'a str) -> &'a str {
        self.models.label(model)
    }
}

impl Families {
    fn try_new(make: &Maker) -> Result<Self, Error> {
        let [model, target, fairness, priority] = LABELS;
        let figure = |name, help, bounds: &[f64]| make.histograms(name, help, &LABELS, bounds);
        Ok(Self {
            total: make.counters("llm_d_epp_request_total", "Requests decided or refused.", &LABELS)?,
            errors: make.counters(
                "llm_d_epp_request_error_total",
                "Requests refused here (by code) or answered with an error by the engine (ModelServerError).",
                &[model, target, fairness, priority, "error_code"],
            )?,
            running: make.gauges("llm_d_epp_request_running", "Requests in flight.", &LABELS)?,
            histograms: [
                figure(
                    "llm_d_epp_request_duration_seconds",
                    "From the request to the end of its response.",
                    &GENERAL_SECONDS,
                )?,
                figure("llm_d_epp_request_size_bytes", "Request bodies.", &REQUEST_BYTES)?,
                figure(
                    "llm_d_epp_response_size_bytes",
                    "Response bodies that passed through.",
                    &RESPONSE_BYTES,
                )?,
                figure(
                    "llm_d_epp_request_input_tokens",
                    "Prompt tokens, by the engine's usage, else as counted here.",
                    &TOKENS,
                )?,
                figure(
                    "llm_d_epp_request_output_tokens",
                    "Tokens of the answer, by the usage.",
                    &OUTPUT_TOKENS,
                )?,
                figure("llm_d_epp_request_cached_tokens", "Cached prompt tokens, by the usage.", &TOKENS)?,
                figure(
                    "llm_d_epp_request_ntpot_seconds",
                    "Duration of the request per token of its answer.",
                    &NTPOT_SECONDS,
                )?,
                figure(
                    "llm_d_epp_request_streaming_tpot_seconds",
                    "Time after the first piece of a streamed response per token after the first.",
                    &TPOT_SECONDS,
                )?,
                figure(
                    "llm_d_epp_request_streaming_itl_seconds",
                    "Time between two pieces of a streamed response.",
                    &ITL_SECONDS,
                )?,
            ],
            ttft: make.histograms(
                "llm_d_epp_request_ttft_seconds",
                "From the request to the first piece of its response.",
                &[model, target, fairness, priority, "streaming"],
                &TTFT_SECONDS,
            )?,
        })
    }

    fn histogram(&self, figure: RequestFigure, [model, target, fairness, priority]: [&str; 4]) -> Histogram {
        let at = match figure {
            RequestFigure::Duration => 0,
            RequestFigure::RequestSize => 1,
            RequestFigure::ResponseSize => 2,
            RequestFigure::InputTokens => 3,
            RequestFigure::OutputTokens => 4,
            RequestFigure::CachedTokens => 5,
            RequestFigure::SecondsPerOutputToken => 6,
            RequestFigure::StreamedSecondsPerToken => 7,
            RequestFigure::StreamedGap => 8,
            RequestFigure::FirstPiece => {
                return self.ttft.with_label_values(&[model, target, fairness, priority, "false"]);
            }
            RequestFigure::FirstStreamedPiece => {
                return self.ttft.with_label_values(&[model, target, fairness, priority, "true"]);
            }
        };
        self.histograms[at].with_label_values(&[model, target, fairness, priority])
    }
}

impl RequestSeries {
    fn new(families: &Arc<Families>, labels: LabelsRef<'_>) -> Self {
        let labels = [
            labels.model.into(),
            labels.target_model.into(),
            labels.fairness_id.into(),
            labels.priority.to_string().into(),
        ];
        let values: [&str; 4] = labels.each_ref().map(AsRef::as_ref);
        Self {
            total: families.total.with_label_values(&values),
            running: families.running.with_label_values(&values),
            histograms: Default::default(),
            families: families.clone(),
            labels,
        }
    }

    fn values(&self) -> [&str; 4] {
        self.labels.each_ref().map(AsRef::as_ref)
    }

    /// Adds a figure of one request.
    pub fn observe(&self, figure: RequestFigure, value: f64) {
        self.histograms[figure as usize]
            .get_or_init(|| self.families.histogram(figure, self.values()))
            .observe(value);
    }

    /// Counts an error by its code, spelt as the peer spells it.
    pub fn count_error(&self, code: &str) {
        let [model, target, fairness, priority] = self.values();
        self.families.errors.with_label_values(&[model, target, fairness, priority, code]).inc();
    }
}

impl LabelsRef<'_> {
    fn owned(&self) -> RequestLabels {
        RequestLabels {
            model: self.model.into(),
            target_model: self.target_model.into(),
            fairness_id: self.fairness_id.into(),
            priority: self.priority,
        }
    }
}

impl RequestLabels {
    fn borrowed(&self) -> LabelsRef<'_> {
        LabelsRef {
            model: &self.model,
            target_model: &self.target_model,
            fairness_id: &self.fairness_id,
            priority: self.priority,
        }
    }
}

impl Hash for LabelsRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.model, self.target_model, self.fairness_id, self.priority).hash(state);
    }
}

/// By what is borrowed, so that a look-up needs no copy.
impl Hash for RequestLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Equivalent<RequestLabels> for LabelsRef<'_> {
    fn equivalent(&self, key: &RequestLabels) -> bool {
        *self.model == *key.model
            && *self.target_model == *key.target_model
            && *self.fairness_id == *key.fairness_id
            && self.priority == key.priority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> (Maker, RequestMetrics) {
        let make = Maker::new();
        let metrics = RequestMetrics::try_new(&make).unwrap();
        (make, metrics)
    }

    #[test]
    fn equal_labels_share_their_handles() {
        let (_make, metrics) = metrics();
        let first = metrics.series("m", "t", DEFAULT_FAIRNESS_ID, -1);
        assert!(Arc::ptr_eq(&first, &metrics.series("m", "t", DEFAULT_FAIRNESS_ID, -1)));
        for other in [("n", "t", "f", -1), ("m", "u", "f", -1), ("m", "t", "g", -1), ("m", "t", "f", 0)] {
            assert!(!Arc::ptr_eq(&first, &metrics.series(other.0, other.1, other.2, other.3)), "{other:?}");
        }
    }

    #[test]
    fn names_that_clients_make_up_are_bounded() {
        let (_make, metrics) = metrics();
        for i in 0..NAMES {
            metrics.series(&format!("model-{i}"), &format!("model-{i}"), "f", 0);
        }
        assert_eq!(metrics.model_label("one-too-many"), OTHER);
        assert_eq!(metrics.model_label("model-3"), "model-3");
        for i in 0..2 * COMBINATIONS {
            metrics.series(&format!("model-{}", i % NAMES), "model-0", &format!("flow-{}", i / 3), 0);
        }
        assert!(metrics.series.read().len() <= COMBINATIONS + 1);
        let late = metrics.series("model-7", "model-8", "flow-9", 5);
        assert_eq!(late.values(), [OTHER, OTHER, OTHER, "0"]);
    }

    #[test]
    fn only_what_was_observed_is_shown() {
        let (make, metrics) = metrics();
        let series = metrics.series("m", "m", "f", 0);
        series.observe(RequestFigure::FirstStreamedPiece, 0.3);
        series.observe(RequestFigure::StreamedGap, 0.02);
        series.count_error("ModelServerError");
        let families = make.registry.gather();
        let names: Vec<&str> = families.iter().map(prometheus::proto::MetricFamily::name).collect();
        assert!(names.contains(&"llm_d_epp_request_ttft_seconds"));
        assert!(names.contains(&"llm_d_epp_request_streaming_itl_seconds"));
        assert!(!names.contains(&"llm_d_epp_request_output_tokens"), "{names:?}");
    }
}
