//! What an endpoint's metrics page said, and what its list of models says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute_plugin::{AdapterState, EndpointMetrics};

use crate::delivered::PrefixCounters;

/// The last good scrape of an endpoint. Immutable; the next one replaces it.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The load, and what is known of the cache.
    pub metrics: EndpointMetrics,
    /// When the page had arrived.
    pub at: Instant,
    /// When newer metrics are due; what it says is as old as this is past.
    pub next_at: Instant,
    /// The kind of engine that the page was read as; empty if nobody said.
    pub engine: Arc<str>,
    /// LoRA adapters; None if the engine tells nothing of them.
    pub adapters: Option<Arc<Adapters>>,
    /// What the engine counts of its prefix cache; None if it doesn't tell.
    pub prefix_counters: Option<PrefixCounters>,
    /// Keys of the custom metrics, the same for all endpoints.
    pub attribute_keys: Arc<[String]>,
    /// Their values, in the order of the keys; None where the engine has none.
    pub attributes: Box<[Option<f64>]>,
}

impl Scrape {
    /// A scrape of nothing but load and cache.
    pub fn new(metrics: EndpointMetrics, at: Instant) -> Self {
        let (engine, attribute_keys) = (Arc::default(), Arc::default());
        Self {
            metrics,
            at,
            next_at: at,
            engine,
            adapters: None,
            prefix_counters: None,
            attribute_keys,
            attributes: Box::default(),
        }
    }

    /// The same scrape, one of those that are made at an interval.
    #[must_use]
    pub fn followed_after(self, interval: Duration) -> Self {
        Self { next_at: self.at.checked_add(interval).unwrap_or(self.at), ..self }
    }
}

/// The LoRA adapters of an engine with requests in it, as its metrics name them. Each list is sorted and has no name
/// twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapters {
    /// Adapters with running requests.
    pub running: Box<[Box<str>]>,
    /// Adapters with waiting requests.
    pub waiting: Box<[Box<str>]>,
    /// Most adapters that can be in one batch; 0 if the engine doesn't say.
    pub max: u32,
}

impl Adapters {
    /// Whether requests for this adapter are in the engine.
    pub fn names(&self, adapter: &str) -> bool {
        let is_in = |list: &[Box<str>]| list.binary_search_by(|known| (**known).cmp(adapter)).is_ok();
        is_in(&self.running) || is_in(&self.waiting)
    }

    /// Where the engine stands with an adapter: the llm-d Router EPP's distinction.
    pub fn state_of(&self, adapter: &str) -> AdapterState {
        let is_in = |list: &[Box<str>]| list.binary_search_by(|known| (**known).cmp(adapter)).is_ok();
        if is_in(&self.running) {
            AdapterState::Active
        } else if self.running.len() + self.waiting.len() < self.max as usize {
            AdapterState::Room
        } else if is_in(&self.waiting) {
            AdapterState::Waiting
        } else {
            AdapterState::Full
        }
    }
}

/// What an endpoint says that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedModels {
    /// By id, each once.
    pub models: Box<[ServedModel]>,
}

/// A model or an adapter of the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ServedModel {
    /// What requests call it.
    pub id: String,
    /// The model that it is an adapter of; None for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_of: Option<String>,
}

impl ServedModels {
    /// Puts the list in order.
    pub fn new(mut models: Vec<ServedModel>) -> Self {
        models.sort();
        models.dedup_by(|a, b| a.id == b.id);
        Self { models: models.into() }
    }

    /// The entry with this id.
    pub fn get(&self, id: &str) -> Option<&ServedModel> {
        let at = self.models.binary_search_by(|model| model.id.as_str().cmp(id)).ok()?;
        self.models.get(at)
    }

    /// What the list adds to what metrics say. A listed adapter is registered, so the engine takes requests for it, but
    /// its weights may still have to be loaded; a name that isn't listed is refused with 404, unless the engine looks
    /// adapters up by itself. Metrics that show requests for it in the engine know better.
    pub fn refine(&self, model: &str, by_metrics: AdapterState) -> AdapterState {
        match (self.get(model), by_metrics) {
            (Some(ServedModel { adapter_of: Some(_), .. }), AdapterState::Unknown) => AdapterState::Room,
            (None, AdapterState::Unknown | AdapterState::Room) => AdapterState::Full,
            _ => by_metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Box<[Box<str>]> {
        names.iter().map(|name| Box::from(*name)).collect()
    }

    #[test]
    fn an_adapter_runs_has_room_waits_or_has_neither() {
        let mut adapters = Adapters { running: names(&["a", "b"]), waiting: names(&["c"]), max: 4 };
        let states = |adapters: &Adapters| ["a", "c", "d"].map(|name| adapters.state_of(name));
        assert_eq!(states(&adapters), [AdapterState::Active, AdapterState::Room, AdapterState::Room]);
        adapters.max = 3;
        assert_eq!(states(&adapters), [AdapterState::Active, AdapterState::Waiting, AdapterState::Full]);
        assert_eq!(Adapters::default().state_of("a"), AdapterState::Full);
    }

    #[test]
    fn the_list_of_models_says_what_metrics_do_not() {
        use AdapterState::{Active, Full, Room, Unknown, Waiting};
        let model =
            |id: &str, of: Option<&str>| ServedModel { id: id.to_owned(), adapter_of: of.map(str::to_owned) };
        let served = ServedModels::new(vec![model("tuned", Some("base")), model("base", None)]);
        for (id, by_metrics, refined) in [
            ("tuned", Unknown, Room),
            ("tuned", Full, Full),
            ("tuned", Waiting, Waiting),
            ("base", Unknown, Unknown),
            ("base", Room, Room),
            ("other", Unknown, Full),
            ("other", Room, Full),
            ("other", Active, Active),
            ("other", Waiting, Waiting),
        ] {
            assert_eq!(served.refine(id, by_metrics), refined, "{id} {by_metrics:?}");
        }
    }
}
