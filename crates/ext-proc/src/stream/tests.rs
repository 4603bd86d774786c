use std::sync::{Arc, Mutex};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    CommonResponse, HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProtocolConfiguration,
    body_mutation::Mutation,
};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};

use super::*;
use crate::{HeaderList, MAX_CHUNK_BYTES};

const NONE: i32 = 0;
const STREAMED: i32 = 1;
const BUFFERED: i32 = 2;
const PARTIAL: i32 = 3;
const DUPLEX: i32 = 4;
const GRPC: i32 = 5;
const FUTURE_MODE: i32 = 77;

type Log = Arc<Mutex<Vec<String>>>;

struct LoggingLease(Log);

impl LoggingLease {
    fn log(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }
}

impl StreamLease for LoggingLease {
    fn response_headers(&mut self, status: Option<u16>, _headers: &HeaderList) {
        self.log(format!("headers {status:?}"));
    }
    fn response_chunk(&mut self, chunk: &[u8]) {
        self.log(format!("chunk {}", chunk.len()));
    }
    fn ended(&mut self, end: StreamEnd) {
        self.log(format!("ended {end:?}"));
    }
}

impl Drop for LoggingLease {
    fn drop(&mut self) {
        self.log("dropped");
    }
}

/// A stream fed by hand. `sent` writes replies down in a short form.
struct Bench {
    stream: Stream<LoggingLease>,
    modes: Option<(i32, i32)>,
    log: Log,
}

impl Bench {
    fn new(request_mode: i32, response_mode: i32) -> Self {
        Self::limited(request_mode, response_mode, StreamLimits::default())
    }

    fn limited(request_mode: i32, response_mode: i32, limits: StreamLimits) -> Self {
        let stream = Stream::new(limits, Instant::now());
        Self { stream, modes: Some((request_mode, response_mode)), log: Log::default() }
    }

    fn feed(&mut self, request: Option<Request>, subset: Option<Metadata>) {
        let config = self.modes.take().map(|(request_body_mode, response_body_mode)| ProtocolConfiguration {
            request_body_mode,
            response_body_mode,
            ..ProtocolConfiguration::default()
        });
        self.stream.on_message(ProcessingRequest {
            request,
            protocol_config: config,
            metadata_context: subset,
            ..ProcessingRequest::default()
        });
    }

    fn headers(&mut self, eos: bool) {
        self.feed(
            Some(Request::RequestHeaders(headers(&[(":path", "/v1/x"), ("x-request-id", "r1")], eos))),
            None,
        );
    }

    fn body(&mut self, body: &str, eos: bool) {
        self.feed(Some(Request::RequestBody(chunk(body.as_bytes(), eos))), None);
    }

    fn trailers(&mut self) {
        self.feed(Some(Request::RequestTrailers(HttpTrailers::default())), None);
    }

    fn response_headers(&mut self, eos: bool) {
        self.feed(Some(Request::ResponseHeaders(headers(&[(":status", "200")], eos))), None);
    }

    fn response_body(&mut self, body: &str, eos: bool) {
        self.feed(Some(Request::ResponseBody(chunk(body.as_bytes(), eos))), None);
    }

    fn response_trailers(&mut self) {
        self.feed(Some(Request::ResponseTrailers(HttpTrailers::default())), None);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.stream.next_action()).collect()
    }

    fn sent(&mut self) -> Vec<String> {
        self.actions().iter().map(describe).collect()
    }

    fn picked(&self) -> Picked<LoggingLease> {
        Picked::new("10.0.0.1:8000", LoggingLease(Arc::clone(&self.log)))
    }

    fn pick(&mut self) {
        let picked = self.picked();
        self.stream.on_pick(Ok(picked));
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn violations(&self) -> Vec<Violation> {
        let counts = self.stream.tally().violations;
        Violation::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).map(|(kind, _)| kind).collect()
    }
}

fn headers(pairs: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let entry = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    let map = HeaderMap { headers: pairs.iter().map(entry).collect() };
    HttpHeaders { headers: Some(map), end_of_stream, ..HttpHeaders::default() }
}

fn chunk(body: &[u8], end_of_stream: bool) -> HttpBody {
    HttpBody { body: body.to_vec(), end_of_stream, ..HttpBody::default() }
}

fn text(string: &str) -> Value {
    Value { kind: Some(Kind::StringValue(string.into())) }
}

fn hint(value: Value) -> Metadata {
    let fields = [("x-gateway-destination-endpoint-subset".to_owned(), value)].into();
    Metadata {
        filter_metadata: [("envoy.lb.subset_hint".to_owned(), Struct { fields })].into(),
        ..Metadata::default()
    }
}

fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn destination_of(message: &ProcessingResponse) -> Option<String> {
    let lb = message.dynamic_metadata.as_ref()?.fields.get("envoy.lb")?.kind.as_ref()?;
    let Kind::StructValue(lb) = lb else { return None };
    match lb.fields.get("x-gateway-destination-endpoint")?.kind.as_ref()? {
        Kind::StringValue(destination) => Some(destination.clone()),
        _ => None,
    }
}

fn set_headers(common: &CommonResponse) -> Vec<(String, String)> {
    let mutation = common.header_mutation.clone().unwrap_or_default();
    let header = |header: HeaderValue| (header.key, String::from_utf8(header.raw_value).unwrap());
    mutation.set_headers.into_iter().map(|option| header(option.header.unwrap())).collect()
}

fn describe_common(kind: &str, message: &ProcessingResponse, common: Option<&CommonResponse>) -> String {
    let common = common.unwrap();
    let mut line = kind.to_owned();
    if let Some(destination) = destination_of(message) {
        let header = set_headers(common).into_iter().find(|(name, _)| name == crate::DESTINATION_HEADER);
        assert_eq!(header.map(|(_, value)| value), Some(destination.clone()), "header and metadata differ");
        assert!(common.clear_route_cache);
        line += &format!(" to {destination}");
    }
    match common.body_mutation.as_ref().and_then(|mutation| mutation.mutation.as_ref()) {
        None => {}
        Some(Mutation::Body(body)) => line += &format!(" body={}", String::from_utf8_lossy(body)),
        Some(Mutation::ClearBody(_)) => line += " clear",
        Some(Mutation::StreamedResponse(chunk)) => {
            let shown = if chunk.body.len() > 20 {
                format!("<{}>", chunk.body.len())
            } else {
                String::from_utf8_lossy(&chunk.body).into_owned()
            };
            line += &format!(" chunk={shown}{}", if chunk.end_of_stream { " eos" } else { "" });
        }
    }
    line
}

fn describe(action: &Action) -> String {
    let message = match action {
        Action::Send(message) => message,
        Action::Pick(request) => {
            let body = String::from_utf8_lossy(request.body.contiguous()).into_owned();
            let body = if body.len() > 20 { format!("<{}>", body.len()) } else { body };
            return format!("PICK {body:?}{}", if request.body.is_complete() { "" } else { " incomplete" });
        }
        Action::PickByLoad(_) => return "PICK BY LOAD".into(),
        Action::AbandonPick => return "ABANDON".into(),
        Action::Close(end) => return format!("CLOSE {end:?}"),
        Action::Abort(end) => return format!("ABORT {end:?}"),
    };
    match message.response.as_ref().unwrap() {
        Response::RequestHeaders(reply) => describe_common("headers", message, reply.response.as_ref()),
        Response::RequestBody(reply) => describe_common("body", message, reply.response.as_ref()),
        Response::RequestTrailers(_) => {
            format!("trailers{}", destination_of(message).map(|to| format!(" to {to}")).unwrap_or_default())
        }
        Response::ResponseHeaders(reply) => describe_common("<headers", message, reply.response.as_ref()),
        Response::ResponseBody(reply) => describe_common("<body", message, reply.response.as_ref()),
        Response::ResponseTrailers(_) => "<trailers".into(),
        Response::ImmediateResponse(reply) => describe_refusal(reply),
        Response::StreamedImmediateResponse(_) => "?".into(),
    }
}

fn describe_refusal(reply: &ImmediateResponse) -> String {
    let body = String::from_utf8_lossy(&reply.body);
    let reason = reply.headers.as_ref().map(|mutation| {
        let header = mutation.set_headers[0].header.clone().unwrap();
        format!(" [{}: {}]", header.key, String::from_utf8(header.raw_value).unwrap())
    });
    format!("{} {body}{}", reply.status.unwrap().code, reason.unwrap_or_default())
}

const TO: &str = "headers to 10.0.0.1:8000";

#[test]
fn full_duplex_answers_at_the_end_of_the_body() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("one", false);
    assert!(bench.sent().is_empty());
    bench.body("two", false);
    bench.body("", true);
    assert_eq!(bench.sent(), ["PICK \"onetwo\""]);
    bench.pick();
    assert_eq!(bench.sent(), [TO, "body chunk=one", "body chunk=two eos"]);
    bench.response_headers(false);
    bench.response_body("data: 1", false);
    bench.response_body("", true);
    assert_eq!(bench.sent(), ["<headers", "<body chunk=data: 1", "<body chunk= eos"]);
    assert_eq!(bench.log(), ["headers Some(200)", "chunk 7", "chunk 0", "ended ResponseComplete", "dropped"]);
    bench.stream.on_gateway_end();
    assert_eq!(bench.sent(), ["CLOSE GatewayClosed"]);
    assert!(bench.violations().is_empty());
}

#[test]
fn untold_modes_mean_full_duplex() {
    let mut bench = Bench::new(NONE, NONE);
    bench.modes = None;
    bench.headers(false);
    assert!(bench.sent().is_empty());
    bench.body("x", true);
    assert_eq!(bench.sent(), ["PICK \"x\""]);
}

#[test]
fn full_duplex_zero_bytes_are_one_empty_chunk() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("", true);
    assert_eq!(bench.sent(), ["PICK \"\""]);
    bench.pick();
    assert_eq!(bench.sent(), [TO, "body chunk= eos"]);
}

#[test]
fn full_duplex_cuts_at_62_000_bytes() {
    for (len, want) in [
        (MAX_CHUNK_BYTES, vec!["body chunk=<62000> eos"]),
        (MAX_CHUNK_BYTES + 1, vec!["body chunk=<62000>", "body chunk=a eos"]),
        (2 * MAX_CHUNK_BYTES, vec!["body chunk=<62000>", "body chunk=<62000> eos"]),
    ] {
        let mut bench = Bench::new(DUPLEX, DUPLEX);
        bench.headers(false);
        bench.body(&"a".repeat(len), true);
        bench.sent();
        bench.pick();
        assert_eq!(bench.sent()[1..], want[..], "{len} request bytes");
        bench.response_headers(false);
        bench.response_body(&"a".repeat(len), true);
        let want: Vec<_> = want.iter().map(|line| format!("<{line}")).collect();
        assert_eq!(bench.sent()[1..], want[..], "{len} response bytes");
    }
}

#[test]
fn request_trailers_end_a_full_duplex_body() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("abc", false);
    bench.trailers();
    assert_eq!(bench.sent(), ["PICK \"abc\""]);
    bench.pick();
    assert_eq!(bench.sent(), [TO, "body chunk=abc", "trailers"]);
    assert!(bench.violations().is_empty());
}

#[test]
fn trailers_without_a_body_message_get_no_body_reply() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.trailers();
    assert_eq!(bench.sent(), ["PICK \"\""]);
    bench.pick();
    assert_eq!(bench.sent(), [TO, "trailers"]);
}

#[test]
fn headers_that_end_the_request_get_one_answer_in_every_mode() {
    for mode in [NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX, GRPC, FUTURE_MODE] {
        let mut bench = Bench::new(mode, NONE);
        bench.headers(true);
        assert_eq!(bench.sent(), ["PICK \"\""], "mode {mode}");
        bench.pick();
        assert_eq!(bench.sent(), [TO], "mode {mode}");
    }
}

#[test]
fn buffered_answers_headers_at_once_and_the_destination_at_the_body() {
    for eos in [true, false] {
        let mut bench = Bench::new(BUFFERED, NONE);
        bench.headers(false);
        assert_eq!(bench.sent(), ["headers"]);
        bench.body("whole", eos);
        assert_eq!(bench.sent(), ["PICK \"whole\""]);
        if !eos {
            bench.trailers();
        }
        bench.pick();
        let mut want = vec!["body to 10.0.0.1:8000"];
        want.extend((!eos).then_some("trailers"));
        assert_eq!(bench.sent(), want);
        assert!(bench.stream.holds_lease());
        assert!(bench.violations().is_empty());
    }
}

#[test]
fn buffered_trailers_alone_are_answered_with_metadata() {
    let mut bench = Bench::new(BUFFERED, NONE);
    bench.headers(false);
    bench.trailers();
    assert_eq!(bench.sent(), ["PICK \"\"", "headers"]);
    bench.pick();
    assert_eq!(bench.sent(), ["trailers to 10.0.0.1:8000"]);
}

#[test]
fn partial_bodies_are_picked_for_as_incomplete() {
    let mut bench = Bench::new(PARTIAL, NONE);
    bench.headers(false);
    bench.body("begin", false);
    assert_eq!(bench.sent(), ["PICK \"begin\" incomplete", "headers"]);
    let mut picked = bench.picked();
    picked.body = Some(Bytes::from("rewritten"));
    bench.stream.on_pick(Ok(picked));
    assert_eq!(bench.sent(), ["body to 10.0.0.1:8000"], "a part can't be replaced by a whole");
}

#[test]
fn modes_that_want_the_destination_at_the_headers_are_picked_without_a_body() {
    for (mode, body) in [
        (STREAMED, vec!["body", "body", "trailers"]),
        (FUTURE_MODE, vec!["body", "body", "trailers"]),
        (NONE, vec!["body", "body", "trailers"]),
        (GRPC, vec!["body chunk=a", "body chunk=b", "trailers"]),
    ] {
        let mut bench = Bench::new(mode, NONE);
        bench.headers(false);
        assert_eq!(bench.sent(), ["PICK \"\" incomplete"], "mode {mode}");
        bench.body("a", false);
        assert!(bench.sent().is_empty(), "not before the headers' answer");
        bench.pick();
        bench.body("b", false);
        bench.trailers();
        let sent = bench.sent();
        assert_eq!(sent[0], TO);
        assert_eq!(sent[1..], body[..], "mode {mode}");
    }
}

#[test]
fn a_rewritten_body_brings_its_length() {
    for (mode, want) in
        [(DUPLEX, "body chunk=rewritten eos"), (BUFFERED, "body to 10.0.0.1:8000 body=rewritten")]
    {
        let mut bench = Bench::new(mode, NONE);
        bench.headers(false);
        bench.body("original", true);
        bench.sent();
        let mut picked = bench.picked();
        picked.body = Some(Bytes::from("rewritten"));
        bench.stream.on_pick(Ok(picked));
        let actions = bench.actions();
        assert_eq!(describe(actions.last().unwrap()), want);
        let Action::Send(first) = &actions[0] else { panic!("no reply") };
        let common = match first.response.as_ref().unwrap() {
            Response::RequestHeaders(reply) => reply.response.as_ref(),
            Response::RequestBody(reply) => reply.response.as_ref(),
            other => panic!("{other:?}"),
        };
        assert!(set_headers(common.unwrap()).contains(&("content-length".into(), "9".into())));
    }
}

#[test]
fn too_large_bodies_are_refused() {
    let limits = StreamLimits { max_body_bytes: 10, max_body_chunks: 4, ..StreamLimits::default() };
    for mode in [DUPLEX, BUFFERED] {
        let mut bench = Bench::limited(mode, NONE, limits);
        bench.headers(false);
        bench.body("01234567890", false);
        let sent = bench.sent();
        let [.., refusal, close] = sent.as_slice() else { panic!("{sent:?}") };
        let body =
            refusal.strip_prefix("413 ").unwrap().strip_suffix(" [content-type: application/json]").unwrap();
        let message = "request body exceeds the limit of 10 bytes, which --max-request-body-bytes of the endpoint picker sets";
        let error = serde_json::json!({"message": message, "type": "invalid_request_error", "param": null,
            "code": "request_too_large"});
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(body).unwrap(),
            serde_json::json!({"error": error})
        );
        assert_eq!(close, "CLOSE GatewayClosed", "mode {mode}");
        assert_eq!(bench.stream.tally().refusal, Some((413, None)));
    }
    let mut bench = Bench::limited(DUPLEX, DUPLEX, limits);
    bench.headers(false);
    (0..5).for_each(|_| bench.body("1", false));
    assert!(bench.sent()[0].contains("came in over 4 chunks"), "too many chunks");
    for (limit, words) in
        [(11, "--max-request-body-bytes"), (10, "10 bytes in one message, which --grpc-max-recv-msg-size")]
    {
        let mut bench = Bench::limited(DUPLEX, DUPLEX, limits);
        bench.headers(false);
        bench.stream.on_unreadable(Some(limit));
        let sent = bench.sent();
        assert!(sent[0].starts_with("413") && sent[0].contains(words), "{sent:?}");
    }
}

#[test]
fn a_body_that_announces_too_much_is_not_waited_for() {
    let limits = StreamLimits { max_body_bytes: 10, ..StreamLimits::default() };
    for mode in [DUPLEX, BUFFERED, PARTIAL, STREAMED, NONE, GRPC, FUTURE_MODE] {
        let length = |length: &str| {
            let mut bench = Bench::limited(mode, NONE, limits);
            bench.feed(Some(Request::RequestHeaders(headers(&[("content-length", length)], false))), None);
            bench.sent()
        };
        let refused = length("11");
        assert!(refused[0].starts_with("413") && refused[1] == "CLOSE GatewayClosed", "{mode}: {refused:?}");
        for taken in ["10", "many", "-1"] {
            assert!(!length(taken).iter().any(|line| line.starts_with("413")), "{mode}: {taken}");
        }
    }
}

#[test]
fn too_many_or_too_large_headers_get_431() {
    let limits = StreamLimits { max_headers: 3, max_header_bytes: 20, ..StreamLimits::default() };
    let with = |pairs: &[(&str, &str)]| {
        let mut bench = Bench::limited(BUFFERED, NONE, limits);
        bench.feed(Some(Request::RequestHeaders(headers(pairs, false))), None);
        bench.sent()
    };
    assert_eq!(with(&[("a", "1"), ("b", "2"), ("c", &"3".repeat(15))]), ["headers"]);
    for pairs in [&[("a", "1"); 4][..], &[("a", &*"1".repeat(20))]] {
        let sent = with(pairs);
        let words = "request headers exceed the endpoint picker's limit of 3 headers or 20 bytes";
        assert!(sent[0].starts_with("431") && sent[0].contains(words), "{sent:?}");
        assert_eq!(sent[1], "CLOSE GatewayClosed");
    }
}

/// A gateway that fails open would follow them if the stream broke before the pick, and after a request of headers and
/// trailers, whose destination can only be told as metadata.
#[test]
fn where_headers_are_answered_early_the_clients_routing_headers_go_at_once() {
    for mode in [BUFFERED, PARTIAL] {
        let mut bench = Bench::new(mode, NONE);
        let sent =
            [("X-Gateway-Destination-Endpoint", "192.0.2.1:1"), ("x-prefiller-url", "b"), ("x-other", "c")];
        bench.feed(Some(Request::RequestHeaders(headers(&sent, false))), None);
        let Some(Action::Send(ProcessingResponse {
            response: Some(Response::RequestHeaders(reply)), ..
        })) = bench.actions().pop()
        else {
            panic!("no reply")
        };
        let common = reply.response.unwrap();
        let mutation = common.header_mutation.unwrap();
        assert_eq!(mutation.remove_headers, ["x-gateway-destination-endpoint", "x-prefiller-url"]);
        assert!(mutation.set_headers.is_empty() && !common.clear_route_cache);
        bench.trailers();
        bench.sent();
        bench.pick();
        assert_eq!(bench.sent(), ["trailers to 10.0.0.1:8000"]);
    }
}

#[test]
fn scores_are_told_as_metadata_beside_the_destination() {
    let mut bench = Bench::new(NONE, NONE);
    bench.headers(true);
    bench.sent();
    let mut picked = bench.picked();
    picked.scores = vec![("10.0.0.1:8000".into(), 1.5), ("[fd00::1]:8000".into(), 0.0)];
    bench.stream.on_pick(Ok(picked));
    let Some(Action::Send(message)) = bench.actions().into_iter().next() else { panic!("no reply") };
    assert_eq!(destination_of(&message).as_deref(), Some("10.0.0.1:8000"));
    let Some(Kind::StructValue(lb)) = &message.dynamic_metadata.unwrap().fields["envoy.lb"].kind else {
        panic!()
    };
    let Some(Kind::StructValue(scores)) = &lb.fields["x-gateway-destination-endpoint-scores"].kind else {
        panic!()
    };
    let score = |endpoint: &str| scores.fields[endpoint].kind.clone();
    assert_eq!(score("10.0.0.1:8000"), Some(Kind::NumberValue(1.5)));
    assert_eq!(score("[fd00::1]:8000"), Some(Kind::NumberValue(0.0)));
    assert_eq!(scores.fields.len(), 2);
}

#[test]
fn a_refusal_is_one_immediate_response_and_a_close() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("x", true);
    bench.sent();
    let refusal = Refusal::new(503, "ServiceUnavailable", "nobody").with_reason("rejected-no-endpoints");
    bench.stream.on_pick(Err(refusal));
    assert_eq!(
        bench.sent(),
        [
            "503 inference error: ServiceUnavailable - nobody [x-llm-d-request-dropped-reason: rejected-no-endpoints]",
            "CLOSE GatewayClosed"
        ]
    );
    bench.response_headers(false);
    assert!(bench.sent().is_empty(), "nothing after the close");
}

#[test]
fn a_status_unknown_to_envoy_becomes_500() {
    let mut bench = Bench::new(NONE, NONE);
    bench.headers(true);
    bench.sent();
    bench.stream.on_pick(Err(Refusal::new(499, "X", "y")));
    assert_eq!(bench.sent()[0], "500 inference error: X - y");
}

#[test]
fn no_refusal_once_the_response_has_begun() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("x", true);
    assert_eq!(bench.sent(), ["PICK \"x\""]);
    bench.response_headers(false);
    assert_eq!(bench.sent(), ["ABANDON", "<headers"]);
    bench.stream.on_pick(Err(Refusal::inner_failure()));
    bench.stream.on_inner_failure();
    bench.stream.on_body_timeout();
    assert!(bench.sent().is_empty());
    bench.pick();
    assert!(bench.sent().is_empty());
    assert_eq!(bench.log(), ["dropped"], "a pick that comes too late is released");
}

#[test]
fn a_response_before_its_pick_was_started_cancels_it() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("x", true);
    bench.response_headers(true);
    assert_eq!(bench.sent(), ["<headers"]);
}

#[test]
fn client_sent_routing_headers_go_and_others_stay_untouched() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    let sent = [
        ("x-gateway-destination-endpoint", "10.9.9.9:1"),
        ("X-Prefiller-Host-Port", "10.9.9.9:1"),
        ("x-encoder-hosts-ports", "10.9.9.9:1"),
        ("x-data-parallel-host-port", "10.9.9.9:1"),
        ("x-llm-d-inference-objective", "batch"),
        ("X-Gateway-Inference-Fairness-Id", "me"),
        ("X-Gateway-Inference-Fairness-Id", "and me"),
        ("x-slo-ttft-ms", "5"),
        ("x-slo-limit", "for the engine"),
        ("x-dup", "1"),
        ("x-dup", "2"),
        ("x-request-id", ""),
    ];
    bench.feed(Some(Request::RequestHeaders(headers(&sent, true))), None);
    let actions = bench.actions();
    let Action::Pick(request) = &actions[0] else { panic!("no pick") };
    let request_id = request.request_id.to_string();
    assert_eq!(request_id.len(), 36);
    let mut picked = bench.picked();
    picked.set_headers = vec![("x-encoder-hosts-ports".into(), "e:1".into())];
    picked.remove_headers = vec!["x-secret".into()];
    bench.stream.on_pick(Ok(picked));
    let actions = bench.actions();
    let Action::Send(ProcessingResponse { response: Some(Response::RequestHeaders(reply)), .. }) =
        &actions[0]
    else {
        panic!("no reply")
    };
    let common = reply.response.as_ref().unwrap();
    let set: Vec<_> = set_headers(common);
    let want = [
        ("x-gateway-destination-endpoint", "10.0.0.1:8000"),
        ("x-encoder-hosts-ports", "e:1"),
        ("x-request-id", request_id.as_str()),
    ];
    assert_eq!(set, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let removed = &common.header_mutation.as_ref().unwrap().remove_headers;
    let routing = ["x-secret", "x-prefiller-host-port", "x-data-parallel-host-port"];
    let control = ["x-llm-d-inference-objective", "X-Gateway-Inference-Fairness-Id", "x-slo-ttft-ms"];
    assert_eq!(*removed, [routing, control].concat());
}

#[test]
fn several_destinations_are_joined() {
    let mut bench = Bench::new(NONE, NONE);
    bench.headers(true);
    bench.sent();
    let mut picked = bench.picked();
    picked.destinations.push("[fd00::1]:8000".into());
    bench.stream.on_pick(Ok(picked));
    assert_eq!(bench.sent(), ["headers to 10.0.0.1:8000,[fd00::1]:8000"]);
}

#[test]
fn subset_hints() {
    let subset = |metadata: Option<Metadata>| {
        let mut bench = Bench::new(DUPLEX, NONE);
        bench.feed(Some(Request::RequestHeaders(headers(&[], true))), metadata);
        let Some(Action::Pick(request)) = bench.actions().pop() else { panic!("no pick") };
        request.subset
    };
    assert_eq!(subset(None), None);
    assert_eq!(subset(Some(Metadata::default())), None);
    assert_eq!(subset(Some(hint(text("10.0.0.1:80")))), None, "not a list");
    assert_eq!(subset(Some(hint(list(vec![])))), Some(vec![]));
    let mixed = list(vec![text("a:1"), Value { kind: Some(Kind::NumberValue(1.0)) }, Value { kind: None }]);
    assert_eq!(subset(Some(hint(mixed))), Some(vec!["a:1".into()]));
    // On a later message of the request it counts as well, and the last one wins.
    let mut bench = Bench::new(DUPLEX, NONE);
    bench.feed(Some(Request::RequestHeaders(headers(&[], false))), Some(hint(list(vec![text("a:1")]))));
    bench.feed(Some(Request::RequestBody(chunk(b"", false))), None);
    bench.feed(Some(Request::RequestBody(chunk(b"", true))), Some(hint(list(vec![text("b:1")]))));
    let Some(Action::Pick(request)) = bench.actions().pop() else { panic!("no pick") };
    assert_eq!(request.subset, Some(vec!["b:1".into()]));
}

#[test]
fn a_failed_pick_is_tried_by_load_and_then_refused() {
    let mut bench = Bench::new(BUFFERED, NONE);
    bench.headers(false);
    bench.body("x", true);
    bench.sent();
    bench.stream.on_inner_failure();
    assert_eq!(bench.sent(), ["PICK BY LOAD"]);
    bench.stream.on_inner_failure();
    assert!(bench.sent()[0].starts_with("503 inference error: ServiceUnavailable"));
    // A pick that names nobody counts as failed too.
    let mut bench = Bench::new(BUFFERED, NONE);
    bench.headers(true);
    bench.sent();
    let mut picked = bench.picked();
    picked.destinations.clear();
    bench.stream.on_pick(Ok(picked));
    assert_eq!(bench.sent(), ["PICK BY LOAD"]);
    bench.pick();
    assert_eq!(bench.sent(), [TO]);
}

#[test]
fn response_bodies_in_each_mode() {
    for (mode, want) in [
        (DUPLEX, vec!["<headers", "<body chunk=a", "<body chunk=b eos"]),
        (GRPC, vec!["<headers", "<body chunk=a", "<body chunk=b eos"]),
        (STREAMED, vec!["<headers", "<body", "<body"]),
        (BUFFERED, vec!["<headers", "<body", "<body"]),
        (PARTIAL, vec!["<headers", "<body", "<body"]),
        (FUTURE_MODE, vec!["<headers", "<body", "<body"]),
        (NONE, vec!["<headers", "<body", "<body"]),
    ] {
        let mut bench = Bench::new(NONE, mode);
        bench.headers(true);
        bench.sent();
        bench.pick();
        bench.sent();
        bench.response_headers(false);
        bench.response_body("a", false);
        bench.response_body("b", true);
        assert_eq!(bench.sent(), want, "mode {mode}");
        assert_eq!(bench.log().last().unwrap(), "dropped");
        assert_eq!(bench.violations().is_empty(), mode != NONE, "mode {mode}");
        assert_eq!(bench.stream.tally().response_body_bytes, 2);
    }
}

#[test]
fn response_trailers_come_after_chunks_without_eos() {
    let mut bench = Bench::new(NONE, DUPLEX);
    bench.headers(true);
    bench.sent();
    bench.pick();
    bench.sent();
    bench.response_headers(false);
    bench.response_body("a", false);
    bench.response_trailers();
    assert_eq!(bench.sent(), ["<headers", "<body chunk=a", "<trailers"]);
    assert_eq!(bench.log().last().unwrap(), "dropped");
}

#[test]
fn responses_without_a_body_are_complete_at_their_headers() {
    let mut bench = Bench::new(NONE, DUPLEX);
    bench.headers(true);
    bench.sent();
    let mut picked = bench.picked();
    picked.response_headers = vec![("x-session-token".into(), "t".into())];
    bench.stream.on_pick(Ok(picked));
    bench.sent();
    bench.response_headers(true);
    let actions = bench.actions();
    let Action::Send(ProcessingResponse { response: Some(Response::ResponseHeaders(reply)), .. }) =
        &actions[0]
    else {
        panic!("no reply")
    };
    let want = [("x-went-into-resp-headers", "true"), ("x-session-token", "t")];
    assert_eq!(set_headers(reply.response.as_ref().unwrap()), want.map(|(a, b)| (a.into(), b.into())));
    assert_eq!(bench.log(), ["headers Some(200)", "ended ResponseComplete", "dropped"]);
}

#[test]
fn lease_only_streams_hold_the_lease_to_the_gateways_end() {
    let mut bench = Bench::new(DUPLEX, NONE);
    bench.headers(true);
    bench.sent();
    assert_eq!(bench.stream.lease_watch(), LeaseWatch::Unwatched);
    bench.pick();
    bench.sent();
    assert_eq!(bench.stream.lease_watch(), LeaseWatch::Answered);
    assert!(bench.log().is_empty());
    bench.stream.on_gateway_end();
    assert_eq!(bench.sent(), ["CLOSE GatewayClosed"]);
    assert_eq!(bench.log(), ["ended GatewayClosed", "dropped"]);
}

#[test]
fn lease_watch_knows_event_streams() {
    for (kind, want) in [
        ("text/event-stream; charset=utf-8", LeaseWatch::EventStreamBegun),
        ("application/json", LeaseWatch::ResponseBegun),
    ] {
        let mut bench = Bench::new(DUPLEX, NONE);
        bench.headers(true);
        bench.sent();
        bench.pick();
        bench.feed(Some(Request::ResponseHeaders(headers(&[("content-type", kind)], false))), None);
        assert_eq!(bench.stream.lease_watch(), want);
    }
}

#[test]
fn dropping_the_stream_drops_the_lease() {
    let mut bench = Bench::new(DUPLEX, NONE);
    bench.headers(true);
    bench.sent();
    bench.pick();
    let log = Arc::clone(&bench.log);
    drop(bench);
    assert_eq!(*log.lock().unwrap(), ["ended Cancelled", "dropped"]);
}

#[test]
fn a_drain_closes_lease_only_streams_after_their_answer() {
    let mut bench = Bench::new(DUPLEX, NONE);
    bench.headers(false);
    bench.stream.on_drain();
    bench.body("x", true);
    assert_eq!(bench.sent(), ["PICK \"x\""]);
    bench.pick();
    assert_eq!(bench.sent(), [TO, "body chunk=x eos", "CLOSE Drained"]);
    assert_eq!(bench.log(), ["ended Drained", "dropped"]);
}

#[test]
fn a_drain_waits_for_responses_that_pass_through() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(true);
    bench.sent();
    bench.pick();
    bench.stream.on_drain();
    assert_eq!(bench.sent(), [TO]);
    bench.response_headers(false);
    bench.response_body("a", false);
    assert_eq!(bench.sent(), ["<headers", "<body chunk=a"]);
    bench.response_body("b", true);
    assert_eq!(bench.sent(), ["<body chunk=b eos", "CLOSE Drained"]);
}

#[test]
fn the_drain_deadline_refuses_closes_or_aborts() {
    let mut waiting = Bench::new(DUPLEX, DUPLEX);
    waiting.headers(false);
    waiting.stream.on_drain_deadline();
    let sent = waiting.sent();
    assert!(sent[0].starts_with("503 ") && sent[0].contains("rejected-shutting-down"), "{sent:?}");
    let mut picking = Bench::new(NONE, NONE);
    picking.headers(true);
    picking.sent();
    picking.stream.on_drain_deadline();
    assert_eq!(picking.sent()[0], "ABANDON");
    let mut silent = Bench::new(NONE, NONE);
    silent.stream.on_drain_deadline();
    assert_eq!(silent.sent(), ["CLOSE Drained"]);
    let mut amid = Bench::new(DUPLEX, DUPLEX);
    amid.headers(true);
    amid.sent();
    amid.pick();
    amid.stream.on_drain_deadline();
    assert_eq!(amid.sent(), ["ABORT Drained"]);
    assert_eq!(amid.log(), ["ended Drained", "dropped"]);
}

#[test]
fn inner_failures_end_with_ok_only_where_that_harms_nobody() {
    for (mode, want) in
        [(NONE, "CLOSE InnerFailure"), (DUPLEX, "ABORT InnerFailure"), (STREAMED, "ABORT InnerFailure")]
    {
        let mut bench = Bench::new(NONE, mode);
        bench.headers(true);
        bench.sent();
        bench.pick();
        bench.sent();
        bench.stream.on_broken();
        assert_eq!(bench.sent(), [want]);
    }
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.stream.on_broken();
    assert!(bench.sent()[0].starts_with("503"));
}

#[test]
fn unreadable_messages() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.stream.on_unreadable(None);
    assert!(bench.sent()[0].starts_with("400"));
    let mut bench = Bench::new(NONE, NONE);
    bench.headers(true);
    bench.sent();
    bench.pick();
    bench.stream.on_unreadable(None);
    assert_eq!(bench.sent(), [TO, "CLOSE Unreadable"]);
}

#[test]
fn a_body_that_stops_coming_is_refused() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    assert!(bench.stream.awaits_request());
    bench.stream.on_body_timeout();
    assert!(bench.sent()[0].starts_with("408"));
}

#[test]
fn a_half_close_during_the_pick_is_still_answered() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(true);
    bench.sent();
    bench.stream.on_gateway_end();
    assert!(bench.sent().is_empty());
    bench.pick();
    assert_eq!(bench.sent(), [TO, "CLOSE GatewayClosed"]);
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.stream.on_gateway_end();
    assert_eq!(bench.sent(), ["CLOSE GatewayClosed"]);
}

#[test]
fn weird_orders_are_counted_and_answered_or_ignored() {
    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.feed(None, None);
    bench.response_headers(false);
    bench.headers(false);
    bench.body("x", true);
    assert_eq!(bench.sent(), ["<headers", "headers"]);
    use Violation::{EmptyMessage, ResponseBeforeRequest, UnexpectedRequestBody, UnexpectedRequestHeaders};
    let want = [EmptyMessage, UnexpectedRequestHeaders, UnexpectedRequestBody, ResponseBeforeRequest];
    assert_eq!(bench.violations(), want);

    let mut bench = Bench::new(DUPLEX, DUPLEX);
    bench.headers(false);
    bench.body("x", true);
    bench.headers(false);
    bench.body("late", true);
    bench.trailers();
    bench.trailers();
    bench.sent();
    bench.pick();
    assert_eq!(bench.sent(), [TO, "body chunk=x eos", "trailers"]);
    bench.response_body("a", true);
    bench.response_body("b", true);
    bench.response_headers(true);
    bench.response_headers(true);
    bench.response_trailers();
    bench.response_trailers();
    assert_eq!(bench.sent(), ["<body chunk=a eos", "<headers", "<trailers"]);
    assert_eq!(bench.log().iter().filter(|line| *line == "dropped").count(), 1);
}

#[test]
fn a_request_without_headers_is_served_as_far_as_possible() {
    let mut bench = Bench::new(BUFFERED, NONE);
    bench.body("x", true);
    assert_eq!(bench.sent(), ["PICK \"x\""]);
    bench.pick();
    assert_eq!(bench.sent(), ["body to 10.0.0.1:8000"]);
    let mut bench = Bench::new(DUPLEX, NONE);
    bench.body("x", true);
    bench.sent();
    bench.pick();
    assert_eq!(bench.sent(), ["body to 10.0.0.1:8000 chunk=x eos"]);
    let mut bench = Bench::new(STREAMED, NONE);
    bench.trailers();
    bench.sent();
    bench.pick();
    assert_eq!(bench.sent(), ["trailers to 10.0.0.1:8000"]);
    assert_eq!(bench.violations(), [Violation::HeadersMissing]);
}

struct PanickingLease;

impl StreamLease for PanickingLease {
    fn response_chunk(&mut self, _chunk: &[u8]) {
        panic!("in the lease");
    }
}

impl Drop for PanickingLease {
    fn drop(&mut self) {
        panic!("in the drop");
    }
}

#[test]
fn a_lease_that_panics_costs_nobody_a_response() {
    let mut stream = Stream::new(StreamLimits::default(), Instant::now());
    let message = |request| ProcessingRequest { request: Some(request), ..ProcessingRequest::default() };
    stream.on_message(message(Request::RequestHeaders(headers(&[], true))));
    while stream.next_action().is_some() {}
    stream.on_pick(Ok(Picked::new("a:1", PanickingLease)));
    while stream.next_action().is_some() {}
    stream.on_message(message(Request::ResponseBody(chunk(b"x", true))));
    assert_eq!(describe(&stream.next_action().unwrap()), "<body chunk=x eos");
    assert_eq!(stream.lease_panics(), 2);
}
