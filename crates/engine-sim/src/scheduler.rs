//! Continuous batching: which requests a step computes, and what comes out of it. No clock, no IO.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block_pool::CacheEvent;
use crate::latency::StepWork;
use crate::prefix_cache::{PrefixCache, Sequence};

/// A request as the scheduler needs it.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Chosen by the caller, unique among the requests in the engine.
    pub id: u64,
    /// Never empty.
    pub prompt_token_ids: Vec<u32>,
    /// The tokens it will decode. Never empty: its length is the number of output tokens.
    pub output_token_ids: Vec<u32>,
    /// Separates caches of equal tokens.
    pub cache_salt: Option<Arc<str>>,
    /// Whether cached blocks that it hits are announced again.
    pub reports_hits: bool,
}

/// A decoded token of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepOutput {
    /// The request.
    pub id: u64,
    /// The token.
    pub token_id: u32,
    /// Prompt tokens that came from the cache when the request was first admitted, be it the host's memory.
    pub cached_tokens: u32,
    /// Whether this was its last token.
    pub finished: bool,
}

/// Totals since the start, and the state of now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SchedulerStats {
    /// Requests in the running batch.
    pub running_requests: u32,
    /// Requests that wait for a place.
    pub waiting_requests: u32,
    /// Share of usable blocks held, 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens looked up in the prefix cache (recorded at admission).
    pub prefix_cache_queries_tokens: u64,
    /// Tokens of those that were hit.
    pub prefix_cache_hits_tokens: u64,
    /// Prompt tokens of admitted requests.
    pub prompt_tokens: u64,
    /// Prompt tokens of admitted requests that came from the cache.
    pub cached_prompt_tokens: u64,
    /// Those of them that were loaded from the host's memory.
    pub loaded_prompt_tokens: u64,
    /// Decoded tokens.
    pub generation_tokens: u64,
    /// Requests thrown out of the batch for want of blocks; they start again.
    pub preemptions: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    sequence: Sequence,
    prompt_tokens: usize,
    output_token_ids: Vec<u32>,
    decoded_tokens: usize,
    cached_tokens: Option<u32>,
    scheduled: bool,
}

/// The running batch and the queue before it, as in vLLM's `vllm/v1/core/sched/scheduler.py`: running requests
/// go first, a request that finds no block preempts the one admitted last, and waiting requests are admitted
/// in order of arrival while places, token budget and blocks last.
pub struct Scheduler {
    cache: PrefixCache,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    stats: SchedulerStats,
}

impl Scheduler {
    /// An empty batch over a cache. Limits of 0 count as 1.
    #[must_use]
    pub fn new(cache: PrefixCache, max_num_seqs: u32, max_num_batched_tokens: u32) -> Self {
        Self {
            cache,
            max_num_seqs: max_num_seqs.max(1) as usize,
            max_num_batched_tokens: max_num_batched_tokens.max(1) as usize,
            waiting: VecDeque::new(),
            running: Vec::new(),
            stats: SchedulerStats::default(),
        }
    }

    /// Puts a request at the end of the queue. One that could never fit (see [`Self::fits`]), or without
    /// prompt or output, is refused with false.
    pub fn submit(&mut self, request: NewRequest) -> bool {
        let NewRequest { id, prompt_token_ids, output_token_ids, cache_salt, reports_hits } = request;
        let prompt_tokens = prompt_token_ids.len();
        if prompt_tokens == 0
            || output_token_ids.is_empty()
            || !self.fits(prompt_tokens, output_token_ids.len())
        {
            return false;
        }
        self.waiting.push_back(Entry {
            id,
            sequence: Sequence::new(prompt_token_ids, cache_salt).reporting_hits(reports_hits),
            prompt_tokens,
            output_token_ids,
            decoded_tokens: 0,
            cached_tokens: None,
            scheduled: false,
        });
        true
    }

    /// Whether a request of this size fits into the usable blocks when it is alone. The KV of the last
    /// output token is never computed.
    #[must_use]
    pub fn fits(&self, prompt_tokens: usize, output_tokens: usize) -> bool {
        let blocks =
            (prompt_tokens + output_tokens).saturating_sub(1).div_ceil(self.cache.block_size_tokens());
        blocks <= self.cache.pool().usable_blocks() as usize
    }

    /// Takes requests out, wherever they are, and frees their blocks. Not between `schedule` and `complete`.
    pub fn abort(&mut self, mut is_gone: impl FnMut(u64) -> bool) {
        self.waiting.retain(|entry| !is_gone(entry.id));
        for mut entry in self.running.extract_if(.., |entry| is_gone(entry.id)) {
            self.cache.release(&mut entry.sequence);
        }
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Forms the next step: allocates blocks and counts its tokens as computed.
    pub fn schedule(&mut self) -> StepWork {
        let mut work = StepWork::default();
        let mut budget = self.max_num_batched_tokens;
        let preempted = self.schedule_running(&mut budget, &mut work);
        if !preempted {
            self.admit_waiting(&mut budget, &mut work);
        }
        work
    }

    /// Ends the step: every request whose tokens are all computed decodes one token; finished ones leave and
    /// free their blocks.
    pub fn complete(&mut self, outputs: &mut Vec<StepOutput>) {
        let mut finished = Vec::new();
        for (index, entry) in self.running.iter_mut().enumerate() {
            let complete = entry.sequence.computed_tokens() == entry.sequence.tokens();
            if !std::mem::take(&mut entry.scheduled) || !complete {
                continue;
            }
            let Some(&token_id) = entry.output_token_ids.get(entry.decoded_tokens) else { continue };
            entry.sequence.push_token(token_id);
            entry.decoded_tokens += 1;
            self.stats.generation_tokens += 1;
            let is_last = entry.decoded_tokens == entry.output_token_ids.len();
            outputs.push(StepOutput {
                id: entry.id,
                token_id,
                cached_tokens: entry.cached_tokens.unwrap_or(0),
                finished: is_last,
            });
            if is_last {
                self.cache.release(&mut entry.sequence);
                finished.push(index);
            }
        }
        for index in finished.into_iter().rev() {
            self.running.remove(index);
        }
    }

    /// Forgets everything cached; refused (false) while any request holds blocks. The event leaves with the
    /// next step, as in vLLM.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.cache.reset()
    }

    /// Cache events since the last call, in order. To be taken after [`Self::complete`].
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.cache.take_events()
    }

    /// Totals, and the state of now.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running_requests: self.running.len() as u32,
            waiting_requests: self.waiting.len() as u32,
            kv_cache_usage: self.cache.usage(),
            ..self.stats
        }
    }

    /// The cache, for looking at.
    #[must_use]
    pub fn cache(&self) -> &PrefixCache {
        &self.cache
    }

    /// One more token for every running request, or the next part of its prompt. Answers whether anything was
    /// preempted.
    fn schedule_running(&mut self, budget: &mut usize, work: &mut StepWork) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let entry = &mut self.running[index];
            let tokens = (entry.sequence.tokens() - entry.sequence.computed_tokens()).min(*budget);
            if self.cache.extend(&mut entry.sequence, tokens) {
                *budget -= tokens;
                entry.count_work(tokens, work);
                index += 1;
            } else {
                // The last one admitted makes room, be it the request itself.
                preempted = true;
                self.preempt_last();
            }
        }
        preempted
    }

    fn preempt_last(&mut self) {
        let Some(mut entry) = self.running.pop() else { return };
        debug_assert!(!entry.scheduled, "requests admitted later are scheduled later");
        self.cache.release(&mut entry.sequence);
        self.stats.preemptions += 1;
        self.waiting.push_front(entry);
    }

    fn admit_waiting(&mut self, budget: &mut usize, work: &mut StepWork) {
        while self.running.len() < self.max_num_seqs && *budget > 0 {
            let Some(entry) = self.waiting.front_mut() else { return };
            let hits = self.cache.lookup(&mut entry.sequence);
            let hit_tokens = hits.len() * self.cache.block_size_tokens();
            let loaded_tokens = self.cache.loadable_tokens(&entry.sequence, hits.len());
            let tokens = (entry.sequence.tokens() - hit_tokens - loaded_tokens).min(*budget);
            if !self.cache.admit(&mut entry.sequence, &hits, loaded_tokens + tokens) {
                return;
            }
            *budget -= tokens;
            work.loaded_tokens += loaded_tokens as u64;
            work.admitted_requests += 1;
            let Some(mut entry) = self.waiting.pop_front() else { return };
            entry.count_work(tokens, work);
            if entry.cached_tokens.is_none() {
                let cached_tokens = hit_tokens + loaded_tokens;
                entry.cached_tokens = Some(cached_tokens as u32);
                self.stats.prefix_cache_queries_tokens += entry.prompt_tokens as u64;
                self.stats.prefix_cache_hits_tokens += hit_tokens as u64;
                self.stats.prompt_tokens += entry.prompt_tokens as u64;
                self.stats.loaded_prompt_tokens += loaded_tokens as u64;
                self.stats.cached_prompt_tokens += cached_tokens as u64;
            }
            self.running.push(entry);
        }
    }
}

impl Entry {
    fn count_work(&mut self, tokens: usize, work: &mut StepWork) {
        self.scheduled = true;
        if tokens == 1 && self.decoded_tokens > 0 {
            work.decoding_requests += 1;
        } else {
            work.prefill_tokens += tokens as u64;
        }
    }
}
