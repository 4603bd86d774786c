//! `warmroute doctor gateway`: what a real gateway does with ext-proc, seen from both sides.
//!
//! The examiner registers probes at the picker's metrics port ([`ProbeDesk`]), sends a request for each through the gateway,
//! and reads what the picker saw of it. [`diagnose`] makes findings of what was observed; it is pure.

mod checks;
mod diagnosis;
mod examiner;
mod exchange;
mod finding;
mod fixes;
mod gateway_client;
mod gateway_flags;
mod observation;
mod picker_desks;
mod probe_desk;
mod report;

pub use checks::Check;
pub use diagnosis::diagnose;
pub use exchange::Exchange;
pub use finding::{Fix, GatewayFinding, Severity, Symptom};
pub use gateway_flags::GatewayFlags;
pub use observation::{AddressTrial, DelayTrial, Failures, Generation, Observation, PickerSide, SizeTrial};
pub use probe_desk::{ExtProcTls, PickerFacts, ProbeDesk, RegisteredProbe};
pub use report::Preflight;

/// Examines the gateway.
///
/// # Errors
/// The command line names no gateway, or a picker stopped answering amid the examination.
pub async fn examine(flags: &GatewayFlags) -> anyhow::Result<Preflight> {
    let observation = examiner::observe(flags).await?;
    Ok(Preflight::of(observation, flags.thorough))
}
