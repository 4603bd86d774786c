//! The engine's HTTP API: vLLM's routes as far as clients, gateways and pickers use them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use warmroute_inference_api::Api;

use crate::answer::AnswerHead;
use crate::api_error::ApiError;
use crate::counters::EngineCounters;
use crate::engine_loop::Command;
use crate::generation::{Generation, Progress};
use crate::metrics_page::MetricsPage;
use crate::prompts::{PreparedRequest, PromptReader};
use crate::scheduler::NewRequest;
use crate::words::Words;

/// The largest request body accepted.
const MAX_BODY_BYTES: usize = 64 << 20;
/// The header that names a data-parallel rank.
const RANK_HEADER: &str = "x-data-parallel-rank";

/// What all requests to one engine share.
pub(crate) struct ApiState {
    pub(crate) reader: PromptReader,
    pub(crate) words: Arc<Words>,
    /// At least one.
    pub(crate) ranks: Vec<RankApi>,
    pub(crate) metrics_page: MetricsPage,
    pub(crate) with_details: bool,
    pub(crate) kv_event_sources: Value,
    pub(crate) next_id: AtomicU64,
    pub(crate) started_at_seconds: u64,
}

/// One rank as the API uses it.
pub(crate) struct RankApi {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) counters: Arc<EngineCounters>,
}

impl RankApi {
    /// As vLLM's own balancer weighs ranks (`vllm/v1/engine/core_client.py`): a waiting request counts as four running
    /// ones.
    fn busyness(&self) -> u64 {
        let stats = self.counters.scheduler.lock();
        4 * u64::from(stats.waiting_requests) + u64::from(stats.running_requests)
    }
}

impl ApiState {
    /// The rank that a request's header names, else the least busy.
    fn rank(&self, headers: &HeaderMap) -> Result<&RankApi, ApiError> {
        let Some(wanted) = headers.get(RANK_HEADER) else {
            let least = self.ranks.iter().min_by_key(|rank| rank.busyness());
            return least.ok_or_else(ApiError::stopped);
        };
        let wanted = wanted.to_str().unwrap_or_default();
        let rank = wanted.parse().ok().and_then(|rank: usize| self.ranks.get(rank));
        rank.ok_or_else(|| {
            let message = format!("data_parallel_rank {wanted} is out of range [0, {}).", self.ranks.len());
            ApiError::bad_request(message, None)
        })
    }
}

type Shared = State<Arc<ApiState>>;

/// The routes of one engine.
pub(crate) fn router(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokenize))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ping", get(|| async { StatusCode::OK }))
        .route("/version", get(|| async { Json(json!({ "version": "0.32.0" })) }))
        .route("/metrics", get(metrics))
        .route("/kv_event_sources", get(kv_event_sources))
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .route("/sim/lose_event_batches", post(lose_event_batches))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(state)
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn completions(State(state): Shared, headers: HeaderMap, body: Bytes) -> Result<Response, ApiError> {
    answer(state, Api::Completions, &headers, body).await
}

async fn chat_completions(
    State(state): Shared,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    answer(state, Api::ChatCompletions, &headers, body).await
}

async fn answer(
    state: Arc<ApiState>,
    api: Api,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = off_thread(&state, move |state| state.reader.read(api, &body)).await??;
    let PreparedRequest { options, cache_salt, jobs } = request;
    let commands = state.rank(headers)?.commands.clone();
    let tokens: usize = jobs.iter().map(|job| job.output_token_ids.len()).sum();
    let (sender, outputs) = mpsc::channel(tokens);
    let first_id = state.next_id.fetch_add(jobs.len() as u64, Ordering::Relaxed);
    for (id, job) in (first_id..).zip(&jobs) {
        let request = NewRequest {
            id,
            prompt_token_ids: job.prompt_token_ids.clone(),
            output_token_ids: job.output_token_ids.clone(),
            cache_salt: cache_salt.clone(),
            reports_hits: options.reports_hits(),
        };
        let command = Command::Submit(request, sender.clone());
        commands.send(command).await.map_err(|_| ApiError::stopped())?;
    }
    drop(sender);
    let is_chat = api == Api::ChatCompletions;
    let prefix = if is_chat { "chatcmpl" } else { "cmpl" };
    let generation = Generation {
        head: AnswerHead {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: unix_seconds(),
            model: state.reader.served_model_names.first().cloned().unwrap_or_default(),
            is_chat,
        },
        words: state.words.clone(),
        outputs,
        first_id,
        jobs,
        with_token_ids: options.return_token_ids.unwrap_or(false),
        with_details: state.with_details,
        progress: Progress::default(),
    };
    if options.stream.unwrap_or(false) {
        let events = generation.streamed(options.include_usage(), options.continuous_usage());
        return Ok(([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], events).into_response());
    }
    let json = generation.whole().await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// Runs what tokenizes off the async threads.
async fn off_thread<T: Send + 'static>(
    state: &Arc<ApiState>,
    work: impl FnOnce(&ApiState) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let state = state.clone();
    let worked = tokio::task::spawn_blocking(move || work(&state)).await;
    worked.map_err(|error| ApiError {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        message: format!("reading the request failed: {error}"),
        kind: "InternalServerError",
        param: None,
    })
}

async fn tokenize(State(state): Shared, body: Bytes) -> Result<Json<Value>, ApiError> {
    #[derive(Deserialize)]
    struct Kind {
        messages: Option<serde::de::IgnoredAny>,
    }
    let kind: Kind = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("1 validation error: {error}"), Some("body")))?;
    let api = if kind.messages.is_some() { Api::ChatCompletions } else { Api::Completions };
    let tokenized = off_thread(&state, move |state| state.reader.tokenize(api, &body)).await??;
    let tokens = tokenized.prompts.into_iter().next().unwrap_or_default();
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": state.reader.context_tokens,
        "tokens": tokens,
        "token_strs": null,
    })))
}

async fn models(State(state): Shared) -> Json<Value> {
    let data = state.reader.served_model_names.iter().map(|name| {
        json!({
            "id": name,
            "object": "model",
            "created": state.started_at_seconds,
            "owned_by": "vllm",
            "root": name,
            "parent": null,
            "max_model_len": state.reader.context_tokens,
            "permission": [],
        })
    });
    Json(json!({ "object": "list", "data": data.collect::<Vec<_>>() }))
}

async fn metrics(State(state): Shared) -> Response {
    let counters: Vec<_> = state.ranks.iter().map(|rank| rank.counters.clone()).collect();
    let page = state.metrics_page.render(&counters);
    ([(header::CONTENT_TYPE, "text/plain; version=1.0.0; charset=utf-8")], page).into_response()
}

async fn kv_event_sources(State(state): Shared) -> Json<Value> {
    Json(state.kv_event_sources.clone())
}

async fn reset_prefix_cache(State(state): Shared) -> Result<Json<Value>, ApiError> {
    let mut success = true;
    for rank in &state.ranks {
        let (answer, is_reset) = oneshot::channel();
        let reset = Command::ResetPrefixCache(answer);
        rank.commands.send(reset).await.map_err(|_| ApiError::stopped())?;
        success &= is_reset.await.map_err(|_| ApiError::stopped())?;
    }
    Ok(Json(json!({ "success": success })))
}

#[derive(Deserialize)]
struct LoseBatches {
    batches: u32,
}

/// Only here: the next batches of every rank are numbered but not sent, as if lost on the way.
async fn lose_event_batches(State(state): Shared, Query(query): Query<LoseBatches>) -> StatusCode {
    for rank in &state.ranks {
        rank.counters.batches_to_lose.store(query.batches, Ordering::Relaxed);
    }
    StatusCode::OK
}
