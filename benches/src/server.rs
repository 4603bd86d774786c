//! A gRPC server on a thread of its own, whose CPU time can be told from everyone else's.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::cpu;

type Job = Box<dyn FnOnce() + Send>;

/// A server whose single-threaded runtime (and the threads that this runtime starts for blocking work) has its own
/// thread name, by which CPU time is added up.
pub struct Server {
    name: &'static str,
    address: SocketAddr,
    jobs: mpsc::UnboundedSender<(Job, oneshot::Sender<()>)>,
    stop: CancellationToken,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    /// Serves on a free loopback port. `name` is the threads' name, at most 15 bytes; `serve` makes the server's
    /// future, which should end when the token is cancelled.
    ///
    /// # Errors
    /// No thread, no port.
    pub fn start<S, F>(name: &'static str, serve: S) -> anyhow::Result<Self>
    where
        S: FnOnce(TcpListener, CancellationToken) -> anyhow::Result<F> + Send + 'static,
        F: Future<Output = anyhow::Result<()>>,
    {
        let (jobs, mut todo) = mpsc::unbounded_channel::<(Job, oneshot::Sender<()>)>();
        let (started, address) = oneshot::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(name)
            // A thread that ends takes its CPU time with it.
            .thread_keep_alive(Duration::from_secs(3600))
            .build()?;
        let work = move || {
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let _ = started.send(listener.local_addr()?);
                let serving = serve(listener, stopped)?;
                let working = async move {
                    while let Some((job, done)) = todo.recv().await {
                        job();
                        let _ = done.send(());
                    }
                };
                tokio::join!(serving, working).0
            })
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        let address = address.blocking_recv().with_context(|| format!("{name} did not start"))?;
        Ok(Self { name, address, jobs, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs something on the server's thread and waits for it, so that it counts as the server's work.
    ///
    /// # Errors
    /// The server has ended.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let (done, wait) = oneshot::channel();
        self.jobs.send((Box::new(job), done)).map_err(|_| anyhow!("{} has ended", self.name))?;
        wait.blocking_recv().with_context(|| format!("{} has ended", self.name))
    }

    /// CPU time of the server's threads so far, read when they sleep.
    ///
    /// # Errors
    /// The server has ended, or `/proc` doesn't tell.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.run(|| {})?;
        // The threads have nothing left to do; give them the moment it takes to fall asleep.
        let mut time = cpu::threads_time(self.name)?;
        loop {
            std::thread::sleep(Duration::from_millis(3));
            let later = cpu::threads_time(self.name)?;
            if later == time {
                return Ok(time);
            }
            time = later;
        }
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// What the server ended with.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let thread = self.thread.take();
        drop(self);
        thread.map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("the server's thread panicked"))?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
