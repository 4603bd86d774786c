//! Probes of a gateway: what one does to its own stream, and that it does nothing to others.

#![allow(clippy::unwrap_used, reason = "a test file, in its helper functions too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use futures::StreamExt;
use tonic::{Code, Status};
use warmroute_ext_proc::{
    BodyMode, EndpointPicker, ExtProcService, HttpRequest, PROBE_HEADER, Picked, ProbeAnswer, ProbeOrder,
    Refusal, ServiceConfig,
};

const DESTINATION: &str = "x-gateway-destination-endpoint";

#[derive(Default)]
struct CountingPicker(AtomicU32);

impl EndpointPicker for CountingPicker {
    type Lease = ();

    async fn pick(&self, _: HttpRequest) -> Result<Picked<()>, Refusal> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Picked::new("10.0.0.1:8000", ()))
    }
}

fn service() -> (ExtProcService<CountingPicker>, Arc<CountingPicker>) {
    let picker = Arc::new(CountingPicker::default());
    (ExtProcService::new(picker.clone(), ServiceConfig::default()), picker)
}

/// A BUFFERED request that names a nonce, with a destination of the client's own.
fn request(nonce: &str) -> Vec<ProcessingRequest> {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.into(),
        raw_value: value.into(),
        ..HeaderValue::default()
    };
    let served = Kind::StringValue("10.0.0.9:8000".into());
    let served = Struct {
        fields: [("x-gateway-destination-endpoint-served".to_owned(), Value { kind: Some(served) })].into(),
    };
    let headers = HttpHeaders {
        headers: Some(HeaderMap {
            headers: vec![
                header(PROBE_HEADER, nonce),
                header(DESTINATION, "x:1"),
                header("x-request-id", "r"),
            ],
        }),
        ..HttpHeaders::default()
    };
    let first = ProcessingRequest {
        request: Some(Request::RequestHeaders(headers)),
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: 2,
            ..ProtocolConfiguration::default()
        }),
        metadata_context: Some(Metadata {
            filter_metadata: [("envoy.lb".to_owned(), served)].into(),
            ..Metadata::default()
        }),
        ..ProcessingRequest::default()
    };
    let body = HttpBody { body: b"hello".to_vec(), end_of_stream: true, ..HttpBody::default() };
    let body =
        ProcessingRequest { request: Some(Request::RequestBody(body)), ..ProcessingRequest::default() };
    vec![first, body]
}

async fn send(
    service: &ExtProcService<CountingPicker>,
    nonce: &str,
) -> Vec<Result<ProcessingResponse, Status>> {
    service.process_stream(futures::stream::iter(request(nonce).into_iter().map(Ok))).collect().await
}

/// Where the last answer names the destination, and which headers it removes.
fn names(answers: &[Result<ProcessingResponse, Status>]) -> (bool, bool, Vec<String>) {
    let last = answers.last().unwrap().as_ref().unwrap();
    let Some(Response::RequestBody(body)) = &last.response else { panic!("{last:?}") };
    let mutation = body.response.as_ref().unwrap().header_mutation.clone().unwrap();
    let named = mutation.set_headers.iter().any(|set| set.header.as_ref().unwrap().key == DESTINATION);
    (named, last.dynamic_metadata.is_some(), mutation.remove_headers)
}

async fn probe(answer: ProbeAnswer) -> (Vec<Result<ProcessingResponse, Status>>, u32) {
    let (service, picker) = service();
    let nonce = service.probes().register(ProbeOrder { answer, delay_ms: 0 }).unwrap();
    let answers = send(&service, &nonce).await;
    (answers, picker.0.load(Ordering::Relaxed))
}

#[tokio::test]
async fn what_a_stream_shows_is_written_down() {
    let (service, _) = service();
    let nonce = service.probes().register(ProbeOrder::default()).unwrap();
    let answers = send(&service, &nonce).await;
    let (header, metadata, removed) = names(&answers);
    assert!(header && metadata && removed.contains(&PROBE_HEADER.to_owned()));
    let record = service.probes().record(&nonce).unwrap();
    assert_eq!(record.modes.unwrap().request, BodyMode::Buffered);
    assert_eq!((record.request_id.as_deref(), record.streams), (Some("r"), 1));
    assert_eq!(record.routing_headers, [DESTINATION]);
    assert_eq!(record.metadata_namespaces, ["envoy.lb"]);
    assert_eq!(record.served.as_deref(), Some("10.0.0.9:8000"));
    assert_eq!(record.destination.as_deref(), Some("10.0.0.1:8000"));
    let kinds: Vec<_> =
        record.received.iter().map(|message| (message.kind.as_str(), message.bytes)).collect();
    assert_eq!(kinds, [("request_headers", 0), ("request_body", 5)]);
    assert_eq!(record.sent.len(), 2);
    let ended = record.ended.unwrap();
    assert!(ended.by_gateway && ended.status == "OK", "{ended:?}");
}

#[tokio::test]
async fn the_destination_is_named_where_it_was_ordered() {
    for (answer, expected) in [
        (ProbeAnswer::Pick, (true, true)),
        (ProbeAnswer::HeaderOnly, (true, false)),
        (ProbeAnswer::MetadataOnly, (false, true)),
        (ProbeAnswer::Neither, (false, false)),
    ] {
        let (answers, picks) = probe(answer).await;
        let (header, metadata, removed) = names(&answers);
        assert_eq!(((header, metadata), picks), (expected, 1), "{answer:?}");
        // The client's own destination goes, whoever names none.
        assert_eq!(removed.contains(&DESTINATION.to_owned()), !header, "{answer:?}");
    }
}

#[tokio::test]
async fn refusals_and_failures_pick_nothing() {
    let (answers, picks) = probe(ProbeAnswer::Immediate).await;
    let Some(Response::ImmediateResponse(refusal)) = &answers[1].as_ref().unwrap().response else {
        panic!("{answers:?}")
    };
    assert_eq!((refusal.status.as_ref().unwrap().code, picks), (429, 0));
    for (answer, sent_before) in [(ProbeAnswer::FailAtHeaders, 0), (ProbeAnswer::FailAtPick, 1)] {
        let (answers, picks) = probe(answer).await;
        assert_eq!((answers.len(), picks), (sent_before + 1, 0), "{answer:?}");
        assert_eq!(answers.last().unwrap().as_ref().unwrap_err().code(), Code::Internal);
    }
}

#[tokio::test]
async fn other_streams_are_served_as_ever() {
    let (service, picker) = service();
    let order = ProbeOrder { answer: ProbeAnswer::FailAtHeaders, ..ProbeOrder::default() };
    let nonce = service.probes().register(order).unwrap();
    assert!(send(&service, &nonce).await.last().unwrap().is_err());
    // Unknown ones, and the same one again.
    for other in ["", "unknown", nonce.as_str()] {
        let (header, metadata, removed) = names(&send(&service, other).await);
        assert!(header && metadata && removed.contains(&PROBE_HEADER.to_owned()), "{other:?}");
    }
    assert_eq!(picker.0.load(Ordering::Relaxed), 3);
    assert_eq!(service.probes().record(&nonce).unwrap().streams, 2);
}
