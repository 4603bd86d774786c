//! Scheduling profiles: filter, score, pick.
//!
//! A [`Scheduler`] is made once per configuration ([`SchedulerBuilder`]) and asked once per request
//! ([`Scheduler::decide`]). It is synchronous, and allocates nothing per endpoint when its [`Scratch`] is
//! reused. The [`Decision`] says where the request goes and has everything for a receipt.

mod builder;
mod decision;
mod profile;
mod scheduler;
mod scratch;

pub use builder::{BuiltScheduler, ProfileError, SchedulerBuilder};
pub use decision::{Decision, ProfileRun, ScorerScores};
pub use profile::{NamedFilter, NamedPicker, Profile, WeightedScorer};
pub use scheduler::{ScheduleError, Scheduler, SchedulerError};
pub use scratch::Scratch;
