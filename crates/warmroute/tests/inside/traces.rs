//! Spans as a collector receives them, over OTLP.
#![cfg(feature = "otel")]

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use warmroute::metrics::Metrics;
use warmroute::telemetry::{Telemetry, TraceExporter, TraceSampler, TraceSettings};
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, StreamEnd, StreamLease};

use crate::fixture::{Fixture, PREFIX_ONLY};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// A word of the prompt, which must not get out.
const SECRET: &str = "74328917";

/// Hands on what it is sent.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

struct Traced {
    fixture: Fixture,
    telemetry: Telemetry,
    exports: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
    _server: JoinSet<()>,
}

impl Traced {
    async fn new(sampler: TraceSampler) -> Self {
        let (sender, exports) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(TcpIncoming::from(listener));
        let mut server = JoinSet::new();
        server.spawn(async move { serving.await.unwrap() });
        let settings = TraceSettings {
            exporter: TraceExporter::Otlp { endpoint },
            sampler,
            service_name: Some("epp-under-test".to_owned()),
        };
        let telemetry = Telemetry::try_new(&settings).unwrap();
        let fixture = Fixture::with(PREFIX_ONLY, 3, Metrics::try_new().unwrap(), telemetry.clone());
        Self { fixture, telemetry, exports, _server: server }
    }

    /// Ends the tracing, which sends everything; what the collector got.
    async fn spans(mut self) -> Vec<Span> {
        let telemetry = self.telemetry.clone();
        tokio::task::spawn_blocking(move || telemetry.shut_down()).await.unwrap();
        let mut spans = Vec::new();
        while let Ok(export) = self.exports.try_recv() {
            for resource in export.resource_spans {
                let attributes = attributes(&resource.resource.unwrap().attributes);
                assert_eq!(attributes["service.name"], "epp-under-test");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

fn request(traceparent: Option<&str>, body: String) -> HttpRequest {
    let headers = [(":method", "POST"), (":path", "/v1/completions"), ("x-request-id", "request-1")];
    let traceparent = traceparent.map(|value| ("traceparent", value));
    HttpRequest::new(HeaderList::from_pairs(headers.into_iter().chain(traceparent)), body)
}

fn prompt() -> Vec<u32> {
    [vec![SECRET.parse().unwrap()], (0..63).collect()].concat()
}

fn prompt_request(traceparent: Option<&str>) -> HttpRequest {
    request(traceparent, format!("{{\"model\":\"m\",\"prompt\":{:?}}}", prompt()))
}

/// Attributes as text; lists with commas between.
fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    fn text(value: Option<&AnyValue>) -> String {
        match value.and_then(|value| value.value.as_ref()).unwrap() {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            Value::DoubleValue(number) => number.to_string(),
            Value::BoolValue(is) => is.to_string(),
            Value::ArrayValue(list) => {
                list.values.iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(",")
            }
            other => panic!("{other:?}"),
        }
    }
    pairs.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

const ALL: TraceSampler = TraceSampler { follows_parent: true, ratio: 1.0 };
const NONE: TraceSampler = TraceSampler { follows_parent: true, ratio: 0.0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_the_peers_spans_below_the_callers() {
    // The caller has decided; the ratio is for those who haven't.
    let traced = Traced::new(NONE).await;
    traced.fixture.announce(1, &prompt());
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let mut picked = traced.fixture.picker.pick(prompt_request(Some(&traceparent))).await.unwrap();
    let handed_on = header(&picked.set_headers, "traceparent").unwrap().to_owned();
    picked.lease.ended(StreamEnd::ResponseComplete);
    drop(picked);
    let address = traced.fixture.address(1);
    let spans = traced.spans().await;

    let ids: BTreeMap<String, &Span> = spans.iter().map(|span| (hex(&span.span_id), span)).collect();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let parent = |span: &Span| ids.get(&hex(&span.parent_span_id)).map_or("", |parent| parent.name.as_str());
    let tree: BTreeMap<&str, &str> = spans.iter().map(|span| (span.name.as_str(), parent(span))).collect();
    let expected = [
        ("gateway.request", ""),
        ("gateway.request_orchestration", "gateway.request"),
        ("produce_precise_prefix_cache", "gateway.request_orchestration"),
        ("run_scheduler_profile", "gateway.request_orchestration"),
        ("filter_endpoints", "run_scheduler_profile"),
        ("llm_d.epp.scoring", "run_scheduler_profile"),
        ("llm_d.epp.scorer.prefix-cache-scorer", "llm_d.epp.scoring"),
        ("pick_endpoints", "run_scheduler_profile"),
    ];
    assert_eq!(tree, BTreeMap::from(expected));
    assert_eq!(spans.len(), expected.len());

    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(hex(&span("gateway.request").parent_span_id), CALLER);
    assert_eq!(handed_on, format!("00-{TRACE}-{}-01", hex(&span("gateway.request").span_id)));
    for (name, key, value) in [
        ("gateway.request", "gen_ai.request.id", "request-1"),
        ("gateway.request", "gen_ai.request.model", "m"),
        ("gateway.request_orchestration", "target_model", "m"),
        ("gateway.request_orchestration", "request_prio", "0"),
        ("gateway.request_orchestration", "llm_d.epp.token_producer.token_count", "64"),
        ("produce_precise_prefix_cache", "llm_d.epp.producer.max_match_blocks", "4"),
        ("run_scheduler_profile", "llm_d.epp.scheduling.profile.name", "default"),
        ("filter_endpoints", "llm_d.epp.filter.candidate_endpoints", "3"),
        ("filter_endpoints", "llm_d.epp.filter.filtered_endpoints", "3"),
        ("filter_endpoints", "gen_ai.request.id", "request-1"),
        ("llm_d.epp.scoring", "llm_d.epp.scorer.count", "1"),
        ("llm_d.epp.scorer.prefix-cache-scorer", "llm_d.epp.scorer.score.max", "1"),
        ("pick_endpoints", "llm_d.epp.picker.candidate_endpoints", "3"),
    ] {
        let attributes = attributes(&span(name).attributes);
        assert_eq!(attributes.get(key).map(String::as_str), Some(value), "{name} {key} in {attributes:?}");
    }
    let top = attributes(&span("pick_endpoints").attributes)["llm_d.epp.picker.top_endpoints"].clone();
    assert!(top.starts_with(&address), "{top}");
    for span in &spans {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
        assert!(!format!("{span:?}").contains(SECRET), "{}", span.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_an_error_without_the_clients_words() {
    let traced = Traced::new(ALL).await;
    let body = format!("{{\"model\": {SECRET}{SECRET}");
    traced.fixture.picker.pick(request(None, body)).await.unwrap_err();
    let spans = traced.spans().await;
    let request = spans.iter().find(|span| span.name == "gateway.request").unwrap();
    let status = request.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "BadRequest"));
    assert!(request.parent_span_id.is_empty());
    assert!(!format!("{spans:?}").contains(SECRET));
    assert!(!spans.iter().any(|span| span.name == "run_scheduler_profile"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_handed_on_and_not_sent() {
    let traced = Traced::new(NONE).await;
    let picked = traced.fixture.picker.pick(prompt_request(None)).await.unwrap();
    assert!(header(&picked.set_headers, "traceparent").unwrap().ends_with("-00"));
    drop(picked);
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let picked = traced.fixture.picker.pick(prompt_request(Some(&unsampled))).await.unwrap();
    assert!(header(&picked.set_headers, "traceparent").unwrap().starts_with(&format!("00-{TRACE}-")));
    drop(picked);
    assert_eq!(traced.spans().await, []);
}

#[tokio::test]
async fn without_tracing_requests_go_on_as_they_came() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    let picked = fixture.picker.pick(prompt_request(Some(&format!("00-{TRACE}-{CALLER}-01")))).await.unwrap();
    assert_eq!(picked.set_headers, []);
}
