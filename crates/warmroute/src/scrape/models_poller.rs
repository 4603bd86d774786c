//! Asks each endpoint now and then which models it serves.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::MissedTickBehavior;

use super::SHORTEST_INTERVAL;
use super::http_source::{FetchError, HttpSource};
use crate::metrics::Metrics;
use crate::pool::{EndpointState, ServedModel, ServedModels};
use crate::prompt::AdapterNames;

/// How often unless a configuration says otherwise. The list changes when somebody loads an adapter.
pub const MODELS_INTERVAL: Duration = Duration::from_secs(5);
/// Longest list kept of one endpoint.
const MAX_MODELS: usize = 4096;
/// Longest id kept, in bytes.
const MAX_ID_BYTES: usize = 512;

/// Asks endpoints for their models.
#[derive(Clone, Debug)]
pub struct ModelsPoller {
    source: HttpSource,
    interval: Duration,
    metrics: Arc<Metrics>,
    /// Where names of adapters go.
    adapters: Option<Arc<AdapterNames>>,
    /// Whether nobody asked for the lists themselves.
    names_only: bool,
}

/// Why one question gave nothing.
#[derive(Debug, thiserror::Error)]
enum ModelsError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no list of models: {0}")]
    NoList(#[from] serde_json::Error),
}

/// The answer of `GET /v1/models`, as far as it matters; vLLM's cards of adapters name the model in `parent`.
#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelCard>,
}

#[derive(Deserialize)]
struct ModelCard {
    id: String,
    #[serde(default)]
    parent: Option<String>,
}

impl ModelsPoller {
    /// A poller of that page at every endpoint.
    pub fn new(source: HttpSource, interval: Duration, metrics: Arc<Metrics>) -> Self {
        let interval = interval.max(SHORTEST_INTERVAL);
        Self { source, interval, metrics, adapters: None, names_only: false }
    }

    /// Also tells which of the models are adapters, so that the first request for one isn't taken for one of the model
    /// that it adapts, whose KV blocks are others.
    pub fn telling(self, adapters: Arc<AdapterNames>) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// Only that: the lists aren't published, and an endpoint that gives none is not told or counted as a failure.
    pub fn names_only(self) -> Self {
        Self { names_only: true, ..self }
    }

    /// Asks one endpoint until it leaves the pool. Says once when that begins to fail and once when it works again;
    /// every failure is counted, and the last list stays.
    pub async fn run(self, endpoint: Arc<EndpointState>) {
        self.run_rows(vec![endpoint]).await;
    }

    /// The same for the ranks of one address, which serve the same models. They leave together.
    pub async fn run_rows(self, rows: Vec<Arc<EndpointState>>) {
        let Some(first) = rows.first() else { return };
        first.gone.run_until_cancelled(self.poll_forever(first, &rows)).await;
    }

    async fn poll_forever(&self, endpoint: &EndpointState, rows: &[Arc<EndpointState>]) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let address = &endpoint.endpoint.address;
        let mut failing = false;
        loop {
            ticks.tick().await;
            match self.ask(endpoint).await {
                Ok(models) => {
                    self.tell_adapters(&models);
                    if self.names_only {
                        continue;
                    }
                    rows.iter().for_each(|row| row.publish_models(models.clone()));
                    if failing {
                        tracing::info!(endpoint = %address, "models are listed again");
                    }
                    failing = false;
                }
                Err(error) if self.names_only => {
                    tracing::debug!(endpoint = %address, %error, "adapters are known by KV events only");
                }
                Err(error) => {
                    let pool = &self.metrics.pool;
                    match error {
                        ModelsError::Fetch(_) => {
                            pool.scrape_errors.with_label_values(&["models-data-source"]).inc();
                        }
                        ModelsError::NoList(_) => {
                            let labels = ["models-data-source", "models-data-extractor"];
                            pool.extract_errors.with_label_values(&labels).inc();
                        }
                    }
                    if !failing {
                        tracing::warn!(endpoint = %address, %error, "models can't be listed: the last list stays");
                    }
                    failing = true;
                }
            }
        }
    }

    fn tell_adapters(&self, models: &ServedModels) {
        if let Some(adapters) = &self.adapters {
            for model in models.models.iter().filter(|model| model.adapter_of.is_some()) {
                adapters.add(&Arc::from(model.id.as_str()));
            }
        }
    }

    async fn ask(&self, endpoint: &EndpointState) -> Result<ServedModels, ModelsError> {
        let page = self.source.fetch(&self.source.uri(&endpoint.spec)?).await?;
        Ok(read_models(&page)?)
    }
}

/// Reads the list. Of a longer one the first entries are kept; an id that is too long is left out.
fn read_models(page: &[u8]) -> Result<ServedModels, serde_json::Error> {
    let list: ModelList = serde_json::from_slice(page)?;
    let fits = |card: &ModelCard| {
        card.id.len() <= MAX_ID_BYTES
            && card.parent.as_ref().is_none_or(|parent| parent.len() <= MAX_ID_BYTES)
    };
    let cards = list.data.into_iter().filter(fits).take(MAX_MODELS);
    Ok(ServedModels::new(cards.map(|card| ServedModel { id: card.id, adapter_of: card.parent }).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_adapters_are_told_apart() {
        let page = br#"{"object":"list","data":[
            {"id":"tuned","object":"model","root":"/a","parent":"base","permission":[]},
            {"id":"base","object":"model","parent":null,"max_model_len":4096}, {"id":"base"}]}"#;
        let models = read_models(page).unwrap();
        let listed: Vec<_> = models.models.iter().map(|m| (m.id.as_str(), m.adapter_of.as_deref())).collect();
        assert_eq!(listed, [("base", None), ("tuned", Some("base"))]);
        assert!(models.get("tuned").is_some() && models.get("tune").is_none());
    }

    #[test]
    fn what_is_no_list_is_an_error_and_what_is_too_long_is_bounded() {
        for page in ["", "[]", "{}", "{\"data\":[{}]}", "{\"data\":{}}", "<html>"] {
            assert!(read_models(page.as_bytes()).is_err(), "{page}");
        }
        let long = "x".repeat(MAX_ID_BYTES + 1);
        let cards = (0..MAX_MODELS + 5).map(|at| format!("{{\"id\":\"m{at}\"}}"));
        let cards: Vec<String> = [format!("{{\"id\":{long:?}}}")].into_iter().chain(cards).collect();
        let models = read_models(format!("{{\"data\":[{}]}}", cards.join(",")).as_bytes()).unwrap();
        assert_eq!(models.models.len(), MAX_MODELS);
        assert!(models.get(&long).is_none());
    }
}
