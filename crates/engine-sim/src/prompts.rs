//! Request bodies to what the engine is to compute.

use std::sync::Arc;

use serde::Deserialize;
use warmroute_inference_api::{Api, Prompt, parse_request};
use warmroute_tokenize::{ModelTokenizer, PromptOptions, TokenizeError};

use crate::api_error::ApiError;
use crate::words::Words;

/// Output tokens of a request that doesn't say how many it wants, as in vLLM's completions API.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Members of a request that decide how it is answered; the prompt is read elsewhere.
#[derive(Deserialize, Debug, Default)]
pub(crate) struct AnswerOptions {
    pub(crate) model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    pub(crate) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub(crate) return_token_ids: Option<bool>,
    /// Only here: the tokens to decode, all of them and whatever `max_tokens` says. A recorded scenario is
    /// replayed with it.
    sim_output_token_ids: Option<Vec<u32>>,
    vllm_xargs: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize, Debug, Default, Clone, Copy)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl AnswerOptions {
    /// Whether cached blocks that it hits are announced again (vLLM 0.26 and later).
    pub(crate) fn reports_hits(&self) -> bool {
        let mode = self.vllm_xargs.as_ref().and_then(|arguments| arguments.get("kv_cache_report_mode"));
        mode.is_some_and(|mode| mode == "full")
    }

    /// Whether a stream ends with the usage.
    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Whether every chunk of a stream has the usage so far.
    pub(crate) fn continuous_usage(&self) -> bool {
        self.include_usage()
            && self.stream_options.and_then(|options| options.continuous_usage_stats).unwrap_or(false)
    }
}

/// One prompt and the tokens to decode after it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt_token_ids: Vec<u32>,
    pub(crate) output_token_ids: Vec<u32>,
}

/// A request read, checked and tokenized.
#[derive(Debug)]
pub(crate) struct PreparedRequest {
    pub(crate) options: AnswerOptions,
    pub(crate) cache_salt: Option<Arc<str>>,
    /// One per prompt, never empty.
    pub(crate) jobs: Vec<Job>,
}

/// The tokens of a body.
pub(crate) struct TokenizedBody {
    /// One list per prompt, at least one and none empty.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) cache_salt: Option<Arc<str>>,
}

/// What reading a request depends on.
pub(crate) struct PromptReader {
    pub(crate) tokenizer: Option<Arc<ModelTokenizer>>,
    pub(crate) words: Arc<Words>,
    pub(crate) served_model_names: Vec<String>,
    pub(crate) context_tokens: u32,
}

impl PromptReader {
    /// Reads a completion or chat request. Busy for as long as tokenizing takes.
    pub(crate) fn read(&self, api: Api, body: &[u8]) -> Result<PreparedRequest, ApiError> {
        let options: AnswerOptions = serde_json::from_slice(body).map_err(|error| invalid_body(&error))?;
        if let Some(model) = options.model.as_ref().filter(|model| !self.served_model_names.contains(model)) {
            return Err(ApiError::unknown_model(model, &self.served_model_names));
        }
        if options.n.is_some_and(|n| n != 1) {
            return Err(ApiError::bad_request("the simulated engine answers n = 1 only", Some("n")));
        }
        let TokenizedBody { prompts, cache_salt } = self.tokenize(api, body)?;
        let wanted = options.max_completion_tokens.or(options.max_tokens).unwrap_or(DEFAULT_MAX_TOKENS);
        let jobs =
            prompts.into_iter().map(|prompt| self.job(prompt, wanted, &options)).collect::<Result<_, _>>()?;
        Ok(PreparedRequest { options, cache_salt, jobs })
    }

    /// The tokens of a body.
    pub(crate) fn tokenize(&self, api: Api, body: &[u8]) -> Result<TokenizedBody, ApiError> {
        let request = parse_request(api, body).map_err(|rejection| ApiError {
            kind: "Bad Request",
            ..ApiError::bad_request(rejection.to_string(), None)
        })?;
        let cache_salt = request.cache_salt.as_deref().map(Arc::from);
        let prompts = match (&request.prompt, &self.tokenizer) {
            (Prompt::TokenIds(ids), None) => vec![ids.clone()],
            (Prompt::TokenIdLists(lists), None) => lists.clone(),
            (_, None) => {
                return Err(ApiError::bad_request(
                    "this engine was started without a tokenizer (--tokenizer DIR), so it serves prompts given as \
                     token ids only",
                    Some("prompt"),
                ));
            }
            (_, Some(tokenizer)) => {
                let prompts = tokenizer.tokens(&request, &PromptOptions::default());
                prompts.map_err(|error| refused(&error))?.into_iter().map(|prompt| prompt.ids).collect()
            }
        };
        match prompts.iter().all(|prompt| !prompt.is_empty()) && !prompts.is_empty() {
            true => Ok(TokenizedBody { prompts, cache_salt }),
            false => Err(ApiError::bad_request("a prompt is empty", Some("prompt"))),
        }
    }

    fn job(&self, prompt_token_ids: Vec<u32>, wanted: u32, options: &AnswerOptions) -> Result<Job, ApiError> {
        let prompt_tokens = prompt_token_ids.len();
        let output_tokens = options.sim_output_token_ids.as_ref().map_or(wanted as usize, Vec::len);
        if prompt_tokens >= self.context_tokens as usize {
            return Err(ApiError::too_long(self.context_tokens, prompt_tokens));
        }
        if output_tokens == 0 || prompt_tokens + output_tokens > self.context_tokens as usize {
            return Err(ApiError::bad_request(
                format!(
                    "{output_tokens} output tokens can't follow {prompt_tokens} input tokens in a context of {} tokens",
                    self.context_tokens
                ),
                Some("max_tokens"),
            ));
        }
        let output_token_ids = match &options.sim_output_token_ids {
            Some(ids) => ids.clone(),
            None => self.words.output_token_ids(&prompt_token_ids, output_tokens),
        };
        Ok(Job { prompt_token_ids, output_token_ids })
    }
}

fn invalid_body(error: &serde_json::Error) -> ApiError {
    ApiError {
        kind: "Bad Request",
        ..ApiError::bad_request(format!("1 validation error: {error}"), Some("body"))
    }
}

fn refused(error: &TokenizeError) -> ApiError {
    ApiError::bad_request(error.to_string(), Some("prompt"))
}
