//! `acme-price-scorer`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, FallbackCounter, InferenceRequest, Scorer};

/// Prefers endpoints in cheap zones: lowest price ÷ price of the endpoint's zone, by the label `zone`.
///
/// Prices are in a JSON file, `{"eu-1": 2.5, "us-1": 1.0}`, which a background task reads again and again. An endpoint
/// whose zone has no price gets 0, and is counted as a fallback.
pub struct PriceScorer {
    prices: Arc<Prices>,
    unknown: FallbackCounter,
}

/// The prices of the last file that could be read, above 0, by zone.
#[derive(Default)]
struct Prices(RwLock<HashMap<String, f64>>);

/// What the configuration may say; `file` must be given.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Parameters {
    file: PathBuf,
    #[serde(default = "ten_seconds")]
    refresh_seconds: u64,
}

fn ten_seconds() -> u64 {
    10
}

impl PriceScorer {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Parameters { file, refresh_seconds } = parameters;
        if refresh_seconds == 0 {
            return Err(BuildError::invalid("refreshSeconds", "must be at least 1"));
        }
        // A changed configuration builds all plugins anew: the next one goes on with these prices.
        let prices = context.shared(&file.display().to_string(), Prices::default);
        let unknown = context.fallback_counter("no price for the zone");
        // Runs as long as this plugin is in use; the request path only reads what it leaves in memory.
        context.spawn(keep_fresh(prices.clone(), file, Duration::from_secs(refresh_seconds)));
        Ok(Self { prices, unknown })
    }
}

/// Reads the file now and then. A file that can't be read leaves the prices as they are.
async fn keep_fresh(prices: Arc<Prices>, file: PathBuf, every: Duration) {
    loop {
        if let Some(read) = read_prices(&file) {
            *prices.0.write().unwrap_or_else(PoisonError::into_inner) = read;
        }
        tokio::time::sleep(every).await;
    }
}

/// A small local file is read in microseconds. What takes longer, such as an answer from a server, is awaited.
fn read_prices(file: &Path) -> Option<HashMap<String, f64>> {
    let mut prices: HashMap<String, f64> = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    prices.retain(|_, price| *price > 0.0);
    Some(prices)
}

impl Scorer for PriceScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let prices = self.prices.0.read().unwrap_or_else(PoisonError::into_inner);
        let price = |zone: Option<&String>| prices.get(zone?).copied();
        let known = candidates.endpoints().filter_map(|endpoint| price(endpoint.labels.get("zone")));
        let lowest = known.fold(f64::INFINITY, f64::min);
        for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
            match price(endpoint.labels.get("zone")) {
                Some(price) => *score = lowest / price,
                None => self.unknown.add(1),
            }
        }
    }
}
