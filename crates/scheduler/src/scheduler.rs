//! From a request and a table of endpoints to a decision.

use std::sync::Arc;

use http::HeaderName;
use warmroute_plugin::{Candidates, InferenceRequest, Needs, PluginFallback};

use crate::profile_handler::PlannedStage;
use crate::scratch::{Outcome, RunError};
use crate::{Decision, OnFailure, Profile, ProfileHandler, Scratch, Stage};

/// The scheduling profiles of one pool. Immutable; a decision is one synchronous call.
#[derive(Debug)]
pub struct Scheduler {
    profiles: Vec<Profile>,
    handler: ProfileHandler,
    /// What the handler runs, in its order.
    plan: Vec<PlannedStage>,
    prefix_producers: Vec<String>,
    attributes: Vec<String>,
    reads_adapters: bool,
    fallbacks: Vec<PluginFallback>,
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
    /// The handler names a profile that isn't there.
    #[error("the profile handler runs profile {profile}, and there is no such profile")]
    UnknownProfile {
        /// The profile.
        profile: Arc<str>,
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
    /// A stage that was wanted picked nothing, and requests aren't served without it then.
    #[error("the {stage} stage found no endpoint, and requests aren't served without it: {why}")]
    StageFailed {
        /// The stage.
        stage: Stage,
        /// Why it found none.
        why: Box<ScheduleError>,
    },
    /// The request names a profile that isn't there.
    #[error("header {header} names no scheduling profile; there are {}", known.join(", "))]
    UnknownProfile {
        /// The header.
        header: HeaderName,
        /// The profiles that there are.
        known: Vec<String>,
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
    /// A scheduler with one profile. `prefix_producers` are the names that the plugins asked for while
    /// they were built ([`Needs::prefix_producers`](warmroute_plugin::Needs::prefix_producers)).
    ///
    /// # Errors
    ///
    /// If there isn't exactly one profile, or a weight isn't finite.
    pub fn try_new(profiles: Vec<Profile>, prefix_producers: Vec<String>) -> Result<Self, SchedulerError> {
        Self::try_with_handler(profiles, prefix_producers, ProfileHandler::Single)
    }

    /// A scheduler whose handler chooses among the profiles.
    ///
    /// # Errors
    ///
    /// If there is no profile, or not what the handler runs, or a weight isn't finite.
    pub fn try_with_handler(
        profiles: Vec<Profile>,
        prefix_producers: Vec<String>,
        handler: ProfileHandler,
    ) -> Result<Self, SchedulerError> {
        if profiles.is_empty() {
            return Err(SchedulerError::NoProfile);
        }
        let plan = handler.plan(&profiles)?;
        for profile in &profiles {
            if let Some(scorer) = profile.scorers.iter().find(|scorer| !scorer.weight.is_finite()) {
                let (profile, scorer, weight) = (profile.name.clone(), scorer.name.clone(), scorer.weight);
                return Err(SchedulerError::Weight { profile, scorer, weight });
            }
        }
        let (attributes, fallbacks) = (Vec::new(), Vec::new());
        Ok(Self { profiles, handler, plan, prefix_producers, attributes, reads_adapters: false, fallbacks })
    }

    /// The same scheduler, whose table has what the plugins asked for while they were built beside prefix matches.
    #[must_use]
    pub fn with_needs(self, needs: &Needs) -> Self {
        let (attributes, fallbacks) = (needs.attributes().to_vec(), needs.fallbacks().to_vec());
        Self { attributes, reads_adapters: needs.adapters(), fallbacks, ..self }
    }

    /// Keys of the attributes whose columns the table needs, in the order of the columns.
    pub fn attributes(&self) -> &[String] {
        &self.attributes
    }

    /// Whether the table needs the column of adapters.
    pub fn reads_adapters(&self) -> bool {
        self.reads_adapters
    }

    /// What chooses among the profiles.
    pub fn handler(&self) -> &ProfileHandler {
        &self.handler
    }

    pub(crate) fn plan(&self) -> &[PlannedStage] {
        &self.plan
    }

    /// What the plugins count when they have to do with less than they are configured for.
    pub fn fallbacks(&self) -> &[PluginFallback] {
        &self.fallbacks
    }

    /// The profiles.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The prefix producers whose columns the table needs, in the order of the columns.
    pub fn prefix_producers(&self) -> &[String] {
        &self.prefix_producers
    }

    /// Decides where a request goes. Of each profile that the handler runs: every filter in turn, every scorer on
    /// what is left, the weighted sum of the clamped scores, the picker; a later profile sees what the first one picked
    /// as [`Candidates::peer`]. Neither waits nor, once `scratch` has grown to the size of the table, allocates.
    ///
    /// The formula is the peers': total = Σ clamp(score, 0, 1) × weight, not divided by the weights.
    ///
    /// # Errors
    ///
    /// If there is nothing to choose from, or a filter or the picker of a profile that can't be done without leaves
    /// nothing.
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
        let chosen = match &self.handler {
            ProfileHandler::ByHeader { header, .. } => self.profile_named_by(header, request)?,
            _ => None,
        };
        scratch.outcomes.clear();
        let (mut first, mut primary) = (None, 0);
        for (at, planned) in self.plan.iter().enumerate() {
            let profile = chosen.unwrap_or(planned.profile);
            let verdict = planned.decider.as_ref().map(|named| named.decider.decide(request, table, first));
            let mut failure = None;
            if verdict.is_none_or(|verdict| verdict.runs) {
                match scratch.run(at).decide(&self.profiles[profile], request, table, first) {
                    Ok(row) => first = first.or(Some(row)),
                    Err(error) => failure = Some(self.survived(error, planned, profile)?),
                }
            } else {
                scratch.run(at).clear();
            }
            if planned.stage == Stage::Primary {
                primary = at;
            }
            scratch.outcomes.push(Outcome { profile, verdict, failure });
        }
        Ok(Decision { scheduler: self, table: *table, scratch, primary })
    }

    /// The error itself if the request is served without the stage.
    #[cold]
    fn survived(
        &self,
        error: RunError,
        planned: &PlannedStage,
        profile: usize,
    ) -> Result<RunError, ScheduleError> {
        let profile = &self.profiles[profile];
        match (planned.stage, planned.on_failure) {
            (_, OnFailure::Aggregate) => Ok(error),
            (Stage::Primary, OnFailure::Refuse) => Err(error.of(profile)),
            (stage, OnFailure::Refuse) => {
                Err(ScheduleError::StageFailed { stage, why: Box::new(error.of(profile)) })
            }
        }
    }

    /// The profile that a header names; `None` for the default one.
    fn profile_named_by(
        &self,
        header: &HeaderName,
        request: &InferenceRequest,
    ) -> Result<Option<usize>, ScheduleError> {
        let wanted = request.headers.get(header).map_or(&[][..], |value| value.as_bytes().trim_ascii());
        if wanted.is_empty() || self.profiles.len() == 1 {
            return Ok(None);
        }
        let named = self.profiles.iter().position(|profile| profile.name.as_bytes() == wanted);
        let known = || self.profiles.iter().map(|profile| profile.name.to_string()).collect();
        named
            .map(Some)
            .ok_or_else(|| ScheduleError::UnknownProfile { header: header.clone(), known: known() })
    }
}

impl RunError {
    pub(crate) fn of(self, profile: &Profile) -> ScheduleError {
        let name = Arc::clone(&profile.name);
        match self {
            Self::FilteredOut { filter } => {
                ScheduleError::FilteredOut { profile: name, by: Arc::clone(&profile.filters[filter].name) }
            }
            Self::NoPick => ScheduleError::NoPick { profile: name, picker: Arc::clone(&profile.picker.name) },
        }
    }
}
