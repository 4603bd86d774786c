//! From a request body to token ids and block keys: off the async threads, at most so many at once, under a deadline.

mod prompt_reader;
mod renderer;
mod token_source;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use warmroute_kv_index::{ApproximateExtras, BlockKey, approximate_keys};

pub use prompt_reader::PromptReader;
pub use renderer::{RenderError, Renderer};
pub use token_source::{TokenSource, estimator_of};

use crate::model_rewrites::{Rewrite, RewriteTable};
use crate::receipt::{Fallback, FallbackNote};

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
    /// Keys that approximate matches need; each block size once.
    pub approximate: Vec<ApproximateSize>,
    /// Whether they are needed of a prompt whose exact tokens are known, too.
    pub approximate_of_exact: bool,
    /// Which model the engine is asked for.
    pub target: ModelTarget,
}

/// What says which model the engine is asked for instead of the body's.
#[derive(Clone, Debug, Default)]
pub struct ModelTarget {
    /// What a header asks for.
    pub by_header: Option<Arc<str>>,
    /// Rules, which count before the header.
    pub rules: Option<Arc<RewriteTable>>,
    /// A random number, by which a rule's target is chosen.
    pub draw: u64,
    /// Whether the model of such a body can be replaced.
    pub is_possible: bool,
}

impl ModelTarget {
    /// Whether another model may be asked for: then the client's must be known, whatever that takes.
    fn is_asked(&self) -> bool {
        self.is_possible && (self.rules.is_some() || self.by_header.is_some())
    }

    /// The model instead of this one, and the name of the rule that says so, if one does. A rule is named even if the
    /// model can't be replaced.
    fn of(&self, model: &str) -> (Option<Arc<str>>, Option<Arc<str>>) {
        let rewrite = self.rules.as_ref().and_then(|rules| rules.rewrite(model, self.draw));
        let (target, rule) = match rewrite {
            Some(Rewrite { set, model }) => (Some(model), Some(set)),
            None => (self.by_header.clone(), None),
        };
        (target.filter(|_| self.is_possible), rule)
    }
}

/// Blocks in which approximate matches are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApproximateSize {
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Most blocks of a prompt, from its beginning.
    pub max_blocks: usize,
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

/// Token ids that the engine will see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExactTokens {
    /// All of them, one list per prompt.
    Whole(Vec<Vec<u32>>),
    /// Those of the one prompt before its first image, sound or video.
    BeforeMedia(Vec<u32>),
}

/// The prompt as the index needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptKeys {
    /// Tokens of each prompt; guessed, and more than there are keys for, if `is_up_to_media`.
    pub prompt_tokens: Vec<u32>,
    /// One set per block size in use.
    pub sets: Vec<KeySet>,
    /// The token ids of each prompt; empty unless [`KeysWanted::token_ids`], and if `is_up_to_media`.
    pub token_ids: Vec<Vec<u32>>,
    /// Whether the prompt is known up to its first image, sound or video only.
    pub is_up_to_media: bool,
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
        self.prompt_tokens.iter().fold(0, |sum, tokens| sum.saturating_add(*tokens))
    }

    /// The keys for one block size.
    pub fn set(&self, block_size_tokens: u32) -> Option<&KeySet> {
        self.sets.iter().find(|set| set.block_size_tokens == block_size_tokens)
    }
}

/// The prompts of a request as approximate indexes need them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApproximateKeys {
    /// Tokens of each prompt, guessed ones if `is_estimated`.
    pub prompt_tokens: Vec<u32>,
    /// One set per block size; the last block of a prompt counts even if it isn't full.
    pub sets: Vec<KeySet>,
    /// Whether they are made of pseudo-tokens.
    pub is_estimated: bool,
}

impl ApproximateKeys {
    /// The keys for one block size.
    pub fn set(&self, block_size_tokens: u32) -> Option<&KeySet> {
        self.sets.iter().find(|set| set.block_size_tokens == block_size_tokens)
    }

    fn new(read: &ReadRequest, ids: PromptTokenIds<'_>, sizes: &[ApproximateSize]) -> Self {
        let PromptTokenIds { prompts, is_estimated } = ids;
        let cache_salt = read.cache_salt.as_deref();
        let extras = ApproximateExtras { model: read.target_model(), cache_salt, is_estimated };
        let keys_for = |size: &ApproximateSize, ids: &[u32]| {
            let mut keys = Vec::new();
            approximate_keys(ids, size.block_size_tokens, &extras, size.max_blocks, &mut keys);
            keys
        };
        let set_for = |size: &ApproximateSize| KeySet {
            block_size_tokens: size.block_size_tokens,
            prompts: prompts.iter().map(|ids| keys_for(size, ids)).collect(),
        };
        Self {
            prompt_tokens: prompts.iter().map(|ids| ids.len() as u32).collect(),
            sets: sizes.iter().map(set_for).collect(),
            is_estimated,
        }
    }
}

/// What the body said.
#[derive(Clone, Debug, Default)]
pub struct ReadRequest {
    /// Model that the client named; empty if it named none.
    pub model: String,
    /// Bytes of the model's value in the body, quotes included.
    pub model_range: Option<Range<usize>>,
    /// Whether the API has vLLM's extra arguments for the engine (`vllm_xargs`).
    pub takes_engine_arguments: bool,
    /// The model that the engine is asked for instead.
    pub target_model: Option<Arc<str>>,
    /// The InferenceModelRewrite that asks for another model; None if none does.
    pub rewritten_by: Option<Arc<str>>,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// Most tokens to generate, if the client says.
    pub max_tokens: Option<u32>,
    /// Images, sounds and videos in the prompt.
    pub media_parts: u32,
    /// The salt that keeps this request's KV blocks from those of others.
    pub cache_salt: Option<String>,
    /// The prompt, if its exact tokens are known, or those before its first image, sound or video: those of prompts of
    /// token ids always, others if they are wanted.
    pub prompt: Option<PromptKeys>,
    /// What is guessed of the prompt, if its exact tokens aren't all known; None for APIs without a prompt.
    pub estimated: Option<EstimatedPrompt>,
    /// Keys of the prompt's tokens, exact or guessed, if approximate matches are wanted.
    pub approximate: Option<ApproximateKeys>,
    /// Why the exact tokens aren't known, if they should be.
    pub fallback: Option<FallbackNote>,
}

impl ReadRequest {
    /// The model that the engine is asked for.
    pub fn target_model(&self) -> &str {
        self.target_model.as_deref().unwrap_or(&self.model)
    }

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

    /// Whether [`Self::prompt_tokens`] is guessed.
    pub fn is_estimated(&self) -> bool {
        match &self.prompt {
            Some(prompt) => prompt.is_up_to_media,
            None => self.estimated.is_some(),
        }
    }

    /// The prompt, if all of its tokens are known and not only those before its first image, sound or video.
    pub fn whole_prompt(&self) -> Option<&PromptKeys> {
        self.prompt.as_ref().filter(|prompt| !prompt.is_up_to_media)
    }

    /// Prompts whose tokens are known or guessed.
    pub fn prompts(&self) -> usize {
        let exact = self.prompt.as_ref().map(|prompt| prompt.prompt_tokens.len());
        let estimated = || self.estimated.as_ref().map(|prompt| prompt.prompt_tokens.len());
        exact.or_else(estimated).unwrap_or(0)
    }

    /// Tokens of all prompts: exact if they are known, else guessed.
    pub fn prompt_tokens(&self) -> Option<u32> {
        let exact = self.prompt.as_ref().map(PromptKeys::total_tokens);
        exact.or_else(|| self.estimated.as_ref().map(EstimatedPrompt::total_tokens))
    }

    /// Makes the keys for approximate matches of what is known of the tokens by now.
    fn key_approximately(&mut self, wanted: &KeysWanted) {
        if !wanted.approximate.is_empty() {
            let keys = |ids| ApproximateKeys::new(self, ids, &wanted.approximate);
            self.approximate = self.token_ids().map(keys);
        }
    }

    fn fell_back(mut self, kind: Fallback, detail: impl Into<String>) -> Self {
        self.fallback = Some(FallbackNote { kind, detail: detail.into() });
        self
    }
}

/// Names of the LoRA adapters that engines list or have announced blocks for. A request for such a model has keys of its
/// own.
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

    /// All of them.
    pub fn names(&self) -> Vec<String> {
        self.0.load().iter().map(|name| name.to_string()).collect()
    }

    /// Whether a model is an adapter.
    pub fn contains(&self, model: &str) -> bool {
        self.0.load().contains(model)
    }
}
