//! Scheduling profiles: a named chain of filters, weighted scorers and a picker.

use std::fmt;
use std::sync::Arc;

use warmroute_plugin::{Filter, Picker, Scorer};

/// A filter and its name in the configuration.
#[derive(Clone)]
pub struct NamedFilter {
    /// The plugin's name.
    pub name: Arc<str>,
    /// The filter.
    pub filter: Arc<dyn Filter>,
}

/// A scorer, its name in the configuration and its weight in a profile.
#[derive(Clone)]
pub struct WeightedScorer {
    /// The plugin's name.
    pub name: Arc<str>,
    /// What its scores are multiplied by; finite, may be 0 or negative.
    pub weight: f64,
    /// The scorer.
    pub scorer: Arc<dyn Scorer>,
}

/// A picker and its name in the configuration.
#[derive(Clone)]
pub struct NamedPicker {
    /// The plugin's name.
    pub name: Arc<str>,
    /// The picker.
    pub picker: Arc<dyn Picker>,
}

/// A scheduling profile. Filters and scorers run in their order here.
#[derive(Clone)]
pub struct Profile {
    /// The profile's name.
    pub name: Arc<str>,
    /// What takes endpoints out.
    pub filters: Vec<NamedFilter>,
    /// What scores the endpoints that are left.
    pub scorers: Vec<WeightedScorer>,
    /// What picks among them.
    pub picker: NamedPicker,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("name", &self.name)
            .field("filters", &self.filters.iter().map(|filter| &filter.name).collect::<Vec<_>>())
            .field(
                "scorers",
                &self.scorers.iter().map(|scorer| (&scorer.name, scorer.weight)).collect::<Vec<_>>(),
            )
            .field("picker", &self.picker.name)
            .finish()
    }
}
