/// Something that a gateway keeping to the protocol doesn't send. Each has a defined answer (or
/// none) and is counted; none ends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Violation {
    /// A message whose `request` is unset or of an unknown kind. Ignored.
    EmptyMessage,
    /// A body or trailers came before any request headers. Picked without headers.
    HeadersMissing,
    /// Request headers came twice, or after the response had begun. Ignored, or passed unchanged.
    UnexpectedRequestHeaders,
    /// A request body message came after the end of the body or in a mode that has none.
    UnexpectedRequestBody,
    /// Request trailers came twice or after a body that had ended.
    UnexpectedRequestTrailers,
    /// The response phase began without any request. Served all the same.
    ResponseBeforeRequest,
    /// Response headers came twice. Ignored.
    UnexpectedResponseHeaders,
    /// A response body message came after the end of the body or in mode NONE.
    UnexpectedResponseBody,
    /// Response trailers came twice or after a body that had ended.
    UnexpectedResponseTrailers,
}

impl Violation {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 9] = [
        Self::EmptyMessage,
        Self::HeadersMissing,
        Self::UnexpectedRequestHeaders,
        Self::UnexpectedRequestBody,
        Self::UnexpectedRequestTrailers,
        Self::ResponseBeforeRequest,
        Self::UnexpectedResponseHeaders,
        Self::UnexpectedResponseBody,
        Self::UnexpectedResponseTrailers,
    ];

    /// A name for metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyMessage => "empty_message",
            Self::HeadersMissing => "headers_missing",
            Self::UnexpectedRequestHeaders => "unexpected_request_headers",
            Self::UnexpectedRequestBody => "unexpected_request_body",
            Self::UnexpectedRequestTrailers => "unexpected_request_trailers",
            Self::ResponseBeforeRequest => "response_before_request",
            Self::UnexpectedResponseHeaders => "unexpected_response_headers",
            Self::UnexpectedResponseBody => "unexpected_response_body",
            Self::UnexpectedResponseTrailers => "unexpected_response_trailers",
        }
    }
}
