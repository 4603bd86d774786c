use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{HeaderList, HttpRequest};

/// What the host implements: where shall this request go?
///
/// The stream calls [`pick`](Self::pick) exactly once per request, at the moment at which the
/// gateway's body mode has shown all that it will show. The future is polled by the stream's own
/// task and dropped when the client goes away, so whatever it has charged must be released by
/// dropping. It needs an own deadline: Envoy has none for full-duplex bodies.
pub trait EndpointPicker: Send + Sync + 'static {
    /// The in-flight charge of one request, held until the stream ends.
    type Lease: StreamLease;

    /// Chooses the endpoint for one request, or refuses it.
    fn pick(&self, request: HttpRequest)
    -> impl Future<Output = Result<Picked<Self::Lease>, Refusal>> + Send;

    /// Chooses an endpoint by load alone, without reading the body. Called after `pick` panicked
    /// or named no endpoint. Unless implemented it refuses with 503.
    fn pick_by_load(
        &self,
        request: HttpRequest,
    ) -> impl Future<Output = Result<Picked<Self::Lease>, Refusal>> + Send {
        drop(request);
        std::future::ready(Err(Refusal::inner_failure()))
    }

    /// A stream is over, with or without a pick: how long it was open, and its gRPC status by its
    /// name (`OK`, `Canceled`, `Internal`, …). Called once per stream; must be short.
    fn stream_ended(&self, open_for: Duration, status: &'static str) {
        let _ = (open_for, status);
    }
}

/// A picked endpoint and all that shall change on the request and the response.
#[derive(Debug)]
pub struct Picked<L> {
    /// `host:port` of the endpoints, best first, IPv6 hosts in brackets. Usually one: ORIGINAL_DST
    /// clusters and agentgateway refuse lists. They are joined with `,`. None counts as an inner failure.
    pub destinations: Vec<String>,
    /// Request headers to set, each replacing all values that the client sent. The destination,
    /// a missing `x-request-id` and the `content-length` of a rewritten body are set by the stream itself.
    pub set_headers: Vec<(String, String)>,
    /// Request headers to remove. The routing headers in [`crate::ROUTING_HEADERS`] are removed
    /// anyway where the client sent them and nothing sets them.
    pub remove_headers: Vec<String>,
    /// The whole body that shall go to the endpoint instead of the client's. Left out of the
    /// answer where the gateway hasn't shown the whole body (see [`crate::RequestBody::is_complete`]).
    pub body: Option<Bytes>,
    /// Response headers to set, where response headers pass through the picker.
    pub response_headers: Vec<(String, String)>,
    /// Response header that shall say which endpoint served, by the gateway's own word (the metadata beside the response
    /// headers), for tests of gateways. A gateway that doesn't say makes it begin with `fail:`.
    pub served_header: Option<&'static str>,
    /// `host:port` and score of every scored endpoint, to be told to the gateway as metadata; usually none.
    pub scores: Vec<(Arc<str>, f64)>,
    /// Dropped when the stream ends, however it ends.
    pub lease: L,
}

impl<L> Picked<L> {
    /// One destination (`host:port`) and no other change.
    pub fn new(destination: impl Into<String>, lease: L) -> Self {
        Self {
            destinations: vec![destination.into()],
            set_headers: Vec::new(),
            remove_headers: Vec::new(),
            body: None,
            response_headers: Vec::new(),
            served_header: None,
            scores: Vec::new(),
            lease,
        }
    }
}

/// A request that isn't routed: becomes an ImmediateResponse whose body is
/// `inference error: <code> - <message>`, the form of the llm-d Router picker. Refusals of what is too large, which that
/// one doesn't know, are JSON as OpenAI's API gives errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status for the client. A status that Envoy doesn't know is sent as 500.
    pub status: u16,
    /// The error's name as the peers spell it: `BadRequest`, `ServiceUnavailable`, …
    pub code: &'static str,
    /// What is wrong, for the client.
    pub message: String,
    /// Value of the response header `x-llm-d-request-dropped-reason`.
    pub reason: Option<&'static str>,
    /// The error's code in OpenAI's words; where there is one the body is JSON.
    pub openai_code: Option<&'static str>,
}

impl Refusal {
    /// A refusal without a reason header.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), reason: None, openai_code: None }
    }

    /// Adds the reason header.
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// 503 for a request that could be served neither by `pick` nor by `pick_by_load`.
    pub fn inner_failure() -> Self {
        Self::new(503, "ServiceUnavailable", "the endpoint picker failed to pick an endpoint")
    }

    /// 429 with the reason `warmroute-probe`: what a probe gets instead of a pick.
    pub(crate) fn probe() -> Self {
        Self::new(429, "ResourceExhausted", "a probe of the gateway").with_reason("warmroute-probe")
    }

    /// 413 for a body over the configured limit.
    pub fn body_too_large(limit_bytes: usize) -> Self {
        Self::too_large(format!(
            "request body exceeds the limit of {limit_bytes} bytes, which --max-request-body-bytes of the endpoint \
             picker sets"
        ))
    }

    /// 413 for a body that came in too many messages.
    pub fn too_many_chunks(limit: usize) -> Self {
        Self::too_large(format!("request body came in over {limit} chunks: send larger ones"))
    }

    /// 413 for a body in one message that is over the limit of messages, which is below that of bodies.
    pub fn message_too_large(limit_bytes: usize) -> Self {
        Self::too_large(format!(
            "request body exceeds the limit of {limit_bytes} bytes in one message, which --grpc-max-recv-msg-size of \
             the endpoint picker sets"
        ))
    }

    fn too_large(message: String) -> Self {
        let openai_code = Some("request_too_large");
        Self { openai_code, ..Self::new(413, "PayloadTooLarge", message) }
    }

    /// 431 for too many headers, or too large ones.
    pub fn headers_too_large(max_headers: usize, max_bytes: usize) -> Self {
        let message = format!(
            "request headers exceed the endpoint picker's limit of {max_headers} headers or {max_bytes} bytes"
        );
        let openai_code = Some("request_headers_too_large");
        Self { openai_code, ..Self::new(431, "RequestHeaderFieldsTooLarge", message) }
    }

    /// 408 for a body that stopped arriving.
    pub fn body_timeout() -> Self {
        Self::new(408, "RequestTimeout", "the request body did not arrive in time")
    }

    /// 503 for a request that was still waiting when the drain's deadline came.
    pub fn shutting_down() -> Self {
        Self::new(503, "ServiceUnavailable", "the endpoint picker is shutting down")
            .with_reason("rejected-shutting-down")
    }
}

/// What a request holds while it is in flight. Releasing is `Drop`; the methods only tell of
/// progress on the way. They run on the stream's task, so they must be short. One that panics
/// drops the lease and harms nothing else.
pub trait StreamLease: Send + 'static {
    /// The response headers passed. Not called where the gateway skips them.
    fn response_headers(&mut self, status: Option<u16>, headers: &HeaderList) {
        let _ = (status, headers);
    }

    /// A piece of the response body passed, split as the gateway pleased. Not called where the
    /// response body mode is NONE.
    fn response_chunk(&mut self, chunk: &[u8]) {
        let _ = chunk;
    }

    /// The stream is over; the lease is dropped right after. Called once.
    fn ended(&mut self, end: StreamEnd) {
        let _ = end;
    }
}

/// A picker with nothing to release.
impl StreamLease for () {}

/// How a stream that held a lease came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamEnd {
    /// The end of the response was seen.
    ResponseComplete,
    /// The gateway closed the stream before that. Where response bodies aren't ours this is the
    /// normal end, and a client's cancel looks the same: Envoy doesn't tell them apart.
    GatewayClosed,
    /// The stream was reset, or its connection or the server went away. Envoy ends many streams
    /// in this way after a complete response, so it says nothing about the client.
    Cancelled,
    /// A message couldn't be read.
    Unreadable,
    /// Closed by the picker itself at the end of a drain.
    Drained,
    /// Given up after a failure inside the stream's own code.
    InnerFailure,
}
