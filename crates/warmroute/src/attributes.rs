//! Attributes of endpoints: numbers that plugins name by a key `<attribute>/<producer>`.

use warmroute_config::CheckedConfig;

use crate::pool::{Adapters, Scrape};

/// The peer's name of the one producer of attributes, which counts even if the configuration calls it otherwise.
const PRODUCER: &str = "core-metrics-extractor";

/// Attributes that every engine has, with the llm-d Router EPP's names.
const OF_EVERY_ENGINE: [(&str, Attribute); 6] = [
    ("WaitingQueueSize", Attribute::WaitingRequests),
    ("RunningRequestsSize", Attribute::RunningRequests),
    ("KVCacheUsagePercent", Attribute::KvCacheUtilization),
    ("MaxActiveModels", Attribute::MaxAdapters),
    ("ActiveModels", Attribute::RunningAdapters),
    ("WaitingModels", Attribute::WaitingAdapters),
];

/// Where the value of an attribute is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The custom metric with this number.
    Custom(usize),
    /// Requests that wait in the engine's queue.
    WaitingRequests,
    /// Requests in the engine's batch.
    RunningRequests,
    /// Share of the KV cache in use, 0 to 1.
    KvCacheUtilization,
    /// Most LoRA adapters that can be in one batch.
    MaxAdapters,
    /// LoRA adapters with running requests.
    RunningAdapters,
    /// LoRA adapters with waiting requests.
    WaitingAdapters,
}

/// A plugin reads an attribute that nothing makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a plugin reads the attribute {key:?}, which nothing makes; there are {}", known(.keys))]
pub struct UnknownAttribute {
    /// The key that the plugin asks for.
    pub key: String,
    /// The keys that there are.
    pub keys: Vec<String>,
}

fn known(keys: &[String]) -> String {
    if keys.is_empty() { "none, since no metrics are scraped".to_owned() } else { keys.join(", ") }
}

impl Attribute {
    /// Finds the attribute of each key: `<attribute>/<name of the extractor>`, the same with the extractor's type, or
    /// the attribute's name alone.
    ///
    /// # Errors
    /// The first key of an attribute that `config` doesn't make.
    pub fn find_all(keys: &[String], config: &CheckedConfig) -> Result<Vec<Self>, UnknownAttribute> {
        keys.iter().map(|key| Self::find(key, config)).collect()
    }

    fn find(key: &str, config: &CheckedConfig) -> Result<Self, UnknownAttribute> {
        let extractor = &config.metrics_extractor;
        let custom = extractor.attribute_keys();
        let of_name = |name: &str| {
            let custom = custom.iter().position(|known| *known == name).map(Self::Custom);
            custom
                .or_else(|| OF_EVERY_ENGINE.iter().find(|(known, _)| *known == name).map(|(_, found)| *found))
        };
        let without = |producer: &str| key.strip_suffix(producer)?.strip_suffix('/');
        let named = [without(&extractor.name), without(PRODUCER), Some(key)];
        let found = named.into_iter().flatten().find_map(of_name).filter(|_| config.metrics_source.is_some());
        found.ok_or_else(|| {
            let all = custom.iter().copied().chain(OF_EVERY_ENGINE.iter().map(|(name, _)| *name));
            let all = all.filter(|_| config.metrics_source.is_some());
            let keys = all.map(|name| format!("{name}/{}", extractor.name)).collect();
            UnknownAttribute { key: key.to_owned(), keys }
        })
    }

    /// The value; None if the engine doesn't tell it.
    pub fn of(self, scrape: &Scrape) -> Option<f64> {
        let adapters = |count: fn(&Adapters) -> f64| scrape.adapters.as_deref().map(count);
        match self {
            Self::Custom(at) => scrape.attributes.get(at).copied().flatten(),
            Self::WaitingRequests => Some(scrape.metrics.waiting_requests.into()),
            Self::RunningRequests => Some(scrape.metrics.running_requests.into()),
            Self::KvCacheUtilization => Some(scrape.metrics.kv_cache_utilization),
            Self::MaxAdapters => adapters(|adapters| adapters.max.into()),
            Self::RunningAdapters => adapters(|adapters| adapters.running.len() as f64),
            Self::WaitingAdapters => adapters(|adapters| adapters.waiting.len() as f64),
        }
    }
}
