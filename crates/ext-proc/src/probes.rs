use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::probe_watch::ProbeWatch;
use crate::{HeaderList, PROBE_HEADER, ProbeOrder, ProbeRecord};

/// Most probes kept at a time.
const MAX_PROBES: usize = 64;
/// Most nonces read from one header.
const MAX_NAMED: usize = 16;

/// Probes of a gateway: an operator registers one and gets a nonce, sends a request with the nonce in the header
/// [`PROBE_HEADER`] through the gateway, and reads here what the picker saw of it.
///
/// A nonce counts once and for [`Probes::LIFETIME`]. One that isn't known does nothing at all, so clients without access
/// to the registration can neither use probes nor find out about them. While none is registered a stream costs one atomic load
/// more per message.
#[derive(Debug)]
pub struct Probes {
    since: Instant,
    /// Milliseconds after `since` at which the last probe expires; 0 if none is kept.
    until_ms: AtomicU64,
    kept: Mutex<VecDeque<Probe>>,
}

#[derive(Debug)]
struct Probe {
    nonce: String,
    order: ProbeOrder,
    expires_at: Instant,
    record: Arc<Mutex<ProbeRecord>>,
}

/// Why a probe wasn't registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeRefused {
    /// As many as may wait are waiting.
    TooMany,
    /// The delay is longer than [`ProbeOrder::MAX_DELAY_MS`].
    DelayTooLong,
}

impl std::fmt::Display for ProbeRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooMany => write!(f, "{MAX_PROBES} probes are waiting already: try again in a minute"),
            Self::DelayTooLong => write!(f, "a delay is {} ms at most", ProbeOrder::MAX_DELAY_MS),
        }
    }
}

impl std::error::Error for ProbeRefused {}

impl Default for Probes {
    fn default() -> Self {
        Self { since: Instant::now(), until_ms: AtomicU64::new(0), kept: Mutex::default() }
    }
}

impl Probes {
    /// How long a nonce counts and its record is kept.
    pub const LIFETIME: Duration = Duration::from_secs(120);

    /// Registers a probe and gives its nonce. Where too many are kept, the oldest one that was used goes.
    ///
    /// # Errors
    /// The order asks for too much, or too many probes wait to be used.
    pub fn register(&self, order: ProbeOrder) -> Result<String, ProbeRefused> {
        self.register_at(order, Instant::now())
    }

    fn register_at(&self, order: ProbeOrder, now: Instant) -> Result<String, ProbeRefused> {
        if order.delay_ms > ProbeOrder::MAX_DELAY_MS {
            return Err(ProbeRefused::DelayTooLong);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|probe| probe.expires_at > now);
        if kept.len() >= MAX_PROBES {
            let used = kept.iter().position(|probe| lock(&probe.record).streams > 0);
            kept.remove(used.ok_or(ProbeRefused::TooMany)?);
        }
        let nonce = Uuid::new_v4().simple().to_string();
        let expires_at = now + Self::LIFETIME;
        kept.push_back(Probe { nonce: nonce.clone(), order, expires_at, record: Arc::default() });
        let until_ms = expires_at.saturating_duration_since(self.since).as_millis() as u64;
        self.until_ms.store(until_ms, Ordering::Relaxed);
        Ok(nonce)
    }

    /// What was seen of a probe so far; None if the nonce isn't known (any more).
    pub fn record(&self, nonce: &str) -> Option<ProbeRecord> {
        self.record_at(nonce, Instant::now())
    }

    fn record_at(&self, nonce: &str, now: Instant) -> Option<ProbeRecord> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = kept.iter().find(|probe| probe.nonce == nonce && probe.expires_at > now)?;
        Some(lock(&probe.record).clone())
    }

    /// Whether a probe may come.
    pub(crate) fn is_any(&self) -> bool {
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        if until_ms == 0 {
            return false;
        }
        let is_over = self.since.elapsed().as_millis() as u64 >= until_ms;
        if is_over {
            // A registration at the same moment has stored another time and keeps it.
            let _ = self.until_ms.compare_exchange(until_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        !is_over
    }

    /// The watch of a stream whose request names a probe that waits.
    pub(crate) fn begin(&self, headers: &HeaderList) -> Option<ProbeWatch> {
        self.begin_at(headers, Instant::now())
    }

    fn begin_at(&self, headers: &HeaderList, now: Instant) -> Option<ProbeWatch> {
        let named = headers.get_str(PROBE_HEADER)?;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_named =
            |probe: &&Probe| named.split(',').take(MAX_NAMED).any(|nonce| nonce.trim() == probe.nonce);
        let probe = kept.iter().filter(|probe| probe.expires_at > now).find(is_named)?;
        let mut record = lock(&probe.record);
        record.streams = record.streams.saturating_add(1);
        (record.streams == 1).then(|| ProbeWatch::new(probe.order, probe.record.clone(), now))
    }
}

/// The record even after a panic of whoever held it: it is nothing but what was seen.
pub(crate) fn lock(record: &Mutex<ProbeRecord>) -> std::sync::MutexGuard<'_, ProbeRecord> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(nonces: &str) -> HeaderList {
        HeaderList::from_pairs([(PROBE_HEADER, nonces)])
    }

    #[test]
    fn a_nonce_counts_once_and_others_do_nothing() {
        let probes = Probes::default();
        assert!(!probes.is_any());
        let nonce = probes.register(ProbeOrder::default()).unwrap();
        assert!(probes.is_any());
        for nobody in [naming("other"), naming(""), HeaderList::default(), naming(&nonce[1..])] {
            assert!(probes.begin(&nobody).is_none());
        }
        assert_eq!(probes.record(&nonce).unwrap().streams, 0);
        assert!(probes.begin(&naming(&format!("of-another-picker, {nonce}"))).is_some());
        assert!(probes.begin(&naming(&nonce)).is_none());
        assert_eq!(probes.record(&nonce).unwrap().streams, 2);
        assert_eq!(probes.record("other"), None);
    }

    #[test]
    fn a_nonce_expires_with_its_record() {
        let probes = Probes::default();
        let now = Instant::now();
        let nonce = probes.register_at(ProbeOrder::default(), now).unwrap();
        let later = now + Probes::LIFETIME;
        assert!(probes.begin_at(&naming(&nonce), later).is_none());
        assert_eq!(probes.record_at(&nonce, later), None);
        assert_eq!(probes.record_at(&nonce, now).unwrap().streams, 0);
    }

    #[test]
    fn few_are_kept_and_used_ones_make_room() {
        let probes = Probes::default();
        let nonces: Vec<String> =
            (0..MAX_PROBES).map(|_| probes.register(ProbeOrder::default()).unwrap()).collect();
        assert_eq!(probes.register(ProbeOrder::default()), Err(ProbeRefused::TooMany));
        assert!(probes.begin(&naming(&nonces[7])).is_some());
        let next = probes.register(ProbeOrder::default()).unwrap();
        assert!(probes.record(&nonces[7]).is_none() && probes.record(&next).is_some());
        let long = ProbeOrder { delay_ms: ProbeOrder::MAX_DELAY_MS + 1, ..ProbeOrder::default() };
        assert_eq!(probes.register(long), Err(ProbeRefused::DelayTooLong));
    }
}
