use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;

/// How long leadership lasts without being renewed, and how often that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTimings {
    /// A lease that hasn't changed for so long, as seen by this process, may be taken. Whole seconds.
    pub lease_duration: Duration,
    /// A leader that couldn't renew for so long says so.
    pub renew_deadline: Duration,
    /// Between two attempts; who doesn't lead waits up to 2.2 times as long, by chance.
    pub retry_period: Duration,
}

impl Default for ElectionTimings {
    /// controller-runtime's (`pkg/manager/manager.go` in sigs.k8s.io/controller-runtime), which the llm-d Router EPP
    /// leaves as they are.
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What an attempt found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This candidate holds the lease and has just renewed it.
    Leads,
    /// Somebody else holds it, and it isn't over yet.
    Follows {
        /// Who.
        leader: String,
    },
}

/// An attempt came to nothing; what stood before stands.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    /// Somebody else changed the lease at the same time.
    #[error("lease {lease} was changed by another replica at the same time")]
    Conflict {
        /// Its name.
        lease: String,
    },
    /// The API server didn't do it.
    #[error("can't {action} lease {lease}: {source}")]
    Api {
        /// What was tried: get, create or update.
        action: &'static str,
        /// Its name.
        lease: String,
        /// Why not.
        source: kube::Error,
    },
}

/// One replica that wants to hold a Lease (`coordination.k8s.io/v1`).
///
/// The steps are client-go's (`tools/leaderelection/leaderelection.go` in k8s.io/client-go): whether a lease is over is
/// told by how long it has stood unchanged before this process's eyes, so the clocks of the replicas don't matter.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timings: ElectionTimings,
    /// The lease as it was when it last changed, and when that was seen.
    observed: Option<(Lease, Instant)>,
}

impl Candidate {
    /// A candidate for the lease `name`. No two may have the same identity.
    pub fn new(leases: Api<Lease>, name: String, identity: String, timings: ElectionTimings) -> Self {
        Self { leases, name, identity, timings, observed: None }
    }

    /// The name of the lease.
    pub fn lease(&self) -> &str {
        &self.name
    }

    /// Whether this candidate held the lease when it was last seen.
    pub fn leads(&self) -> bool {
        self.observed.as_ref().is_some_and(|(lease, _)| holder(lease) == Some(&self.identity))
    }

    /// Takes the lease if it is free or over, or renews it.
    ///
    /// # Errors
    /// The API server can't be asked or refuses.
    pub async fn attempt(&mut self, now: Instant) -> Result<Standing, ElectionError> {
        if self.leads()
            && self.is_valid(now)
            && let Some((held, _)) = &self.observed
        {
            // Most often nobody has touched it. If somebody has, it is read.
            let renewed = self.claim(Some(held));
            if let Ok(lease) = self.update(&renewed).await {
                return Ok(self.holds(lease, now));
            }
        }
        let found = self.leases.get_opt(&self.name).await;
        let Some(found) = found.map_err(|source| self.failed("get", source))? else {
            let created = self.leases.create(&PostParams::default(), &self.claim(None)).await;
            let lease = created.map_err(|source| self.failed("create", source))?;
            return Ok(self.holds(lease, now));
        };
        if self.observed.as_ref().is_none_or(|(seen, _)| seen.spec != found.spec) {
            self.observed = Some((found.clone(), now));
        }
        if let Some(leader) = holder(&found)
            && *leader != self.identity
            && self.is_valid(now)
        {
            return Ok(Standing::Follows { leader: leader.clone() });
        }
        let claim = self.claim(Some(&found));
        let lease = self.update(&claim).await?;
        Ok(self.holds(lease, now))
    }

    /// Gives the lease back, if it is held, so that nobody has to wait until it is over.
    ///
    /// # Errors
    /// The API server can't be asked or refuses; others then wait.
    pub async fn release(&mut self) -> Result<(), ElectionError> {
        if !self.leads() {
            return Ok(());
        }
        let Some((mut lease, _)) = self.observed.take() else { return Ok(()) };
        let time = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            // Empty is nobody, as client-go leaves it.
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(time.clone()),
            renew_time: Some(time),
            lease_transitions: lease.spec.and_then(|spec| spec.lease_transitions),
            ..LeaseSpec::default()
        });
        self.update(&lease).await.map(|_| ())
    }

    fn is_valid(&self, now: Instant) -> bool {
        let Some((lease, since)) = &self.observed else { return false };
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        now.saturating_duration_since(*since) < Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// The lease as it is to be: held by this candidate from now on, or still.
    fn claim(&self, found: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old = found.and_then(|lease| lease.spec.as_ref());
        let is_own = found.is_some_and(|lease| holder(lease) == Some(&self.identity));
        let transitions = old.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let metadata = found.map(|lease| lease.metadata.clone());
        Lease {
            metadata: metadata
                .unwrap_or_else(|| ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.timings.lease_duration.as_secs().max(1) as i32),
                acquire_time: match is_own {
                    true => old.and_then(|spec| spec.acquire_time.clone()),
                    false => Some(now.clone()),
                },
                renew_time: Some(now),
                lease_transitions: Some(match (is_own, old) {
                    (false, Some(_)) => transitions.saturating_add(1),
                    _ => transitions,
                }),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Refused by the server if the lease has changed since it was read: its resource version goes along.
    async fn update(&self, lease: &Lease) -> Result<Lease, ElectionError> {
        let updated = self.leases.replace(&self.name, &PostParams::default(), lease).await;
        updated.map_err(|source| self.failed("update", source))
    }

    fn holds(&mut self, lease: Lease, now: Instant) -> Standing {
        self.observed = Some((lease, now));
        Standing::Leads
    }

    fn failed(&self, action: &'static str, source: kube::Error) -> ElectionError {
        let lease = self.name.clone();
        match &source {
            kube::Error::Api(status) if status.code == 409 => ElectionError::Conflict { lease },
            _ => ElectionError::Api { action, lease, source },
        }
    }
}

/// Who holds a lease; nobody once it has been given back.
fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
#[path = "candidate_tests.rs"]
mod tests;
