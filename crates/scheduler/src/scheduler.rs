//! From a request and a table of endpoints to a decision.

use std::sync::Arc;

use warmroute_plugin::{Candidates, InferenceRequest, Needs};

use crate::scratch::RunError;
use crate::{Decision, Profile, Scratch};

/// The scheduling profiles of one pool. Immutable; a decision is one synchronous call.
#[derive(Debug)]
pub struct Scheduler {
    profiles: Vec<Profile>,
    prefix_producers: Vec<String>,
    attributes: Vec<String>,
    reads_adapters: bool,
}

/// Why a scheduler can't be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// There is no profile.
    #[error("a scheduler needs a scheduling profile")]
    NoProfile,
    /// More than one profile; which of them runs would need a profile handler that chooses.
    #[error("a scheduler runs one scheduling profile, not {count}")]
    SeveralProfiles {
        /// How many there are.
        count: usize,
    },
    /// A weight by which nothing can be multiplied.
    #[error("the weight {weight} of {scorer} in profile {profile} is not a finite number")]
    Weight {
        /// The profile.
        profile: Arc<str>,
        /// The scorer.
        scorer: Arc<str>,
        /// Its weight.
        weight: f64,
    },
}

/// Why a request gets no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The table has no row.
    #[error("there is no endpoint to choose from")]
    NoCandidates,
    /// A filter left no row.
    #[error("filter {by} of profile {profile} left no endpoint")]
    FilteredOut {
        /// The profile.
        profile: Arc<str>,
        /// The filter that took out the last rows.
        by: Arc<str>,
    },
    /// The picker named no row.
    #[error("picker {picker} of profile {profile} picked no endpoint")]
    NoPick {
        /// The profile.
        profile: Arc<str>,
        /// The picker.
        picker: Arc<str>,
    },
    /// The table doesn't have the columns of [`Scheduler::prefix_producers`] or [`Scheduler::attributes`]: a mistake
    /// of the host.
    #[error("the table has {found} columns of a kind of which the plugins read {needed}")]
    MissingColumns {
        /// Columns that the plugins asked for.
        needed: usize,
        /// Columns of the table.
        found: usize,
    },
}

impl Scheduler {
    /// A scheduler with these profiles. `prefix_producers` are the names that the plugins asked for while
    /// they were built ([`Needs::prefix_producers`](warmroute_plugin::Needs::prefix_producers)).
    ///
    /// # Errors
    ///
    /// If there isn't exactly one profile, or a weight isn't finite.
    pub fn try_new(profiles: Vec<Profile>, prefix_producers: Vec<String>) -> Result<Self, SchedulerError> {
        match profiles.len() {
            0 => return Err(SchedulerError::NoProfile),
            1 => {}
            count => return Err(SchedulerError::SeveralProfiles { count }),
        }
        for profile in &profiles {
            if let Some(scorer) = profile.scorers.iter().find(|scorer| !scorer.weight.is_finite()) {
                let (profile, scorer, weight) = (profile.name.clone(), scorer.name.clone(), scorer.weight);
                return Err(SchedulerError::Weight { profile, scorer, weight });
            }
        }
        Ok(Self { profiles, prefix_producers, attributes: Vec::new(), reads_adapters: false })
    }

    /// The same scheduler, whose table has what the plugins asked for while they were built beside prefix matches.
    #[must_use]
    pub fn with_needs(self, needs: &Needs) -> Self {
        Self { attributes: needs.attributes().to_vec(), reads_adapters: needs.adapters(), ..self }
    }

    /// Keys of the attributes whose columns the table needs, in the order of the columns.
    pub fn attributes(&self) -> &[String] {
        &self.attributes
    }

    /// Whether the table needs the column of adapters.
    pub fn reads_adapters(&self) -> bool {
        self.reads_adapters
    }

    /// The profiles.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The prefix producers whose columns the table needs, in the order of the columns.
    pub fn prefix_producers(&self) -> &[String] {
        &self.prefix_producers
    }

    /// Decides where a request goes: every filter of the profile in turn, every scorer on what is left,
    /// the weighted sum of the clamped scores, the picker. Neither waits nor, once `scratch` has grown to
    /// the size of the table, allocates.
    ///
    /// The formula is the peers': total = Σ clamp(score, 0, 1) × weight, not divided by the weights.
    ///
    /// # Errors
    ///
    /// If there is nothing to choose from, or a filter or the picker leaves nothing.
    pub fn decide<'a>(
        &'a self,
        request: &InferenceRequest,
        table: &Candidates<'a>,
        scratch: &'a mut Scratch,
    ) -> Result<Decision<'a>, ScheduleError> {
        if table.is_empty() {
            return Err(ScheduleError::NoCandidates);
        }
        let (needed, found) = (self.prefix_producers.len(), table.prefix_columns());
        if found < needed {
            return Err(ScheduleError::MissingColumns { needed, found });
        }
        let (needed, found) = (self.attributes.len(), table.attribute_columns());
        if found < needed {
            return Err(ScheduleError::MissingColumns { needed, found });
        }
        for (index, profile) in self.profiles.iter().enumerate() {
            scratch.run(index).decide(profile, request, table).map_err(|error| error.of(profile))?;
        }
        let runs = &scratch.runs[..self.profiles.len()];
        Ok(Decision { scheduler: self, table: *table, runs, primary: 0 })
    }
}

impl RunError {
    fn of(self, profile: &Profile) -> ScheduleError {
        let name = Arc::clone(&profile.name);
        match self {
            Self::FilteredOut { filter } => {
                ScheduleError::FilteredOut { profile: name, by: Arc::clone(&profile.filters[filter].name) }
            }
            Self::NoPick => ScheduleError::NoPick { profile: name, picker: Arc::clone(&profile.picker.name) },
        }
    }
}
