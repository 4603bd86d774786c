//! Which endpoint a session is bound to.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashlink::LinkedHashMap;
use warmroute_plugin::EndpointId;

/// Sessions remembered at most; beyond it the one that was unused for the longest time is forgotten. One takes about
/// a hundred bytes.
pub(crate) const MAX_SESSIONS: usize = 100_000;

/// When a session is forgotten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Eviction {
    /// A session that was unused for longer is unbound.
    pub(crate) ttl: Duration,
    /// How often the memory of such sessions is freed.
    pub(crate) sweep: Duration,
}

/// Sessions and their endpoints. Of a session's id only a hash is kept, keyed by a secret of the process: ids are
/// made by clients, who must neither be able to make them collide nor be told of by a memory dump.
#[derive(Debug, Default)]
pub(crate) struct SessionBindings {
    secret: RandomState,
    bound: Mutex<Bound>,
}

#[derive(Debug, Default)]
struct Bound {
    /// By hash of the id, the longest unused first.
    sessions: LinkedHashMap<u64, Binding>,
    swept_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    endpoint: EndpointId,
    used_at: Instant,
}

impl Binding {
    fn is_live(&self, ttl: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.used_at) <= ttl
    }
}

impl SessionBindings {
    /// Where the session is bound to, if it is.
    pub(crate) fn endpoint(&self, session: &[u8], eviction: Eviction, now: Instant) -> Option<EndpointId> {
        let session = self.secret.hash_one(session);
        let bound = self.lock();
        let binding = bound.sessions.get(&session).filter(|binding| binding.is_live(eviction.ttl, now));
        binding.map(|binding| binding.endpoint)
    }

    /// A request of the session was given to `picked`: binds a session that wasn't bound, refreshes one that is bound
    /// there, and moves one whose endpoint was no candidate. One whose endpoint was, but lost, stays as it is.
    pub(crate) fn note(
        &self,
        session: &[u8],
        picked: EndpointId,
        was_candidate: impl FnOnce(EndpointId) -> bool,
        eviction: Eviction,
        now: Instant,
    ) {
        let session = self.secret.hash_one(session);
        let mut bound = self.lock();
        bound.sweep(eviction, now);
        let binding = bound.sessions.get(&session).filter(|binding| binding.is_live(eviction.ttl, now));
        if binding.is_some_and(|binding| binding.endpoint != picked && was_candidate(binding.endpoint)) {
            return;
        }
        bound.sessions.remove(&session);
        if bound.sessions.len() >= MAX_SESSIONS {
            bound.sessions.pop_front();
        }
        bound.sessions.insert(session, Binding { endpoint: picked, used_at: now });
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bound {
    fn sweep(&mut self, eviction: Eviction, now: Instant) {
        let swept_at = *self.swept_at.get_or_insert(now);
        if now.saturating_duration_since(swept_at) < eviction.sweep {
            return;
        }
        self.swept_at = Some(now);
        while self.sessions.front().is_some_and(|(_, oldest)| !oldest.is_live(eviction.ttl, now)) {
            self.sessions.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVICTION: Eviction = Eviction { ttl: Duration::from_secs(300), sweep: Duration::from_secs(10) };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_session_is_bound_refreshed_and_moved_only_if_its_endpoint_was_no_candidate() {
        let (bindings, start) = (SessionBindings::default(), Instant::now());
        let [first, second] = [EndpointId(1), EndpointId(2)];
        let endpoint = |seconds| bindings.endpoint(b"s", EVICTION, at(start, seconds));
        assert_eq!(endpoint(0), None);
        bindings.note(b"s", first, |_| true, EVICTION, start);
        assert_eq!((endpoint(0), bindings.endpoint(b"t", EVICTION, start)), (Some(first), None));
        bindings.note(b"s", second, |bound| bound == first, EVICTION, at(start, 200));
        assert_eq!(endpoint(300), Some(first), "the picker chose another one, which is no reason to move");
        assert_eq!(endpoint(301), None, "and no use of the bound one either");
        bindings.note(b"s", first, |_| true, EVICTION, at(start, 250));
        assert_eq!(endpoint(550), Some(first));
        bindings.note(b"s", second, |_| false, EVICTION, at(start, 260));
        assert_eq!(endpoint(560), Some(second));
    }

    #[test]
    fn an_expired_session_is_bound_anew_wherever_its_endpoint_is() {
        let (bindings, start) = (SessionBindings::default(), Instant::now());
        bindings.note(b"s", EndpointId(1), |_| true, EVICTION, start);
        bindings.note(b"s", EndpointId(2), |_| true, EVICTION, at(start, 301));
        assert_eq!(bindings.endpoint(b"s", EVICTION, at(start, 301)), Some(EndpointId(2)));
    }

    #[test]
    fn expired_sessions_are_swept_no_more_often_than_asked_for() {
        let (bindings, start) = (SessionBindings::default(), Instant::now());
        for session in [b"a", b"b", b"c"] {
            bindings.note(session, EndpointId(1), |_| true, EVICTION, start);
        }
        let note = |seconds| bindings.note(b"x", EndpointId(1), |_| true, EVICTION, at(start, seconds));
        note(299);
        assert_eq!(bindings.len(), 4);
        note(301);
        assert_eq!(bindings.len(), 4, "the last sweep was 2 seconds ago");
        note(309);
        assert_eq!(bindings.len(), 1);
    }

    #[test]
    fn the_longest_unused_session_makes_room() {
        let (bindings, start) = (SessionBindings::default(), Instant::now());
        for session in 0..=MAX_SESSIONS {
            bindings.note(&session.to_le_bytes(), EndpointId(1), |_| true, EVICTION, start);
            bindings.note(&0usize.to_le_bytes(), EndpointId(1), |_| true, EVICTION, start);
        }
        let is_bound = |session: usize| bindings.endpoint(&session.to_le_bytes(), EVICTION, start).is_some();
        assert_eq!(bindings.len(), MAX_SESSIONS);
        assert!(is_bound(0) && !is_bound(1) && is_bound(2) && is_bound(MAX_SESSIONS));
    }
}
