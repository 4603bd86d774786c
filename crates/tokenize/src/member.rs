//! Members of a request body.

use warmroute_inference_api::{ApiRequest, Field, JsonError, JsonErrorKind, JsonValue};

use crate::error::{Limit, Rejection, TokenizeError};

/// The value of a member, `None` if it is absent or null.
pub(crate) fn member<'a>(
    request: &ApiRequest<'a>,
    field: Field,
    name: &'static str,
) -> Result<Option<JsonValue<'a>>, TokenizeError> {
    request.value(field).map_err(|error| json_error(name, error))
}

/// A JSON error in a member.
pub(crate) fn json_error(member: &'static str, error: JsonError) -> TokenizeError {
    match error.kind {
        JsonErrorKind::TooDeep => TokenizeError::Limit(Limit::Depth { member }),
        JsonErrorKind::TooManyValues => TokenizeError::Limit(Limit::Values { member }),
        _ => TokenizeError::Rejected(Rejection::Json { member, error }),
    }
}

/// A truth value of the request. Null is refused; what pydantic might read as one is left undecided.
pub(crate) fn flag(
    request: &ApiRequest<'_>,
    field: Field,
    name: &'static str,
) -> Result<Option<bool>, TokenizeError> {
    match request.field(field) {
        None => Ok(None),
        Some(b"true") => Ok(Some(true)),
        Some(b"false") => Ok(Some(false)),
        Some(b"null") => Err(TokenizeError::member(name, "must be a boolean")),
        Some(_) => Err(TokenizeError::unclear(name)),
    }
}
