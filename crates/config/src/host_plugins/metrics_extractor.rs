//! `core-metrics-extractor`.

use crate::engine_metrics::{
    CustomMetricSpec, EngineMetricsSpec, MetricSpec, MetricsExtractorSpec, RankSeries,
};
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::suggest::did_you_mean;
use crate::yaml::{Node, shown};

/// Engines that a file may describe; every endpoint has one.
const MAX_ENGINES: usize = 64;
/// Custom metrics of one engine; every page is looked through for all of them.
const MAX_CUSTOM_METRICS: usize = 32;
/// The peer's name for what an engine without a label gets.
const RESERVED_NAME: &str = "default";

/// `core-metrics-extractor`.
pub(crate) fn metrics_extractor(declared: &Declared<'_>, mistakes: &mut Mistakes) -> MetricsExtractorSpec {
    let mut spec = MetricsExtractorSpec::new(&declared.name);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((key, _)) = fields.text("engineLabelKey", mistakes).filter(|(key, _)| !key.is_empty()) {
        spec.engine_label_key = key.to_owned();
    }
    if let Some((ranks, place)) = fields.text("rankSeries", mistakes) {
        match [RankSeries::Combined, RankSeries::First].into_iter().find(|known| known.as_str() == ranks) {
            Some(ranks) => spec.rank_series = ranks,
            None => mistakes.at(place, format!("rankSeries must be combined or first, not {}", shown(ranks))),
        }
    }
    let default = fields.text("defaultEngine", mistakes).filter(|(engine, _)| !engine.is_empty());
    let before = mistakes.len();
    let mut engines: Vec<EngineMetricsSpec> = Vec::new();
    for node in fields.list_up_to(MAX_ENGINES, "engineConfigs", mistakes) {
        engine(node, &mut engines, mistakes);
    }
    let described = mistakes.len() == before;
    fields.finish(mistakes);
    // An engine of the file replaces the built-in one as a whole, as at the peer.
    spec.engines.retain(|built_in| engines.iter().all(|engine| engine.name != built_in.name));
    spec.engines.splice(0..0, engines);
    if let Some((engine, place)) = default {
        spec.default_engine = engine.to_owned();
        let names = || spec.engines.iter().map(|known| known.name.as_str());
        if described && !names().any(|known| known == engine) {
            let hint = did_you_mean(engine, names())
                .unwrap_or_else(|| format!("there are {}", names().collect::<Vec<_>>().join(", ")));
            mistakes.hinted(place, format!("there is no engine {}", shown(engine)), hint);
        }
    }
    spec
}

fn engine(node: &Node, engines: &mut Vec<EngineMetricsSpec>, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "an engine", mistakes);
    let name = fields.required_text("name", mistakes);
    let mut spec = EngineMetricsSpec::new(name.map_or("", |(name, _)| name));
    spec.queued_requests = metric(&mut fields, "queuedRequestsSpec", mistakes);
    spec.running_requests = metric(&mut fields, "runningRequestsSpec", mistakes);
    spec.kv_usage = metric(&mut fields, "kvUsageSpec", mistakes);
    spec.lora = metric(&mut fields, "loraSpec", mistakes);
    spec.cache_info = metric(&mut fields, "cacheInfoSpec", mistakes);
    spec.cache_block_size = metric(&mut fields, "cacheBlockSizeSpec", mistakes);
    spec.cache_num_blocks = metric(&mut fields, "cacheNumBlocksSpec", mistakes);
    for (name, label) in [
        ("cacheBlockSizeLabelName", &mut spec.cache_block_size_label),
        ("cacheNumBlocksLabelName", &mut spec.cache_num_blocks_label),
    ] {
        if let Some((given, _)) = fields.text(name, mistakes).filter(|(given, _)| !given.is_empty()) {
            given.clone_into(label);
        }
    }
    for node in fields.list_up_to(MAX_CUSTOM_METRICS, "customMetrics", mistakes) {
        custom_metric(node, &mut spec.custom_metrics, mistakes);
    }
    fields.finish(mistakes);
    let Some((name, place)) = name else { return };
    if name == RESERVED_NAME {
        let message = format!("an engine can't be called {RESERVED_NAME}");
        mistakes.hinted(place, message, "name the engine of endpoints without a label in defaultEngine");
    } else if engines.iter().any(|known| known.name == name) {
        mistakes.at(place, format!("engine {} is described twice", shown(name)));
    } else {
        engines.push(spec);
    }
}

/// A metric; `None` for nothing and for an empty text, which turns it off.
fn metric(fields: &mut Fields<'_>, name: &'static str, mistakes: &mut Mistakes) -> Option<MetricSpec> {
    let (text, place) = fields.text(name, mistakes).filter(|(text, _)| !text.is_empty())?;
    match MetricSpec::parse(text) {
        Ok(metric) => Some(metric),
        Err(error) => {
            let hint = "write name or name{label=value,…}";
            mistakes.hinted(place, format!("{name}: {error}"), hint);
            None
        }
    }
}

fn custom_metric(node: &Node, custom: &mut Vec<CustomMetricSpec>, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "a custom metric", mistakes);
    let key = fields.required_text("attributeKey", mistakes);
    let given = fields.required_text("metricSpec", mistakes).is_some();
    let metric = if given { metric(&mut fields, "metricSpec", mistakes) } else { None };
    fields.finish(mistakes);
    let (Some((key, place)), Some(metric)) = (key, metric) else { return };
    if custom.iter().any(|known| known.attribute_key == key) {
        mistakes.at(place, format!("two custom metrics have the attributeKey {}", shown(key)));
        return;
    }
    custom.push(CustomMetricSpec { attribute_key: key.to_owned(), metric });
}
