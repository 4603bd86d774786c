use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use warmroute_scheduler::{Decision, ProfileStep, StageRun};

use crate::metrics::ExtensionPoint;

/// The moment from which [`clock`] counts.
static CLOCK_START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The clock that the scheduler is lent.
pub(super) fn clock() -> Duration {
    CLOCK_START.elapsed()
}

/// How long one profile and its plugins took.
#[derive(Clone, Debug)]
pub struct ProfileTimes {
    /// The profile.
    pub name: Arc<str>,
    /// When it began.
    pub started_at: Instant,
    /// Endpoints that it was given.
    pub candidates: usize,
    /// Endpoints that its filters left.
    pub kept: usize,
    /// Its plugins, one after the other.
    pub plugins: Vec<PluginCall>,
}

/// How long one plugin took.
#[derive(Clone, Debug)]
pub struct PluginCall {
    /// What it did.
    pub point: ExtensionPoint,
    /// Its name.
    pub name: Arc<str>,
    /// How long it took.
    pub took: Duration,
}

/// The look-up of prefix matches of one decision.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// When it began.
    pub started_at: Instant,
    /// How long it took.
    pub took: Duration,
    /// Blocks that the best candidate is known to hold.
    pub best_blocks: u32,
}

impl ProfileTimes {
    /// Of every profile that ran.
    pub(super) fn of(decision: &Decision<'_>) -> Vec<Self> {
        let candidates = decision.table().len();
        let profile = |StageRun { run, .. }: StageRun<'_>| {
            let started_at = *CLOCK_START + run.started()?;
            let plugins = run.plugin_times().map(|time| {
                let point = match time.step {
                    ProfileStep::Filter => ExtensionPoint::Filter,
                    ProfileStep::Scorer => ExtensionPoint::Scorer,
                    ProfileStep::Picker => ExtensionPoint::Picker,
                };
                PluginCall { point, name: time.name.clone(), took: time.took }
            });
            let (name, kept) = (run.name().clone(), run.kept().len());
            Some(Self { name, started_at, candidates, kept, plugins: plugins.collect() })
        };
        decision.stages().filter_map(profile).collect()
    }

    /// The plugins of one kind.
    pub fn calls(&self, point: ExtensionPoint) -> impl Iterator<Item = &PluginCall> {
        self.plugins.iter().filter(move |call| call.point == point)
    }

    /// The time of all plugins of one kind.
    pub fn took_by(&self, point: ExtensionPoint) -> Duration {
        self.calls(point).map(|call| call.took).sum()
    }

    /// The time of all plugins.
    pub fn took(&self) -> Duration {
        self.plugins.iter().map(|call| call.took).sum()
    }
}
