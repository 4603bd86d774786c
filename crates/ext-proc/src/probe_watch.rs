use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    CommonResponse, ProcessingRequest, ProcessingResponse, body_mutation,
};
use envoy_types::pb::google::protobuf::value::Kind;

use crate::probes::lock;
use crate::{
    BodyModes, HeaderList, ProbeEnd, ProbeMessage, ProbeOrder, ProbeRecord, ROUTING_HEADERS, StreamEnd,
};

/// Most names of one kind kept (namespaces, attributes), and the longest of them in bytes.
const MAX_NAMES: usize = 32;
const MAX_NAME_BYTES: usize = 256;

/// Writes down what passes on one stream that belongs to a probe.
#[derive(Debug)]
pub(crate) struct ProbeWatch {
    pub(crate) order: ProbeOrder,
    record: Arc<Mutex<ProbeRecord>>,
    opened_at: Instant,
}

impl ProbeWatch {
    pub(crate) fn new(order: ProbeOrder, record: Arc<Mutex<ProbeRecord>>, opened_at: Instant) -> Self {
        Self { order, record, opened_at }
    }

    /// The stream's first message and where it came from.
    pub(crate) fn opened(&self, message: &ProcessingRequest, headers: &HeaderList, from: Option<SocketAddr>) {
        let mut record = lock(&self.record);
        record.gateway = from;
        record.modes = message.protocol_config.as_ref().map(|config| BodyModes::from_proto(Some(config)));
        let id = headers.get_str("x-request-id").filter(|id| !id.is_empty() && id.len() <= MAX_NAME_BYTES);
        record.request_id = id.map(str::to_owned);
        let sent = ROUTING_HEADERS.iter().filter(|name| headers.contains(name));
        record.routing_headers = sent.map(|name| (*name).to_owned()).collect();
    }

    pub(crate) fn received(&self, message: &ProcessingRequest) {
        let mut record = lock(&self.record);
        if let Some(metadata) = &message.metadata_context {
            note_metadata(&mut record, metadata);
        }
        for name in message.attributes.values().flat_map(|values| values.fields.keys()) {
            note_name(&mut record.attributes, name);
        }
        let (kind, bytes, end_of_stream) = match &message.request {
            Some(Request::RequestHeaders(headers)) => ("request_headers", 0, headers.end_of_stream),
            Some(Request::RequestBody(body)) => ("request_body", body.body.len(), body.end_of_stream),
            Some(Request::RequestTrailers(_)) => ("request_trailers", 0, true),
            Some(Request::ResponseHeaders(headers)) => ("response_headers", 0, headers.end_of_stream),
            Some(Request::ResponseBody(body)) => ("response_body", body.body.len(), body.end_of_stream),
            Some(Request::ResponseTrailers(_)) => ("response_trailers", 0, true),
            None => ("none", 0, false),
        };
        let message = self.message(kind, bytes, end_of_stream);
        let record = &mut *record;
        note_message(&mut record.received, &mut record.unlisted_messages, message);
    }

    pub(crate) fn sent(&self, message: &ProcessingResponse) {
        let (kind, bytes, end_of_stream) = match &message.response {
            Some(Response::RequestHeaders(_)) => ("request_headers", 0, false),
            Some(Response::RequestBody(body)) => {
                let (bytes, is_last) = streamed(body.response.as_ref());
                ("request_body", bytes, is_last)
            }
            Some(Response::RequestTrailers(_)) => ("request_trailers", 0, true),
            Some(Response::ResponseHeaders(_)) => ("response_headers", 0, false),
            Some(Response::ResponseBody(body)) => {
                let (bytes, is_last) = streamed(body.response.as_ref());
                ("response_body", bytes, is_last)
            }
            Some(Response::ResponseTrailers(_)) => ("response_trailers", 0, true),
            Some(Response::ImmediateResponse(answer)) => ("immediate_response", answer.body.len(), true),
            _ => ("none", 0, false),
        };
        let message = self.message(kind, bytes, end_of_stream);
        let record = &mut *lock(&self.record);
        note_message(&mut record.sent, &mut record.unlisted_messages, message);
    }

    pub(crate) fn picked(&self, destinations: &[String]) {
        lock(&self.record).destination = Some(destinations.join(","));
    }

    pub(crate) fn ended(&self, end: StreamEnd, status: &str) {
        let by_gateway = matches!(end, StreamEnd::GatewayClosed | StreamEnd::Cancelled);
        let mut record = lock(&self.record);
        // What the picker itself ended by refusing is told as closed too; the refusal is its last message.
        let refused = record.sent.last().is_some_and(|last| last.kind == "immediate_response");
        record.ended = Some(ProbeEnd {
            status: status.to_owned(),
            by_gateway: by_gateway && !refused,
            at_us: self.now_us(),
        });
    }

    fn message(&self, kind: &str, bytes: usize, end_of_stream: bool) -> ProbeMessage {
        ProbeMessage { kind: kind.to_owned(), bytes, end_of_stream, at_us: self.now_us() }
    }

    fn now_us(&self) -> u64 {
        self.opened_at.elapsed().as_micros() as u64
    }
}

/// Bytes of a chunk that is handed back in full duplex, and whether it is the last one.
fn streamed(response: Option<&CommonResponse>) -> (usize, bool) {
    let mutation = response.and_then(|response| response.body_mutation.as_ref()?.mutation.as_ref());
    match mutation {
        Some(body_mutation::Mutation::StreamedResponse(chunk)) => (chunk.body.len(), chunk.end_of_stream),
        Some(body_mutation::Mutation::Body(body)) => (body.len(), true),
        _ => (0, false),
    }
}

fn note_message(messages: &mut Vec<ProbeMessage>, unlisted: &mut u64, message: ProbeMessage) {
    if messages.len() < ProbeRecord::MAX_MESSAGES {
        messages.push(message);
    } else {
        *unlisted += 1;
    }
}

fn note_metadata(record: &mut ProbeRecord, metadata: &Metadata) {
    for (namespace, values) in &metadata.filter_metadata {
        note_name(&mut record.metadata_namespaces, namespace);
        let text = |key: &str| match &values.fields.get(key)?.kind {
            Some(Kind::StringValue(value)) if value.len() <= MAX_NAME_BYTES => Some(value.clone()),
            _ => None,
        };
        if namespace == "envoy.lb"
            && let Some(served) = text("x-gateway-destination-endpoint-served")
        {
            record.served = Some(served);
        }
        if namespace == "envoy.lb.subset_hint" {
            let hint = values.fields.get("x-gateway-destination-endpoint-subset");
            if let Some(Kind::ListValue(list)) = hint.and_then(|hint| hint.kind.as_ref()) {
                record.subset_entries = Some(list.values.len());
            }
        }
    }
    for namespace in metadata.typed_filter_metadata.keys() {
        note_name(&mut record.metadata_namespaces, namespace);
    }
}

fn note_name(names: &mut Vec<String>, name: &str) {
    if names.len() < MAX_NAMES && name.len() <= MAX_NAME_BYTES && !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}
