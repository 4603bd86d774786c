//! The end: not ready first, then the drain, then the tasks.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Parts;
use crate::cli::ServeOptions;
use crate::tasks::{Tasks, VitalEnd};

/// Longest wait for tasks at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Waits for a signal or for the end of a vital task, then drains and stops.
pub(super) async fn stop_when_told(
    options: &ServeOptions,
    parts: &Parts,
    tasks: &Tasks,
    mut vital_ends: mpsc::Receiver<VitalEnd>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    let end = tokio::select! {
        _ = terminate.recv() => {
            parts.readiness.is_draining();
            parts.service.drain().start();
            tracing::info!(drain_timeout_ms = options.drain_timeout.as_millis() as u64,
                "SIGTERM: not ready any more, still serving; another signal ends the wait");
            tokio::select! {
                () = tokio::time::sleep(options.drain_timeout) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            None
        }
        _ = interrupt.recv() => None,
        end = vital_ends.recv() => end,
    };
    parts.readiness.is_draining();
    let still_open = parts.service.drain().finish(options.drain_timeout).await;
    if still_open > 0 {
        tracing::warn!(still_open, "streams are still open after the drain and will be cut");
    }
    if !tasks.shut_down(SHUTDOWN_GRACE).await {
        tracing::warn!("some tasks did not end in time");
    }
    let telemetry = parts.telemetry.clone();
    // A panic there loses spans and nothing else.
    let _ = tokio::task::spawn_blocking(move || telemetry.shut_down()).await;
    tracing::info!("stopped");
    match end {
        None => Ok(()),
        Some(end) => bail!(end),
    }
}
