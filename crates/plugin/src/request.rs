//! The parsed request as plugins see it.

use std::sync::Arc;

use http::HeaderMap;

/// One inference request. The prompt itself is not here: what plugins need of it are columns of the
/// [`Candidates`](crate::Candidates).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InferenceRequest {
    /// The request's id: the proxy's `x-request-id`, or one of ours.
    pub id: Arc<str>,
    /// The model that the client asked for.
    pub model: Arc<str>,
    /// The model that the engine will be asked for, after rewrites. It may be a LoRA adapter.
    pub target_model: Arc<str>,
    /// The request's headers.
    pub headers: HeaderMap,
    /// Length of the prompt in tokens; `None` if the prompt couldn't be tokenised.
    pub prompt_tokens: Option<u32>,
    /// Whether the client wants a streamed response.
    pub stream: bool,
    /// Priority by the request's objective; higher is more important, 0 is the usual one.
    pub priority: i32,
}

impl InferenceRequest {
    /// A request for `model` with no headers, no known prompt length, not streamed, of priority 0.
    pub fn new(id: impl Into<Arc<str>>, model: impl Into<Arc<str>>) -> Self {
        let model = model.into();
        Self {
            id: id.into(),
            target_model: Arc::clone(&model),
            model,
            headers: HeaderMap::new(),
            prompt_tokens: None,
            stream: false,
            priority: 0,
        }
    }
}
