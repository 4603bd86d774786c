//! What is seen of a response, where its headers or body pass through the picker: time until the first piece, gaps,
//! sizes, token usage.
//!
//! Nothing of it costs anything where the gateway shows no bodies: what reads them is made at the first piece.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute_ext_proc::{HeaderList, StreamEnd};
use warmroute_inference_api::{SseUsage, Usage, usage_of_json};

use crate::delivered::Comparison;
use crate::metrics::{Metrics, RequestFigure, RequestSeries};
use crate::telemetry::RequestTrace;

/// Largest response body whose usage is read, if it is not streamed. Of streamed ones a line is held.
const JSON_LIMIT_BYTES: usize = 1024 * 1024;

/// The code under which the peer counts errors of engines.
const ENGINE_ERROR: &str = "ModelServerError";

/// Watches one request from its pick to its end. While it lives it counts as running.
#[derive(Debug)]
pub struct ResponseWatch {
    metrics: Arc<Metrics>,
    series: Arc<RequestSeries>,
    received_at: Instant,
    streams: bool,
    prompt_tokens: Option<u32>,
    is_compressed: bool,
    failed: bool,
    /// Time spent here.
    busy: Duration,
    body: Option<Box<BodyWatch>>,
    comparison: Option<Box<Comparison>>,
    /// Ends with this.
    trace: RequestTrace,
}

/// What was seen of a response body.
#[derive(Debug)]
struct BodyWatch {
    first_at: Instant,
    last_at: Instant,
    bytes: u64,
    usage: UsageReader,
}

#[derive(Debug)]
enum UsageReader {
    Events(SseUsage),
    Json(Vec<u8>),
    /// Not read, for this reason.
    Unread(&'static str),
}

impl ResponseWatch {
    /// Watches a request that arrived at `received_at`.
    pub fn new(
        metrics: Arc<Metrics>,
        series: Arc<RequestSeries>,
        received_at: Instant,
        trace: RequestTrace,
    ) -> Self {
        series.running.inc();
        Self {
            metrics,
            series,
            received_at,
            streams: false,
            prompt_tokens: None,
            is_compressed: false,
            failed: false,
            busy: Duration::ZERO,
            body: None,
            comparison: None,
            trace,
        }
    }

    /// With what the request says: whether a streamed answer was asked for, and how long the prompt is, if known.
    #[must_use]
    pub fn asked(mut self, streams: bool, prompt_tokens: Option<u32>) -> Self {
        self.streams = streams;
        self.prompt_tokens = prompt_tokens;
        self
    }

    /// The same, which says what was delivered when the answer is complete and its body was seen.
    #[must_use]
    pub fn compared(mut self, comparison: Box<Comparison>) -> Self {
        self.comparison = Some(comparison);
        self
    }

    /// Response headers passed.
    pub fn headers(&mut self, status: Option<u16>, headers: &HeaderList) {
        let now = Instant::now();
        if status.is_some_and(|status| !(200..300).contains(&status)) {
            self.failed = true;
            self.series.count_error(ENGINE_ERROR);
            self.trace.failed(ENGINE_ERROR);
        }
        if let Some(content_type) = headers.get("content-type") {
            self.streams = content_type.starts_with(b"text/event-stream");
        }
        self.is_compressed = headers.get("content-encoding").is_some_and(|encoding| encoding != b"identity");
        self.busy += now.elapsed();
    }

    /// A piece of the response body passed.
    pub fn chunk(&mut self, chunk: &[u8]) {
        if chunk.is_empty() {
            return;
        }
        let now = Instant::now();
        match &mut self.body {
            Some(body) => {
                if self.streams {
                    let gap = now.saturating_duration_since(body.last_at);
                    self.series.observe(RequestFigure::StreamedGap, gap.as_secs_f64());
                }
                body.take(chunk, now);
            }
            None => {
                let usage = match (self.is_compressed, self.streams) {
                    (true, _) => UsageReader::Unread("compressed"),
                    (_, true) => UsageReader::Events(SseUsage::new()),
                    _ => UsageReader::Json(Vec::new()),
                };
                let mut body = BodyWatch { first_at: now, last_at: now, bytes: 0, usage };
                body.take(chunk, now);
                self.body = Some(Box::new(body));
            }
        }
        self.busy += now.elapsed();
    }

    /// The stream is over.
    pub fn ended(&mut self, end: StreamEnd) {
        if self.busy > Duration::ZERO {
            self.metrics.requests.response_processing_seconds.observe(self.busy.as_secs_f64());
        }
        // Where bodies are hidden, the gateway's closing is how a response ends.
        let is_complete = match end {
            StreamEnd::ResponseComplete => true,
            StreamEnd::GatewayClosed | StreamEnd::Cancelled => self.body.is_none(),
            _ => false,
        };
        if !is_complete {
            return;
        }
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.received_at).as_secs_f64();
        self.series.observe(RequestFigure::Duration, duration);
        let body = self.body.take();
        let comparison = self.comparison.take().filter(|_| !self.failed);
        let is_hidden = body.is_none();
        let usage = body.and_then(|body| self.response(*body, now, duration));
        match comparison {
            Some(comparison) if is_hidden => comparison.hidden(),
            Some(comparison) => comparison.delivered(usage),
            None => {}
        }
        if !self.failed {
            let prompt_tokens = usage.map(|usage| usage.prompt_tokens).filter(|tokens| *tokens > 0);
            self.observe_tokens(RequestFigure::InputTokens, prompt_tokens.or(self.prompt_tokens));
        }
    }

    /// What the body says. Formulas: `RecordRequestTPOT` and its neighbours in the peer's `pkg/epp/metrics/metrics.go`.
    fn response(&self, body: BodyWatch, now: Instant, duration: f64) -> Option<Usage> {
        let first = body.first_at.saturating_duration_since(self.received_at).as_secs_f64();
        let until_first =
            if self.streams { RequestFigure::FirstStreamedPiece } else { RequestFigure::FirstPiece };
        self.series.observe(until_first, first);
        self.series.observe(RequestFigure::ResponseSize, body.bytes as f64);
        let after_first = now.saturating_duration_since(body.first_at).as_secs_f64();
        let usage = match body.usage.read() {
            Ok(usage) => usage?,
            Err(reason) => {
                self.metrics.requests.usage_unread.with_label_values(&[reason]).inc();
                return None;
            }
        };
        self.observe_tokens(
            RequestFigure::OutputTokens,
            Some(usage.completion_tokens).filter(|tokens| *tokens > 0),
        );
        self.observe_tokens(RequestFigure::CachedTokens, usage.cached_tokens);
        let tokens = f64::from(usage.completion_tokens);
        if usage.completion_tokens > 0 {
            self.series.observe(RequestFigure::SecondsPerOutputToken, duration / tokens);
        }
        if self.streams && usage.completion_tokens > 1 {
            self.series.observe(RequestFigure::StreamedSecondsPerToken, after_first / (tokens - 1.0));
        }
        Some(usage)
    }

    fn observe_tokens(&self, figure: RequestFigure, tokens: Option<u32>) {
        if let Some(tokens) = tokens {
            self.series.observe(figure, f64::from(tokens));
        }
    }
}

impl Drop for ResponseWatch {
    fn drop(&mut self) {
        self.series.running.dec();
    }
}

impl BodyWatch {
    fn take(&mut self, chunk: &[u8], now: Instant) {
        self.last_at = now;
        self.bytes += chunk.len() as u64;
        match &mut self.usage {
            UsageReader::Events(events) => events.feed(chunk),
            UsageReader::Json(body) if body.len() + chunk.len() <= JSON_LIMIT_BYTES => {
                body.extend_from_slice(chunk);
            }
            UsageReader::Json(_) => self.usage = UsageReader::Unread("body-too-long"),
            UsageReader::Unread(_) => {}
        }
    }
}

impl UsageReader {
    /// The usage if the engine tells one.
    ///
    /// # Errors
    /// Why the body wasn't read, or not all of it.
    fn read(self) -> Result<Option<Usage>, &'static str> {
        match self {
            Self::Events(mut events) => {
                events.finish();
                match (events.usage(), events.skipped_lines()) {
                    (None, 1..) => Err("line-too-long"),
                    (usage, _) => Ok(usage),
                }
            }
            Self::Json(body) => Ok(usage_of_json(&body)),
            Self::Unread(reason) => Err(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::DEFAULT_FAIRNESS_ID;

    struct Watched {
        metrics: Arc<Metrics>,
        watch: ResponseWatch,
    }

    impl Watched {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::try_new().unwrap());
            let series = metrics.requests.series("m", "m", DEFAULT_FAIRNESS_ID, 0);
            // Received some time ago, so that every time is above zero.
            let received_at = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
            let watch = ResponseWatch::new(metrics.clone(), series, received_at, RequestTrace::default());
            Self { metrics, watch: watch.asked(false, Some(5)) }
        }

        fn headers(&mut self, status: u16, pairs: &[(&str, &str)]) {
            self.watch.headers(Some(status), &HeaderList::from_pairs(pairs.iter().copied()));
        }

        fn end(&mut self, end: StreamEnd) {
            self.watch.ended(end);
        }

        /// The sum of a histogram without `streaming`; None if it isn't shown.
        fn sum(&self, name: &str) -> Option<f64> {
            let page = self.metrics.page().unwrap();
            let line = page.lines().find(|line| line.starts_with(&format!("llm_d_epp_{name}_sum{{")))?;
            line.rsplit(' ').next()?.parse().ok()
        }

        fn shown(&self, part: &str) -> bool {
            self.metrics.page().unwrap().contains(part)
        }
    }

    const EVENTS: [(&str, &str); 1] = [("content-type", "text/event-stream; charset=utf-8")];

    #[test]
    fn a_streamed_response_is_measured_piece_by_piece() {
        const PIECES: [&str; 3] = [
            "data: {\"choices\":[]}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,",
            "\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\ndata: [DONE]\n\n",
        ];
        let mut watched = Watched::new();
        watched.headers(200, &EVENTS);
        for piece in PIECES {
            watched.watch.chunk(piece.as_bytes());
        }
        watched.watch.chunk(b"");
        watched.end(StreamEnd::ResponseComplete);
        assert_eq!(watched.sum("request_input_tokens"), Some(9.0));
        assert_eq!(watched.sum("request_output_tokens"), Some(3.0));
        assert_eq!(watched.sum("request_cached_tokens"), Some(8.0));
        assert_eq!(watched.sum("response_size_bytes"), Some(PIECES.concat().len() as f64));
        let duration = watched.sum("request_duration_seconds").unwrap();
        let per_token = watched.sum("request_ntpot_seconds").unwrap();
        assert!(duration > 3.0 && (per_token - duration / 3.0).abs() < 1e-9, "{duration} {per_token}");
        assert!(watched.sum("request_ttft_seconds").unwrap() <= duration);
        assert!(watched.shown(
            "llm_d_epp_request_streaming_itl_seconds_count{fairness_id=\"default-flow\",\
                               model_name=\"m\",priority=\"0\",target_model_name=\"m\"} 2"
        ));
        assert!(watched.shown("streaming=\"true\"") && !watched.shown("streaming=\"false\""));
        assert!(watched.shown("llm_d_epp_response_processing_duration_seconds_count 1"));
    }

    #[test]
    fn a_whole_response_has_neither_gaps_nor_time_per_token() {
        let mut watched = Watched::new();
        watched.headers(200, &[("content-type", "application/json")]);
        watched.watch.chunk(b"{\"usage\":{\"prompt_tokens\":9,");
        watched.watch.chunk(b"\"completion_tokens\":30}}");
        watched.end(StreamEnd::ResponseComplete);
        assert_eq!(watched.sum("request_output_tokens"), Some(30.0));
        assert_eq!(watched.sum("request_cached_tokens"), None);
        assert_eq!(watched.sum("request_streaming_itl_seconds"), None);
        assert_eq!(watched.sum("request_streaming_tpot_seconds"), None);
        assert!(watched.shown("streaming=\"false\""));
    }

    #[test]
    fn a_hidden_response_leaves_its_duration_and_the_prompt_counted_here() {
        let mut watched = Watched::new();
        assert!(watched.shown(
            "llm_d_epp_request_running{fairness_id=\"default-flow\",model_name=\"m\",\
                               priority=\"0\",target_model_name=\"m\"} 1"
        ));
        watched.end(StreamEnd::GatewayClosed);
        assert!(watched.sum("request_duration_seconds").unwrap() > 3.0);
        assert_eq!(watched.sum("request_input_tokens"), Some(5.0));
        for name in ["request_output_tokens", "request_ttft_seconds", "response_size_bytes"] {
            assert_eq!(watched.sum(name), None, "{name}");
        }
        assert!(watched.shown("llm_d_epp_response_processing_duration_seconds_count 0"));
        let Watched { metrics, watch } = watched;
        drop(watch);
        assert!(metrics.page().unwrap().contains("target_model_name=\"m\"} 0"));
    }

    #[test]
    fn a_response_that_breaks_off_or_fails_is_not_measured_as_a_good_one() {
        let mut watched = Watched::new();
        watched.headers(200, &EVENTS);
        watched.watch.chunk(b"data: {}\n\n");
        watched.end(StreamEnd::Cancelled);
        assert_eq!(watched.sum("request_duration_seconds"), None);
        let mut watched = Watched::new();
        watched.headers(500, &[]);
        watched.watch.chunk(b"oops");
        watched.end(StreamEnd::ResponseComplete);
        assert!(watched.shown("error_code=\"ModelServerError\""));
        assert_eq!(watched.sum("request_input_tokens"), None);
        assert_eq!(watched.sum("response_size_bytes"), Some(4.0));
    }

    #[test]
    fn what_can_not_be_read_is_counted() {
        let mut watched = Watched::new();
        watched.headers(200, &[("content-encoding", "gzip")]);
        watched.watch.chunk(b"\x1f\x8b");
        watched.end(StreamEnd::ResponseComplete);
        assert!(watched.shown("warmroute_usage_unread_total{reason=\"compressed\"} 1"));
        let mut watched = Watched::new();
        watched.headers(200, &[("content-type", "application/json")]);
        for _ in 0..=JSON_LIMIT_BYTES / 65536 {
            watched.watch.chunk(&[b' '; 65536]);
        }
        watched.end(StreamEnd::ResponseComplete);
        assert!(watched.shown("warmroute_usage_unread_total{reason=\"body-too-long\"} 1"));
        assert_eq!(watched.sum("request_input_tokens"), Some(5.0));
    }
}
