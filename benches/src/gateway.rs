//! The other end of ext-proc: what Envoy sends for an HTTP request, many at a time over one connection.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    body_mutation::Mutation,
};
use futures::future::try_join_all;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// The number of `FULL_DUPLEX_STREAMED` among Envoy's body modes.
const FULL_DUPLEX: i32 = 4;
/// HTTP/2 windows of the cluster in Envoy's ext-proc recipes.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What is sent on each stream.
#[derive(Clone, Debug)]
pub struct Script {
    /// Request body, which comes in one message and is followed by an empty one that ends it, as from Envoy (a body up
    /// to the buffer limit of 1 MiB is one message). Empty: a request without a body.
    pub body: Vec<u8>,
    /// Where in the body a number of six digits stands that is another one on every stream.
    pub varies_at: usize,
    /// Chunks of the response, sent one after the other, each when the one before has come back. Without any, the
    /// stream ends when the request is answered.
    pub response_chunks: Vec<Vec<u8>>,
}

/// What came back on streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages.
    pub messages: usize,
    /// Their encoded sizes.
    pub bytes: usize,
    /// Encoded size of the reply to the request headers, of one stream.
    pub header_reply_bytes: usize,
}

/// A client with one connection; it runs on the thread that calls it.
pub struct Gateway {
    runtime: tokio::runtime::Runtime,
    client: ExternalProcessorClient<Channel>,
    /// Streams opened, which makes each request another one.
    opened: Cell<u32>,
}

impl Gateway {
    /// Connects.
    ///
    /// # Errors
    /// It can't.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = runtime.block_on(endpoint.connect()).context("can't connect to the server")?;
        let client = ExternalProcessorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { runtime, client, opened: Cell::new(0) })
    }

    /// Runs `streams` streams, `in_flight` at a time. Returns the sum of what came back and the wall time.
    ///
    /// # Errors
    /// A stream fails, or an answer isn't one.
    pub fn run(
        &self,
        script: &Script,
        streams: usize,
        in_flight: usize,
    ) -> anyhow::Result<(Tally, Duration)> {
        let left = Cell::new(streams);
        let total = Cell::new(Tally::default());
        let worker = || async {
            while let Some(rest) = left.get().checked_sub(1) {
                left.set(rest);
                let number = self.opened.get();
                self.opened.set(number.wrapping_add(1));
                let seen = Call::open(&self.client, script, number).await?.play().await?;
                let sum = total.get();
                total.set(Tally {
                    messages: sum.messages + seen.messages,
                    bytes: sum.bytes + seen.bytes,
                    header_reply_bytes: seen.header_reply_bytes,
                });
            }
            anyhow::Ok(())
        };
        let started = Instant::now();
        self.runtime.block_on(try_join_all((0..in_flight).map(|_| worker())))?;
        Ok((total.get(), started.elapsed()))
    }
}

/// One stream.
struct Call<'a> {
    script: &'a Script,
    sender: mpsc::UnboundedSender<ProcessingRequest>,
    replies: Streaming<ProcessingResponse>,
    tally: Tally,
}

impl<'a> Call<'a> {
    /// Sends the request, all of it at once.
    async fn open(
        client: &ExternalProcessorClient<Channel>,
        script: &'a Script,
        number: u32,
    ) -> anyhow::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let has_body = !script.body.is_empty();
        let mut headers = message(Request::RequestHeaders(request_headers(number, has_body)));
        headers.protocol_config = Some(ProtocolConfiguration {
            request_body_mode: FULL_DUPLEX,
            response_body_mode: FULL_DUPLEX,
            ..ProtocolConfiguration::default()
        });
        sender.send(headers)?;
        if has_body {
            let mut body = script.body.clone();
            let digits = format!("{}", 100_000 + number % 50_000);
            body[script.varies_at..][..digits.len()].copy_from_slice(digits.as_bytes());
            sender.send(message(Request::RequestBody(HttpBody { body, ..HttpBody::default() })))?;
            sender.send(message(Request::RequestBody(HttpBody {
                end_of_stream: true,
                ..HttpBody::default()
            })))?;
        }
        let replies = client.clone().process(UnboundedReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { script, sender, replies, tally: Tally::default() })
    }

    /// Takes the answer, plays the response, ends the stream.
    async fn play(mut self) -> anyhow::Result<Tally> {
        let reply = self.reply().await?;
        self.tally.header_reply_bytes = reply.encoded_len();
        ensure!(
            matches!(reply.response, Some(Response::RequestHeaders(_))),
            "not the reply to headers: {reply:?}"
        );
        let mut body_bytes = 0;
        while body_bytes < self.script.body.len() {
            match self.reply().await?.response {
                Some(Response::RequestBody(body)) => body_bytes += streamed_bytes(&body)?,
                other => bail!("not the reply to a body: {other:?}"),
            }
        }
        self.response().await?;
        let Self { sender, mut replies, tally, .. } = self;
        drop(sender);
        ensure!(replies.message().await?.is_none(), "more came than was asked for");
        Ok(tally)
    }

    async fn response(&mut self) -> anyhow::Result<()> {
        let Some(last) = self.script.response_chunks.len().checked_sub(1) else { return Ok(()) };
        self.sender.send(message(Request::ResponseHeaders(response_headers())))?;
        let reply = self.reply().await?;
        ensure!(
            matches!(reply.response, Some(Response::ResponseHeaders(_))),
            "not the reply to headers: {reply:?}"
        );
        for (index, chunk) in self.script.response_chunks.iter().enumerate() {
            let body = HttpBody { body: chunk.clone(), end_of_stream: index == last, ..HttpBody::default() };
            self.sender.send(message(Request::ResponseBody(body)))?;
            match self.reply().await?.response {
                Some(Response::ResponseBody(body)) => {
                    ensure!(streamed_bytes(&body)? == chunk.len(), "a chunk changed")
                }
                other => bail!("not the reply to a chunk: {other:?}"),
            }
        }
        Ok(())
    }

    async fn reply(&mut self) -> anyhow::Result<ProcessingResponse> {
        let reply = self.replies.message().await?.context("the stream ended early")?;
        self.tally.messages += 1;
        self.tally.bytes += reply.encoded_len();
        Ok(reply)
    }
}

fn message(request: Request) -> ProcessingRequest {
    ProcessingRequest { request: Some(request), ..ProcessingRequest::default() }
}

fn streamed_bytes(body: &BodyResponse) -> anyhow::Result<usize> {
    let mutation =
        body.response.as_ref().and_then(|response| response.body_mutation.as_ref()?.mutation.as_ref());
    match mutation {
        Some(Mutation::StreamedResponse(chunk)) => Ok(chunk.body.len()),
        other => bail!("not a streamed chunk: {other:?}"),
    }
}

/// The headers that a request from a usual client has behind Envoy.
fn request_headers(number: u32, has_body: bool) -> HttpHeaders {
    let id = format!("7d3b2a54-5c1f-4e0b-9a77-{number:012x}");
    let headers = [
        (":authority", "inference.example.com"),
        (":path", "/v1/completions"),
        (":method", if has_body { "POST" } else { "GET" }),
        (":scheme", "http"),
        ("user-agent", "OpenAI/Python 2.8.1"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("authorization", "Bearer sk-0123456789abcdef0123456789abcdef"),
        ("x-forwarded-for", "10.1.2.3"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", &id),
    ];
    HttpHeaders { headers: Some(header_map(&headers)), end_of_stream: !has_body, ..HttpHeaders::default() }
}

fn response_headers() -> HttpHeaders {
    let headers = [
        (":status", "200"),
        ("content-type", "text/event-stream; charset=utf-8"),
        ("date", "Fri, 20 Nov 2026 12:00:00 GMT"),
        ("server", "uvicorn"),
        ("x-envoy-upstream-service-time", "12"),
    ];
    HttpHeaders { headers: Some(header_map(&headers)), ..HttpHeaders::default() }
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let header = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    HeaderMap { headers: headers.iter().map(header).collect() }
}
