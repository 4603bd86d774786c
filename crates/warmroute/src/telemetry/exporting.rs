//! From settings to a tracer that exports.

use std::fmt::Write;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData};

use super::{TelemetryError, TraceExporter, TraceSampler, TraceSettings};

/// Longest time for sending what is left at the end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The tracer of one picker.
#[derive(Debug)]
pub(super) struct Tracing {
    provider: SdkTracerProvider,
    pub(super) tracer: SdkTracer,
    pub(super) propagator: TraceContextPropagator,
}

impl Tracing {
    pub(super) fn try_new(settings: &TraceSettings) -> Result<Self, TelemetryError> {
        // The builder reads OTEL_RESOURCE_ATTRIBUTES.
        let mut resource = Resource::builder();
        if let Some(name) = &settings.service_name {
            resource = resource.with_service_name(name.clone());
        }
        let builder = SdkTracerProvider::builder()
            .with_sampler(sampler(settings.sampler))
            .with_resource(resource.build());
        // Spans wait in a bounded queue for a thread of the exporter's own; what it can't take is dropped and logged.
        let builder = match &settings.exporter {
            TraceExporter::Console => builder.with_batch_exporter(LogExporter),
            TraceExporter::Otlp { endpoint } => {
                let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
                builder.with_batch_exporter(
                    exporter.map_err(|error| TelemetryError::Exporter(error.to_string()))?,
                )
            }
        };
        let provider = builder.build();
        let tracer = provider.tracer("warmroute");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    pub(super) fn shut_down(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_LIMIT) {
            tracing::warn!(%error, "some spans weren't sent");
        }
    }
}

fn sampler(settings: TraceSampler) -> Sampler {
    let root = Sampler::TraceIdRatioBased(settings.ratio);
    if settings.follows_parent { Sampler::ParentBased(Box::new(root)) } else { root }
}

/// Writes spans to the log, one line each.
#[derive(Debug)]
struct LogExporter;

impl opentelemetry_sdk::trace::SpanExporter for LogExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        for span in batch {
            let mut attributes = String::new();
            for pair in &span.attributes {
                let gap = if attributes.is_empty() { "" } else { " " };
                // Writing into a String can't fail.
                let _ = write!(attributes, "{gap}{}={}", pair.key, pair.value);
            }
            let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
            tracing::info!(
                name = %span.name,
                trace_id = %span.span_context.trace_id(),
                span_id = %span.span_context.span_id(),
                parent_span_id = %span.parent_span_id,
                took_us = took.as_micros() as u64,
                status = ?span.status,
                attributes,
                "span"
            );
        }
        Ok(())
    }
}
