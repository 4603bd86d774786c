//! Which reader reads the page of an endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use warmroute_config::{MetricsExtractorSpec, OLD_ENGINE_LABEL};

use super::page_reader::PageReader;

/// The readers of all kinds of engines, by the label of an endpoint.
#[derive(Debug)]
pub struct Extractor {
    label: String,
    readers: BTreeMap<String, Arc<PageReader>>,
    default_engine: String,
    /// Where no kind of engine is known, which a checked configuration excludes.
    nothing: Arc<PageReader>,
}

impl Extractor {
    /// The readers that a configuration describes.
    pub fn new(spec: &MetricsExtractorSpec) -> Self {
        let keys: Arc<[String]> = spec.attribute_keys().into_iter().map(str::to_owned).collect();
        let reader = |engine| Arc::new(PageReader::new(engine, spec.rank_series, &keys));
        Self {
            label: spec.engine_label_key.clone(),
            readers: spec.engines.iter().map(|engine| (engine.name.clone(), reader(engine))).collect(),
            default_engine: spec.default_engine.clone(),
            nothing: reader(&warmroute_config::EngineMetricsSpec::new("")),
        }
    }

    /// The reader for an endpoint with these labels.
    pub fn reader(&self, labels: &BTreeMap<String, String>) -> &Arc<PageReader> {
        let label = |name: &str| labels.get(name).filter(|engine| !engine.is_empty());
        let engine = label(&self.label).or_else(|| label(OLD_ENGINE_LABEL));
        let reader = engine.and_then(|engine| self.readers.get(engine));
        reader.or_else(|| self.readers.get(&self.default_engine)).unwrap_or(&self.nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_chooses_the_engine_and_the_old_one_stands_in() {
        let mut spec = MetricsExtractorSpec::new("e");
        spec.default_engine = "triton".to_owned();
        let extractor = Extractor::new(&spec);
        let engine = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            extractor.reader(&labels).engine().to_string()
        };
        let label = "llm-d.ai/engine-type";
        assert_eq!(engine(&[(label, "sglang")]), "sglang");
        assert_eq!(engine(&[(label, "sglang"), (OLD_ENGINE_LABEL, "vllm")]), "sglang");
        assert_eq!(engine(&[(OLD_ENGINE_LABEL, "vllm")]), "vllm");
        assert_eq!(engine(&[(label, ""), (OLD_ENGINE_LABEL, "vllm")]), "vllm");
        assert_eq!(engine(&[(label, "unheard-of")]), "triton");
        assert_eq!(engine(&[]), "triton");
    }
}
