//! The service over real TCP, with a fake picker whose behaviour the request's path chooses.

#![allow(clippy::unwrap_used, reason = "a test file, in its helper functions too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    body_mutation::Mutation,
};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status, Streaming};
use warmroute_ext_proc::stream::StreamLimits;
use warmroute_ext_proc::{
    EndpointPicker, ExtProcService, HttpRequest, Picked, Refusal, ServiceConfig, StreamEnd, StreamLease,
};

const DUPLEX: i32 = 4;
const BUFFERED: i32 = 2;
const NONE: i32 = 0;

#[derive(Debug, PartialEq, Eq)]
enum Event {
    PickStarted,
    PickDropped,
    Ended(StreamEnd),
    Released,
}

type Events = mpsc::UnboundedSender<Event>;

struct FakePicker(Events);

struct Lease(Events);

impl StreamLease for Lease {
    fn ended(&mut self, end: StreamEnd) {
        let _ = self.0.send(Event::Ended(end));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Released);
    }
}

struct DropNote(Events);

impl Drop for DropNote {
    fn drop(&mut self) {
        let _ = self.0.send(Event::PickDropped);
    }
}

impl EndpointPicker for FakePicker {
    type Lease = Lease;

    async fn pick(&self, request: HttpRequest) -> Result<Picked<Lease>, Refusal> {
        match request.path() {
            "/panic" | "/panic-twice" => panic!("a bug in the picker"),
            "/pending" => {
                let _note = DropNote(self.0.clone());
                let _ = self.0.send(Event::PickStarted);
                std::future::pending::<()>().await;
            }
            "/refuse" => {
                return Err(Refusal::new(429, "ResourceExhausted", "full").with_reason("rejected-saturated"));
            }
            _ => {}
        }
        let mut picked = Picked::new("10.0.0.1:8000", Lease(self.0.clone()));
        picked.set_headers.push(("x-body-bytes".into(), request.body.contiguous().len().to_string()));
        Ok(picked)
    }

    async fn pick_by_load(&self, request: HttpRequest) -> Result<Picked<Lease>, Refusal> {
        assert_ne!(request.path(), "/panic-twice", "a bug there too");
        Ok(Picked::new("10.0.0.2:8000", Lease(self.0.clone())))
    }
}

struct Setup {
    service: ExtProcService<FakePicker>,
    client: ExternalProcessorClient<Channel>,
    events: mpsc::UnboundedReceiver<Event>,
    _server: JoinSet<()>,
}

impl Setup {
    async fn new() -> Self {
        Self::with(ServiceConfig::default()).await
    }

    async fn with(config: ServiceConfig) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let service = ExtProcService::new(Arc::new(FakePicker(sender)), config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let serving = Server::builder()
            .add_service(service.server())
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        let mut server = JoinSet::new();
        server.spawn(async move { serving.await.unwrap() });
        let client = ExternalProcessorClient::connect(format!("http://{address}"))
            .await
            .unwrap()
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        Self { service, client, events, _server: server }
    }

    async fn open(&mut self) -> Call {
        let (sender, receiver) = mpsc::unbounded_channel();
        let replies = self.client.process(UnboundedReceiverStream::new(receiver)).await.unwrap().into_inner();
        Call { sender: Some(sender), replies }
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }
}

struct Call {
    sender: Option<mpsc::UnboundedSender<ProcessingRequest>>,
    replies: Streaming<ProcessingResponse>,
}

impl Call {
    fn send(&self, request: Request, modes: Option<(i32, i32)>) {
        let protocol_config = modes.map(|(request_body_mode, response_body_mode)| ProtocolConfiguration {
            request_body_mode,
            response_body_mode,
            ..ProtocolConfiguration::default()
        });
        let message =
            ProcessingRequest { request: Some(request), protocol_config, ..ProcessingRequest::default() };
        self.sender.as_ref().unwrap().send(message).unwrap();
    }

    fn headers(&self, path: &str, end_of_stream: bool, modes: (i32, i32)) {
        let entry = |(key, value): (&str, &str)| HeaderValue {
            key: key.into(),
            raw_value: value.into(),
            ..HeaderValue::default()
        };
        let headers = [(":path", path), (":method", "POST"), ("x-request-id", "r1")].map(entry).into();
        let headers =
            HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream, ..HttpHeaders::default() };
        self.send(Request::RequestHeaders(headers), Some(modes));
    }

    fn body(&self, body: impl Into<Vec<u8>>, end_of_stream: bool) {
        let body = HttpBody { body: body.into(), end_of_stream, ..HttpBody::default() };
        self.send(Request::RequestBody(body), None);
    }

    fn response(&self, body: &str, end_of_stream: bool) {
        let body = HttpBody { body: body.into(), end_of_stream, ..HttpBody::default() };
        self.send(Request::ResponseBody(body), None);
    }

    async fn next(&mut self) -> Result<Option<Response>, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.replies.message()).await.unwrap()?;
        Ok(message.map(|message| message.response.unwrap()))
    }

    async fn destination(&mut self) -> String {
        let reply = self.next().await.unwrap().unwrap();
        let common = match reply {
            Response::RequestHeaders(reply) => reply.response.unwrap(),
            Response::RequestBody(reply) => reply.response.unwrap(),
            other => panic!("{other:?}"),
        };
        let header = common.header_mutation.unwrap().set_headers.remove(0).header.unwrap();
        assert_eq!(header.key, "x-gateway-destination-endpoint");
        String::from_utf8(header.raw_value).unwrap()
    }

    async fn refusal(&mut self) -> (i32, String) {
        let Some(Response::ImmediateResponse(reply)) = self.next().await.unwrap() else {
            panic!("no refusal")
        };
        assert!(self.next().await.unwrap().is_none(), "the stream ends with OK after a refusal");
        (reply.status.unwrap().code, String::from_utf8(reply.body).unwrap())
    }

    async fn chunk(&mut self) -> (Vec<u8>, bool) {
        let common = match self.next().await.unwrap().unwrap() {
            Response::RequestBody(reply) | Response::ResponseBody(reply) => reply.response.unwrap(),
            other => panic!("{other:?}"),
        };
        match common.body_mutation.unwrap().mutation.unwrap() {
            Mutation::StreamedResponse(chunk) => (chunk.body, chunk.end_of_stream),
            other => panic!("{other:?}"),
        }
    }
}

fn megabytes(count: usize) -> Vec<u8> {
    (0..count * 1_000_000).map(|at| (at * 31 / 7) as u8).collect()
}

#[tokio::test]
async fn a_20_mb_body_goes_there_and_back_in_full_duplex() {
    let mut setup = Setup::new().await;
    let body = megabytes(20);
    for pieces in [1, 20] {
        let mut call = setup.open().await;
        call.headers("/", false, (DUPLEX, DUPLEX));
        body.chunks(body.len() / pieces).for_each(|piece| call.body(piece, false));
        call.body("", true);
        assert_eq!(call.destination().await, "10.0.0.1:8000");
        let mut back = Vec::new();
        loop {
            let (chunk, end_of_stream) = call.chunk().await;
            assert!(chunk.len() <= 62_000);
            back.extend(chunk);
            if end_of_stream {
                break;
            }
        }
        assert!(back == body, "the body came back changed");
        call.response("data: 1\n\n", false);
        assert_eq!(call.chunk().await, (b"data: 1\n\n".to_vec(), false));
        call.response("", true);
        assert_eq!(call.chunk().await, (vec![], true));
        call.sender = None;
        assert!(call.next().await.unwrap().is_none());
        assert_eq!(setup.event().await, Event::Ended(StreamEnd::ResponseComplete));
        assert_eq!(setup.event().await, Event::Released);
    }
    assert_eq!(setup.service.counters().picks, 2);
}

#[tokio::test]
async fn a_20_mb_body_is_taken_in_one_buffered_message() {
    let mut setup = Setup::new().await;
    let mut call = setup.open().await;
    call.headers("/", false, (BUFFERED, NONE));
    assert!(matches!(call.next().await, Ok(Some(Response::RequestHeaders(_)))));
    call.body(megabytes(20), false);
    assert_eq!(call.destination().await, "10.0.0.1:8000");
}

#[tokio::test]
async fn bodies_and_messages_over_the_limit_get_413() {
    let limits = StreamLimits { max_body_bytes: 100_000, ..StreamLimits::default() };
    let config = ServiceConfig { limits, max_message_bytes: 200_000, ..ServiceConfig::default() };
    let mut setup = Setup::with(config).await;
    for (mode, len) in [(DUPLEX, 100_001), (BUFFERED, 100_001), (DUPLEX, 300_000), (BUFFERED, 300_000)] {
        let mut call = setup.open().await;
        call.headers("/", false, (mode, NONE));
        if mode == BUFFERED {
            assert!(matches!(call.next().await, Ok(Some(Response::RequestHeaders(_)))));
        }
        call.body(vec![b'x'; len], false);
        assert_eq!(call.refusal().await.0, 413, "mode {mode}, {len} bytes");
    }
}

#[tokio::test]
async fn a_panicking_pick_falls_back_to_load_and_then_to_503() {
    let mut setup = Setup::new().await;
    let mut call = setup.open().await;
    call.headers("/panic", true, (DUPLEX, NONE));
    assert_eq!(call.destination().await, "10.0.0.2:8000");
    let mut call = setup.open().await;
    call.headers("/panic-twice", true, (DUPLEX, NONE));
    let (status, body) = call.refusal().await;
    assert_eq!(status, 503);
    assert_eq!(body, "inference error: ServiceUnavailable - the endpoint picker failed to pick an endpoint");
    let counters = setup.service.counters();
    assert_eq!((counters.picks, counters.picks_by_load, counters.inner_failures), (2, 2, 3));
}

#[tokio::test]
async fn refusals_are_counted_by_reason() {
    let mut setup = Setup::new().await;
    let mut call = setup.open().await;
    call.headers("/refuse", true, (DUPLEX, DUPLEX));
    assert_eq!(call.refusal().await, (429, "inference error: ResourceExhausted - full".into()));
    let counted = &setup.service.counters().refusals[0];
    assert_eq!((counted.status, counted.reason, counted.count), (429, Some("rejected-saturated"), 1));
}

#[tokio::test]
async fn a_reset_drops_the_pick_under_way() {
    let mut setup = Setup::new().await;
    let call = setup.open().await;
    call.headers("/pending", true, (DUPLEX, NONE));
    assert_eq!(setup.event().await, Event::PickStarted);
    drop(call);
    assert_eq!(setup.event().await, Event::PickDropped);
}

#[tokio::test]
async fn a_reset_drops_the_lease() {
    let mut setup = Setup::new().await;
    for modes in [(DUPLEX, NONE), (DUPLEX, DUPLEX)] {
        let mut call = setup.open().await;
        call.headers("/", true, modes);
        call.destination().await;
        drop(call);
        // Which of the two is a race inside the HTTP/2 library.
        let end = setup.event().await;
        assert!(matches!(end, Event::Ended(StreamEnd::GatewayClosed | StreamEnd::Cancelled)), "{end:?}");
        assert_eq!(setup.event().await, Event::Released);
    }
}

#[tokio::test]
async fn a_stream_dropped_by_its_server_drops_the_lease() {
    let (sender, mut events) = mpsc::unbounded_channel();
    let service = ExtProcService::new(Arc::new(FakePicker(sender)), ServiceConfig::default());
    let headers = HttpHeaders { end_of_stream: true, ..HttpHeaders::default() };
    let inbound = futures::stream::iter([Ok(message(Request::RequestHeaders(headers)))]);
    let mut replies = service.process_stream(inbound.chain(futures::stream::pending()));
    assert!(replies.next().await.unwrap().is_ok());
    assert_eq!(service.drain().open_streams(), 1);
    drop(replies);
    assert_eq!(events.try_recv(), Ok(Event::Ended(StreamEnd::Cancelled)));
    assert_eq!(events.try_recv(), Ok(Event::Released));
    assert_eq!(service.drain().open_streams(), 0);
}

#[tokio::test]
async fn a_panic_in_the_stream_itself_ends_with_ok_only_where_that_is_harmless() {
    for (response_mode, is_ok) in [(NONE, true), (DUPLEX, false)] {
        let (sender, mut events) = mpsc::unbounded_channel();
        let service = ExtProcService::new(Arc::new(FakePicker(sender)), ServiceConfig::default());
        let headers = HttpHeaders { end_of_stream: true, ..HttpHeaders::default() };
        let modes = ProtocolConfiguration {
            request_body_mode: DUPLEX,
            response_body_mode: response_mode,
            ..ProtocolConfiguration::default()
        };
        let first =
            ProcessingRequest { protocol_config: Some(modes), ..message(Request::RequestHeaders(headers)) };
        let broken = futures::stream::poll_fn(|_| panic!("a bug in the stream"));
        let mut replies = service.process_stream(futures::stream::iter([Ok(first)]).chain(broken));
        assert!(replies.next().await.unwrap().is_ok());
        match replies.next().await {
            None => assert!(is_ok),
            Some(end) => assert!(!is_ok && end.unwrap_err().code() == Code::Internal),
        }
        assert_eq!(events.try_recv(), Ok(Event::Ended(StreamEnd::InnerFailure)));
        assert_eq!(events.try_recv(), Ok(Event::Released));
        assert_eq!(service.counters().inner_failures, 1);
    }
}

/// Notes how streams end.
#[derive(Default)]
struct EndNotes(std::sync::Mutex<Vec<&'static str>>);

impl EndpointPicker for EndNotes {
    type Lease = ();

    async fn pick(&self, _: HttpRequest) -> Result<Picked<()>, Refusal> {
        Ok(Picked::new("10.0.0.1:8000", ()))
    }

    fn stream_ended(&self, _open_for: Duration, status: &'static str) {
        self.0.lock().unwrap().push(status);
    }
}

#[tokio::test]
async fn the_end_of_every_stream_is_told_once_with_its_status() {
    let notes = Arc::new(EndNotes::default());
    let service = ExtProcService::new(Arc::clone(&notes), ServiceConfig::default());
    let first = || {
        let headers = HttpHeaders { end_of_stream: true, ..HttpHeaders::default() };
        futures::stream::iter([Ok(message(Request::RequestHeaders(headers)))])
    };
    let answered: Vec<_> = service.process_stream(first()).collect().await;
    assert!(answered.len() == 1 && answered[0].is_ok());
    let mut left = service.process_stream(first().chain(futures::stream::pending()));
    assert!(left.next().await.unwrap().is_ok());
    drop(left);
    let broken = futures::stream::poll_fn(|_| panic!("a bug in the stream"));
    let _: Vec<_> = service.process_stream(first().chain(broken)).collect().await;
    assert_eq!(*notes.0.lock().unwrap(), ["OK", "Canceled", "Internal"]);
}

#[tokio::test]
async fn a_half_close_is_the_normal_end_of_a_lease_only_stream() {
    let mut setup = Setup::new().await;
    let mut call = setup.open().await;
    call.headers("/", true, (DUPLEX, NONE));
    call.destination().await;
    call.sender = None;
    assert!(call.next().await.unwrap().is_none());
    assert_eq!(setup.event().await, Event::Ended(StreamEnd::GatewayClosed));
    assert_eq!(setup.event().await, Event::Released);
    assert_eq!(setup.service.counters().lease_only_ends, 1);
}

#[tokio::test]
async fn lease_blind_ends_are_counted_by_time() {
    for (within, blind) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 0)] {
        let config = ServiceConfig { lease_blind_within: within, ..ServiceConfig::default() };
        let mut setup = Setup::with(config).await;
        let mut call = setup.open().await;
        call.headers("/", true, (DUPLEX, NONE));
        call.destination().await;
        call.sender = None;
        assert!(call.next().await.unwrap().is_none());
        let counters = setup.service.counters();
        assert_eq!((counters.lease_only_ends, counters.lease_blind_ends), (1, blind));
    }
}

#[tokio::test]
async fn a_drain_closes_lease_only_streams_and_waits_for_responses() {
    let mut setup = Setup::new().await;
    let drain = setup.service.drain();
    let mut lease_only = setup.open().await;
    lease_only.headers("/", true, (DUPLEX, NONE));
    lease_only.destination().await;
    let mut unanswered = setup.open().await;
    unanswered.headers("/", false, (DUPLEX, NONE));
    let mut duplex = setup.open().await;
    duplex.headers("/", true, (DUPLEX, DUPLEX));
    duplex.destination().await;
    drain.start();
    assert!(drain.is_draining());
    let mut late = setup.open().await;
    late.headers("/", true, (DUPLEX, NONE));
    late.destination().await;
    assert_eq!(drain.open_streams(), 4);
    let mut finishing = JoinSet::new();
    finishing.spawn({
        let drain = drain.clone();
        async move { drain.finish(Duration::from_secs(600)).await }
    });
    assert!(lease_only.next().await.unwrap().is_none(), "closed with OK");
    assert!(late.next().await.unwrap().is_none(), "closed with OK");
    unanswered.body("x", true);
    assert_eq!(unanswered.destination().await, "10.0.0.1:8000");
    assert_eq!(unanswered.chunk().await, (b"x".to_vec(), true));
    assert!(unanswered.next().await.unwrap().is_none(), "answered, then closed with OK");
    duplex.response("data: 1", false);
    assert_eq!(duplex.chunk().await, (b"data: 1".to_vec(), false));
    duplex.response("data: 2", true);
    assert_eq!(duplex.chunk().await, (b"data: 2".to_vec(), true));
    assert!(duplex.next().await.unwrap().is_none());
    assert_eq!(finishing.join_next().await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn at_the_drain_deadline_nothing_is_passed_off_as_whole() {
    let mut setup = Setup::new().await;
    let mut duplex = setup.open().await;
    duplex.headers("/", true, (DUPLEX, DUPLEX));
    duplex.destination().await;
    let mut unanswered = setup.open().await;
    unanswered.headers("/pending", true, (DUPLEX, DUPLEX));
    assert_eq!(setup.event().await, Event::PickStarted);
    assert_eq!(setup.service.drain().finish(Duration::ZERO).await, 0);
    assert_eq!(duplex.next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(unanswered.refusal().await.0, 503);
}

#[tokio::test]
async fn a_body_that_keeps_still_is_refused() {
    let config = ServiceConfig { body_idle_timeout: Duration::from_millis(20), ..ServiceConfig::default() };
    let mut setup = Setup::with(config).await;
    let mut call = setup.open().await;
    call.headers("/", false, (DUPLEX, DUPLEX));
    call.body("begin", false);
    assert_eq!(call.refusal().await.0, 408);
}

#[tokio::test]
async fn echoed_chunks_are_moved_and_not_copied() {
    let (sender, _events) = mpsc::unbounded_channel();
    let service = ExtProcService::new(Arc::new(FakePicker(sender)), ServiceConfig::default());
    let chunk = |body: Vec<u8>| HttpBody { body, end_of_stream: true, ..HttpBody::default() };
    let (request, response) = (vec![7; 1000], vec![8; 1000]);
    let addresses = (request.as_ptr(), response.as_ptr());
    // One after the other: a response that is already there would end the request.
    let (inbound, receiver) = mpsc::unbounded_channel();
    let mut replies = service.process_stream(UnboundedReceiverStream::new(receiver));
    inbound.send(Ok(message(Request::RequestHeaders(HttpHeaders::default())))).unwrap();
    inbound.send(Ok(message(Request::RequestBody(chunk(request))))).unwrap();
    replies.next().await.unwrap().unwrap();
    let echoed = replies.next().await.unwrap().unwrap();
    assert_eq!(address_of(&echoed), addresses.0, "request chunk");
    inbound.send(Ok(message(Request::ResponseBody(chunk(response))))).unwrap();
    let echoed = replies.next().await.unwrap().unwrap();
    assert_eq!(address_of(&echoed), addresses.1, "response chunk");
}

fn address_of(message: &ProcessingResponse) -> *const u8 {
    let Some(Response::RequestBody(reply) | Response::ResponseBody(reply)) = &message.response else {
        panic!("{message:?}")
    };
    match reply.response.as_ref().unwrap().body_mutation.as_ref().unwrap().mutation.as_ref().unwrap() {
        Mutation::StreamedResponse(chunk) => chunk.body.as_ptr(),
        other => panic!("{other:?}"),
    }
}

fn message(request: Request) -> ProcessingRequest {
    ProcessingRequest { request: Some(request), ..ProcessingRequest::default() }
}
