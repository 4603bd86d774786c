use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingResponse, StreamedBodyResponse};

use super::answer::{Answer, Direction, body_reply, streamed};
use crate::MAX_CHUNK_BYTES;

/// What waits to be sent, in order. Echoed bodies are cut into messages only when they are asked
/// for, so that a 20 MB body isn't held twice.
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Outgoing>,
}

pub(super) enum Outgoing {
    Message(Box<ProcessingResponse>),
    Echo(Echo),
}

impl Outbox {
    pub(super) fn push(&mut self, outgoing: Outgoing) {
        self.queue.push_back(outgoing);
    }

    pub(super) fn send(&mut self, message: ProcessingResponse) {
        self.push(Outgoing::Message(Box::new(message)));
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(super) fn next(&mut self) -> Option<ProcessingResponse> {
        if let Some(Outgoing::Echo(echo)) = self.queue.front_mut() {
            let (message, is_last) = echo.next();
            if is_last {
                self.queue.pop_front();
            }
            return Some(message);
        }
        match self.queue.pop_front()? {
            Outgoing::Message(message) => Some(*message),
            Outgoing::Echo(_) => None,
        }
    }
}

/// A body on its way back: the chunks as they came, cut only where one is over [`MAX_CHUNK_BYTES`].
/// Always gives at least one message.
pub(super) struct Echo {
    pub(super) direction: Direction,
    pub(super) chunks: VecDeque<Bytes>,
    /// Whether the last message ends the stream's direction (no trailers follow).
    pub(super) end_of_stream: bool,
    /// Goes with the first message, where no headers message was there to carry it.
    pub(super) answer: Option<Answer>,
}

impl Echo {
    fn next(&mut self) -> (ProcessingResponse, bool) {
        let body = match self.chunks.front_mut() {
            Some(chunk) if chunk.len() > MAX_CHUNK_BYTES => chunk.split_to(MAX_CHUNK_BYTES).to_vec(),
            // Without a copy if nobody else holds the chunk any more.
            Some(_) => self.chunks.pop_front().map(Vec::from).unwrap_or_default(),
            None => Vec::new(),
        };
        let is_last = self.chunks.is_empty();
        let chunk = StreamedBodyResponse {
            body,
            end_of_stream: is_last && self.end_of_stream,
            ..StreamedBodyResponse::default()
        };
        (body_reply(self.direction, streamed(chunk), self.answer.take()), is_last)
    }
}
