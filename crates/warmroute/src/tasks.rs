//! The one owner of background tasks: each has a name, is joined at the end, and is either vital or not.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The end of a vital task: the process can't do its work any more and stops with this reason.
#[derive(Debug, thiserror::Error)]
#[error("task {task} ended: {reason}")]
pub struct VitalEnd {
    /// Name the task was started with.
    pub task: &'static str,
    /// Error chain, or "panicked".
    pub reason: String,
}

/// Starts and joins tasks. Cheap to clone; all clones share one owner.
#[derive(Clone, Debug)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
    vital_ends: mpsc::Sender<VitalEnd>,
}

impl Tasks {
    /// A new owner, and where the ends of its vital tasks arrive.
    pub fn new() -> (Self, mpsc::Receiver<VitalEnd>) {
        let (vital_ends, ends) = mpsc::channel(16);
        (Self { stop: CancellationToken::new(), tracker: TaskTracker::new(), vital_ends }, ends)
    }

    /// Cancelled when the process stops.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that may end on its own; a panic in it is logged and ends that task alone.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                outcome = AssertUnwindSafe(task).catch_unwind() => {
                    if outcome.is_err() {
                        tracing::error!(task = name, "task panicked");
                    }
                }
            }
        });
    }

    /// Starts a task without which the process can't do its work: if it ends before the stop, the process stops.
    pub fn spawn_vital(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        let vital_ends = self.vital_ends.clone();
        self.tracker.spawn(async move {
            let reason = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "it returned".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "it panicked".to_owned(),
            };
            // A full channel means that the process is stopping for another vital end already.
            let _ = vital_ends.try_send(VitalEnd { task: name, reason });
        });
    }

    /// Cancels every task and waits for them, at most `grace`. Returns whether all of them ended.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_ends_reports_its_reason() {
        let (tasks, mut ends) = Tasks::new();
        tasks.spawn_vital("listener", async { anyhow::bail!("port taken") });
        let end = ends.recv().await.unwrap();
        assert_eq!(end.to_string(), "task listener ended: port taken");
    }

    #[tokio::test]
    async fn a_panicking_task_ends_alone() {
        let (tasks, mut ends) = Tasks::new();
        tasks.spawn("scraper", async { panic!("boom") });
        assert!(tasks.shut_down(Duration::from_secs(5)).await);
        assert!(ends.try_recv().is_err());
    }

    #[tokio::test]
    async fn shutdown_cancels_what_still_runs() {
        let (tasks, _ends) = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        assert!(tasks.shut_down(Duration::from_secs(5)).await);
    }
}
