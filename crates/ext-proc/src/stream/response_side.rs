use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{HttpBody, HttpHeaders, StreamedBodyResponse};

use super::answer::{Direction, body_reply, response_headers_reply, streamed, trailers_reply};
use super::outbox::{Echo, Outgoing};
use super::request_side::RequestState;
use super::{Command, Stream};
use crate::{BodyMode, HeaderList, MAX_CHUNK_BYTES, StreamEnd, StreamLease, Violation};

/// What has been seen of the response.
#[derive(Debug, Default)]
pub(super) struct ResponseSide {
    pub(super) started: bool,
    headers_seen: bool,
    body_ended: bool,
    trailers_seen: bool,
    /// Whether the headers promised server-sent events.
    pub(super) is_event_stream: bool,
    /// Whether the end of the response was seen.
    pub(super) complete: bool,
}

impl<L: StreamLease> Stream<L> {
    pub(super) fn on_response_headers(&mut self, message: HttpHeaders) {
        self.begin_response();
        if std::mem::replace(&mut self.response.headers_seen, true) {
            return self.violation(Violation::UnexpectedResponseHeaders);
        }
        let headers = HeaderList::from_proto(message.headers);
        let content_type = headers.get("content-type").unwrap_or_default();
        self.response.is_event_stream = content_type.starts_with(b"text/event-stream");
        self.lease.response_headers(&headers);
        let set = std::mem::take(&mut self.response_headers);
        self.outbox.send(response_headers_reply(set));
        if message.end_of_stream {
            self.response.body_ended = true;
            self.complete_response();
        }
    }

    pub(super) fn on_response_body(&mut self, message: HttpBody) {
        self.begin_response();
        if self.response.body_ended || self.response.trailers_seen {
            return self.violation(Violation::UnexpectedResponseBody);
        }
        self.tally.response_body_bytes += message.body.len() as u64;
        self.lease.response_chunk(&message.body);
        let end_of_stream = message.end_of_stream;
        match self.modes().response {
            BodyMode::FullDuplex if message.body.len() > MAX_CHUNK_BYTES => {
                self.outbox.push(Outgoing::Echo(Echo {
                    direction: Direction::Response,
                    chunks: [Bytes::from(message.body)].into(),
                    end_of_stream,
                    answer: None,
                }));
            }
            BodyMode::FullDuplex | BodyMode::Grpc => self.outbox.send(mirrored(Direction::Response, message)),
            BodyMode::None => {
                self.violation(Violation::UnexpectedResponseBody);
                self.outbox.send(body_reply(Direction::Response, None, None));
            }
            BodyMode::Streamed | BodyMode::Buffered | BodyMode::BufferedPartial | BodyMode::Unknown => {
                self.outbox.send(body_reply(Direction::Response, None, None));
            }
        }
        if end_of_stream {
            self.response.body_ended = true;
            self.complete_response();
        }
    }

    pub(super) fn on_response_trailers(&mut self) {
        self.begin_response();
        if self.response.trailers_seen {
            return self.violation(Violation::UnexpectedResponseTrailers);
        }
        if self.response.body_ended {
            self.violation(Violation::UnexpectedResponseTrailers);
        }
        self.response.trailers_seen = true;
        self.outbox.send(trailers_reply(Direction::Response, None));
        self.complete_response();
    }

    /// A response while the request is still unanswered was made by the gateway itself. It gives
    /// the request up, and an answer (or a refusal) would now be taken for a mistake.
    fn begin_response(&mut self) {
        if std::mem::replace(&mut self.response.started, true) {
            return;
        }
        match self.request.state {
            RequestState::Start => self.violation(Violation::ResponseBeforeRequest),
            RequestState::Collecting => {}
            RequestState::Picking if self.command.is_some() => self.command = None,
            RequestState::Picking => self.command = Some(Command::AbandonPick),
            RequestState::Answered | RequestState::Over => return,
        }
        self.request.give_up();
    }

    fn complete_response(&mut self) {
        self.response.complete = true;
        self.lease.release(StreamEnd::ResponseComplete);
    }
}

/// The message sent straight back, its bytes moved and not copied.
pub(super) fn mirrored(
    direction: Direction,
    message: HttpBody,
) -> envoy_types::pb::envoy::service::ext_proc::v3::ProcessingResponse {
    let chunk = StreamedBodyResponse {
        body: message.body,
        end_of_stream: message.end_of_stream,
        end_of_stream_without_message: message.end_of_stream_without_message,
        grpc_message_compressed: message.grpc_message_compressed,
        ..StreamedBodyResponse::default()
    };
    body_reply(direction, streamed(chunk), None)
}
