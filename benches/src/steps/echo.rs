//! The bare echo: the least that a tonic server can do to send the same messages back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Event;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Reply;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse, body_mutation::Mutation,
};
use futures::Stream;
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

/// The largest piece of a body in a reply, as the picker has it.
const CHUNK_BYTES: usize = warmroute_ext_proc::MAX_CHUNK_BYTES;

/// Answers every message by its kind alone and without looking inside.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    /// Bytes of padding that make the header reply as long as the picker's.
    pub(super) header_padding_bytes: usize,
}

impl Echo {
    /// The padding with which the header reply has this encoded size. Sizes that no padding gives (a length prefix
    /// grows) are rounded up.
    pub(super) fn padding_for(reply_bytes: usize) -> usize {
        let size = |padding: usize| {
            let reply = Reply::RequestHeaders(headers_response("x", padding));
            ProcessingResponse { response: Some(reply), ..ProcessingResponse::default() }.encoded_len()
        };
        (0..reply_bytes).find(|padding| size(*padding) >= reply_bytes).unwrap_or(0)
    }

    pub(super) fn server(&self) -> ExternalProcessorServer<Self> {
        let limit_bytes = 64 << 20;
        ExternalProcessorServer::new(self.clone())
            .max_decoding_message_size(limit_bytes)
            .max_encoding_message_size(limit_bytes)
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Echo {
    type ProcessStream = EchoStream;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<EchoStream>, Status> {
        let stream = EchoStream {
            inbound: request.into_inner(),
            header_padding_bytes: self.header_padding_bytes,
            body: Bytes::new(),
            replies: VecDeque::new(),
        };
        Ok(Response::new(stream))
    }
}

pub(super) struct EchoStream {
    inbound: Streaming<ProcessingRequest>,
    header_padding_bytes: usize,
    /// Of the request.
    body: Bytes,
    replies: VecDeque<Reply>,
}

impl Stream for EchoStream {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                let message = ProcessingResponse { response: Some(reply), ..ProcessingResponse::default() };
                return Poll::Ready(Some(Ok(message)));
            }
            match Pin::new(&mut self.inbound).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(Some(Ok(message))) => self.take(message),
            }
        }
    }
}

impl EchoStream {
    fn take(&mut self, message: ProcessingRequest) {
        match message.request {
            Some(Event::RequestHeaders(headers)) if headers.end_of_stream => self.answer(),
            // As the picker must, it keeps the request until its end is there.
            Some(Event::RequestBody(body)) if body.end_of_stream => self.answer(),
            Some(Event::RequestBody(body)) => self.body = Bytes::from(body.body),
            Some(Event::ResponseHeaders(_)) => {
                self.replies
                    .push_back(Reply::ResponseHeaders(headers_response("x-went-into-resp-headers", 4)));
            }
            Some(Event::ResponseBody(body)) => {
                self.replies.push_back(Reply::ResponseBody(streamed(body.body, body.end_of_stream)));
            }
            _ => {}
        }
    }

    fn answer(&mut self) {
        self.replies.push_back(Reply::RequestHeaders(headers_response("x", self.header_padding_bytes)));
        let mut rest = std::mem::take(&mut self.body);
        while rest.len() > CHUNK_BYTES {
            let chunk = rest.split_to(CHUNK_BYTES).to_vec();
            self.replies.push_back(Reply::RequestBody(streamed(chunk, false)));
        }
        if !rest.is_empty() {
            self.replies.push_back(Reply::RequestBody(streamed(Vec::from(rest), true)));
        }
    }
}

fn headers_response(key: &str, value_bytes: usize) -> HeadersResponse {
    let header =
        HeaderValue { key: key.to_owned(), raw_value: vec![b'x'; value_bytes], ..HeaderValue::default() };
    let set = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
    let mutation = HeaderMutation { set_headers: vec![set], ..HeaderMutation::default() };
    HeadersResponse {
        response: Some(CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() }),
    }
}

fn streamed(body: Vec<u8>, end_of_stream: bool) -> BodyResponse {
    let chunk = StreamedBodyResponse { body, end_of_stream, ..StreamedBodyResponse::default() };
    let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(chunk)) };
    BodyResponse {
        response: Some(CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() }),
    }
}
