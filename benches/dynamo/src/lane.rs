//! A thread that applies events from a channel, whose CPU time between two marks in the channel is measured.

use std::future::Future;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

/// CPU time of the calling thread.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Is woken by the thread that answers, on which it waits for `go`, if there is one, and then reads the CPU clock.
struct Mark {
    go: Mutex<Option<Receiver<()>>>,
    times: Mutex<Sender<Duration>>,
}

impl Wake for Mark {
    fn wake(self: Arc<Self>) {
        if let Some(go) = &*self.go.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = go.recv();
        }
        let _ = self.times.lock().unwrap_or_else(PoisonError::into_inner).send(thread_time());
    }
}

/// A question whose answer makes the thread that gives it report its CPU time, and the thread's reports.
fn mark(go: Option<Receiver<()>>) -> (oneshot::Sender<()>, oneshot::Receiver<()>, Receiver<Duration>) {
    let (times, reported) = channel();
    let (answer, mut answered) = oneshot::channel();
    let waker = Waker::from(Arc::new(Mark { go: Mutex::new(go), times: Mutex::new(times) }));
    let first = std::pin::Pin::new(&mut answered).poll(&mut Context::from_waker(&waker));
    debug_assert_eq!(first.map(|_| ()), Poll::Pending);
    (answer, answered, reported)
}

/// Puts tasks into a lane's channel, lets them run only when all are there, and returns the CPU time that they took.
///
/// # Errors
/// The lane's thread is gone.
pub fn measure<T>(
    lane: &flume::Sender<T>,
    tasks: impl Iterator<Item = T>,
    question: impl Fn(oneshot::Sender<()>) -> T,
    mut meanwhile: impl FnMut(),
) -> anyhow::Result<Duration> {
    let (release, go) = channel();
    let (gate, _gate_answered, started) = mark(Some(go));
    let (end, _end_answered, ended) = mark(None);
    let send = |task| lane.send(task).ok().context("the writer is gone");
    send(question(gate))?;
    { tasks }.try_for_each(send)?;
    send(question(end))?;
    release.send(())?;
    let start = started.recv()?;
    loop {
        match ended.try_recv() {
            Ok(end) => return Ok(end.saturating_sub(start)),
            Err(std::sync::mpsc::TryRecvError::Empty) => meanwhile(),
            Err(gone) => return Err(gone.into()),
        }
    }
}
