use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{HeaderList, StreamEnd, StreamLease};

/// Keeps the lease and a panic inside it away from the stream: a host's bookkeeping must not cost
/// a client its response.
pub(super) struct LeaseHold<L: StreamLease> {
    lease: Option<L>,
    /// Calls into the lease that panicked.
    pub(super) panics: u32,
}

impl<L: StreamLease> LeaseHold<L> {
    pub(super) fn empty() -> Self {
        Self { lease: None, panics: 0 }
    }

    pub(super) fn take_over(&mut self, lease: L) {
        self.lease = Some(lease);
    }

    pub(super) fn is_held(&self) -> bool {
        self.lease.is_some()
    }

    pub(super) fn response_headers(&mut self, headers: &HeaderList) {
        self.call(|lease| lease.response_headers(headers.status(), headers));
    }

    pub(super) fn response_chunk(&mut self, chunk: &[u8]) {
        self.call(|lease| lease.response_chunk(chunk));
    }

    /// Tells the lease of the end and drops it; later calls do nothing.
    pub(super) fn release(&mut self, end: StreamEnd) {
        self.call(|lease| lease.ended(end));
        self.discard();
    }

    fn call(&mut self, tell: impl FnOnce(&mut L)) {
        let Some(lease) = &mut self.lease else { return };
        if catch_unwind(AssertUnwindSafe(|| tell(lease))).is_err() {
            self.panics += 1;
            self.discard();
        }
    }

    fn discard(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if catch_unwind(AssertUnwindSafe(|| drop(lease))).is_err() {
            self.panics += 1;
        }
    }
}

impl<L: StreamLease> Drop for LeaseHold<L> {
    fn drop(&mut self) {
        self.release(StreamEnd::Cancelled);
    }
}
