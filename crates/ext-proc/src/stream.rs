//! One ext-proc stream as an explicit state machine: messages in, actions out, no socket, no task.
//!
//! One stream is one HTTP request and its response. What a body mode asks for:
//!
//! | request body mode | headers answered | pick | destination named in |
//! | --- | --- | --- | --- |
//! | FULL_DUPLEX_STREAMED | after the pick | at the end of the body (or trailers) | headers reply, then the body back |
//! | BUFFERED | at once, at most routing headers of the client removed | at the first body message | body reply |
//! | BUFFERED_PARTIAL | as for BUFFERED | at the first body message, perhaps incomplete | body reply |
//! | STREAMED, NONE, GRPC, unknown | after the pick | at the headers, without a body | headers reply |
//!
//! Headers that end the request (a GET, an empty POST) get one answer in every mode.

mod answer;
mod lease_hold;
mod outbox;
mod request_side;
mod response_side;
#[cfg(test)]
mod tests;

use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use envoy_types::pb::google::protobuf::value::Kind;

use crate::{BodyMode, BodyModes, HttpRequest, Picked, Refusal, StreamEnd, StreamLease, Violation};
use lease_hold::LeaseHold;
use outbox::Outbox;
use request_side::{RequestSide, RequestState};
use response_side::ResponseSide;

/// How much one stream may hold.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Largest request body; above it the client gets 413.
    pub max_body_bytes: usize,
    /// Most non-empty messages that one request body may come in, because each costs memory of its
    /// own; above it the client gets 413.
    pub max_body_chunks: usize,
    /// Most request headers; above it the client gets 431.
    pub max_headers: usize,
    /// Most bytes in names and values of request headers; above it the client gets 431.
    pub max_header_bytes: usize,
}

impl Default for StreamLimits {
    /// 32 MiB in at most 262,144 chunks; 1,024 headers of 1 MiB in all, ten times what Envoy passes on unless it is told
    /// otherwise.
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_body_chunks: 1 << 18,
            max_headers: 1024,
            max_header_bytes: 1 << 20,
        }
    }
}

/// What the driver of a stream has to do next.
#[derive(Debug)]
pub enum Action {
    /// Send this message.
    Send(ProcessingResponse),
    /// Start the pick; its result goes to [`Stream::on_pick`], a panic to [`Stream::on_inner_failure`].
    Pick(HttpRequest),
    /// The same with the picker's choice by load.
    PickByLoad(HttpRequest),
    /// Drop the pick that is under way; nobody waits for it any more.
    AbandonPick,
    /// End the stream with status OK.
    Close(StreamEnd),
    /// End the stream with an error: OK would pass a cut response off as a whole one.
    Abort(StreamEnd),
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Pick,
    PickByLoad,
    AbandonPick,
}

/// How far a stream has come whose only use after the answer is to hold the lease (response body
/// mode NONE). A gateway that doesn't send response trailers to the picker closes such a stream as
/// soon as it has nothing more to ask, long before the response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWatch {
    /// Not such a stream, not answered yet, or the end of the response was seen.
    Unwatched,
    /// Answered, and nothing of the response seen.
    Answered,
    /// Response headers seen that announce server-sent events.
    EventStreamBegun,
    /// Some other part of the response seen.
    ResponseBegun,
}

/// Where an answer names the destination: in both, except for probes of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DestinationNames {
    header: bool,
    metadata: bool,
}

/// What a stream counted, for the service's counters.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Bytes of request body received.
    pub request_body_bytes: u64,
    /// Bytes of response body received.
    pub response_body_bytes: u64,
    /// How often each kind of [`Violation`] happened, in the order of [`Violation::ALL`].
    pub violations: [u32; Violation::ALL.len()],
    /// Status and reason of the refusal that was sent.
    pub refusal: Option<(u16, Option<&'static str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// Close with OK once everything is sent.
    Close(StreamEnd),
    Abort(StreamEnd),
    Done,
}

/// One stream. Feed it with the `on_…` methods and do what [`next_action`](Self::next_action) says
/// until it says nothing. No order of messages makes it panic; what a gateway shouldn't send is
/// counted as a [`Violation`].
pub struct Stream<L: StreamLease> {
    limits: StreamLimits,
    received_at: Instant,
    modes: Option<BodyModes>,
    request: RequestSide,
    response: ResponseSide,
    response_headers: Vec<(String, String)>,
    served_header: Option<&'static str>,
    names: DestinationNames,
    outbox: Outbox,
    command: Option<Command>,
    lease: LeaseHold<L>,
    ending: Ending,
    is_draining: bool,
    is_half_closed: bool,
    tally: Tally,
}

impl<L: StreamLease> Stream<L> {
    /// A stream that has just been opened.
    pub fn new(limits: StreamLimits, received_at: Instant) -> Self {
        Self {
            limits,
            received_at,
            modes: None,
            request: RequestSide::new(),
            response: ResponseSide::default(),
            response_headers: Vec::new(),
            served_header: None,
            names: DestinationNames { header: true, metadata: true },
            outbox: Outbox::default(),
            command: None,
            lease: LeaseHold::empty(),
            ending: Ending::No,
            is_draining: false,
            is_half_closed: false,
            tally: Tally::default(),
        }
    }

    /// A message from the gateway.
    pub fn on_message(&mut self, message: ProcessingRequest) {
        if self.ending != Ending::No || self.is_half_closed {
            return;
        }
        let config = message.protocol_config.as_ref();
        self.modes.get_or_insert_with(|| BodyModes::from_proto(config));
        let is_window_update = message.flow_control_init.is_some() || message.client_window_update.is_some();
        let metadata = message.metadata_context;
        match message.request {
            Some(Request::RequestHeaders(headers)) => {
                self.note_subset(metadata);
                self.on_request_headers(headers);
            }
            Some(Request::RequestBody(body)) => {
                self.note_subset(metadata);
                self.on_request_body(body);
            }
            Some(Request::RequestTrailers(_)) => {
                self.note_subset(metadata);
                self.on_request_trailers();
            }
            Some(Request::ResponseHeaders(headers)) => {
                self.note_served(metadata);
                self.on_response_headers(headers);
            }
            Some(Request::ResponseBody(body)) => self.on_response_body(body),
            Some(Request::ResponseTrailers(_)) => self.on_response_trailers(),
            None if is_window_update => {}
            None => self.violation(Violation::EmptyMessage),
        }
    }

    /// The result of the pick that an action asked for. A result that nobody waits for any more is dropped.
    pub fn on_pick(&mut self, result: Result<Picked<L>, Refusal>) {
        if self.request.state != RequestState::Picking || self.ending != Ending::No {
            return;
        }
        match result {
            Ok(picked) if picked.destinations.is_empty() => self.retry_or_refuse(),
            Ok(picked) => self.answer_request(picked),
            Err(refusal) => {
                self.request.give_up();
                self.refuse(&refusal);
            }
        }
    }

    /// The pick panicked. The first time it is asked for once more by load, then the client gets 503.
    pub fn on_inner_failure(&mut self) {
        if self.request.state == RequestState::Picking && self.ending == Ending::No {
            self.retry_or_refuse();
        }
    }

    /// From now on: close as soon as it harms nobody. A request without an answer still gets one;
    /// a stream that response bodies pass through goes on.
    pub fn on_drain(&mut self) {
        self.is_draining = true;
    }

    /// The drain's time is up: refuse what has no answer, close what may be closed, abort the rest.
    pub fn on_drain_deadline(&mut self) {
        self.is_draining = true;
        if self.ending != Ending::No || self.may_close() {
            return;
        }
        if self.request.is_settled() {
            self.ending = Ending::Abort(StreamEnd::Drained);
        } else if self.modes.is_none() {
            self.ending = Ending::Close(StreamEnd::Drained);
        } else {
            self.refuse(&Refusal::shutting_down());
        }
    }

    /// The rest of the request didn't come within the host's time limit.
    pub fn on_body_timeout(&mut self) {
        if self.ending != Ending::No || !self.awaits_request() {
            return;
        }
        if self.modes.is_none() {
            self.ending = Ending::Close(StreamEnd::GatewayClosed);
        } else {
            self.refuse(&Refusal::body_timeout());
        }
    }

    /// The gateway closed its half. A pick that is under way is still answered.
    pub fn on_gateway_end(&mut self) {
        self.is_half_closed = true;
        if self.request.state != RequestState::Picking && self.ending == Ending::No {
            self.ending = Ending::Close(StreamEnd::GatewayClosed);
        }
    }

    /// A message couldn't be read, and none will come any more. `too_large_for`: because it is over that limit of
    /// messages, in bytes.
    pub fn on_unreadable(&mut self, too_large_for: Option<usize>) {
        if self.ending != Ending::No {
            return;
        }
        if self.request.is_settled() {
            self.give_up_stream(StreamEnd::Unreadable);
        } else if let Some(limit) = too_large_for {
            let max_body_bytes = self.limits.max_body_bytes;
            let is_body = limit > max_body_bytes;
            self.refuse(&if is_body {
                Refusal::body_too_large(max_body_bytes)
            } else {
                Refusal::message_too_large(limit)
            });
        } else {
            self.refuse(&Refusal::new(400, "BadRequest", "unreadable message from the gateway"));
        }
    }

    /// The stream's own code failed: end it without harm where that is possible.
    pub fn on_broken(&mut self) {
        if self.ending != Ending::No {
            return;
        }
        if self.request.is_settled() {
            self.outbox.clear();
            self.give_up_stream(StreamEnd::InnerFailure);
        } else {
            self.refuse(&Refusal::inner_failure());
        }
    }

    /// From now on the destination is named in the header, in the metadata, in both or in neither.
    pub(crate) fn name_destination_in(&mut self, header: bool, metadata: bool) {
        self.names = DestinationNames { header, metadata };
    }

    /// Ends the stream with an error, whatever it is at.
    pub(crate) fn fail(&mut self) {
        if self.ending == Ending::No {
            self.request.give_up();
            self.ending = Ending::Abort(StreamEnd::InnerFailure);
        }
    }

    /// OK leaves a response unharmed only where its body doesn't pass through here.
    fn give_up_stream(&mut self, end: StreamEnd) {
        self.ending = match self.modes().response {
            BodyMode::None => Ending::Close(end),
            _ => Ending::Abort(end),
        };
    }

    /// The next thing to do, or `None` until something happens.
    pub fn next_action(&mut self) -> Option<Action> {
        match self.command.take() {
            Some(Command::Pick) => return Some(Action::Pick(self.http_request())),
            Some(Command::PickByLoad) => return Some(Action::PickByLoad(self.http_request())),
            Some(Command::AbandonPick) => return Some(Action::AbandonPick),
            None => {}
        }
        if let Ending::Abort(end) = self.ending {
            self.ending = Ending::Done;
            self.outbox.clear();
            self.lease.release(end);
            return Some(Action::Abort(end));
        }
        if let Some(message) = self.outbox.next() {
            return Some(Action::Send(message));
        }
        if self.ending == Ending::No && self.request.state != RequestState::Picking && self.is_half_closed {
            self.ending = Ending::Close(StreamEnd::GatewayClosed);
        }
        if self.ending == Ending::No && self.is_draining && self.may_close() {
            self.ending = Ending::Close(StreamEnd::Drained);
        }
        let Ending::Close(end) = self.ending else { return None };
        self.ending = Ending::Done;
        self.lease.release(end);
        Some(Action::Close(end))
    }

    /// Whether the stream waits for more of the request before it can pick.
    pub fn awaits_request(&self) -> bool {
        !self.response.started
            && !self.is_half_closed
            && matches!(self.request.state, RequestState::Start | RequestState::Collecting)
    }

    /// See [`LeaseWatch`].
    pub fn lease_watch(&self) -> LeaseWatch {
        let is_lease_only = self.modes.is_some_and(|modes| modes.response == BodyMode::None);
        if !is_lease_only || self.request.state != RequestState::Answered || self.response.complete {
            LeaseWatch::Unwatched
        } else if self.response.is_event_stream {
            LeaseWatch::EventStreamBegun
        } else if self.response.started {
            LeaseWatch::ResponseBegun
        } else {
            LeaseWatch::Answered
        }
    }

    /// Whether a lease is held.
    pub fn holds_lease(&self) -> bool {
        self.lease.is_held()
    }

    /// What was counted so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many calls into the lease panicked.
    pub fn lease_panics(&self) -> u32 {
        self.lease.panics
    }

    /// Whether closing with OK leaves request and response unharmed.
    fn may_close(&self) -> bool {
        let is_lease_only = self.modes.is_some_and(|modes| modes.response == BodyMode::None);
        self.request.is_settled() && (is_lease_only || self.response.complete)
    }

    fn modes(&self) -> BodyModes {
        self.modes.unwrap_or(BodyModes::UNTOLD)
    }

    fn violation(&mut self, violation: Violation) {
        if let Some(count) = self.tally.violations.get_mut(violation as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Ends request and stream with an immediate response. Nothing that waited to be sent is sent,
    /// except an answer to headers that was due before.
    fn refuse(&mut self, refusal: &Refusal) {
        self.tally.refusal = Some((refusal.status, refusal.reason));
        if self.request.state == RequestState::Picking && self.command.is_none() {
            self.command = Some(Command::AbandonPick);
        } else {
            self.command = None;
        }
        self.request.give_up();
        self.outbox.send(answer::refusal_reply(refusal));
        self.ending = Ending::Close(StreamEnd::GatewayClosed);
    }

    /// Takes the gateway's subset hint from `envoy.lb.subset_hint`. Absent, of another type or
    /// without the key it says nothing; items that aren't strings are left out.
    fn note_subset(&mut self, metadata: Option<Metadata>) {
        let hint = metadata.and_then(|mut metadata| metadata.filter_metadata.remove("envoy.lb.subset_hint"));
        let value = hint.and_then(|mut hint| hint.fields.remove("x-gateway-destination-endpoint-subset"));
        if let Some(Kind::ListValue(list)) = value.and_then(|value| value.kind) {
            let entry = |kind| if let Kind::StringValue(entry) = kind { Some(entry) } else { None };
            self.request.subset =
                Some(list.values.into_iter().filter_map(|value| value.kind.and_then(entry)).collect());
        }
    }

    /// Takes the endpoint that served from `envoy.lb`, if the response shall tell it.
    fn note_served(&mut self, metadata: Option<Metadata>) {
        let Some(header) = self.served_header.take() else { return };
        let lb = metadata.and_then(|mut metadata| metadata.filter_metadata.remove("envoy.lb"));
        let served = lb.and_then(|mut lb| lb.fields.remove("x-gateway-destination-endpoint-served")?.kind);
        let served = match served {
            Some(Kind::StringValue(served)) => served,
            _ => "fail: the gateway doesn't say which endpoint served".to_owned(),
        };
        self.response_headers.push((header.to_owned(), served));
    }
}
