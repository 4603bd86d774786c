use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
};
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, StatusCode};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use serde_json::json;

use crate::{
    CONTROL_HEADERS, DESTINATION_HEADER, DROPPED_REASON_HEADER, HeaderList, Picked, ROUTING_HEADERS, Refusal,
    SCORES_KEY,
};

/// The namespace of dynamic metadata in which load balancers look for the destination.
const LB_NAMESPACE: &str = "envoy.lb";

/// Which half of the HTTP exchange a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Response,
}

/// Everything that routes a request: the header mutation and the metadata with the same destination.
pub(super) struct Answer {
    mutation: HeaderMutation,
    metadata: Option<Struct>,
}

impl Answer {
    /// `headers` are the client's, or `None` where they never came (then every routing header is
    /// removed on suspicion).
    pub(super) fn new<L>(picked: &mut Picked<L>, headers: Option<&HeaderList>) -> Self {
        let destination = picked.destinations.join(",");
        let mut set_headers = Vec::with_capacity(picked.set_headers.len() + 3);
        set_headers.push(set_header(DESTINATION_HEADER, destination.clone()));
        let mut remove_headers = std::mem::take(&mut picked.remove_headers);
        for name in ROUTING_HEADERS {
            // Setting replaces every value that was sent, so what is set needn't be removed.
            let is_set = name == DESTINATION_HEADER
                || picked.set_headers.iter().any(|(set, _)| set.eq_ignore_ascii_case(name));
            if !is_set && headers.is_none_or(|headers| headers.contains(name)) {
                remove_headers.push(name.to_owned());
            }
        }
        if let Some(headers) = headers {
            let sent = headers.iter().map(|(name, _)| name).filter(|name| is_control_header(name));
            for name in sent {
                let is_set = picked.set_headers.iter().any(|(set, _)| set.eq_ignore_ascii_case(name));
                if !is_set && !remove_headers.iter().any(|removed| removed.eq_ignore_ascii_case(name)) {
                    remove_headers.push(name.to_owned());
                }
            }
        }
        set_headers.extend(
            std::mem::take(&mut picked.set_headers).into_iter().map(|(name, value)| set_header(name, value)),
        );
        Self {
            mutation: HeaderMutation { set_headers, remove_headers },
            metadata: Some(metadata(destination, &picked.scores)),
        }
    }

    /// Takes the destination out of the header or the metadata unless it shall be named there.
    pub(super) fn name_in(&mut self, header: bool, metadata: bool) {
        if !header {
            let is_destination = |set: &HeaderValueOption| {
                set.header.as_ref().is_some_and(|header| header.key == DESTINATION_HEADER)
            };
            self.mutation.set_headers.retain(|set| !is_destination(set));
            self.mutation.remove_headers.push(DESTINATION_HEADER.to_owned());
        }
        if !metadata {
            self.metadata = None;
        }
    }

    pub(super) fn set(&mut self, name: &str, value: String) {
        self.mutation.set_headers.push(set_header(name, value));
    }
}

/// Nearly all headers are told apart by their first characters.
fn is_control_header(name: &str) -> bool {
    let begins_so = name.as_bytes().get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"x-"));
    begins_so && CONTROL_HEADERS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// `{"envoy.lb": {"x-gateway-destination-endpoint": destination}}`, with `"x-gateway-destination-endpoint-scores":
/// {endpoint: score, …}` beside the destination if there are scores.
fn metadata(destination: String, scores: &[(Arc<str>, f64)]) -> Struct {
    let field = |key: &str, kind: Kind| (key.to_owned(), Value { kind: Some(kind) });
    let mut fields = HashMap::from([field(DESTINATION_HEADER, Kind::StringValue(destination))]);
    if !scores.is_empty() {
        let scores = scores.iter().map(|(endpoint, score)| field(endpoint, Kind::NumberValue(*score)));
        fields.extend([field(SCORES_KEY, Kind::StructValue(Struct { fields: scores.collect() }))]);
    }
    Struct { fields: HashMap::from([field(LB_NAMESPACE, Kind::StructValue(Struct { fields }))]) }
}

fn set_header(name: impl Into<String>, value: impl Into<Vec<u8>>) -> HeaderValueOption {
    // No append action: ext_proc replaces by default (in Envoy and agentgateway alike).
    HeaderValueOption {
        header: Some(HeaderValue { key: name.into(), raw_value: value.into(), ..HeaderValue::default() }),
        ..HeaderValueOption::default()
    }
}

fn reply(response: Response, metadata: Option<Struct>) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        dynamic_metadata: metadata,
        ..ProcessingResponse::default()
    }
}

/// A body reply's content for one chunk in the language of full duplex.
pub(super) fn streamed(chunk: StreamedBodyResponse) -> Option<Mutation> {
    Some(Mutation::StreamedResponse(chunk))
}

fn common(mutation: Option<Mutation>, answer: Option<Answer>) -> (CommonResponse, Option<Struct>) {
    let clear_route_cache = answer.is_some();
    let (header_mutation, metadata) =
        answer.map_or((None, None), |answer| (Some(answer.mutation), answer.metadata));
    let body_mutation = mutation.map(|mutation| BodyMutation { mutation: Some(mutation) });
    (
        CommonResponse { header_mutation, body_mutation, clear_route_cache, ..CommonResponse::default() },
        metadata,
    )
}

/// The reply to request headers, with or without a destination.
pub(super) fn request_headers_reply(answer: Option<Answer>) -> ProcessingResponse {
    let (response, metadata) = common(None, answer);
    reply(Response::RequestHeaders(HeadersResponse { response: Some(response) }), metadata)
}

/// The reply to request headers before the pick: nothing but the client's own routing headers goes.
pub(super) fn stripping_reply(headers: Option<&HeaderList>) -> ProcessingResponse {
    let is_sent = |name: &&str| headers.is_some_and(|headers| headers.contains(name));
    let sent = ROUTING_HEADERS.into_iter().filter(is_sent);
    let remove_headers: Vec<String> = sent.map(str::to_owned).collect();
    let header_mutation =
        (!remove_headers.is_empty()).then(|| HeaderMutation { set_headers: Vec::new(), remove_headers });
    let response = CommonResponse { header_mutation, ..CommonResponse::default() };
    reply(Response::RequestHeaders(HeadersResponse { response: Some(response) }), None)
}

/// The reply to one body message: unchanged (`None`) or mutated.
pub(super) fn body_reply(
    direction: Direction,
    mutation: Option<Mutation>,
    answer: Option<Answer>,
) -> ProcessingResponse {
    let (response, metadata) = common(mutation, answer);
    let body = BodyResponse { response: Some(response) };
    match direction {
        Direction::Request => reply(Response::RequestBody(body), metadata),
        Direction::Response => reply(Response::ResponseBody(body), metadata),
    }
}

/// The reply to trailers. An answer can give its metadata only: a header mutation would change
/// the trailers.
pub(super) fn trailers_reply(direction: Direction, answer: Option<Answer>) -> ProcessingResponse {
    let trailers = TrailersResponse { header_mutation: None };
    match direction {
        Direction::Request => {
            reply(Response::RequestTrailers(trailers), answer.and_then(|answer| answer.metadata))
        }
        Direction::Response => reply(Response::ResponseTrailers(trailers), None),
    }
}

/// The reply to response headers.
pub(super) fn response_headers_reply(headers: Vec<(String, String)>) -> ProcessingResponse {
    let mut set_headers = Vec::with_capacity(headers.len() + 1);
    set_headers.push(set_header("x-went-into-resp-headers", "true"));
    set_headers.extend(headers.into_iter().map(|(name, value)| set_header(name, value)));
    let mutation = HeaderMutation { set_headers, remove_headers: Vec::new() };
    let response = CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() };
    reply(Response::ResponseHeaders(HeadersResponse { response: Some(response) }), None)
}

/// The response that the client gets instead of the engine's.
pub(super) fn refusal_reply(refusal: &Refusal) -> ProcessingResponse {
    // Envoy refuses the whole message if the number isn't in its enumeration.
    let code = StatusCode::try_from(i32::from(refusal.status))
        .ok()
        .filter(|code| *code != StatusCode::Empty)
        .unwrap_or(StatusCode::InternalServerError);
    let reason = refusal.reason.map(|reason| set_header(DROPPED_REASON_HEADER, reason));
    let content_type = refusal.openai_code.map(|_| set_header("content-type", "application/json"));
    let set_headers: Vec<_> = reason.into_iter().chain(content_type).collect();
    let headers =
        (!set_headers.is_empty()).then(|| HeaderMutation { set_headers, remove_headers: Vec::new() });
    let body = match refusal.openai_code {
        Some(code) => openai_error(&refusal.message, code),
        None => format!("inference error: {} - {}", refusal.code, refusal.message),
    };
    let response = ImmediateResponse {
        status: Some(HttpStatus { code: code.into() }),
        headers,
        body: body.into_bytes(),
        ..ImmediateResponse::default()
    };
    reply(Response::ImmediateResponse(response), None)
}

/// An error as OpenAI's API gives it (`openapi.yaml`, `ErrorResponse`).
fn openai_error(message: &str, code: &str) -> String {
    let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
    json!({"error": error}).to_string()
}
