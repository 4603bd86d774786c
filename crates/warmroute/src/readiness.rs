//! Whether this picker should get requests: what the health services answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Shared by the health services, the admin server and the shutdown.
#[derive(Clone, Debug)]
pub struct Readiness {
    flags: Arc<Flags>,
    changed: watch::Sender<bool>,
    synced: CancellationToken,
    drain: CancellationToken,
    /// None where no leader is elected.
    leads: watch::Sender<Option<bool>>,
}

#[derive(Debug, Default)]
struct Flags {
    pool_synced: AtomicBool,
    listening: AtomicBool,
    draining: AtomicBool,
    awaiting_siblings: AtomicBool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            flags: Arc::default(),
            changed: watch::Sender::new(false),
            synced: CancellationToken::new(),
            drain: CancellationToken::new(),
            leads: watch::Sender::new(None),
        }
    }
}

impl Readiness {
    /// The endpoints are known, be they none.
    pub fn pool_is_synced(&self) {
        self.set(&self.flags.pool_synced);
        self.synced.cancel();
    }

    /// Waits until the endpoints are known.
    pub async fn pool_synced(&self) {
        self.synced.cancelled().await;
    }

    /// Siblings are asked for what they know of the engines' caches first.
    pub fn waits_for_siblings(&self) {
        self.flags.awaiting_siblings.store(true, Ordering::Release);
        self.changed.send_replace(self.is_ready());
    }

    /// They have told it, or the time for that is over.
    pub fn siblings_have_answered(&self) {
        self.flags.awaiting_siblings.store(false, Ordering::Release);
        self.changed.send_replace(self.is_ready());
    }

    /// The pool isn't known any more: it was deleted.
    pub fn pool_is_gone(&self) {
        self.flags.pool_synced.store(false, Ordering::Release);
        self.changed.send_replace(self.is_ready());
    }

    /// All listeners accept connections.
    pub fn is_listening(&self) {
        self.set(&self.flags.listening);
    }

    /// The process is about to stop.
    pub fn is_draining(&self) {
        self.set(&self.flags.draining);
        self.drain.cancel();
    }

    /// Waits until the process is about to stop.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// A leader is elected among the replicas, and it is this one or not.
    pub fn leads(&self, leads: bool) {
        self.leads.send_replace(Some(leads));
    }

    /// Whether this replica leads; None where no leader is elected. A picker may be ready without: it serves whoever
    /// asks.
    pub fn leadership(&self) -> Option<bool> {
        *self.leads.borrow()
    }

    /// Pool synced, listeners up, siblings asked if there are any, not draining. Knowledge of the engines' caches isn't
    /// waited for otherwise: an idle engine sends nothing.
    pub fn is_ready(&self) -> bool {
        let flags = &self.flags;
        flags.pool_synced.load(Ordering::Acquire)
            && flags.listening.load(Ordering::Acquire)
            && !flags.awaiting_siblings.load(Ordering::Acquire)
            && !flags.draining.load(Ordering::Acquire)
    }

    /// Waits until the picker is ready.
    pub async fn ready(&self) {
        let mut changes = self.changed.subscribe();
        // The sender lives in self, so waiting can't fail.
        let _ = changes.wait_for(|ready| *ready).await;
    }

    /// Waits until this replica leads.
    pub async fn leads_now(&self) {
        let mut changes = self.leads.subscribe();
        // The sender lives in self, so waiting can't fail.
        let _ = changes.wait_for(|leads| *leads == Some(true)).await;
    }

    fn set(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.changed.send_replace(self.is_ready());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_synced_and_listening_and_not_draining() {
        let readiness = Readiness::default();
        readiness.pool_is_synced();
        assert!(!readiness.is_ready());
        readiness.is_listening();
        assert!(readiness.is_ready());
        readiness.pool_is_gone();
        assert!(!readiness.is_ready());
        readiness.pool_is_synced();
        assert!(readiness.is_ready());
        readiness.is_draining();
        assert!(!readiness.is_ready());
    }
}
