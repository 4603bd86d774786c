use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long [`Drain::finish`] waits after its deadline for streams to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// The handle by which a host drains a service without cutting a running response.
///
/// An open ext-proc stream ties the response to the picker's life: kill the picker and Envoy
/// truncates it. So the order is [`start`](Self::start) (turn unready, go on serving),
/// [`finish`](Self::finish), then the server's graceful shutdown, and only then exit. An exit
/// right after `finish` can overtake the last bytes, and a lost connection truncates what a clean
/// end would have spared (seen with Envoy 1.40).
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    started: AtomicBool,
    finishing: CancellationToken,
    deadline: OnceLock<Instant>,
    open: AtomicUsize,
    none_open: Notify,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Marks the service as draining. New streams are still served like all others: the gateway
    /// needs time to notice. The host shows [`is_draining`](Self::is_draining) in its readiness.
    pub fn start(&self) {
        self.shared.started.store(true, Ordering::Relaxed);
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.shared.started.load(Ordering::Relaxed)
    }

    /// Streams that are open now.
    pub fn open_streams(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Ends the streams, and returns when none is left open or a second after `within` at the
    /// latest, with the number still open.
    ///
    /// A request that has no answer yet is answered first. Then a stream with response body mode
    /// NONE ends with status OK, which leaves its response unharmed. A stream that response bodies
    /// pass through is waited for. When `within` is over, unanswered requests are refused with 503
    /// and streams amid a response end with status UNAVAILABLE: after an OK the gateway would pass
    /// on a response with a hole in it as a whole one. Streams opened meanwhile are treated alike.
    /// A second call can't move the deadline.
    pub async fn finish(&self, within: Duration) -> usize {
        self.start();
        let deadline = *self.shared.deadline.get_or_init(|| Instant::now() + within);
        self.shared.finishing.cancel();
        let none_open = async {
            loop {
                let mut notified = std::pin::pin!(self.shared.none_open.notified());
                notified.as_mut().enable();
                if self.open_streams() == 0 {
                    return;
                }
                notified.await;
            }
        };
        // Whether it timed out shows in the number.
        let _ = tokio::time::timeout_at(deadline + FAREWELL, none_open).await;
        self.open_streams()
    }

    pub(crate) fn finishing(&self) -> WaitForCancellationFutureOwned {
        self.shared.finishing.clone().cancelled_owned()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.shared.deadline.get().copied().unwrap_or_else(Instant::now)
    }

    pub(crate) fn open_stream(&self) -> OpenStream {
        self.shared.open.fetch_add(1, Ordering::AcqRel);
        OpenStream { shared: Arc::clone(&self.shared) }
    }
}

/// Counts one stream as open while it lives.
#[derive(Debug)]
pub(crate) struct OpenStream {
    shared: Arc<Shared>,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.none_open.notify_waiters();
        }
    }
}
