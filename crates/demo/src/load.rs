//! The load generator: requests at their times, streamed answers, what each of them took.
//!
//! *Open loop*: arrival times are fixed beforehand and a request leaves at its time, however many are still under way.
//! Latency counts from the time at which the request was due, not from the time at which it was sent, so a stalled
//! system (or a stalled generator) shows in every request that should have been served meanwhile.

mod arrivals;
mod generator;
mod outcome;
mod sse;

pub use arrivals::{PlannedRequest, poisson_arrivals};
pub use generator::{LoadGenerator, Pace, Progress};
pub use outcome::{Failure, Outcome, StreamUsage};
pub use sse::{AnswerPart, SseAnswer};
