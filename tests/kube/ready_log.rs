//! [`ReadyLog`]: which pod was ready under which address, and when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// From just before the API server was told that a pod is ready, until just after it was told otherwise.
#[derive(Debug, Clone)]
struct Span {
    pod: String,
    from: Instant,
    until: Option<Instant>,
}

/// Where a request went, against what was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A pod of this address was ready between the sending of the request and its answer.
    Ready,
    /// The last pod of this address had stopped being ready so long before the request was sent.
    Past(Duration),
    /// No pod of this address had been ready by then.
    Never,
}

/// What was told to the API server, by address. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadyLog(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    spans: BTreeMap<SocketAddr, Vec<Span>>,
    /// While pickers can't be told, what ends is noted here, and ends when they are told again.
    untold: Option<Vec<(SocketAddr, String)>>,
}

impl ReadyLog {
    /// A pod is about to be ready and part of the pool.
    pub(crate) fn begin(&self, address: SocketAddr, pod: &str) {
        let span = Span { pod: pod.to_owned(), from: Instant::now(), until: None };
        self.0.lock().spans.entry(address).or_default().push(span);
    }

    /// The API server knows that a pod is no longer ready, or no longer part of the pool.
    pub(crate) fn end(&self, address: SocketAddr, pod: &str) {
        let mut state = self.0.lock();
        match &mut state.untold {
            Some(untold) => untold.push((address, pod.to_owned())),
            None => state.end(address, pod),
        }
    }

    /// From now on pickers can't be told.
    pub(crate) fn cut(&self) {
        self.0.lock().untold = Some(Vec::new());
    }

    /// Pickers have been told of everything.
    pub(crate) fn told(&self) {
        let mut state = self.0.lock();
        for (address, pod) in state.untold.take().unwrap_or_default() {
            state.end(address, &pod);
        }
    }

    /// Where a request went that was sent at `sent` and answered at `answered`.
    pub(crate) fn standing(&self, address: SocketAddr, sent: Instant, answered: Instant) -> Standing {
        let state = self.0.lock();
        let spans = state.spans.get(&address).map_or(&[][..], Vec::as_slice);
        let mut standing = Standing::Never;
        for span in spans.iter().filter(|span| span.from <= answered) {
            let past = span.until.map_or(Duration::ZERO, |until| sent.saturating_duration_since(until));
            standing = match standing {
                _ if past.is_zero() => return Standing::Ready,
                Standing::Past(least) => Standing::Past(least.min(past)),
                _ => Standing::Past(past),
            };
        }
        standing
    }
}

impl State {
    fn end(&mut self, address: SocketAddr, pod: &str) {
        let open = |span: &&mut Span| span.pod == pod && span.until.is_none();
        if let Some(span) = self.spans.get_mut(&address).and_then(|spans| spans.iter_mut().find(open)) {
            span.until = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pick_is_held_against_what_was_ready_around_it() {
        let (log, address) = (ReadyLog::default(), SocketAddr::from(([127, 0, 2, 1], 8000)));
        let before = Instant::now();
        assert_eq!(log.standing(address, before, before), Standing::Never);
        log.begin(address, "a");
        let during = Instant::now();
        log.end(address, "a");
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(log.standing(address, before, during), Standing::Ready);
        assert!(
            matches!(log.standing(address, later, later), Standing::Past(past) if past >= Duration::from_secs(1))
        );
        log.begin(address, "b");
        assert_eq!(log.standing(address, later, later), Standing::Ready);
    }

    #[test]
    fn what_pickers_can_not_know_counts_once_they_can() {
        let (log, address) = (ReadyLog::default(), SocketAddr::from(([127, 0, 2, 1], 8000)));
        log.begin(address, "a");
        log.cut();
        log.end(address, "a");
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(log.standing(address, later, later), Standing::Ready);
        log.told();
        assert!(matches!(log.standing(address, later, later), Standing::Past(_)));
    }
}
