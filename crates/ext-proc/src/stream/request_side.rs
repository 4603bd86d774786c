use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{HttpBody, HttpHeaders, body_mutation::Mutation};
use uuid::Uuid;

use super::answer::{Answer, Direction, body_reply, request_headers_reply, stripping_reply, trailers_reply};
use super::outbox::{Echo, Outgoing};
use super::response_side::mirrored;
use super::{Command, Stream, StreamLimits};
use crate::{BodyMode, HeaderList, HttpRequest, Picked, Refusal, RequestBody, StreamLease, Violation};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestState {
    /// Nothing of the request has come.
    Start,
    /// More of it is needed before the pick.
    Collecting,
    /// The pick is under way.
    Picking,
    /// The destination has been given.
    Answered,
    /// Refused or given up.
    Over,
}

/// The message whose reply names the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplyAt {
    Headers,
    /// Headers, then the body back in chunks, then trailers if they ended the body.
    FullDuplex,
    Body,
    Trailers,
}

/// What has been seen of the request, and what it still needs.
pub(super) struct RequestSide {
    pub(super) state: RequestState,
    reply_at: ReplyAt,
    headers: Option<Arc<HeaderList>>,
    /// Whether the headers message still waits for its reply.
    headers_owed: bool,
    request_id: Arc<str>,
    request_id_is_ours: bool,
    pub(super) subset: Option<Vec<String>>,
    chunks: Vec<Bytes>,
    body_bytes: usize,
    body_messages: usize,
    /// A message carried the end of the body.
    body_ended: bool,
    /// What the picker is shown is the whole body.
    body_complete: bool,
    trailers_seen: bool,
    /// Replies to messages that came during the pick, sent after its answer.
    parked: Vec<Outgoing>,
    is_second_try: bool,
}

impl RequestSide {
    pub(super) fn new() -> Self {
        Self {
            state: RequestState::Start,
            reply_at: ReplyAt::Headers,
            headers: None,
            headers_owed: false,
            request_id: Arc::from(""),
            request_id_is_ours: false,
            subset: None,
            chunks: Vec::new(),
            body_bytes: 0,
            body_messages: 0,
            body_ended: false,
            body_complete: false,
            trailers_seen: false,
            parked: Vec::new(),
            is_second_try: false,
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, RequestState::Answered | RequestState::Over)
    }

    pub(super) fn give_up(&mut self) {
        self.state = RequestState::Over;
        self.chunks = Vec::new();
        self.parked = Vec::new();
    }
}

impl<L: StreamLease> Stream<L> {
    pub(super) fn on_request_headers(&mut self, message: HttpHeaders) {
        if self.request.headers.is_some() || self.request.state != RequestState::Start {
            let is_late = self.request.headers.is_none() && self.request.state == RequestState::Over;
            if is_late {
                // The response has begun without it. Nothing is left to pick, but it may wait for a reply.
                self.request.headers = Some(Arc::default());
                self.outbox.send(request_headers_reply(None));
            }
            return self.violation(Violation::UnexpectedRequestHeaders);
        }
        let headers = HeaderList::from_proto(message.headers);
        if let Some(refusal) = self.refusal_by_headers(&headers) {
            self.request.headers = Some(Arc::default());
            return self.refuse(&refusal);
        }
        self.note_request_id(headers.get_str("x-request-id"));
        self.request.headers = Some(Arc::new(headers));
        self.request.headers_owed = true;
        self.request.state = RequestState::Collecting;
        let mode = self.modes().request;
        if message.end_of_stream {
            self.request.body_ended = true;
            return self.start_pick(ReplyAt::Headers, true);
        }
        match mode {
            BodyMode::FullDuplex => {}
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                self.request.headers_owed = false;
                // Now already: should the stream fail before the pick, a gateway that fails open must not follow them.
                let reply = stripping_reply(self.request.headers.as_deref());
                self.outbox.send(reply);
            }
            BodyMode::None | BodyMode::Streamed | BodyMode::Grpc | BodyMode::Unknown => {
                self.start_pick(ReplyAt::Headers, false);
            }
        }
    }

    pub(super) fn on_request_body(&mut self, message: HttpBody) {
        if self.request.state == RequestState::Start {
            self.begin_without_headers();
        }
        if self.request.state == RequestState::Collecting {
            self.collect_body(message);
        } else {
            self.late_body(message);
        }
    }

    pub(super) fn on_request_trailers(&mut self) {
        if self.request.trailers_seen {
            return self.violation(Violation::UnexpectedRequestTrailers);
        }
        self.request.trailers_seen = true;
        if self.request.body_ended {
            self.violation(Violation::UnexpectedRequestTrailers);
        }
        if self.request.state == RequestState::Start {
            self.begin_without_headers();
        }
        if self.request.state != RequestState::Collecting {
            let reply = trailers_reply(Direction::Request, None);
            return self.send_after_answer(Outgoing::Message(Box::new(reply)));
        }
        match self.modes().request {
            BodyMode::FullDuplex => self.start_pick(ReplyAt::FullDuplex, true),
            _ => self.start_pick(ReplyAt::Trailers, true),
        }
    }

    fn begin_without_headers(&mut self) {
        self.violation(Violation::HeadersMissing);
        self.note_request_id(None);
        // The client may have sent one that wasn't shown.
        self.request.request_id_is_ours = false;
        self.request.state = RequestState::Collecting;
    }

    fn note_request_id(&mut self, sent: Option<&str>) {
        let sent = sent.filter(|id| !id.is_empty());
        self.request.request_id_is_ours = sent.is_none();
        self.request.request_id = match sent {
            Some(id) => id.into(),
            None => Arc::from(&*Uuid::new_v4().hyphenated().encode_lower(&mut Uuid::encode_buffer())),
        };
    }

    fn collect_body(&mut self, message: HttpBody) {
        let end_of_stream = message.end_of_stream;
        self.request.body_messages += 1;
        self.request.body_ended = end_of_stream;
        if !self.charge_body(message.body.len()) {
            return;
        }
        if !message.body.is_empty() {
            self.request.chunks.push(Bytes::from(message.body));
        }
        match self.modes().request {
            BodyMode::FullDuplex if end_of_stream => self.start_pick(ReplyAt::FullDuplex, true),
            BodyMode::FullDuplex => {}
            // Whole whatever its flag says: with trailers to come Envoy leaves end_of_stream unset.
            BodyMode::Buffered => self.start_pick(ReplyAt::Body, true),
            BodyMode::BufferedPartial => self.start_pick(ReplyAt::Body, end_of_stream),
            // Here only where no headers came.
            BodyMode::None | BodyMode::Streamed | BodyMode::Grpc | BodyMode::Unknown => {
                self.start_pick(ReplyAt::Body, end_of_stream);
            }
        }
    }

    /// Counts body bytes and messages; refuses and returns false when they get too many.
    fn charge_body(&mut self, bytes: usize) -> bool {
        self.tally.request_body_bytes += bytes as u64;
        self.request.body_bytes = self.request.body_bytes.saturating_add(bytes);
        let StreamLimits { max_body_bytes, max_body_chunks, .. } = self.limits;
        if self.request.body_bytes > max_body_bytes {
            self.refuse(&Refusal::body_too_large(max_body_bytes));
            return false;
        }
        if self.request.chunks.len() + self.request.parked.len() >= max_body_chunks {
            self.refuse(&Refusal::too_many_chunks(max_body_chunks));
            return false;
        }
        true
    }

    /// What the headers alone say is too large. A body that announces its length isn't waited for.
    fn refusal_by_headers(&self, headers: &HeaderList) -> Option<Refusal> {
        let StreamLimits { max_body_bytes, max_headers, max_header_bytes, .. } = self.limits;
        if headers.len() > max_headers || headers.len_bytes() > max_header_bytes {
            return Some(Refusal::headers_too_large(max_headers, max_header_bytes));
        }
        let announced: Option<u64> = headers.get_str("content-length").and_then(|length| length.parse().ok());
        let is_too_large = announced.is_some_and(|bytes| bytes > max_body_bytes as u64);
        is_too_large.then(|| Refusal::body_too_large(max_body_bytes))
    }

    /// A body message that the pick doesn't wait for.
    fn late_body(&mut self, message: HttpBody) {
        let mode = self.modes().request;
        let is_expected = matches!(mode, BodyMode::Streamed | BodyMode::Grpc | BodyMode::Unknown);
        if self.request.body_ended || self.request.trailers_seen {
            return self.violation(Violation::UnexpectedRequestBody);
        }
        self.request.body_ended = message.end_of_stream;
        if !is_expected {
            self.violation(Violation::UnexpectedRequestBody);
        }
        if mode == BodyMode::FullDuplex {
            return;
        }
        if self.request.state == RequestState::Picking && !self.charge_body(message.body.len()) {
            return;
        }
        let reply = match mode {
            BodyMode::Grpc => mirrored(Direction::Request, message),
            _ => body_reply(Direction::Request, None, None),
        };
        self.send_after_answer(Outgoing::Message(Box::new(reply)));
    }

    fn send_after_answer(&mut self, outgoing: Outgoing) {
        if self.request.state == RequestState::Picking {
            self.request.parked.push(outgoing);
        } else {
            self.outbox.push(outgoing);
        }
    }

    fn start_pick(&mut self, reply_at: ReplyAt, body_complete: bool) {
        self.request.state = RequestState::Picking;
        self.request.reply_at = reply_at;
        self.request.body_complete = body_complete;
        self.command = Some(Command::Pick);
    }

    /// The request as the picker gets it.
    pub(super) fn http_request(&self) -> HttpRequest {
        HttpRequest {
            headers: self.request.headers.clone().unwrap_or_default(),
            request_id: Arc::clone(&self.request.request_id),
            body: RequestBody::new(self.request.chunks.clone(), self.request.body_complete),
            subset: self.request.subset.clone(),
            response_body_seen: self.modes().response != BodyMode::None,
            received_at: self.received_at,
        }
    }

    /// The pick broke: once more by load, then 503.
    pub(super) fn retry_or_refuse(&mut self) {
        if std::mem::replace(&mut self.request.is_second_try, true) {
            self.request.give_up();
            self.refuse(&Refusal::inner_failure());
        } else {
            self.command = Some(Command::PickByLoad);
        }
    }

    pub(super) fn answer_request(&mut self, mut picked: Picked<L>) {
        let mut answer = Answer::new(&mut picked, self.request.headers.as_deref());
        answer.name_in(self.names.header, self.names.metadata);
        if self.request.request_id_is_ours {
            answer.set("x-request-id", self.request.request_id.as_ref().to_owned());
        }
        let can_rewrite = self.request.body_complete
            && self.request.body_messages > 0
            && matches!(self.request.reply_at, ReplyAt::FullDuplex | ReplyAt::Body);
        let rewritten = picked.body.take().filter(|_| can_rewrite);
        if let Some(body) = &rewritten {
            // Without it Envoy answers 500 in BUFFERED mode; in full duplex it drops the header.
            answer.set("content-length", body.len().to_string());
        }
        self.request.state = RequestState::Answered;
        self.response_headers = picked.response_headers;
        self.served_header = picked.served_header;
        self.lease.take_over(picked.lease);
        let chunks = std::mem::take(&mut self.request.chunks);
        match self.request.reply_at {
            ReplyAt::Headers => self.outbox.send(request_headers_reply(Some(answer))),
            ReplyAt::Body => {
                let mutation = rewritten.map(|body| Mutation::Body(Vec::from(body)));
                self.outbox.send(body_reply(Direction::Request, mutation, Some(answer)));
            }
            ReplyAt::Trailers => self.outbox.send(trailers_reply(Direction::Request, Some(answer))),
            ReplyAt::FullDuplex => {
                let chunks = rewritten.map_or(chunks, |body| vec![body]);
                self.answer_full_duplex(answer, chunks.into());
            }
        }
        for reply in std::mem::take(&mut self.request.parked) {
            self.outbox.push(reply);
        }
    }

    fn answer_full_duplex(&mut self, answer: Answer, chunks: VecDeque<Bytes>) {
        let mut answer = Some(answer);
        if self.request.headers_owed {
            self.outbox.send(request_headers_reply(answer.take()));
        }
        let end_of_stream = self.request.body_ended;
        if self.request.body_messages > 0 {
            let answer = answer.take();
            self.outbox.push(Outgoing::Echo(Echo {
                direction: Direction::Request,
                chunks,
                end_of_stream,
                answer,
            }));
        }
        if !end_of_stream {
            self.outbox.send(trailers_reply(Direction::Request, answer));
        }
    }
}
