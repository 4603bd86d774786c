//! Trace spans of requests, with the names and attributes of the llm-d Router EPP (`pkg/epp/handlers/server.go`,
//! `pkg/epp/scheduling/scheduler_profile.go` in github.com/llm-d/llm-d-router).
//!
//! Off unless there is something to trace to. Where it is on, a request's own span begins with the request, so that
//! the engine can be told of it; all others are made from the receipt when the request is over, so that nobody waits
//! for them. Spans hold names, counts, scores and times, and no request text.

#[cfg(feature = "otel")]
mod exporting;
#[cfg(feature = "otel")]
mod request_spans;
mod trace_settings;

use std::sync::Arc;

pub use trace_settings::{TraceExporter, TraceSampler, TraceSettings};

use warmroute_ext_proc::HttpRequest;

use crate::decision::{Lookup, ProfileTimes};
use crate::plugin_names::PluginNames;
use crate::receipt::Receipt;

/// Why there can't be traces.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable says what isn't understood.
    #[error("{variable}={value} is not understood: {expected}")]
    Variable {
        /// The environment variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// The exporter can't be made.
    #[error("can't make the trace exporter: {0}")]
    Exporter(String),
    /// This binary was built without traces.
    #[error("traces are asked for (OTEL_ variables), and this binary was built without the feature otel")]
    NotBuilt,
}

/// Makes traces, or nothing at all. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    #[cfg(feature = "otel")]
    tracing: Option<Arc<exporting::Tracing>>,
}

/// What the spans of a request are made from, beside its receipt.
#[derive(Debug)]
pub struct TracedDecision {
    /// The receipt.
    pub receipt: Arc<Receipt>,
    /// When the request was complete and work on it began.
    pub started_at: std::time::Instant,
    /// When it had its answer.
    pub decided_at: std::time::Instant,
    /// The profiles that ran.
    pub profiles: Vec<ProfileTimes>,
    /// The look-up of prefix matches, if there was one.
    pub lookup: Option<Lookup>,
    /// Types of the plugins.
    pub plugins: Option<Arc<PluginNames>>,
    /// The request's priority.
    pub priority: i32,
}

/// The span of one request, `gateway.request`: ends when it is dropped. Nothing if the request isn't traced.
#[derive(Debug, Default)]
pub struct RequestTrace {
    #[cfg(feature = "otel")]
    live: Option<Box<request_spans::LiveRequest>>,
}

impl Telemetry {
    /// Without traces.
    pub fn off() -> Self {
        Self::default()
    }

    /// Traces as the settings say. To be called inside the async runtime, on which the exporter's connection lives.
    ///
    /// # Errors
    /// The exporter can't be made, or this binary was built without it.
    #[cfg(feature = "otel")]
    pub fn try_new(settings: &TraceSettings) -> Result<Self, TelemetryError> {
        Ok(Self { tracing: Some(Arc::new(exporting::Tracing::try_new(settings)?)) })
    }

    /// Traces as the settings say.
    ///
    /// # Errors
    /// Always: this binary was built without traces.
    #[cfg(not(feature = "otel"))]
    pub fn try_new(_settings: &TraceSettings) -> Result<Self, TelemetryError> {
        Err(TelemetryError::NotBuilt)
    }

    /// Begins the span of a request, as a child of what its `traceparent` names.
    #[cfg(feature = "otel")]
    pub fn request(&self, request: &HttpRequest) -> RequestTrace {
        let live = |tracing: &Arc<exporting::Tracing>| {
            Box::new(request_spans::LiveRequest::new(tracing.clone(), request))
        };
        RequestTrace { live: self.tracing.as_ref().map(live) }
    }

    /// Nothing.
    #[cfg(not(feature = "otel"))]
    pub fn request(&self, _request: &HttpRequest) -> RequestTrace {
        RequestTrace::default()
    }

    /// Whether requests may be traced.
    pub fn is_on(&self) -> bool {
        #[cfg(feature = "otel")]
        return self.tracing.is_some();
        #[cfg(not(feature = "otel"))]
        false
    }

    /// Sends what is waiting. Blocks for some seconds at most; nothing is traced afterwards.
    pub fn shut_down(&self) {
        #[cfg(feature = "otel")]
        if let Some(tracing) = &self.tracing {
            tracing.shut_down();
        }
    }
}

impl RequestTrace {
    /// Whether anything is made of [`TracedDecision`].
    pub fn is_recording(&self) -> bool {
        #[cfg(feature = "otel")]
        return self.live.as_ref().is_some_and(|live| live.is_recording());
        #[cfg(not(feature = "otel"))]
        false
    }

    /// The headers by which the engine continues the trace; none if there is no trace.
    pub fn headers(&self) -> Vec<(String, String)> {
        #[cfg(feature = "otel")]
        return self.live.as_ref().map(|live| live.headers()).unwrap_or_default();
        #[cfg(not(feature = "otel"))]
        Vec::new()
    }

    /// Keeps what the other spans are made from.
    pub fn decided(&mut self, decision: TracedDecision) {
        #[cfg(feature = "otel")]
        if let Some(live) = &mut self.live {
            live.decided(decision);
        }
        #[cfg(not(feature = "otel"))]
        drop(decision);
    }

    /// Says that the request failed, by a code without request text.
    pub fn failed(&mut self, code: &'static str) {
        #[cfg(feature = "otel")]
        if let Some(live) = &mut self.live {
            live.failed(code);
        }
        #[cfg(not(feature = "otel"))]
        let _ = code;
    }
}
