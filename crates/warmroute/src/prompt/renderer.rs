//! Asks a vLLM server for the token ids of a prompt: `POST /v1/completions/render` and `/v1/chat/completions/render`.
//!
//! The answers are those of vLLM 0.32 (`vllm/entrypoints/scale_out/render/serving.py` in github.com/vllm-project/vllm):
//! an object for a chat, a list of them for completions, each with `token_ids`, and `features` if there are media.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use memchr::memmem;
use serde::Deserialize;
use tokio::sync::Semaphore;
use warmroute_config::VllmBackendSpec;
use warmroute_inference_api::{Api, ApiRequest, Field, Prompt};

use super::ExactTokens;
use crate::receipt::Fallback;

/// Requests under way at once; of more, each is decided without its tokens rather than wait.
const CONCURRENCY: usize = 64;
/// Connections kept open.
const IDLE_CONNECTIONS: usize = 16;
/// Largest answer read.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024 * 1024;
/// Attempts to warm the server up, and the time between them, as at the llm-d Router.
const WARM_UP_ATTEMPTS: u32 = 24;
const WARM_UP_INTERVAL: Duration = Duration::from_secs(5);

/// Why there are no token ids. Nothing in it quotes a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// Too many requests are under way already.
    #[error("{CONCURRENCY} requests to the render service are under way already")]
    Busy,
    /// No whole answer in time.
    #[error("no answer within {}ms", timeout.as_millis())]
    Deadline {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The connection failed.
    #[error("can't connect: {0}")]
    Connect(#[source] hyper_util::client::legacy::Error),
    /// The server refuses the request as the engine will.
    #[error("the render service answered {0}")]
    Refused(StatusCode),
    /// The server doesn't render.
    #[error(
        "the render service answered {0}: is it `vllm launch render`, or `vllm serve --enable-scale-out`?"
    )]
    NotRendering(StatusCode),
    /// Another status than 200.
    #[error("the render service answered {0}")]
    Status(StatusCode),
    /// The answer broke off or is over the limit.
    #[error("the answer of the render service is not readable")]
    Body,
    /// The answer has no token ids.
    #[error("the answer of the render service has no token ids: {0}")]
    NoTokenIds(#[source] serde_json::Error),
    /// The answer has a prompt without tokens.
    #[error("the render service gave no tokens")]
    Empty,
    /// The prompt has images, sounds or videos, and the answer doesn't say where.
    #[error("the render service doesn't say where in the prompt the images, sounds or videos are")]
    Media,
    /// The server's address makes no URL.
    #[error("{url} makes no URL: {error}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        error: http::uri::InvalidUri,
    },
}

impl RenderError {
    /// What the receipt says of it.
    pub(super) fn fallback(&self) -> Fallback {
        match self {
            Self::Busy => Fallback::RenderBusy,
            Self::Refused(_) => Fallback::LikelyRefusedByEngine,
            Self::Media => Fallback::NotTokenizable,
            _ => Fallback::RenderFailed,
        }
    }
}

/// A request to the server, as far as it depends on the client's.
pub(super) struct RenderJob {
    is_chat: bool,
    has_media: bool,
    /// The client's body before and behind the model's name.
    before: Bytes,
    after: Bytes,
}

impl RenderJob {
    /// What to ask for a request; None if its API isn't rendered.
    pub(super) fn of(request: &ApiRequest<'_>, body: &Bytes) -> Option<Self> {
        let is_chat = match (request.api, &request.prompt) {
            // The ids of embeddings would be those of a text.
            (_, Prompt::Chat(chat)) if memmem::find(chat.messages, b"\"prompt_embeds\"").is_some() => {
                return None;
            }
            (Api::Completions, _) if request.has(Field::PromptEmbeds) => return None,
            (Api::ChatCompletions, _) => true,
            (Api::Completions, _) => false,
            _ => return None,
        };
        let model = request.model_range.clone()?;
        Some(Self {
            is_chat,
            has_media: request.media_parts > 0,
            before: body.slice(..model.start),
            after: body.slice(model.end..),
        })
    }
}

/// A vLLM server that renders prompts.
#[derive(Clone, Debug)]
pub struct Renderer {
    client: Client<HttpConnector, Full<Bytes>>,
    chat: Uri,
    completions: Uri,
    /// The model's name in quotes.
    model: String,
    timeout: Duration,
    mm_timeout: Duration,
    slots: Arc<Semaphore>,
}

impl Renderer {
    /// A client of that server; nothing is connected yet.
    ///
    /// # Errors
    /// The address makes no URL.
    pub fn try_new(server: &VllmBackendSpec) -> Result<Self, RenderError> {
        let uri = |path: &str| {
            let url = format!("{}{path}", server.url);
            url.parse().map_err(|error| RenderError::Url { url, error })
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(server.timeout));
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE_CONNECTIONS).build(connector);
        Ok(Self {
            client,
            chat: uri("/v1/chat/completions/render")?,
            completions: uri("/v1/completions/render")?,
            model: serde_json::Value::from(server.model_name.as_str()).to_string(),
            timeout: server.timeout,
            mm_timeout: server.mm_timeout,
            slots: Arc::new(Semaphore::new(CONCURRENCY)),
        })
    }

    /// The server's answer to a request.
    pub(super) async fn ask(&self, job: RenderJob) -> Result<Bytes, RenderError> {
        let _slot = self.slots.try_acquire().map_err(|_| RenderError::Busy)?;
        let timeout = if job.has_media { self.mm_timeout.max(self.timeout) } else { self.timeout };
        let mut body = Vec::with_capacity(job.before.len() + self.model.len() + job.after.len());
        for part in [&job.before[..], self.model.as_bytes(), &job.after[..]] {
            body.extend_from_slice(part);
        }
        let uri = if job.is_chat { &self.chat } else { &self.completions };
        let answer = self.post(uri, body.into());
        tokio::time::timeout(timeout, answer).await.map_err(|_| RenderError::Deadline { timeout })?
    }

    async fn post(&self, uri: &Uri, body: Bytes) -> Result<Bytes, RenderError> {
        let mut request = Request::post(uri.clone()).body(Full::new(body)).map_err(|_| RenderError::Body)?;
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let response = self.client.request(request).await.map_err(RenderError::Connect)?;
        match response.status() {
            StatusCode::OK => {}
            status @ (StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) => {
                return Err(RenderError::Refused(status));
            }
            status @ (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                return Err(RenderError::NotRendering(status));
            }
            status => return Err(RenderError::Status(status)),
        }
        let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
        Ok(body.map_err(|_| RenderError::Body)?.to_bytes())
    }

    /// Has the server render something, so that it has loaded what it needs when the first request comes. Readiness
    /// doesn't wait for it.
    pub async fn warm_up(self) {
        let mut ticks = tokio::time::interval(WARM_UP_INTERVAL);
        for attempt in 1..=WARM_UP_ATTEMPTS {
            ticks.tick().await;
            let body = format!(r#"{{"model":{},"prompt":"warm up","max_tokens":1}}"#, self.model);
            let answer = tokio::time::timeout(self.timeout, self.post(&self.completions, body.into())).await;
            let timeout = self.timeout;
            let answer = answer.unwrap_or(Err(RenderError::Deadline { timeout }));
            match answer.and_then(|page| rendered_tokens(&page)) {
                Ok(_) => {
                    tracing::info!(url = %self.completions, attempt, "the render service gives tokens");
                    return;
                }
                Err(error) if attempt == 1 => {
                    tracing::warn!(url = %self.completions, %error,
                        "the render service gives no tokens yet: prompts of text are only estimated");
                }
                Err(error) => tracing::debug!(attempt, %error, "the render service gives no tokens yet"),
            }
        }
        tracing::warn!(url = %self.completions, attempts = WARM_UP_ATTEMPTS, "the render service never gave tokens");
    }
}

/// One prompt of an answer.
#[derive(Deserialize)]
struct Rendered {
    token_ids: Vec<u32>,
    #[serde(default)]
    features: Option<MediaFeatures>,
}

/// Where in a prompt of token ids the engine has its media, as vLLM tells and is told it (`MultiModalFeatures` in
/// `vllm/entrypoints/scale_out/token_in_token_out/protocol.py` in github.com/vllm-project/vllm).
#[derive(Deserialize)]
pub(super) struct MediaFeatures {
    /// By kind of media.
    #[serde(default)]
    mm_placeholders: BTreeMap<String, Vec<Placeholder>>,
}

/// Tokens that stand for one image, sound or video.
#[derive(Deserialize)]
struct Placeholder {
    /// Tokens before them.
    offset: usize,
}

impl MediaFeatures {
    /// How many tokens stand before the first image, sound or video; None if there is none.
    pub(super) fn tokens_before(&self) -> Option<usize> {
        self.mm_placeholders.values().flatten().map(|placeholder| placeholder.offset).min()
    }
}

/// The token ids of an answer.
pub(super) fn rendered_tokens(page: &[u8]) -> Result<ExactTokens, RenderError> {
    let is_list = page.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let mut prompts: Vec<Rendered> = match is_list {
        true => serde_json::from_slice(page).map_err(RenderError::NoTokenIds)?,
        false => vec![serde_json::from_slice(page).map_err(RenderError::NoTokenIds)?],
    };
    if prompts.is_empty() || prompts.iter().any(|prompt| prompt.token_ids.is_empty()) {
        return Err(RenderError::Empty);
    }
    if prompts.iter().all(|prompt| prompt.features.is_none()) {
        return Ok(ExactTokens::Whole(prompts.into_iter().map(|prompt| prompt.token_ids).collect()));
    }
    match prompts.as_mut_slice() {
        [Rendered { token_ids, features: Some(features) }] => {
            token_ids.truncate(features.tokens_before().ok_or(RenderError::Media)?);
            Ok(ExactTokens::BeforeMedia(std::mem::take(token_ids)))
        }
        _ => Err(RenderError::Media),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_with_media_are_known_up_to_the_first() {
        let page = br#"{"token_ids":[1,2,3,9,9,4,8],"features":{"mm_hashes":{"image":["a"],"audio":["b"]},
            "mm_placeholders":{"audio":[{"offset":6,"length":1}],"image":[{"offset":3,"length":2}]}}}"#;
        assert_eq!(rendered_tokens(page).unwrap(), ExactTokens::BeforeMedia(vec![1, 2, 3]));
    }

    #[test]
    fn answers_of_both_shapes_are_read() {
        let one = br#" {"request_id":"chatcmpl-1","token_ids":[1,2],"features":null,"model":"m"}"#;
        assert_eq!(rendered_tokens(one).unwrap(), ExactTokens::Whole(vec![vec![1, 2]]));
        let several = rendered_tokens(br#"[{"token_ids":[1]},{"token_ids":[2,3]}]"#).unwrap();
        assert_eq!(several, ExactTokens::Whole(vec![vec![1], vec![2, 3]]));
        let kind = |page: &[u8]| rendered_tokens(page).unwrap_err().fallback();
        assert_eq!(kind(br#"{"token_ids":[1],"features":{"mm_hashes":{}}}"#), Fallback::NotTokenizable);
        let image =
            br#"{"token_ids":[1],"features":{"mm_placeholders":{"image":[{"offset":0,"length":1}]}}}"#;
        let two = [b"[{\"token_ids\":[1]},", &image[..], b"]"].concat();
        assert_eq!(kind(&two), Fallback::NotTokenizable, "which has the image?");
        for page in [&b""[..], b"{}", b"[]", b"[{}]", b"{\"token_ids\":[-1]}", b"{\"token_ids\":[]}", b"\xff"]
        {
            assert_eq!(kind(page), Fallback::RenderFailed, "{page:?}");
        }
    }
}
