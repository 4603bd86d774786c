use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::candidate::{Candidate, ElectionTimings, Standing};
use crate::metrics::ReplicaMetrics;
use crate::readiness::Readiness;

/// Takes part in the election of a leader until the picker stops.
///
/// A leader that can't reach the API server stays leader: as long as nobody can write the lease nobody else can take it,
/// and a picker that stops serving because of that would make an outage of the API server one of the pool. It follows as
/// soon as it sees that another one leads. Two leaders for a moment do no harm: picking needs none.
pub struct Election {
    candidate: Candidate,
    timings: ElectionTimings,
    readiness: Readiness,
    metrics: Arc<ReplicaMetrics>,
    /// When the lease was last renewed.
    renewed: Instant,
    told: Told,
}

/// What has been logged, so that it is logged once.
#[derive(Default)]
struct Told {
    leader: Option<String>,
    failing: bool,
    unconfirmed: bool,
}

impl Election {
    /// An election that `readiness` shows the outcome of from now on.
    pub fn new(
        candidate: Candidate,
        timings: ElectionTimings,
        readiness: Readiness,
        metrics: Arc<ReplicaMetrics>,
    ) -> Self {
        readiness.leads(false);
        metrics.leads(candidate.lease(), false);
        Self { candidate, timings, readiness, metrics, renewed: Instant::now(), told: Told::default() }
    }

    /// Runs until the drain begins, gives the lease back so that another replica leads at once, and returns after `stop`.
    ///
    /// # Errors
    /// None: what goes wrong is logged and tried again.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        tracing::info!(lease = self.candidate.lease(), "taking part in the election of a leader");
        loop {
            // Not cut short by the drain: whether a request that was sent took the lease would not be known.
            self.attempt().await;
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                () = self.readiness.draining() => break,
                () = stop.cancelled() => break,
            }
        }
        let was_leader = self.candidate.leads();
        self.readiness.leads(false);
        self.metrics.leads(self.candidate.lease(), false);
        match tokio::time::timeout(self.request_limit(), self.candidate.release()).await {
            Ok(Ok(())) if was_leader => tracing::info!("the lease is given back: another replica can lead"),
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease isn't given back: others wait until it is over")
            }
            Err(_) => tracing::warn!("the lease isn't given back in time: others wait until it is over"),
        }
        stop.cancelled().await;
        Ok(())
    }

    fn pause(&self) -> Duration {
        match self.candidate.leads() {
            true => self.timings.retry_period,
            false => self.timings.retry_period.mul_f64(1.0 + 1.2 * fastrand::f64()),
        }
    }

    /// Half of the deadline, so that one request that hangs doesn't use up all of it.
    fn request_limit(&self) -> Duration {
        self.timings.renew_deadline / 2
    }

    async fn attempt(&mut self) {
        let now = Instant::now();
        match tokio::time::timeout(self.request_limit(), self.candidate.attempt(now)).await {
            Ok(Ok(standing)) => {
                self.told.failing = false;
                self.stands(standing, now);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"no answer from the API server in time"),
        }
    }

    fn stands(&mut self, standing: Standing, now: Instant) {
        let leads = standing == Standing::Leads;
        if leads {
            (self.renewed, self.told.unconfirmed) = (now, false);
        }
        self.readiness.leads(leads);
        self.metrics.leads(self.candidate.lease(), leads);
        let leader = match standing {
            Standing::Leads => String::new(),
            Standing::Follows { leader } => leader,
        };
        if self.told.leader.as_ref() != Some(&leader) {
            match leads {
                true => tracing::info!(lease = self.candidate.lease(), "this replica leads"),
                false => tracing::info!(lease = self.candidate.lease(), %leader, "another replica leads"),
            }
            self.told.leader = Some(leader);
        }
    }

    /// What was stays, but the lease that was held may be over.
    fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.metrics.election_errors.inc();
        match std::mem::replace(&mut self.told.failing, true) {
            true => tracing::debug!(%error, "an attempt to hold the lease came to nothing"),
            false => tracing::warn!(%error, "an attempt to hold the lease came to nothing; tried again"),
        }
        let is_late = self.candidate.leads() && self.renewed.elapsed() > self.timings.renew_deadline;
        if is_late && !std::mem::replace(&mut self.told.unconfirmed, true) {
            tracing::warn!(
                lease = self.candidate.lease(),
                "the lease could not be renewed in time; this replica serves on as leader until it sees another one"
            );
        }
    }
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Election").field("lease", &self.candidate.lease()).finish_non_exhaustive()
    }
}
