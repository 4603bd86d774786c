//! The task that owns an engine's state: it forms steps, sleeps for the GPU and hands out tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::counters::EngineCounters;
use crate::kv_publisher::KvPublisher;
use crate::latency::LatencyModel;
use crate::scheduler::{NewRequest, Scheduler, StepOutput};

/// How far the modelled GPU may lag behind the clock before the lag is forgiven.
const FORGIVEN_LAG: Duration = Duration::from_millis(50);

/// What the API asks of the loop.
pub(crate) enum Command {
    /// Decode this request. The channel must have room for all of its tokens; when the other end is dropped,
    /// the request is aborted.
    Submit(NewRequest, mpsc::Sender<StepOutput>),
    /// Forget everything cached, between two steps; answers whether that was possible.
    ResetPrefixCache(oneshot::Sender<bool>),
}

struct Client {
    outputs: mpsc::Sender<StepOutput>,
    arrived: Instant,
    has_output: bool,
}

/// The state of one engine.
pub(crate) struct EngineLoop {
    scheduler: Scheduler,
    latency: LatencyModel,
    publisher: Option<KvPublisher>,
    counters: Arc<EngineCounters>,
    commands: mpsc::Receiver<Command>,
    clients: HashMap<u64, Client>,
    resets: Vec<oneshot::Sender<bool>>,
}

impl EngineLoop {
    pub(crate) fn new(
        scheduler: Scheduler,
        latency: LatencyModel,
        publisher: Option<KvPublisher>,
        counters: Arc<EngineCounters>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            scheduler,
            latency,
            publisher,
            counters,
            commands,
            clients: HashMap::new(),
            resets: Vec::new(),
        }
    }

    /// Runs until cancelled, then closes the event socket.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        self.run_steps(&cancel).await;
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
    }

    async fn run_steps(&mut self, cancel: &CancellationToken) {
        let mut outputs = Vec::new();
        let mut gpu_is_free_at = Instant::now();
        loop {
            self.between_steps();
            if self.scheduler.is_idle() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    command = self.commands.recv() => match command {
                        Some(command) => self.accept(command),
                        None => return,
                    }
                }
                gpu_is_free_at = Instant::now();
                continue;
            }
            let work = self.scheduler.schedule();
            self.publish_counters();
            if gpu_is_free_at.elapsed() > FORGIVEN_LAG {
                gpu_is_free_at = Instant::now();
            }
            // Timers are late by up to a millisecond; counting from the modelled end keeps that from adding up.
            gpu_is_free_at += self.latency.step_time(work);
            if !self.wait_for_gpu(gpu_is_free_at, cancel).await {
                return;
            }
            outputs.clear();
            self.scheduler.complete(&mut outputs);
            // Events leave before the tokens, so that whoever has the answer can expect them on the way.
            self.publish_events().await;
            self.publish_counters();
            self.deliver(&outputs);
        }
    }

    /// Waits for the end of a step while requests keep arriving. False when cancelled.
    async fn wait_for_gpu(&mut self, end: Instant, cancel: &CancellationToken) -> bool {
        if self.latency.is_instant() {
            tokio::task::yield_now().await;
            return !cancel.is_cancelled();
        }
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return false,
                () = tokio::time::sleep_until(end) => return true,
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.accept(command);
                        self.publish_counters();
                    }
                    None => return false,
                }
            }
        }
    }

    fn between_steps(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command);
        }
        self.abort_abandoned();
        for answer in self.resets.drain(..) {
            let is_reset = self.scheduler.reset_prefix_cache();
            let _ = answer.send(is_reset);
        }
        self.publish_counters();
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Submit(request, outputs) => {
                let id = request.id;
                // Dropping the channel of a refused request tells its client.
                if self.scheduler.submit(request) {
                    let arrived = Instant::now();
                    self.clients.insert(id, Client { outputs, arrived, has_output: false });
                }
            }
            Command::ResetPrefixCache(answer) => self.resets.push(answer),
        }
    }

    fn abort_abandoned(&mut self) {
        let clients = &mut self.clients;
        if !clients.values().any(|client| client.outputs.is_closed()) {
            return;
        }
        let mut aborted = 0;
        self.scheduler.abort(|id| {
            let is_gone = clients.get(&id).is_none_or(|client| client.outputs.is_closed());
            if is_gone {
                clients.remove(&id);
                aborted += 1;
            }
            is_gone
        });
        self.counters.aborted_requests.fetch_add(aborted, Ordering::Relaxed);
    }

    fn publish_counters(&self) {
        *self.counters.scheduler.lock() = self.scheduler.stats();
    }

    async fn publish_events(&mut self) {
        let events = self.scheduler.take_events();
        let Some(publisher) = &mut self.publisher else { return };
        if events.is_empty() {
            return;
        }
        let lose = &self.counters.batches_to_lose;
        let is_lost =
            lose.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        publisher.publish(&events, is_lost).await;
    }

    fn deliver(&mut self, outputs: &[StepOutput]) {
        for output in outputs {
            let Some(client) = self.clients.get_mut(&output.id) else { continue };
            if !std::mem::replace(&mut client.has_output, true) {
                self.counters.time_to_first_token.observe(client.arrived.elapsed());
            }
            // There is room for every token, so this fails only if the client is gone.
            let _ = client.outputs.try_send(*output);
            if output.finished {
                self.counters.finished_requests.fetch_add(1, Ordering::Relaxed);
                self.counters.request_latency.observe(client.arrived.elapsed());
                self.clients.remove(&output.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, EngineLoop};
    use crate::block_hash::HashScheme;
    use crate::latency::LatencyModel;
    use crate::metrics_page::MetricsPage;
    use crate::prefix_cache::PrefixCache;
    use crate::scheduler::{NewRequest, Scheduler, StepOutput};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn start(max_num_seqs: u32, latency: LatencyModel) -> mpsc::Sender<Command> {
        let scheduler =
            Scheduler::new(PrefixCache::new(100, 16, HashScheme::default(), true), max_num_seqs, 8192);
        let (sender, commands) = mpsc::channel(16);
        let counters = Arc::new(MetricsPage::counters());
        let engine = EngineLoop::new(scheduler, latency, None, counters, commands);
        TaskTracker::new().spawn(engine.run(CancellationToken::new()));
        sender
    }

    async fn submit(
        engine: &mpsc::Sender<Command>,
        id: u64,
        prompt: std::ops::Range<u32>,
        output_tokens: usize,
    ) -> mpsc::Receiver<StepOutput> {
        let (outputs, receiver) = mpsc::channel(output_tokens);
        let request = NewRequest {
            id,
            prompt_token_ids: prompt.collect(),
            output_token_ids: vec![7; output_tokens],
            cache_salt: None,
            reports_hits: false,
        };
        engine.send(Command::Submit(request, outputs)).await.unwrap();
        receiver
    }

    fn latency() -> LatencyModel {
        LatencyModel { prefill_us_per_token: 1000.0, decode_ms_per_token: 10.0, ..LatencyModel::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn time_to_first_token_is_prefill_of_what_is_not_cached() {
        let engine = start(4, latency());
        for expected_ms in [100, 100 - 96] {
            let started = Instant::now();
            let mut outputs = submit(&engine, expected_ms, 0..100, 3).await;
            assert!(outputs.recv().await.is_some());
            assert_eq!(started.elapsed(), Duration::from_millis(expected_ms));
            assert!(outputs.recv().await.is_some());
            assert_eq!(started.elapsed(), Duration::from_millis(expected_ms + 10));
            assert!(outputs.recv().await.unwrap().finished);
            assert_eq!(outputs.recv().await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_makes_the_next_request_wait() {
        let engine = start(1, latency());
        let started = Instant::now();
        let _first = submit(&engine, 1, 0..100, 2).await;
        let mut second = submit(&engine, 2, 1000..1050, 1).await;
        assert!(second.recv().await.is_some());
        // 100 ms prefill, 10 ms decode, then its own 50 ms.
        assert_eq!(started.elapsed(), Duration::from_millis(160));
    }

    #[tokio::test(start_paused = true)]
    async fn a_prefill_delays_the_decodes_in_its_step() {
        let engine = start(4, latency());
        let mut first = submit(&engine, 1, 0..100, 3).await;
        assert!(first.recv().await.is_some());
        let started = Instant::now();
        let _second = submit(&engine, 2, 1000..1050, 1).await;
        // The step that started without the newcomer, then the one with its prefill.
        assert!(first.recv().await.is_some());
        assert_eq!(started.elapsed(), Duration::from_millis(10));
        assert!(first.recv().await.is_some());
        assert_eq!(started.elapsed(), Duration::from_millis(10 + 60));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_request_frees_its_place() {
        let engine = start(1, latency());
        let mut first = submit(&engine, 1, 0..100, 500).await;
        assert!(first.recv().await.is_some());
        let started = Instant::now();
        drop(first);
        let mut second = submit(&engine, 2, 1000..1050, 1).await;
        assert!(second.recv().await.is_some());
        assert!(started.elapsed() <= Duration::from_millis(10 + 50));
    }
}
