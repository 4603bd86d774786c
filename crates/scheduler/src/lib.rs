//! Scheduling profiles: filter, score, pick.
//!
//! Which profiles run for a request is the [`ProfileHandler`]'s to say: usually one, with disaggregated serving one per
//! stage.
//!
//! A [`Scheduler`] is made once per configuration ([`SchedulerBuilder`]) and asked once per request
//! ([`Scheduler::decide`]). It is synchronous, and allocates nothing per endpoint when its [`Scratch`] is
//! reused. The [`Decision`] says where the request goes and has everything for a receipt.

mod builder;
mod decider;
mod decision;
mod plugin_time;
mod profile;
mod profile_handler;
mod scheduler;
mod scratch;

pub use builder::{BuiltScheduler, ProfileError, SchedulerBuilder};
pub use decider::{Decider, NamedDecider, Reason, Verdict};
pub use decision::{Decision, ProfileRun, ScorerScores, StageRun};
pub use plugin_time::{Clock, PluginTime, ProfileStep};
pub use profile::{NamedFilter, NamedPicker, Profile, WeightedScorer};
pub use profile_handler::{Disaggregation, HelperStage, OnFailure, ProfileHandler, Stage, StageOrder};
pub use scheduler::{ScheduleError, Scheduler, SchedulerError};
pub use scratch::Scratch;
