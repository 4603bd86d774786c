//! One request in the engine: its tokens as they come, turned into a whole or a streamed answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::answer::{AnswerHead, ChoicePart, DONE_EVENT, Usage};
use crate::api_error::ApiError;
use crate::prompts::Job;
use crate::scheduler::StepOutput;
use crate::words::Words;

/// A request whose prompts are all submitted. Dropping it aborts what isn't done.
pub(crate) struct Generation {
    pub(crate) head: AnswerHead,
    pub(crate) words: Arc<Words>,
    /// Tokens of all prompts of the request, in order of decoding.
    pub(crate) outputs: mpsc::Receiver<StepOutput>,
    /// The first prompt's id in the engine; the others follow.
    pub(crate) first_id: u64,
    pub(crate) jobs: Vec<Job>,
    pub(crate) with_token_ids: bool,
    pub(crate) with_details: bool,
    pub(crate) progress: Progress,
}

/// What has been decoded so far, over all prompts.
#[derive(Default)]
pub(crate) struct Progress {
    decoded_tokens: usize,
    // By prompt; filled with the first token.
    cached_tokens: Vec<Option<u32>>,
    finished: usize,
}

impl Generation {
    /// Waits for all tokens.
    pub(crate) async fn whole(mut self) -> Result<String, ApiError> {
        while self.progress.finished < self.jobs.len() {
            self.next_output().await.ok_or_else(ApiError::stopped)?;
        }
        let texts: Vec<String> = self
            .jobs
            .iter()
            .map(|job| {
                let mut text = String::new();
                for &id in &job.output_token_ids {
                    self.words.push_text(id, &mut text);
                }
                text
            })
            .collect();
        let choices: Vec<ChoicePart<'_>> = self
            .jobs
            .iter()
            .zip(&texts)
            .enumerate()
            .map(|(index, (job, text))| ChoicePart {
                index,
                text,
                token_ids: self.with_token_ids.then_some(&job.output_token_ids),
                prompt_token_ids: self.with_token_ids.then_some(&job.prompt_token_ids),
                is_finished: true,
            })
            .collect();
        Ok(self.head.whole(&choices, self.usage()))
    }

    /// Server-sent events, one per token.
    pub(crate) fn streamed(self, include_usage: bool, continuous_usage: bool) -> Body {
        let stream = EventStream {
            generation: self,
            ready: VecDeque::new(),
            include_usage,
            continuous_usage,
            is_done: false,
        };
        Body::from_stream(futures::stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next().await?;
            Some((Ok::<_, Infallible>(chunk), stream))
        }))
    }

    async fn next_output(&mut self) -> Option<StepOutput> {
        let output = self.outputs.recv().await?;
        let progress = &mut self.progress;
        progress.decoded_tokens += 1;
        progress.finished += usize::from(output.finished);
        progress.cached_tokens.resize(self.jobs.len(), None);
        if let Some(cached) = progress.cached_tokens.get_mut((output.id - self.first_id) as usize) {
            cached.get_or_insert(output.cached_tokens);
        }
        Some(output)
    }

    fn usage(&self) -> Usage {
        let prompt_tokens = self.jobs.iter().map(|job| job.prompt_token_ids.len()).sum();
        let cached_tokens = self.progress.cached_tokens.iter().flatten().sum();
        Usage::new(prompt_tokens, self.progress.decoded_tokens, self.with_details.then_some(cached_tokens))
    }
}

struct EventStream {
    generation: Generation,
    ready: VecDeque<String>,
    include_usage: bool,
    continuous_usage: bool,
    is_done: bool,
}

impl EventStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Bytes::from(event));
            }
            if self.is_done {
                return None;
            }
            // An engine that stops ends its streams without the last event, as a killed one does.
            let output = self.generation.next_output().await?;
            self.push_output(output);
            let generation = &self.generation;
            if generation.progress.finished == generation.jobs.len() {
                if self.include_usage {
                    self.ready.push_back(generation.head.usage_event(generation.usage()));
                }
                self.ready.push_back(DONE_EVENT.to_owned());
                self.is_done = true;
            }
        }
    }

    fn push_output(&mut self, output: StepOutput) {
        let generation = &self.generation;
        let usage = self.continuous_usage.then(|| generation.usage());
        let index = (output.id - generation.first_id) as usize;
        let is_first = generation.progress.decoded_tokens == 1;
        let prompt_token_ids = generation
            .jobs
            .get(index)
            .filter(|_| is_first && generation.with_token_ids)
            .map(|job| job.prompt_token_ids.as_slice());
        if generation.head.is_chat && is_first {
            self.ready.push_back(generation.head.role_event(prompt_token_ids, usage));
        }
        let mut text = String::new();
        generation.words.push_text(output.token_id, &mut text);
        let token_ids = [output.token_id];
        let piece = ChoicePart {
            index,
            text: &text,
            token_ids: generation.with_token_ids.then_some(&token_ids),
            prompt_token_ids,
            is_finished: output.finished,
        };
        self.ready.push_back(generation.head.piece_event(&piece, usage));
    }
}
