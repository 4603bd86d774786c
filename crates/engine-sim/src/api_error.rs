//! Refusals in the shape of vLLM's OpenAI server.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A request that gets no completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The `type` of the error object.
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
}

#[derive(Serialize)]
struct ErrorBody {
    error: ErrorObject,
}

#[derive(Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'static str>,
    code: u16,
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), kind: "BadRequestError", param }
    }

    pub(crate) fn unknown_model(model: &str, served: &[String]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            message: format!("The model `{model}` does not exist. Valid aliases: {}.", served.join(", ")),
            kind: "NotFoundError",
            param: Some("model"),
        }
    }

    pub(crate) fn too_long(context_tokens: u32, prompt_tokens: usize) -> Self {
        Self::bad_request(
            format!(
                "This model's maximum context length is {context_tokens} tokens. However, your prompt contains \
                 {prompt_tokens} input tokens, which exceeds this limit even without any output tokens. Please \
                 reduce the length of the input prompt. (parameter=input_tokens, value={prompt_tokens})"
            ),
            Some("input_tokens"),
        )
    }

    pub(crate) fn stopped() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "the engine stopped before the request was done".to_owned(),
            kind: "ServiceUnavailableError",
            param: None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, message, kind, param } = self;
        let error = ErrorObject { message, kind, param, code: status.as_u16() };
        (status, Json(ErrorBody { error })).into_response()
    }
}
