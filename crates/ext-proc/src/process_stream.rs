use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status};

use crate::drain::OpenStream;
use crate::ext_proc_service::ServiceShared;
use crate::probe_watch::ProbeWatch;
use crate::stream::{Action, LeaseWatch, Stream};
use crate::{
    Counters, EndpointPicker, HeaderList, HttpRequest, PROBE_HEADER, Picked, ProbeAnswer, ProbeOrder,
    Refusal, StreamEnd,
};

type PickFuture<L> = Pin<Box<dyn Future<Output = Result<Picked<L>, Refusal>> + Send>>;

/// The response half of one gRPC stream: polling it polls the request half, the pick and the
/// drain, so that one task (the one that tonic runs for the stream) does it all without a channel.
///
/// Dropping it, which is what tonic does when the gateway resets the stream or goes away, drops
/// the pick under way and the lease.
pub struct ProcessStream<P: EndpointPicker, S> {
    shared: Arc<ServiceShared<P>>,
    inbound: S,
    inbound_is_over: bool,
    stream: Stream<P::Lease>,
    pick: Option<PickFuture<P::Lease>>,
    idle: IdleTimer,
    drain: DrainWatch,
    lease_watch: (LeaseWatch, Instant),
    opened_at: Instant,
    from: Option<SocketAddr>,
    /// Only where an operator probes the gateway.
    probe: Option<Box<ProbeWatch>>,
    is_broken: bool,
    is_over: bool,
    /// Last, so that the stream counts as open until its lease is dropped.
    _open: OpenStream,
}

/// Nothing in it is pinned in place: what needs pinning is boxed.
impl<P: EndpointPicker, S> Unpin for ProcessStream<P, S> {}

/// Runs while the stream waits for more of the request.
enum IdleTimer {
    Off,
    Stale(Pin<Box<Sleep>>),
    Running(Pin<Box<Sleep>>),
}

enum DrainWatch {
    NotAsked,
    Waiting(Pin<Box<WaitForCancellationFutureOwned>>),
    Finishing(Pin<Box<Sleep>>),
    Over,
}

impl<P, S> ProcessStream<P, S>
where
    P: EndpointPicker,
    S: futures::Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
{
    pub(crate) fn new(shared: Arc<ServiceShared<P>>, inbound: S) -> Self {
        let now = Instant::now();
        Self {
            stream: Stream::new(shared.config.limits, now),
            inbound,
            inbound_is_over: false,
            pick: None,
            idle: IdleTimer::Off,
            drain: DrainWatch::NotAsked,
            lease_watch: (LeaseWatch::Unwatched, now),
            opened_at: now,
            from: None,
            probe: None,
            is_broken: false,
            is_over: false,
            _open: shared.drain.open_stream(),
            shared,
        }
    }

    /// The same stream, whose other end is known.
    pub(crate) fn coming_from(mut self, from: Option<SocketAddr>) -> Self {
        self.from = from;
        self
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ProcessingResponse, Status>>> {
        loop {
            if self.is_over {
                return Poll::Ready(None);
            }
            while let Some(action) = self.stream.next_action() {
                match action {
                    Action::Send(message) => {
                        if let Some(probe) = &self.probe {
                            probe.sent(&message);
                        }
                        return Poll::Ready(Some(Ok(message)));
                    }
                    Action::Pick(request) => self.start_pick(request),
                    Action::PickByLoad(request) => self.start_pick_by_load(request),
                    Action::AbandonPick => self.pick = None,
                    Action::Close(end) => {
                        self.finish(end, "OK");
                        return Poll::Ready(None);
                    }
                    Action::Abort(end) => {
                        let status = abort_status(end);
                        self.finish(end, status_name(status.code()));
                        return Poll::Ready(Some(Err(status)));
                    }
                }
            }
            self.note_lease_watch();
            let has_news = self.poll_pick(cx) || self.poll_inbound(cx) || self.poll_signals(cx);
            if !has_news {
                return Poll::Pending;
            }
        }
    }

    fn start_pick(&mut self, request: HttpRequest) {
        if let Some(order) = self.probe.as_ref().map(|probe| probe.order) {
            return self.start_probe(order, request);
        }
        Counters::add(&self.shared.counters.picks, 1);
        let picker = Arc::clone(&self.shared.picker);
        self.pick = Some(Box::pin(async move { picker.pick(request).await }));
    }

    fn start_probe(&mut self, order: ProbeOrder, request: HttpRequest) {
        if matches!(order.answer, ProbeAnswer::FailAtHeaders | ProbeAnswer::FailAtPick) {
            return self.stream.fail();
        }
        let picker = Arc::clone(&self.shared.picker);
        self.pick = Some(Box::pin(async move {
            if !order.delay().is_zero() {
                tokio::time::sleep(order.delay()).await;
            }
            match order.answer {
                ProbeAnswer::Immediate => Err(Refusal::probe()),
                _ => picker.pick(request).await,
            }
        }));
    }

    fn start_pick_by_load(&mut self, request: HttpRequest) {
        Counters::add(&self.shared.counters.picks_by_load, 1);
        let picker = Arc::clone(&self.shared.picker);
        self.pick = Some(Box::pin(async move { picker.pick_by_load(request).await }));
    }

    fn poll_pick(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pick) = &mut self.pick else { return false };
        let result = match catch_unwind(AssertUnwindSafe(|| pick.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return false,
            Ok(Poll::Ready(result)) => Some(result),
            Err(_) => None,
        };
        let pick = self.pick.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(pick)));
        match result {
            Some(result) if dropped.is_ok() => {
                if let (Some(probe), Ok(picked)) = (&self.probe, &result) {
                    probe.picked(&picked.destinations);
                }
                self.stream.on_pick(result);
            }
            _ => {
                Counters::add(&self.shared.counters.inner_failures, 1);
                tracing::error!("a pick panicked");
                self.stream.on_inner_failure();
            }
        }
        true
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> bool {
        if self.inbound_is_over {
            return false;
        }
        match Pin::new(&mut self.inbound).poll_next(cx) {
            Poll::Pending => return false,
            Poll::Ready(Some(Ok(message))) => {
                self.note_probe(&message);
                self.stream.on_message(message);
                self.idle.restart();
            }
            Poll::Ready(Some(Err(status))) => {
                self.inbound_is_over = true;
                let is_too_large = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted);
                self.stream.on_unreadable(is_too_large.then_some(self.shared.config.max_message_bytes));
            }
            Poll::Ready(None) => {
                self.inbound_is_over = true;
                self.stream.on_gateway_end();
            }
        }
        true
    }

    /// Begins the watch of a stream that belongs to a probe, and goes on with it.
    fn note_probe(&mut self, message: &ProcessingRequest) {
        if self.probe.is_none() && self.shared.probes.is_any() {
            self.begin_probe(message);
        }
        if let Some(probe) = &self.probe {
            probe.received(message);
        }
    }

    fn begin_probe(&mut self, message: &ProcessingRequest) {
        let Some(Request::RequestHeaders(headers)) = &message.request else { return };
        let Some(headers) = &headers.headers else { return };
        if !headers.headers.iter().any(|header| header.key.eq_ignore_ascii_case(PROBE_HEADER)) {
            return;
        }
        let headers = HeaderList::from_proto(Some(headers.clone()));
        let Some(probe) = self.shared.probes.begin(&headers) else { return };
        probe.opened(message, &headers, self.from);
        let (header, metadata) = probe.order.answer.names_in();
        self.stream.name_destination_in(header, metadata);
        if probe.order.answer == ProbeAnswer::FailAtHeaders {
            self.stream.fail();
        }
        self.probe = Some(Box::new(probe));
    }

    /// The body's idle time and the drain; only looked at when nothing else is to be done.
    fn poll_signals(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.stream.awaits_request() {
            self.idle = IdleTimer::Off;
        } else if self.idle.poll(cx, self.shared.config.body_idle_timeout) {
            self.stream.on_body_timeout();
            return true;
        }
        match &mut self.drain {
            DrainWatch::NotAsked => {
                self.drain = DrainWatch::Waiting(Box::pin(self.shared.drain.finishing()));
                true
            }
            DrainWatch::Waiting(finishing) => {
                let asked = finishing.as_mut().poll(cx).is_ready();
                if asked {
                    let deadline = self.shared.drain.deadline();
                    self.drain = DrainWatch::Finishing(Box::pin(tokio::time::sleep_until(deadline)));
                    self.stream.on_drain();
                }
                asked
            }
            DrainWatch::Finishing(deadline) => {
                let is_up = deadline.as_mut().poll(cx).is_ready();
                if is_up {
                    self.drain = DrainWatch::Over;
                    self.stream.on_drain_deadline();
                }
                is_up
            }
            DrainWatch::Over => false,
        }
    }

    /// After a panic in the stream's own code: the pick goes, the client gets what can still be given.
    fn recover(&mut self) -> Option<Status> {
        Counters::add(&self.shared.counters.inner_failures, 1);
        tracing::error!("an ext-proc stream panicked");
        if std::mem::replace(&mut self.is_broken, true) {
            let status = abort_status(StreamEnd::InnerFailure);
            self.finish(StreamEnd::InnerFailure, status_name(status.code()));
            return Some(status);
        }
        self.stream.on_broken();
        None
    }
}

impl<P: EndpointPicker, S> ProcessStream<P, S> {
    fn note_lease_watch(&mut self) {
        let watch = self.stream.lease_watch();
        if watch != self.lease_watch.0 {
            self.lease_watch = (watch, Instant::now());
        }
    }

    /// Adds up what the stream counted; the lease is dropped already or by the caller.
    fn finish(&mut self, end: StreamEnd, status: &'static str) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if let Some(probe) = &self.probe {
            probe.ended(end, status);
        }
        let counters = &self.shared.counters;
        counters.take_in(self.stream.tally(), self.stream.lease_panics());
        let (picker, open_for) = (&self.shared.picker, self.opened_at.elapsed());
        if catch_unwind(AssertUnwindSafe(|| picker.stream_ended(open_for, status))).is_err() {
            Counters::add(&counters.inner_failures, 1);
        }
        let by_gateway = matches!(end, StreamEnd::GatewayClosed | StreamEnd::Cancelled);
        let (watch, since) = self.lease_watch;
        // What a probe provokes says nothing of the traffic.
        if by_gateway && watch != LeaseWatch::Unwatched && self.probe.is_none() {
            Counters::add(&counters.lease_only_ends, 1);
            let is_early = since.elapsed() < self.shared.config.lease_blind_within;
            if is_early && watch != LeaseWatch::ResponseBegun {
                Counters::add(&counters.lease_blind_ends, 1);
            }
        }
    }
}

impl<P, S> futures::Stream for ProcessStream<P, S>
where
    P: EndpointPicker,
    S: futures::Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
{
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match catch_unwind(AssertUnwindSafe(|| this.poll_message(cx))) {
                Ok(poll) => return poll,
                Err(_) => {
                    if let Some(status) = this.recover() {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
            }
        }
    }
}

impl<P: EndpointPicker, S> Drop for ProcessStream<P, S> {
    fn drop(&mut self) {
        let pick = self.pick.take();
        // A host's future that panics while being dropped must not take the connection with it.
        if catch_unwind(AssertUnwindSafe(|| drop(pick))).is_err() {
            Counters::add(&self.shared.counters.inner_failures, 1);
        }
        self.finish(StreamEnd::Cancelled, status_name(Code::Cancelled));
    }
}

impl IdleTimer {
    fn restart(&mut self) {
        *self = match std::mem::replace(self, Self::Off) {
            Self::Running(sleep) => Self::Stale(sleep),
            other => other,
        };
    }

    /// Whether the time is up since the timer was last restarted (or first polled).
    fn poll(&mut self, cx: &mut Context<'_>, timeout: std::time::Duration) -> bool {
        let mut sleep = match std::mem::replace(self, Self::Off) {
            Self::Running(sleep) => sleep,
            Self::Off => Box::pin(tokio::time::sleep(timeout)),
            Self::Stale(mut sleep) => {
                sleep.as_mut().reset(tokio::time::Instant::now() + timeout);
                sleep
            }
        };
        let is_up = sleep.as_mut().poll(cx).is_ready();
        *self = if is_up { Self::Stale(sleep) } else { Self::Running(sleep) };
        is_up
    }
}

/// As Go's gRPC library spells them, for metrics that are read together with the Go picker's.
fn status_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::InvalidArgument => "InvalidArgument",
        Code::Unavailable => "Unavailable",
        Code::Internal => "Internal",
        _ => "Unknown",
    }
}

fn abort_status(end: StreamEnd) -> Status {
    match end {
        StreamEnd::Drained => Status::unavailable("the endpoint picker is shutting down"),
        StreamEnd::Unreadable => Status::invalid_argument("unreadable message"),
        _ => Status::internal("the endpoint picker failed"),
    }
}
