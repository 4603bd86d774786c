//! How long each plugin of a profile took.

use std::sync::Arc;
use std::time::Duration;

/// A clock that the host lends, since nothing here has one: the time since some fixed moment.
pub type Clock = fn() -> Duration;

/// What a plugin does in a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileStep {
    /// Takes out rows.
    Filter,
    /// Scores rows.
    Scorer,
    /// Picks one.
    Picker,
}

/// One call of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginTime<'a> {
    /// What it did.
    pub step: ProfileStep,
    /// The plugin's name.
    pub name: &'a Arc<str>,
    /// How long it took; for a scorer with clamping, weighing and adding up.
    pub took: Duration,
}
