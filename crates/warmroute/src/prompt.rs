//! From a request body to token ids and block keys: off the async threads, at most so many at once, under a deadline.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Semaphore;
use warmroute_inference_api::{Api, ApiRequest, Field, Prompt, Rejection, parse_request};
use warmroute_kv_index::{BlockKey, KeyExtras, block_keys};
use warmroute_tokenize::{ModelTokenizer, PromptOptions, Rejection as Refused, TokenizeError, Unsupported};

use crate::receipt::{Fallback, FallbackNote};

/// Bodies up to this size are handled on the async thread if they hold no chat: less work than handing them over.
const INLINE_BODY_BYTES: usize = 2 * 1024;
/// The same if only the model's name and the like are wanted.
const INLINE_SCAN_BYTES: usize = 64 * 1024;

/// What the profile needs to know of the prompt.
#[derive(Clone, Debug, Default)]
pub struct KeysWanted {
    /// Block sizes in use, in tokens; empty if no prefix match is asked for or none can be made.
    pub block_sizes_tokens: Vec<u32>,
    /// Whether an exact prefix match is asked for.
    pub prefix_match: bool,
    /// Whether the token ids themselves are handed out, see [`ReadRequest::token_ids`].
    pub token_ids: bool,
    /// Whether pseudo-tokens are made of a prompt whose exact tokens aren't known.
    pub estimate: bool,
}

impl KeysWanted {
    /// Whether exact tokens are of use.
    fn tokens(&self) -> bool {
        self.prefix_match || self.token_ids
    }
}

/// Block keys of a request's prompts for one block size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// One list per prompt: the keys of its full blocks, first block first.
    pub prompts: Vec<Vec<BlockKey>>,
}

impl KeySet {
    /// Full blocks of all prompts.
    pub fn total_blocks(&self) -> u32 {
        self.prompts.iter().map(|keys| keys.len() as u32).sum()
    }
}

/// The prompt as the index needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptKeys {
    /// Tokens of each prompt.
    pub prompt_tokens: Vec<u32>,
    /// One set per block size in use.
    pub sets: Vec<KeySet>,
    /// The token ids of each prompt; empty unless [`KeysWanted::token_ids`].
    pub token_ids: Vec<Vec<u32>>,
}

/// What is guessed of a prompt whose exact tokens aren't known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EstimatedPrompt {
    /// Guessed tokens of each prompt.
    pub prompt_tokens: Vec<u32>,
    /// Pseudo-tokens of each prompt: equal prompts have equal ones, and a common beginning has a common beginning.
    /// They mean nothing to an engine. Empty unless [`KeysWanted::estimate`].
    pub token_ids: Vec<Vec<u32>>,
}

impl EstimatedPrompt {
    /// Guessed tokens of all prompts.
    pub fn total_tokens(&self) -> u32 {
        self.prompt_tokens.iter().fold(0, |sum, tokens| sum.saturating_add(*tokens))
    }
}

/// The token ids of a request's prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptTokenIds<'a> {
    /// One list per prompt.
    pub prompts: &'a [Vec<u32>],
    /// Whether they are pseudo-tokens.
    pub is_estimated: bool,
}

impl PromptKeys {
    /// Tokens of all prompts.
    pub fn total_tokens(&self) -> u32 {
        self.prompt_tokens.iter().sum()
    }

    /// The keys for one block size.
    pub fn set(&self, block_size_tokens: u32) -> Option<&KeySet> {
        self.sets.iter().find(|set| set.block_size_tokens == block_size_tokens)
    }
}

/// What the body said.
#[derive(Clone, Debug, Default)]
pub struct ReadRequest {
    /// Model that the client named; empty if it named none.
    pub model: String,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// The salt that keeps this request's KV blocks from those of others.
    pub cache_salt: Option<String>,
    /// The prompt, if its exact tokens are known and wanted.
    pub prompt: Option<PromptKeys>,
    /// What is guessed of the prompt, if its exact tokens aren't known or wanted.
    pub estimated: Option<EstimatedPrompt>,
    /// Why they aren't, if they should be.
    pub fallback: Option<FallbackNote>,
}

impl ReadRequest {
    /// Token ids, exact ones if there are any, else pseudo-tokens; None if neither were wanted or none can be made.
    pub fn token_ids(&self) -> Option<PromptTokenIds<'_>> {
        let exact = self.prompt.as_ref().map(|prompt| (prompt.token_ids.as_slice(), false));
        let estimated = self.estimated.as_ref().map(|prompt| (prompt.token_ids.as_slice(), true));
        [exact, estimated]
            .into_iter()
            .flatten()
            .find(|(prompts, _)| !prompts.is_empty())
            .map(|(prompts, is_estimated)| PromptTokenIds { prompts, is_estimated })
    }

    /// Tokens of all prompts: exact if they are known, else guessed.
    pub fn prompt_tokens(&self) -> Option<u32> {
        let exact = self.prompt.as_ref().map(PromptKeys::total_tokens);
        exact.or_else(|| self.estimated.as_ref().map(EstimatedPrompt::total_tokens))
    }

    fn without_tokens(kind: Fallback, detail: impl Into<String>) -> Self {
        Self { fallback: Some(FallbackNote { kind, detail: detail.into() }), ..Self::default() }
    }
}

/// Names of the LoRA adapters that engines have announced blocks for. A request for such a model has keys of its own.
#[derive(Debug, Default)]
pub struct AdapterNames(ArcSwap<HashSet<Arc<str>>>);

impl AdapterNames {
    /// Remembers a name.
    pub fn add(&self, name: &Arc<str>) {
        if !self.contains(name) {
            self.0.rcu(|names| {
                let mut names = HashSet::clone(names);
                names.insert(name.clone());
                names
            });
        }
    }

    /// Whether a model is an adapter.
    pub fn contains(&self, model: &str) -> bool {
        self.0.load().contains(model)
    }
}

/// Reads bodies.
#[derive(Clone)]
pub struct PromptReader {
    work: Arc<Work>,
    slots: Arc<Semaphore>,
    deadline: Duration,
}

struct Work {
    tokenizer: Option<Arc<ModelTokenizer>>,
    adapters: Arc<AdapterNames>,
    options: PromptOptions,
}

impl PromptReader {
    /// A reader that works on `concurrency` prompts at a time and gives up after `deadline`.
    pub fn new(
        tokenizer: Option<Arc<ModelTokenizer>>,
        adapters: Arc<AdapterNames>,
        concurrency: usize,
        deadline: Duration,
    ) -> Self {
        let work = Work { tokenizer, adapters, options: PromptOptions::default() };
        Self { work: Arc::new(work), slots: Arc::new(Semaphore::new(concurrency.max(1))), deadline }
    }

    /// Reads one body. What can't be known in time is a fallback in the result, not an error.
    ///
    /// # Errors
    /// The body is no request of that API.
    pub async fn read(&self, api: Api, body: &Bytes, wanted: KeysWanted) -> Result<ReadRequest, Rejection> {
        let small = match (wanted.tokens() || wanted.estimate, api) {
            (false, _) => body.len() <= INLINE_SCAN_BYTES,
            (true, Api::ChatCompletions) => false,
            (true, _) => body.len() <= INLINE_BODY_BYTES,
        };
        if small {
            return self.work.read(api, body, &wanted);
        }
        let (work, body, slots) = (self.work.clone(), body.clone(), self.slots.clone());
        let deadline = tokio::time::Instant::now() + self.deadline;
        let Ok(slot) = tokio::time::timeout_at(deadline, slots.acquire_owned()).await else {
            return Ok(ReadRequest::without_tokens(Fallback::TokenizeBusy, self.over_deadline()));
        };
        // The slot is given back when the work is done, not when the wait for it is over.
        let job = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work.read(api, &body, &wanted)
        });
        match tokio::time::timeout_at(deadline, job).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Ok(ReadRequest::without_tokens(Fallback::NotTokenizable, "the tokenizer panicked")),
            Err(_) => Ok(ReadRequest::without_tokens(Fallback::TokenizeDeadline, self.over_deadline())),
        }
    }

    fn over_deadline(&self) -> String {
        format!("over {} ms", self.deadline.as_millis())
    }
}

impl Work {
    fn read(&self, api: Api, body: &[u8], wanted: &KeysWanted) -> Result<ReadRequest, Rejection> {
        let mut request = parse_request(api, body)?;
        let mut read = ReadRequest {
            model: request.model.as_deref().unwrap_or_default().to_owned(),
            stream: request.stream,
            cache_salt: request.cache_salt.as_deref().map(str::to_owned),
            ..ReadRequest::default()
        };
        if wanted.tokens() {
            match self.exact_tokens(&mut request) {
                Ok(ids) => {
                    read.prompt = Some(self.keys(&read, ids, wanted));
                    if wanted.prefix_match && wanted.block_sizes_tokens.is_empty() {
                        let detail = "no engine has told its block size yet".to_owned();
                        read.fallback = Some(FallbackNote { kind: Fallback::BlockSizeUnknown, detail });
                    }
                }
                Err(note) => read.fallback = Some(note),
            }
        }
        Ok(read)
    }

    /// The token ids that the engine will see, one list per prompt.
    fn exact_tokens(&self, request: &mut ApiRequest<'_>) -> Result<Vec<Vec<u32>>, FallbackNote> {
        let takes_ids = takes_ids_as_they_are(request);
        match &mut request.prompt {
            Prompt::None => Err(FallbackNote { kind: Fallback::NoPromptApi, detail: String::new() }),
            Prompt::TokenIds(ids) if takes_ids => Ok(vec![std::mem::take(ids)]),
            Prompt::TokenIdLists(lists) if takes_ids => Ok(std::mem::take(lists)),
            _ => {
                let tokenizer = self.tokenizer.as_ref().ok_or_else(|| FallbackNote {
                    kind: Fallback::NoTokenizer,
                    detail: "start with --tokenizer DIR to match text prompts".to_owned(),
                })?;
                let prompts = tokenizer.tokens(request, &self.options).map_err(|error| note_of(&error))?;
                Ok(prompts.into_iter().map(|prompt| prompt.ids).collect())
            }
        }
    }

    fn keys(&self, read: &ReadRequest, token_ids: Vec<Vec<u32>>, wanted: &KeysWanted) -> PromptKeys {
        let lora = self.adapters.contains(&read.model).then_some(read.model.as_str());
        let extras = KeyExtras { lora, cache_salt: read.cache_salt.as_deref() };
        let keys_for = |block_size_tokens: u32| KeySet {
            block_size_tokens,
            prompts: token_ids
                .iter()
                .map(|ids| {
                    let mut keys = Vec::with_capacity(ids.len() / block_size_tokens.max(1) as usize);
                    block_keys(ids, block_size_tokens, &extras, &mut keys);
                    keys
                })
                .collect(),
        };
        PromptKeys {
            prompt_tokens: token_ids.iter().map(|ids| ids.len() as u32).collect(),
            sets: wanted.block_sizes_tokens.iter().copied().map(keys_for).collect(),
            token_ids: if wanted.token_ids { token_ids } else { Vec::new() },
        }
    }
}

/// Whether nothing else in the request changes token ids that it gives.
fn takes_ids_as_they_are(request: &ApiRequest<'_>) -> bool {
    [Field::TruncatePromptTokens, Field::KvTransferParams, Field::PromptEmbeds]
        .iter()
        .all(|field| request.field(*field).is_none())
}

/// The note for the receipt. Texts that a template made may quote the request, so they are left out.
fn note_of(error: &TokenizeError) -> FallbackNote {
    let (kind, detail) = match error {
        TokenizeError::Rejected(Refused::RaisedByTemplate(_)) => {
            (Fallback::LikelyRefusedByEngine, "the chat template refuses the conversation".to_owned())
        }
        TokenizeError::Rejected(_) => (Fallback::LikelyRefusedByEngine, error.to_string()),
        TokenizeError::Unsupported(Unsupported::Template(_)) => {
            (Fallback::NotTokenizable, "the chat template fails".to_owned())
        }
        TokenizeError::Unsupported(Unsupported::Multimodal { index, .. }) => {
            (Fallback::NotTokenizable, format!("message {index} has a part that is no text"))
        }
        TokenizeError::Unsupported(_) | TokenizeError::Limit(_) => {
            (Fallback::NotTokenizable, error.to_string())
        }
    };
    FallbackNote { kind, detail }
}
