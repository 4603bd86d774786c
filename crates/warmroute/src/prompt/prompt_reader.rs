//! Reads bodies: parse, tokens or a guess of them, block keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use warmroute_inference_api::{Api, ApiRequest, Field, Prompt, Rejection, parse_request};
use warmroute_kv_index::{KeyExtras, block_keys};
use warmroute_tokenize::{
    Estimator, ModelTokenizer, PromptOptions, Rejection as Refused, TokenizeError, Unsupported, VideoHints,
};

use super::renderer::{MediaFeatures, RenderJob, Renderer, rendered_tokens};
use super::{
    AdapterNames, EstimatedPrompt, ExactTokens, KeySet, KeysWanted, ModelTarget, PromptKeys, ReadRequest,
    TokenSource,
};
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

/// A body and what is wanted of it.
#[derive(Clone)]
struct Source {
    api: Api,
    body: Bytes,
    hints: VideoHints,
    wanted: KeysWanted,
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
            let (request, read) = self.work.begin(api, body, wanted)?;
            return Ok(self.work.finish(request, read, body, &hints, wanted));
        }
        let deadline = tokio::time::Instant::now() + self.deadline;
        let Ok(slot) = tokio::time::timeout_at(deadline, self.slots.clone().acquire_owned()).await else {
            return self.without_slot(api, body, hints, wanted.target.clone()).await;
        };
        let (begun, draft) = oneshot::channel();
        let source = Source { api, body: body.clone(), hints, wanted: wanted.clone() };
        let (work, given) = (self.work.clone(), source.clone());
        // The slot is given back when the work is done, not when the wait for it is over.
        let job = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let Source { api, body, hints, wanted } = given;
            let (request, read) = work.begin(api, &body, &wanted)?;
            // Nobody may be waiting any more.
            let _ = begun.send(read.clone());
            Ok(work.finish(request, read, &body, &hints, &wanted))
        });
        let note = match tokio::time::timeout_at(deadline, job).await {
            Ok(Ok(reading)) => return reading,
            Ok(Err(_)) => {
                FallbackNote { kind: Fallback::NotTokenizable, detail: "the tokenizer panicked".to_owned() }
            }
            Err(_) => FallbackNote { kind: Fallback::TokenizeDeadline, detail: self.over_deadline() },
        };
        let read = self.without_tokens(source, draft).await?;
        Ok(Reading { read: ReadRequest { fallback: Some(note), ..read }, job: None })
    }

    /// What a body says without its exact tokens, which didn't come in time: with a guess of them, or if that takes
    /// as long again what had been read until then.
    async fn without_tokens(
        &self,
        source: Source,
        mut draft: oneshot::Receiver<ReadRequest>,
    ) -> Result<ReadRequest, Rejection> {
        if source.body.len() <= INLINE_SCAN_BYTES {
            return self.work.guess(&source);
        }
        let (work, is_asked) = (self.work.clone(), source.wanted.target.is_asked());
        let guess = tokio::task::spawn_blocking(move || work.guess(&source));
        match tokio::time::timeout(self.deadline, guess).await {
            Ok(Ok(guessed)) => guessed,
            // The scan is under way, and quick.
            _ if is_asked => Ok(draft.await.unwrap_or_default()),
            _ => Ok(draft.try_recv().unwrap_or_default()),
        }
    }

    /// All slots are taken: what a scan alone says, of bodies that are scanned quickly. Others are scanned only if the
    /// engine may be asked for another model: the engine may not know the client's.
    async fn without_slot(
        &self,
        api: Api,
        body: &Bytes,
        hints: VideoHints,
        target: ModelTarget,
    ) -> Result<Reading, Rejection> {
        let is_asked = target.is_asked();
        let wanted = KeysWanted { target, ..KeysWanted::default() };
        let source = Source { api, body: body.clone(), hints, wanted };
        let read = match body.len() <= INLINE_SCAN_BYTES {
            true => self.work.guess(&source)?,
            false if is_asked => {
                let work = self.work.clone();
                let scan = move || work.begin(api, &source.body, &source.wanted).map(|(_, read)| read);
                tokio::task::spawn_blocking(scan).await.unwrap_or_else(|_| Ok(ReadRequest::default()))?
            }
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
        let keyed = move || match rendered_tokens(&page) {
            Ok(tokens) => {
                work.key(&mut read, tokens, &wanted);
                read
            }
            Err(error) => read.fell_back(error.fallback(), error.to_string()),
        };
        let keyed = tokio::task::spawn_blocking(keyed).await;
        keyed.unwrap_or_else(|_| ReadRequest::default().fell_back(Fallback::RenderFailed, "keying panicked"))
    }
}

impl Work {
    /// Parses the body.
    fn begin<'b>(
        &self,
        api: Api,
        body: &'b [u8],
        wanted: &KeysWanted,
    ) -> Result<(ApiRequest<'b>, ReadRequest), Rejection> {
        let request = parse_request(api, body)?;
        let model = request.model.as_deref().unwrap_or_default();
        if api.needs_model() && model.is_empty() {
            return Err(Rejection::NoModel);
        }
        let (target_model, rewritten_by) = wanted.target.of(model);
        let read = ReadRequest {
            model: model.to_owned(),
            model_range: request.model_range.clone(),
            takes_engine_arguments: matches!(api, Api::Completions | Api::ChatCompletions),
            target_model,
            rewritten_by,
            stream: request.stream,
            max_tokens: request.max_tokens,
            media_parts: request.media_parts,
            cache_salt: request.cache_salt.as_deref().map(str::to_owned),
            ..ReadRequest::default()
        };
        Ok((request, read))
    }

    /// Parses a body and guesses its tokens.
    fn guess(&self, source: &Source) -> Result<ReadRequest, Rejection> {
        let Source { api, body, hints, wanted } = source;
        let (request, mut read) = self.begin(*api, body, wanted)?;
        self.add_guess(&mut read, &request, hints, wanted);
        Ok(read)
    }

    /// Guesses the tokens of a prompt. It is for where the exact ones aren't known: it takes its time, too.
    fn add_guess(
        &self,
        read: &mut ReadRequest,
        request: &ApiRequest<'_>,
        hints: &VideoHints,
        wanted: &KeysWanted,
    ) {
        if !has_ids(request) {
            read.estimated = self.estimate(request, hints, wanted);
        }
        read.key_approximately(wanted);
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

    /// Makes exact tokens and keys, or a guess of them, or says who can.
    fn finish(
        &self,
        mut request: ApiRequest<'_>,
        mut read: ReadRequest,
        body: &Bytes,
        hints: &VideoHints,
        wanted: &KeysWanted,
    ) -> Reading {
        let gives_ids = has_ids(&request);
        if !gives_ids && !wanted.tokens() {
            self.add_guess(&mut read, &request, hints, wanted);
            return Reading { read, job: None };
        }
        if self.renders
            && !gives_ids
            && let Some(job) = RenderJob::of(&request, body)
        {
            self.add_guess(&mut read, &request, hints, wanted);
            return Reading { read, job: Some(job) };
        }
        let note = match self.exact_tokens(&mut request) {
            Ok(tokens) => {
                if matches!(tokens, ExactTokens::BeforeMedia(_)) {
                    self.add_guess(&mut read, &request, hints, wanted);
                }
                self.key(&mut read, tokens, wanted);
                return Reading { read, job: None };
            }
            Err(note) => note,
        };
        self.add_guess(&mut read, &request, hints, wanted);
        // An estimate that is configured, and good for what is wanted, is no fallback.
        let is_estimate_enough = !wanted.prefix_match
            && match note.kind {
                Fallback::NoTokenizer => true,
                Fallback::NoPromptApi => read.estimated.is_some(),
                _ => false,
            };
        read.fallback = Some(note).filter(|_| !is_estimate_enough);
        Reading { read, job: None }
    }

    /// The token ids that the engine will see.
    fn exact_tokens(&self, request: &mut ApiRequest<'_>) -> Result<ExactTokens, FallbackNote> {
        if let Some(detail) = beyond_tokens(request) {
            return Err(FallbackNote { kind: Fallback::NotTokenizable, detail: detail.to_owned() });
        }
        let takes_ids = has_ids(request);
        let features = request.field(Field::Features).filter(|_| request.api == Api::VllmGenerate);
        let features = features.and_then(|value| serde_json::from_slice::<MediaFeatures>(value).ok());
        let before_media = features.and_then(|features| features.tokens_before());
        match &mut request.prompt {
            Prompt::TokenIds(ids) if takes_ids => return Ok(ExactTokens::Whole(vec![std::mem::take(ids)])),
            Prompt::TokenIdLists(lists) if takes_ids => return Ok(ExactTokens::Whole(std::mem::take(lists))),
            Prompt::TokenIds(ids) if let Some(tokens) = before_media => {
                return Ok(ExactTokens::BeforeMedia(ids[..tokens.min(ids.len())].to_vec()));
            }
            _ => {}
        }
        if !matches!(request.api, Api::ChatCompletions | Api::Completions) {
            return Err(FallbackNote { kind: Fallback::NoPromptApi, detail: String::new() });
        }
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| FallbackNote {
            kind: Fallback::NoTokenizer,
            detail: "start with --tokenizer DIR to match text prompts".to_owned(),
        })?;
        let tokens = match tokenizer.tokens(request, &self.options) {
            Ok(prompts) => Ok(ExactTokens::Whole(prompts.into_iter().map(|prompt| prompt.ids).collect())),
            Err(TokenizeError::Unsupported(Unsupported::Multimodal { .. })) => {
                tokenizer.tokens_before_media(request, &self.options).map(ExactTokens::BeforeMedia)
            }
            Err(error) => Err(error),
        };
        tokens.map_err(|error| note_of(&error))
    }

    /// Makes keys of tokens.
    fn key(&self, read: &mut ReadRequest, tokens: ExactTokens, wanted: &KeysWanted) {
        match tokens {
            ExactTokens::Whole(ids) => self.key_whole(read, ids, wanted),
            ExactTokens::BeforeMedia(ids) => self.key_before_media(read, ids, wanted),
        }
    }

    /// Puts exact tokens and what follows from them in the place of the guess.
    fn key_whole(&self, read: &mut ReadRequest, token_ids: Vec<Vec<u32>>, wanted: &KeysWanted) {
        let prompt = PromptKeys {
            prompt_tokens: lengths(&token_ids),
            sets: self.sets(read, &token_ids, wanted),
            token_ids: if wanted.token_ids { token_ids } else { Vec::new() },
            is_up_to_media: false,
        };
        read.prompt = Some(prompt);
        read.estimated = None;
        read.approximate = None;
        if wanted.approximate_of_exact {
            read.key_approximately(wanted);
        }
        note_unknown_block_size(read, wanted);
    }

    /// Adds what follows from the tokens before the first image, sound or video to the guess. The guess stands for the
    /// whole prompt, which is longer than these.
    fn key_before_media(&self, read: &mut ReadRequest, token_ids: Vec<u32>, wanted: &KeysWanted) {
        let known_tokens = u32::try_from(token_ids.len()).unwrap_or(u32::MAX);
        let guessed = read.estimated.as_ref().map_or(0, EstimatedPrompt::total_tokens);
        let prompt_tokens = guessed.max(known_tokens.saturating_add(1));
        if let Some(estimated) = &mut read.estimated {
            estimated.prompt_tokens = vec![prompt_tokens];
        }
        read.prompt = Some(PromptKeys {
            prompt_tokens: vec![prompt_tokens],
            sets: self.sets(read, &[token_ids], wanted),
            token_ids: Vec::new(),
            is_up_to_media: true,
        });
        let detail = format!("the first {known_tokens} tokens, which come before any image, sound or video");
        read.fallback = Some(FallbackNote { kind: Fallback::MatchedUpToMedia, detail });
        note_unknown_block_size(read, wanted);
    }

    fn sets(&self, read: &ReadRequest, token_ids: &[Vec<u32>], wanted: &KeysWanted) -> Vec<KeySet> {
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
        wanted.block_sizes_tokens.iter().copied().map(keys_for).collect()
    }
}

fn note_unknown_block_size(read: &mut ReadRequest, wanted: &KeysWanted) {
    if wanted.prefix_match && wanted.block_sizes_tokens.is_empty() {
        let detail = "no engine has told its block size yet".to_owned();
        read.fallback = Some(FallbackNote { kind: Fallback::BlockSizeUnknown, detail });
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
        _ => &[Field::TruncatePromptTokens, Field::KvTransferParams, Field::PromptEmbeds, Field::LoraPath],
    };
    let absent = |field: &Field| !request.has(*field);
    matches!(request.prompt, Prompt::TokenIds(_) | Prompt::TokenIdLists(_)) && others.iter().all(absent)
}

/// What of a request decides its blocks and is told neither by its tokens nor by events.
fn beyond_tokens(request: &ApiRequest<'_>) -> Option<&'static str> {
    let is_openai = matches!(request.api, Api::ChatCompletions | Api::Completions);
    if is_openai && request.has(Field::LoraPath) {
        return Some("events don't tell adapters that are asked for by lora_path");
    }
    (is_openai && request.has(Field::PromptEmbeds)).then_some("prompt embeddings have no tokens")
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
        TokenizeError::Unsupported(Unsupported::Multimodal { .. }) => (
            Fallback::NotTokenizable,
            "there are images, sounds or videos, and where they begin isn't known of this model".to_owned(),
        ),
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

    fn chat(padding: usize) -> Source {
        let text = "x".repeat(padding);
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#).into();
        let wanted = KeysWanted { prefix_match: true, ..KeysWanted::default() };
        Source { api: Api::ChatCompletions, body, hints: VideoHints::default(), wanted }
    }

    #[tokio::test]
    async fn at_the_deadline_a_guess_is_made() {
        let patient = PromptReader::new(None, Arc::default(), 1, Duration::from_secs(600));
        for padding in [396, 2 * INLINE_SCAN_BYTES] {
            let (_begun, draft) = oneshot::channel();
            let read = patient.without_tokens(chat(padding), draft).await.unwrap();
            assert_eq!(read.model, "m");
            assert_eq!(read.prompt_tokens(), Some(((padding + 4) / 4) as u32));
        }
        let bad = Source { body: "{".into(), ..chat(0) };
        assert!(patient.without_tokens(bad, oneshot::channel().1).await.is_err());
    }

    #[tokio::test]
    async fn where_a_guess_takes_too_long_what_was_read_by_then_counts() {
        let hurried = PromptReader::new(None, Arc::default(), 1, Duration::ZERO);
        let (begun, draft) = oneshot::channel();
        begun.send(ReadRequest { model: "m".to_owned(), ..ReadRequest::default() }).unwrap();
        let read = hurried.without_tokens(chat(2 * INLINE_SCAN_BYTES), draft).await.unwrap();
        assert_eq!(read.model, "m");
    }

    #[tokio::test]
    async fn late_tokens_are_a_fallback_with_a_guess() {
        let hurried = PromptReader::new(None, Arc::default(), 1, Duration::ZERO);
        let Source { api, body, hints, wanted } = chat(396);
        // The only slot may be had or not before the deadline, which is now.
        let read = hurried.read(api, &body, hints, wanted).await.unwrap();
        assert_eq!((read.model.as_str(), read.prompt_tokens()), ("m", Some(100)));
        assert!(read.fallback.is_some());
    }

    #[tokio::test]
    async fn without_a_slot_small_bodies_are_still_scanned() {
        let reader = reader();
        let _all = reader.slots.clone().acquire_owned().await.unwrap();
        let read = async |padding: usize| {
            let Source { api, body, hints, wanted } = chat(padding);
            reader.read(api, &body, hints, wanted).await.unwrap()
        };
        let small = read(396).await;
        assert_eq!((small.model.as_str(), small.prompt_tokens()), ("m", Some(100)));
        assert_eq!(small.fallback.unwrap().kind, Fallback::TokenizeBusy);
        let large = read(INLINE_SCAN_BYTES).await;
        assert_eq!((large.model.as_str(), large.prompt_tokens()), ("", None));
    }

    #[tokio::test]
    async fn a_model_that_is_to_be_replaced_is_read_however_busy_it_is() {
        let by_header = Some(Arc::from("other"));
        let target = ModelTarget { by_header, is_possible: true, ..ModelTarget::default() };
        let asking = |padding: usize| {
            let mut source = chat(padding);
            source.wanted.target = target.clone();
            source
        };
        let busy = reader();
        let _all = busy.slots.clone().acquire_owned().await.unwrap();
        for padding in [396, INLINE_SCAN_BYTES] {
            let Source { api, body, hints, wanted } = asking(padding);
            let read = busy.read(api, &body, hints, wanted).await.unwrap();
            assert_eq!((read.model.as_str(), read.target_model.as_deref()), ("m", Some("other")));
            assert_eq!(read.fallback.unwrap().kind, Fallback::TokenizeBusy);
        }
        let hurried = PromptReader::new(None, Arc::default(), 1, Duration::ZERO);
        let (begun, draft) = oneshot::channel();
        let source = asking(2 * INLINE_SCAN_BYTES);
        let read = tokio::join!(hurried.without_tokens(source, draft), async {
            tokio::task::yield_now().await;
            let _ = begun.send(ReadRequest { model: "m".to_owned(), ..ReadRequest::default() });
        });
        assert_eq!(read.0.unwrap().model, "m");
    }
}
