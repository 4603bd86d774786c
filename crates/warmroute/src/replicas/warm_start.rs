//! The start beside siblings: their views first, replays for what is left, and a bound for the wait.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::snapshot_client::{FetchError, Fetched, SnapshotClient};
use crate::engine_events::EngineName;
use crate::pool::Pool;
use crate::readiness::Readiness;

/// Longest wait for subscriptions before siblings are asked: what is published before a subscription is there and after
/// the snapshot is lost where engines don't answer replays.
const SUBSCRIBED_LIMIT: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A name that can't be looked up is tried once more: the network of a pod that starts may not be there yet.
const LOOKUP_PAUSE: Duration = Duration::from_millis(200);
/// Siblings that are asked at most.
const MOST_SIBLINGS: usize = 8;

/// Takes over what siblings know of the engines when the picker starts.
pub struct WarmStart {
    /// Asks them.
    pub client: SnapshotClient,
    /// Names and ports of siblings; of each name every address is one.
    pub peers: Vec<String>,
    /// Longest time that readiness waits for it, from the first list of endpoints on.
    pub timeout: Duration,
    /// Says which engines are to be expected.
    pub pool: Arc<Pool>,
    /// Waits for it.
    pub readiness: Readiness,
    /// What came of it, for the status page.
    pub status: SnapshotStatus,
}

/// What came of the start beside siblings.
#[derive(Clone, Debug, Default)]
pub struct SnapshotStatus(Arc<Mutex<SnapshotReport>>);

/// The same at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotReport {
    /// `waiting` until it is over, then `taken` (all engines), `partly` or `none`.
    pub state: &'static str,
    /// Siblings that gave something, with what they gave.
    pub from: Vec<SnapshotFrom>,
    /// Engines that were there to be asked for.
    pub engines: usize,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Why siblings gave nothing, or nothing more: address and reason.
    pub problems: Vec<String>,
}

/// What one sibling gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotFrom {
    /// Its address.
    pub address: String,
    /// Its version.
    pub version: String,
    /// Engines taken over from it.
    pub engines: usize,
    /// Entries of the index that they have become.
    pub entries: u64,
    /// About how many bytes that took.
    pub bytes: u64,
}

impl SnapshotStatus {
    /// What is known now.
    pub fn report(&self) -> SnapshotReport {
        self.0.lock().clone()
    }
}

impl WarmStart {
    /// Has engines wait and readiness too. To be called before the first engine is followed.
    pub fn announce(&self) {
        self.client.known.wait_for_snapshots();
        self.readiness.waits_for_siblings();
        self.status.0.lock().state = "waiting";
    }

    /// Asks the siblings one after the other until nothing is left to ask for, then lets the others be replayed.
    pub async fn run(self) {
        self.readiness.pool_synced().await;
        let started = Instant::now();
        let mut taken = BTreeSet::new();
        let asked = tokio::time::timeout(self.timeout, self.ask_all(&mut taken)).await;
        if asked.is_err() {
            self.count("timed-out");
            self.note("all siblings", "the time for it is over (--replica-snapshot-timeout)");
        }
        self.client.known.stop_waiting().await;
        let engines = self.client.known.names().len();
        let took_ms = started.elapsed().as_millis() as u64;
        let entries = {
            let mut report = self.status.0.lock();
            report.state = match taken.len() {
                0 => "none",
                some if some < engines => "partly",
                _ => "taken",
            };
            (report.engines, report.took_ms) = (engines, took_ms);
            report.from.iter().map(|from| from.entries).sum::<u64>()
        };
        self.client.metrics.snapshot_taken(entries, started.elapsed());
        self.tell(taken.len(), engines, entries, took_ms);
        self.readiness.siblings_have_answered();
    }

    fn tell(&self, taken: usize, engines: usize, entries: u64, took_ms: u64) {
        let report = self.status.report();
        let from: Vec<&str> = report.from.iter().map(|from| &*from.address).collect();
        let problems = report.problems.join("; ");
        if taken > 0 {
            tracing::info!(
                ?from,
                taken,
                engines,
                entries,
                took_ms,
                problems,
                "siblings' views of the engines are taken over; the others are replayed"
            );
        } else {
            tracing::info!(
                engines,
                took_ms,
                problems,
                "no sibling's view is taken over: engines are replayed"
            );
        }
    }

    async fn ask_all(&self, taken: &mut BTreeSet<EngineName>) {
        self.subscribed().await;
        let mut siblings = self.siblings().await;
        fastrand::shuffle(&mut siblings);
        siblings.truncate(MOST_SIBLINGS);
        for sibling in siblings {
            let missing: Vec<EngineName> = self.engines().filter(|name| !taken.contains(name)).collect();
            if missing.is_empty() {
                return;
            }
            let mut gift = Gift { start: self, sibling, fetched: Fetched::default(), taken: &mut *taken };
            let outcome = self.client.fetch(sibling, &missing, &mut gift.fetched).await;
            drop(gift);
            match outcome {
                Ok(()) => self.count("complete"),
                // Every replica is behind its own name.
                Err(FetchError::Itself) => {}
                Err(error) => {
                    self.count(error.as_str());
                    self.note(&sibling.to_string(), &error.to_string());
                    match error {
                        FetchError::NotNow(_) => {
                            tracing::info!(%sibling, %error, "no snapshot from this sibling")
                        }
                        error => {
                            tracing::warn!(%sibling, %error, "no snapshot, or not all, from this sibling")
                        }
                    }
                }
            }
        }
    }

    fn engines(&self) -> impl Iterator<Item = EngineName> + use<> {
        self.client.known.names().into_iter().map(|(name, _)| name)
    }

    /// Waits until all engines are subscribed to, or as long as that is worth it.
    async fn subscribed(&self) {
        let deadline = Instant::now() + SUBSCRIBED_LIMIT;
        loop {
            let known = self.client.known.names();
            let states = self.pool.snapshot();
            let expected: usize =
                states.states.iter().map(|state| 1 + state.engine.further_ranks().len()).sum();
            let is_there = known.len() >= expected && known.iter().all(|(_, is_connected)| *is_connected);
            if is_there || Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// All addresses behind the names.
    async fn siblings(&self) -> Vec<SocketAddr> {
        let mut siblings = BTreeSet::new();
        for peer in &self.peers {
            let found = match tokio::net::lookup_host(peer).await {
                Ok(found) => Ok(found.collect::<Vec<_>>()),
                Err(_) => {
                    tokio::time::sleep(LOOKUP_PAUSE).await;
                    tokio::net::lookup_host(peer).await.map(Iterator::collect)
                }
            };
            match found {
                Ok(found) => siblings.extend(found),
                // The first replica of all has no siblings, so its name has no address.
                Err(error) => {
                    self.count("unknown-name");
                    self.note(peer, &error.to_string());
                }
            }
        }
        siblings.into_iter().collect()
    }

    fn count(&self, outcome: &str) {
        self.client.metrics.snapshots.with_label_values(&[outcome]).inc();
    }

    fn note(&self, whom: &str, why: &str) {
        self.status.0.lock().problems.push(format!("{whom}: {why}"));
    }
}

/// What a sibling gives, noted also if the time is over amid it.
struct Gift<'s> {
    start: &'s WarmStart,
    sibling: SocketAddr,
    fetched: Fetched,
    taken: &'s mut BTreeSet<EngineName>,
}

impl Drop for Gift<'_> {
    fn drop(&mut self) {
        let Fetched { version, engines, entries, bytes } = std::mem::take(&mut self.fetched);
        if engines.is_empty() {
            return;
        }
        self.start.status.0.lock().from.push(SnapshotFrom {
            address: self.sibling.to_string(),
            version,
            engines: engines.len(),
            entries,
            bytes,
        });
        self.taken.extend(engines);
    }
}
