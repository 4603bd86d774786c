//! Reads bodies: parse, tokens or a guess of them, block keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;
use warmroute_inference_api::{Api, ApiRequest, Field, Prompt, Rejection, parse_request};
use warmroute_kv_index::{KeyExtras, block_keys};
use warmroute_tokenize::{
    Estimator, ModelTokenizer, PromptOptions, Rejection as Refused, TokenizeError, Unsupported, VideoHints,
};

use super::renderer::{RenderJob, Renderer, rendered_ids};
use super::{AdapterNames, EstimatedPrompt, KeySet, KeysWanted, PromptKeys, ReadRequest, TokenSource};
use crate::receipt::{Fallback, FallbackNote};

/// Bodies up to this size are handled on the async thread if they hold no chat: less work than handing them over.
const INLINE_BODY_BYTES: usize = 2 * 1024;
/// The same if only the model's name and the like are wanted.
const INLINE_SCAN_BYTES: usize = 64 * 1024;

/// Reads bodies.
#[derive(Clone)]
pub struct PromptReader {
    work: Arc<Work>,
    renderer: Option<Renderer>,
    slots: Arc<Semaphore>,
    deadline: Duration,
}

#[derive(Clone)]
struct Work {
    tokenizer: Option<Arc<ModelTokenizer>>,
    /// Whether a server makes tokens where the tokenizer doesn't.
    renders: bool,
    estimator: Estimator,
    adapters: Arc<AdapterNames>,
    options: PromptOptions,
}

/// What came of one body.
struct Reading {
    read: ReadRequest,
    /// What is left to ask a server.
    job: Option<RenderJob>,
}

impl PromptReader {
    /// A reader that works on `concurrency` prompts at a time and gives up after `deadline`. Texts that the tokenizer
    /// doesn't read are estimated with defaults.
    pub fn new(
        tokenizer: Option<Arc<ModelTokenizer>>,
        adapters: Arc<AdapterNames>,
        concurrency: usize,
        deadline: Duration,
    ) -> Self {
        let source = TokenSource { tokenizer, ..TokenSource::default() };
        Self::with_source(source, adapters, concurrency, deadline)
    }

    /// The same with any source of tokens.
    pub fn with_source(
        source: TokenSource,
        adapters: Arc<AdapterNames>,
        concurrency: usize,
        deadline: Duration,
    ) -> Self {
        let no_tokenizer = source.tokenizer.is_none();
        let work = Work {
            tokenizer: source.tokenizer,
            renders: source.renderer.is_some() && no_tokenizer,
            estimator: source.estimator,
            adapters,
            options: PromptOptions::default(),
        };
        let slots = Arc::new(Semaphore::new(concurrency.max(1)));
        Self { work: Arc::new(work), renderer: source.renderer, slots, deadline }
    }

    /// Reads one body. What can't be known in time is a fallback in the result, not an error. `hints` are what the
    /// headers say of videos.
    ///
    /// # Errors
    /// The body is no request of that API.
    pub async fn read(
        &self,
        api: Api,
        body: &Bytes,
        hints: VideoHints,
        wanted: KeysWanted,
    ) -> Result<ReadRequest, Rejection> {
        let Reading { read, job } = self.read_here(api, body, hints, &wanted).await?;
        match (job, &self.renderer) {
            (Some(job), Some(renderer)) => Ok(self.render(renderer, job, read, wanted).await),
            _ => Ok(read),
        }
    }

    /// What needs no other process.
    async fn read_here(
        &self,
        api: Api,
        body: &Bytes,
        hints: VideoHints,
        wanted: &KeysWanted,
    ) -> Result<Reading, Rejection> {
        let small = match (wanted.tokens() || wanted.estimate, api) {
            (false, _) => body.len() <= INLINE_SCAN_BYTES,
            (true, Api::ChatCompletions | Api::Messages) => false,
            (true, _) => body.len() <= INLINE_BODY_BYTES,
        };
        if small {
            let (request, read) = self.work.begin(api, body, &hints, wanted)?;
            return Ok(self.work.finish(request, read, body, wanted));
        }
        let deadline = tokio::time::Instant::now() + self.deadline;
        let Ok(slot) = tokio::time::timeout_at(deadline, self.slots.clone().acquire_owned()).await else {
            return self.without_slot(api, body, &hints);
        };
        let (begun, draft) = oneshot::channel();
        let (work, body, wanted) = (self.work.clone(), body.clone(), wanted.clone());
        // The slot is given back when the work is done, not when the wait for it is over.
        let job = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let (request, read) = work.begin(api, &body, &hints, &wanted)?;
            // Nobody may be waiting any more.
            let _ = begun.send(read.clone());
            Ok(work.finish(request, read, &body, &wanted))
        });
        self.within(deadline, job, draft).await
    }

    /// The job's result, or at the deadline what it had found by then.
    async fn within(
        &self,
        deadline: tokio::time::Instant,
        job: impl Future<Output = Result<Result<Reading, Rejection>, JoinError>>,
        mut draft: oneshot::Receiver<ReadRequest>,
    ) -> Result<Reading, Rejection> {
        let (kind, detail) = match tokio::time::timeout_at(deadline, job).await {
            Ok(Ok(reading)) => return reading,
            Ok(Err(_)) => (Fallback::NotTokenizable, "the tokenizer panicked".to_owned()),
            Err(_) => (Fallback::TokenizeDeadline, self.over_deadline()),
        };
        Ok(Reading { read: draft.try_recv().unwrap_or_default().fell_back(kind, detail), job: None })
    }

    /// All slots are taken: what a scan alone says, of bodies that are scanned quickly.
    fn without_slot(&self, api: Api, body: &[u8], hints: &VideoHints) -> Result<Reading, Rejection> {
        let read = match body.len() <= INLINE_SCAN_BYTES {
            true => self.work.begin(api, body, hints, &KeysWanted::default())?.1,
            false => ReadRequest::default(),
        };
        Ok(Reading { read: read.fell_back(Fallback::TokenizeBusy, self.over_deadline()), job: None })
    }

    fn over_deadline(&self) -> String {
        format!("over {} ms", self.deadline.as_millis())
    }

    /// Asks the server that renders prompts.
    async fn render(
        &self,
        renderer: &Renderer,
        job: RenderJob,
        mut read: ReadRequest,
        wanted: KeysWanted,
    ) -> ReadRequest {
        let page = match renderer.ask(job).await {
            Ok(page) => page,
            Err(error) => return read.fell_back(error.fallback(), error.to_string()),
        };
        let work = self.work.clone();
        let keyed = move || match rendered_ids(&page) {
            Ok(ids) => {
                work.key(&mut read, ids, &wanted);
                read
            }
            Err(error) => read.fell_back(error.fallback(), error.to_string()),
        };
        let keyed = tokio::task::spawn_blocking(keyed).await;
        keyed.unwrap_or_else(|_| ReadRequest::default().fell_back(Fallback::RenderFailed, "keying panicked"))
    }
}

impl Work {
    /// Parses the body and guesses its tokens.
    fn begin<'b>(
        &self,
        api: Api,
        body: &'b [u8],
        hints: &VideoHints,
        wanted: &KeysWanted,
    ) -> Result<(ApiRequest<'b>, ReadRequest), Rejection> {
        let request = parse_request(api, body)?;
        let model = request.model.as_deref().unwrap_or_default();
        if api.needs_model() && model.is_empty() {
            return Err(Rejection::NoModel);
        }
        let estimated = match has_ids(&request) {
            true => None,
            false => self.estimate(&request, hints, wanted),
        };
        let mut read = ReadRequest {
            model: model.to_owned(),
            model_range: request.model_range.clone(),
            target_model: wanted.target_model.clone(),
            stream: request.stream,
            max_tokens: request.max_tokens,
            media_parts: request.media_parts,
            cache_salt: request.cache_salt.as_deref().map(str::to_owned),
            estimated,
            ..ReadRequest::default()
        };
        read.key_approximately(wanted);
        Ok((request, read))
    }

    fn estimate(
        &self,
        request: &ApiRequest<'_>,
        hints: &VideoHints,
        wanted: &KeysWanted,
    ) -> Option<EstimatedPrompt> {
        if !wanted.estimate {
            let prompt_tokens = self.estimator.count(request, hints)?;
            return Some(EstimatedPrompt { prompt_tokens, token_ids: Vec::new() });
        }
        let token_ids = self.estimator.pseudo_tokens(request, hints)?;
        Some(EstimatedPrompt { prompt_tokens: lengths(&token_ids), token_ids })
    }

    /// Makes exact tokens and keys, or says who can.
    fn finish(
        &self,
        mut request: ApiRequest<'_>,
        mut read: ReadRequest,
        body: &Bytes,
        wanted: &KeysWanted,
    ) -> Reading {
        if !has_ids(&request) && !wanted.tokens() {
            return Reading { read, job: None };
        }
        if self.renders
            && !has_ids(&request)
            && let Some(job) = RenderJob::of(&request, body)
        {
            return Reading { read, job: Some(job) };
        }
        match self.exact_tokens(&mut request) {
            Ok(ids) => self.key(&mut read, ids, wanted),
            // An estimate that is configured, and good for what is wanted, is no fallback.
            Err(note) if note.kind == Fallback::NoTokenizer && !wanted.prefix_match => {}
            Err(note)
                if note.kind == Fallback::NoPromptApi && !wanted.prefix_match && read.estimated.is_some() => {
            }
            Err(note) => read.fallback = Some(note),
        }
        Reading { read, job: None }
    }

    /// The token ids that the engine will see, one list per prompt.
    fn exact_tokens(&self, request: &mut ApiRequest<'_>) -> Result<Vec<Vec<u32>>, FallbackNote> {
        let takes_ids = has_ids(request);
        match &mut request.prompt {
            Prompt::TokenIds(ids) if takes_ids => return Ok(vec![std::mem::take(ids)]),
            Prompt::TokenIdLists(lists) if takes_ids => return Ok(std::mem::take(lists)),
            _ => {}
        }
        if !matches!(request.api, Api::ChatCompletions | Api::Completions) {
            return Err(FallbackNote { kind: Fallback::NoPromptApi, detail: String::new() });
        }
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| FallbackNote {
            kind: Fallback::NoTokenizer,
            detail: "start with --tokenizer DIR to match text prompts".to_owned(),
        })?;
        let prompts = tokenizer.tokens(request, &self.options).map_err(|error| note_of(&error))?;
        Ok(prompts.into_iter().map(|prompt| prompt.ids).collect())
    }

    /// Puts exact tokens and what follows from them in the place of the guess.
    fn key(&self, read: &mut ReadRequest, token_ids: Vec<Vec<u32>>, wanted: &KeysWanted) {
        let target = read.target_model();
        let lora = self.adapters.contains(target).then_some(target);
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
        let prompt = PromptKeys {
            prompt_tokens: lengths(&token_ids),
            sets: wanted.block_sizes_tokens.iter().copied().map(keys_for).collect(),
            token_ids: if wanted.token_ids { token_ids } else { Vec::new() },
        };
        read.prompt = Some(prompt);
        read.estimated = None;
        read.approximate = None;
        if wanted.approximate_of_exact {
            read.key_approximately(wanted);
        }
        if wanted.prefix_match && wanted.block_sizes_tokens.is_empty() {
            let detail = "no engine has told its block size yet".to_owned();
            read.fallback = Some(FallbackNote { kind: Fallback::BlockSizeUnknown, detail });
        }
    }
}

fn lengths(token_ids: &[Vec<u32>]) -> Vec<u32> {
    token_ids.iter().map(|ids| u32::try_from(ids.len()).unwrap_or(u32::MAX)).collect()
}

/// Whether the request gives token ids, and nothing else in it changes them or what their blocks hold.
fn has_ids(request: &ApiRequest<'_>) -> bool {
    let others: &[Field] = match request.api {
        Api::VllmGenerate => &[Field::Features],
        Api::SglangGenerate => &[Field::ImageData, Field::AudioData, Field::VideoData, Field::LoraPath],
        _ => &[Field::TruncatePromptTokens, Field::KvTransferParams, Field::PromptEmbeds],
    };
    let absent = |field: &Field| match request.api {
        Api::VllmGenerate | Api::SglangGenerate => request.field(*field).is_none_or(|value| value == b"null"),
        _ => request.field(*field).is_none(),
    };
    matches!(request.prompt, Prompt::TokenIds(_) | Prompt::TokenIdLists(_)) && others.iter().all(absent)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> PromptReader {
        PromptReader::new(None, Arc::default(), 1, Duration::from_millis(1))
    }

    #[tokio::test]
    async fn at_the_deadline_what_was_read_by_then_counts() {
        let (begun, draft) = oneshot::channel();
        begun.send(ReadRequest { model: "m".to_owned(), ..ReadRequest::default() }).unwrap();
        let now = tokio::time::Instant::now();
        let late = reader().within(now, std::future::pending(), draft).await.unwrap().read;
        assert_eq!((late.model.as_str(), late.fallback.unwrap().kind), ("m", Fallback::TokenizeDeadline));
        let (_begun, draft) = oneshot::channel();
        let later = reader().within(now, std::future::pending(), draft).await.unwrap().read;
        assert_eq!((later.model.as_str(), later.fallback.unwrap().kind), ("", Fallback::TokenizeDeadline));
    }

    #[tokio::test]
    async fn without_a_slot_small_bodies_are_still_scanned() {
        let reader = reader();
        let _all = reader.slots.clone().acquire_owned().await.unwrap();
        let wanted = KeysWanted { prefix_match: true, ..KeysWanted::default() };
        let read = async |padding: usize| {
            let text = "x".repeat(padding);
            let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#).into();
            reader.read(Api::ChatCompletions, &body, VideoHints::default(), wanted.clone()).await.unwrap()
        };
        let small = read(396).await;
        assert_eq!((small.model.as_str(), small.prompt_tokens()), ("m", Some(100)));
        assert_eq!(small.fallback.unwrap().kind, Fallback::TokenizeBusy);
        assert_eq!(read(INLINE_SCAN_BYTES).await.prompt_tokens(), None);
    }
}
