//! `metrics-data-source` and `core-metrics-extractor`.

use std::time::Duration;

use super::PORT;
use crate::MetricsSourceSpec;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;

impl MetricsSourceSpec {
    /// The source with the peer's defaults.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), path: "/metrics".to_owned(), port: None, interval: None }
    }
}

/// `metrics-data-source`.
pub(crate) fn metrics_source(declared: &Declared<'_>, mistakes: &mut Mistakes) -> MetricsSourceSpec {
    let mut spec = MetricsSourceSpec::new(&declared.name);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((scheme, place)) = fields.text("scheme", mistakes)
        && scheme != "http"
    {
        mistakes.hinted(
            place,
            format!("metrics over {scheme:?} are not available in this version"),
            "use http",
        );
    }
    if let Some((path, place)) = fields.text("path", mistakes) {
        if !path.starts_with('/') {
            mistakes.hinted(place, "path must begin with /", format!("write {:?}", format!("/{path}")));
        }
        spec.path = path.to_owned();
    }
    if let Some((port, _)) = fields.whole("port", PORT, mistakes) {
        spec.port = u16::try_from(port).ok();
    }
    if let Some((interval, place)) = fields.duration("interval", mistakes) {
        spec.interval = Some(interval);
        if interval < Duration::from_millis(1) {
            mistakes.at(place, "interval must be at least 1ms");
        }
    }
    let _ = fields.boolean("insecureSkipVerify", mistakes);
    for name in ["caCertPath", "clientCertPath", "clientKeyPath"] {
        if let Some((_, place)) = fields.text(name, mistakes) {
            mistakes.hinted(
                place,
                format!("{name} is for https, which is not available in this version"),
                "remove it",
            );
        }
    }
    fields.finish(mistakes);
    spec
}

/// `core-metrics-extractor`.
pub(crate) fn metrics_extractor(declared: &Declared<'_>, mistakes: &mut Mistakes) {
    let Some(node) = declared.parameters else { return };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((engine, place)) = fields.text("defaultEngine", mistakes)
        && engine != "vllm"
    {
        let message = format!("the metric names of engine {engine:?} are not available in this version");
        mistakes.hinted(place, message, "use vllm");
    }
    if let Some((_, place)) = fields.text("engineLabelKey", mistakes) {
        mistakes.notice(place, "engineLabelKey isn't used: every engine is read as vLLM");
    }
    if let Some(node) = fields.entry("engineConfigs") {
        mistakes.hinted(node.place, "other metric names than vLLM's come later", "remove engineConfigs");
    }
    fields.finish(mistakes);
}
