//! Where prefix matches come from.

use std::net::SocketAddr;
use std::time::Duration;

use crate::CheckedConfig;

/// A producer of prefix matches, which plugins refer to by name.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PrefixProducerSpec {
    /// `precise-prefix-cache-producer`: what the engines' KV events say. At most one.
    Precise(PrecisePrefixSpec),
    /// `approx-prefix-cache-producer`: what was sent there.
    Approximate(ApproximatePrefixSpec),
    /// `burst-prefix-cache-producer`: the same here.
    Burst(ApproximatePrefixSpec),
    /// `prefix-cache-producer`, a type of our own: what the engine's KV events say where they are seen, else what was
    /// sent there.
    ExactFirst(ApproximatePrefixSpec),
}

impl PrefixProducerSpec {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Precise(spec) => &spec.name,
            Self::Approximate(spec) | Self::Burst(spec) | Self::ExactFirst(spec) => &spec.name,
        }
    }

    /// Its type in configurations.
    pub fn plugin_type(&self) -> &'static str {
        match self {
            Self::Precise(_) => "precise-prefix-cache-producer",
            Self::Approximate(_) => "approx-prefix-cache-producer",
            Self::Burst(_) => "burst-prefix-cache-producer",
            Self::ExactFirst(_) => "prefix-cache-producer",
        }
    }

    /// How it counts what was sent, if it does.
    pub fn approximate(&self) -> Option<&ApproximatePrefixSpec> {
        match self {
            Self::Precise(_) => None,
            Self::Approximate(spec) | Self::Burst(spec) | Self::ExactFirst(spec) => Some(spec),
        }
    }

    /// Whether it reads KV events.
    pub fn reads_events(&self) -> bool {
        matches!(self, Self::Precise(_) | Self::ExactFirst(_))
    }
}

/// The producer of exact prefix matches, from the engines' KV events.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PrecisePrefixSpec {
    /// Its name, which scorers refer to.
    pub name: String,
    /// Whether the blocks of a request that was just sent are expected at its engine until the engine's own
    /// events come.
    pub speculative_indexing: bool,
    /// For how long at least, counted from the pick.
    pub speculative_ttl: Duration,
    /// Topic prefix of the subscription; empty takes every topic.
    pub topic_filter: String,
    /// Where engines may connect their event sockets to; `None` if they may not.
    pub listen: Option<SocketAddr>,
    /// Whether every endpoint's own event socket is subscribed to.
    pub discover_pods: bool,
    /// Threads that apply events; at least 1.
    pub concurrency: u32,
    /// Port of the engines' event socket at their own host, for rank 0; `None` if the file doesn't say.
    pub socket_port: Option<u16>,
    /// Port of the engines' replay socket at their own host, for rank 0; 0 for no replays, `None` if the file doesn't say.
    pub replay_socket_port: Option<u16>,
    /// How much a matched block counts of an engine that has lost events since, 0 to 1.
    pub doubtful_match_weight: f64,
    /// How much a matched block counts by where it is.
    pub tier_weights: TierWeights,
    /// Whether requests ask engines of which not everything is known to announce again what they hit there (vLLM 0.26
    /// and later).
    pub relearn_hot_prefixes: bool,
}

/// How much a matched block counts by the tier that it is in, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierWeights {
    /// In GPU memory.
    pub gpu: f64,
    /// In the host's memory.
    pub cpu: f64,
    /// In files or objects.
    pub storage: f64,
    /// In a tier of another name.
    pub other: f64,
}

impl TierWeights {
    /// Every tier alike.
    pub const EQUAL: Self = Self { gpu: 1.0, cpu: 1.0, storage: 1.0, other: 1.0 };
}

impl Default for TierWeights {
    /// Those of the llm-d Router EPP: `gpu` 1, `cpu` 0.8, any other 1 (`pkg/kvcache/backend.go`).
    fn default() -> Self {
        Self { cpu: 0.8, ..Self::EQUAL }
    }
}

/// A producer of approximate prefix matches, from what was sent to each endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApproximatePrefixSpec {
    /// Its name, which scorers refer to.
    pub name: String,
    /// Whether block size and capacity are those that each endpoint tells in its metrics, where it does.
    pub auto_tune: bool,
    /// Tokens per block of endpoints that don't tell, or of all; more than 0.
    pub block_size_tokens: u32,
    /// The least tokens per block, whatever an endpoint tells; more than 0.
    pub min_block_size_tokens: u32,
    /// How much of a prompt is looked at.
    pub limit: PrefixLimit,
    /// Blocks that an endpoint has room for if it doesn't tell, or that all have; more than 0.
    pub capacity_blocks: u32,
}

/// How much of a prompt is looked at: its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrefixLimit {
    /// So many tokens; a block that they end in counts.
    Tokens(u32),
    /// So many blocks.
    Blocks(u32),
    /// All of it.
    None,
}

impl PrefixLimit {
    /// The same in blocks.
    pub fn blocks(self, block_size_tokens: u32) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.div_ceil(block_size_tokens.max(1)) as usize,
            Self::Blocks(blocks) => blocks as usize,
            Self::None => usize::MAX,
        }
    }
}

impl CheckedConfig {
    /// The producer called `name`.
    pub fn prefix_producer(&self, name: &str) -> Option<&PrefixProducerSpec> {
        self.prefix_producers.iter().find(|producer| producer.name() == name)
    }

    /// Which KV events are followed and how: as the exact producer says, or with its defaults if another one reads them;
    /// `None` if nothing does.
    pub fn kv_events(&self) -> Option<PrecisePrefixSpec> {
        let precise = self.prefix_producers.iter().find_map(|producer| match producer {
            PrefixProducerSpec::Precise(spec) => Some(spec.clone()),
            _ => None,
        });
        let others = || self.prefix_producers.iter().find(|producer| producer.reads_events());
        precise.or_else(|| others().map(|producer| PrecisePrefixSpec::new(producer.name())))
    }
}
