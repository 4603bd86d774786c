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
    /// Length of the prompt in tokens; `None` if it isn't known.
    pub prompt_tokens: Option<u32>,
    /// Whether [`prompt_tokens`](Self::prompt_tokens) is an estimate from the text's length.
    pub prompt_tokens_estimated: bool,
    /// Most tokens that the client wants to be generated, if it says so.
    pub max_tokens: Option<u32>,
    /// Images, sounds and videos in the prompt.
    pub media_parts: u32,
    /// Whether the client wants a streamed response.
    pub stream: bool,
    /// Priority by the request's objective; higher is more important, 0 is the usual one.
    pub priority: i32,
    /// What the host's producers know of the request beside this; see [`attribute`](Self::attribute).
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
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
            prompt_tokens_estimated: false,
            max_tokens: None,
            media_parts: 0,
            stream: false,
            priority: 0,
            attributes: Vec::new(),
        }
    }

    /// What a producer of the host says of this request, by the producer's key `<data type>/<producer name>`: for
    /// example `SessionID/session-id-producer`.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
    }
}
